//go:build !linux

package chaos_test

import (
	"errors"
	"testing"
)

func smallDisk(*testing.T, string, int64) error {
	return errors.New("only on Linux")
}

func fill(string) (func(), error) { return nil, errors.New("only on Linux") }
