package chaos_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// smallDisk mounts a disk of so many bytes in memory on an existing folder until
// the test ends. The error says why there is none.
func smallDisk(t *testing.T, dir string, bytes int64) error {
	t.Helper()
	sweepDisks()
	if err := syscall.Mount(fmt.Sprint(diskName, os.Getpid()), dir, "tmpfs", 0, fmt.Sprintf("size=%d", bytes)); err != nil {
		return fmt.Errorf("mount tmpfs: %w", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	return nil
}

// diskName and the process's id name its small disks.
const diskName = "mvalve-chaos-"

// sweepDisks unmounts what test processes that were killed left mounted.
func sweepDisks() {
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return // nothing is known of any
	}
	for line := range strings.Lines(string(mounts)) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		text, ok := strings.CutPrefix(fields[0], diskName)
		pid, err := strconv.Atoi(text)
		if ok && err == nil && errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
			_ = syscall.Unmount(fields[1], syscall.MNT_DETACH) // another one may be at it
		}
	}
}

// fill leaves no room on the disk of dir; free makes room again.
func fill(dir string) (free func(), err error) {
	path := filepath.Join(dir, "filler")
	f, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	for block := make([]byte, 64<<10); err == nil && len(block) > 0; {
		if _, err = f.Write(block); errors.Is(err, syscall.ENOSPC) {
			block, err = block[:len(block)/2], nil
		}
	}
	return func() { os.Remove(path) }, err
}
