// Package proof_test runs the built commands as processes against real SQLite
// files, MariaDB and memcached servers, and judges them from outside: by the
// independent checker over what the readers print, and by ledgers that the
// processes under test do not write to the pipe.
//
// Each scenario has a short form for `go test` and a long one, chosen by
// MVALVE_PROOF=long, which asserts the use of the limits that the short one
// only watches over: other packages' tests run at the same time.
package proof_test

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/mvalve/mvalve/internal/testserver"
)

// long is the long form.
var long = os.Getenv("MVALVE_PROOF") == "long"

// bin is the folder of the commands, built once.
var bin string

// consumerPath is the binary that plays the consumer.
var consumerPath string

func TestMain(m *testing.M) {
	if os.Getenv(roleVariable) == consumerRole {
		if err := consume(); err != nil {
			fmt.Fprintln(os.Stderr, "consumer:", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(runTests(m))
}

func runTests(m *testing.M) int {
	defer testserver.Stop()
	dir, err := os.MkdirTemp("", "mvalve-proof-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	bin = dir
	if err := build(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	flag.Parse()
	if !long {
		// The tests wait more than they work. A -parallel of the caller's is overruled.
		if err := flag.Set("test.parallel", "4"); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	return m.Run()
}

// build builds the commands, and with them the consumer if this binary is not
// fit to be it.
func build() error {
	runs := [][]string{{"build", "-o", bin + string(filepath.Separator), "../../cmd/..."}}
	consumerPath = os.Args[0]
	if raceDetector {
		consumerPath = filepath.Join(bin, "consumer")
		runs = append(runs, []string{"test", "-c", "-o", consumerPath, "."})
	}
	for _, args := range runs {
		if out, err := exec.Command("go", args...).CombinedOutput(); err != nil {
			return fmt.Errorf("go %s: %w: %s", args[0], err, out)
		}
	}
	return nil
}

// shortOrLong picks a value for the form that runs.
func shortOrLong[T any](inShort, inLong T) T {
	if long {
		return inLong
	}
	return inShort
}

// alone runs a test beside others only in the short form: the long one judges
// how much of a limit is used, or how long something takes.
func alone(t *testing.T) {
	if !long {
		t.Parallel()
	}
}

// measure lets the processes run for d: the span of a measurement, never a wait
// for something to happen.
func measure(d time.Duration) { <-time.After(d) }

// patience is how long the tests wait for what has to happen at some time. A
// shared machine stands still for seconds: how long something took is judged in
// the long form.
const patience = time.Minute

// goOn prolongs a measurement of the short form, for as long as patience lasts,
// until done, and reports whether it came to that. The long form measures for the
// time it has chosen: goOn returns false at once.
func goOn(done func() bool) bool {
	for end := time.Now().Add(patience); !long && time.Now().Before(end); measure(200 * time.Millisecond) {
		if done() {
			return true
		}
	}
	return false
}

// waitFor polls until done reports true.
func waitFor(t *testing.T, limit time.Duration, what string, done func() bool) {
	t.Helper()
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-deadline.C:
			t.Fatalf("not within %v: %s", limit, what)
		case <-tick.C:
		}
	}
}
