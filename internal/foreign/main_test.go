package foreign_test

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/mvalve/mvalve/internal/testserver"
	"github.com/mvalve/mvalve/internal/testserver/locate"
)

// patience is how long a test waits for what must come, quiet how long it
// listens for what must not.
const (
	patience = 30 * time.Second
	quiet    = 200 * time.Millisecond
)

// command is the path of mvalve, built once.
var command string

func TestMain(m *testing.M) { os.Exit(runTests(m)) }

func runTests(m *testing.M) int {
	defer testserver.Stop()
	dir, err := os.MkdirTemp("", "mvalve-foreign-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	command = filepath.Join(dir, "mvalve")
	if out, err := exec.Command("go", "build", "-o", command, "../../cmd/mvalve").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "go build: %v: %s\n", err, out)
		return 1
	}
	flag.Parse()
	// The tests wait more than they work. A -parallel of the caller's is overruled.
	if err := flag.Set("test.parallel", "10"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// find returns a client's program; without it the test is skipped, and fails
// in CI, where a skip would look like success.
func find(t *testing.T, program func() (locate.Program, error)) locate.Program {
	t.Helper()
	p, err := program()
	switch {
	case err == nil:
	case os.Getenv("CI") == "true" || !errors.Is(err, locate.ErrNotFound):
		t.Fatal(err)
	default:
		t.Skipf("%v (make servers fetches clients)", err)
	}
	return p
}
