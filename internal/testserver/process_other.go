//go:build unix && !linux

package testserver

import "syscall"

// dieWithParent does nothing: only Linux has death signals. Elsewhere servers
// end with their test or with Main, and outlive a test process that is killed.
func dieWithParent(*syscall.SysProcAttr) {}
