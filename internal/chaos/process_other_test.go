//go:build !linux

package chaos_test

import "syscall"

// dieWithParent ends a process under test when the tests are killed: not here.
func dieWithParent() *syscall.SysProcAttr { return nil }
