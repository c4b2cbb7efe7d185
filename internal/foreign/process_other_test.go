//go:build !linux

package foreign_test

import "syscall"

func dieWithParent() *syscall.SysProcAttr { return nil }
