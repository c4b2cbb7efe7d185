//go:build unix

package sqlite

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/mvalve/mvalve/queue"
)

// childReadOnly makes TestOpenReadOnly a child that opens the database at the path
// as a user who is not root.
const childReadOnly = "MVALVE_SQLITE_TEST_READ_ONLY"

// nobody is a user id that owns nothing else.
const nobody = 65534

// openAsNobody prints how it went.
func openAsNobody(path string) error {
	if os.Geteuid() == 0 {
		if err := errors.Join(syscall.Setgid(nobody), syscall.Setuid(nobody)); err != nil {
			return err
		}
	}
	s, err := Open(context.Background(), Config{Path: path})
	switch {
	case err == nil:
		fmt.Println("opened")
		return s.Close()
	case errors.Is(err, queue.ErrRefused):
		fmt.Println("refused:", err)
	default:
		fmt.Println(err)
	}
	return nil
}

// TestOpenReadOnly: root may write everywhere, so a child of another user opens
// the file; it does as long as the file can be written.
func TestOpenReadOnly(t *testing.T) {
	if path := os.Getenv(childReadOnly); path != "" {
		if err := openAsNobody(path); err != nil {
			t.Fatal(err)
		}
		return
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "ro.db")
	s := open(t, path)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		files, err := filepath.Glob(filepath.Join(dir, "*"))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range append(files, dir) {
			if err := os.Chown(name, nobody, nobody); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil { // the way there
			t.Fatal(err)
		}
	}
	for mode, want := range map[os.FileMode]string{0o600: "opened\n", 0o400: "refused: "} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestOpenReadOnly$")
		cmd.Env = append(os.Environ(), childReadOnly+"="+path)
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.HasPrefix(string(out), want) || mode == 0o400 && !strings.Contains(string(out), path) {
			t.Errorf("a file of mode %v: %q, %v, want %q", mode, out, err, want)
		}
	}
}
