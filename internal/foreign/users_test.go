package foreign_test

import (
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/mvalve/mvalve/auth"
)

// The user of the tests. The passcode is what clients escape differently in
// CONNECT: go-stomp always, the others never.
const (
	login    = "alice"
	passcode = `p:a\ss\c`
)

var hash = sync.OnceValues(func() (string, error) { return auth.Hash(passcode) })

// usersFile returns a file of users with the user of the tests.
func usersFile(t *testing.T) string {
	t.Helper()
	text, err := hash()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "users")
	if err := os.WriteFile(path, []byte(login+":"+text+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
