//go:build unix

package demo

import (
	"os/exec"
	"syscall"
)

// ownGroup puts cmd into a process group of its own: a Ctrl-C is for the demo,
// which then ends its readers in order.
func ownGroup(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} }
