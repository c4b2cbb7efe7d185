package chaos_test

import "syscall"

// dieWithParent ends a process under test when the tests are killed.
func dieWithParent() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }
