package sqlite

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/mvalve/mvalve/queue"
)

const (
	childEnv   = "MVALVE_SQLITE_TEST_CHILD" // path of the database; makes the test binary a child
	childBatch = "MVALVE_SQLITE_TEST_BATCH" // messages per call; negative: see ledger
)

func TestMain(m *testing.M) {
	if path := os.Getenv(childEnv); path != "" {
		if err := child(path); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// childReport is what a child prints when its stdin is closed.
type childReport struct {
	Cycles int
	Waits  []time.Duration // for the lock, per transaction
	Helds  []time.Duration // how long the lock was held
}

// child puts, leases and acks batches until its stdin ends: back to back with a
// batch above 1, else with a pause of 5 ms.
func child(path string) error {
	s, err := Open(context.Background(), Config{Path: path, Readers: 1})
	if err != nil {
		return err
	}
	var report childReport
	s.w.took = func(wait, held time.Duration) {
		report.Waits, report.Helds = append(report.Waits, wait), append(report.Helds, held)
	}
	batch := 1
	if _, err := fmt.Sscan(os.Getenv(childBatch), &batch); err != nil {
		return err
	}
	fmt.Println("ready")
	if batch < 0 {
		return ledger(path)
	}
	stop := make(chan struct{})
	go func() {
		_, _ = bufio.NewReader(os.Stdin).ReadByte()
		close(stop)
	}()
	var ids queue.IDSource
	tick := time.NewTicker(5 * time.Millisecond)
	for {
		select {
		case <-stop:
			if err := s.Close(); err != nil {
				return err
			}
			return json.NewEncoder(os.Stdout).Encode(report)
		default:
		}
		if batch == 1 {
			<-tick.C
		}
		if err := cycle(context.Background(), s, &ids, benchMessages(&ids, batch, 10)); err != nil {
			return err
		}
		report.Cycles++
	}
}

type process struct {
	cmd   *exec.Cmd
	stdin interface{ Close() error }
	out   *bufio.Reader
}

func startChild(t *testing.T, path string, batch int) *process {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+path, fmt.Sprint(childBatch, "=", batch))
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &process{cmd, stdin, bufio.NewReader(stdout)}
	if line, err := p.out.ReadString('\n'); err != nil {
		t.Fatalf("child said %q, %v", line, err)
	}
	return p
}

func (p *process) stop(t *testing.T) (r childReport) {
	t.Helper()
	_ = p.stdin.Close()
	if err := json.NewDecoder(p.out).Decode(&r); err != nil {
		t.Errorf("child's report: %v", err)
	}
	if err := p.cmd.Wait(); err != nil {
		t.Error(err)
	}
	return r
}

// TestProcessesShareFairly runs nine processes that write now and then beside
// one that commits back to back. Whoever waits must come before the greedy one
// comes again: its wait is about one transaction of each of the others, however
// slow the machine is. Without the turnstile it is seconds.
func TestProcessesShareFairly(t *testing.T) {
	path := filepath.Join(t.TempDir(), "shared.db")
	greedy := startChild(t, path, 1000)
	var modest []*process
	for range 9 {
		modest = append(modest, startChild(t, path, 1))
	}
	<-time.After(3 * time.Second) // the measurement itself
	var waits, helds []time.Duration
	fewest := 1 << 30
	for _, p := range modest {
		r := p.stop(t)
		waits, helds = append(waits, r.Waits...), append(helds, r.Helds...)
		fewest = min(fewest, len(r.Waits))
	}
	full := greedy.stop(t)
	if len(waits) == 0 || len(full.Helds) == 0 {
		t.Fatal("no transactions")
	}
	t.Logf("%d transactions of 9 processes (fewest %d) beside %d of 1,000 rows: lock wait p50 %v, p99 %v, worst %v; greedy held it p50 %v, p99 %v",
		len(waits), fewest, len(full.Helds), quantile(waits, 50), quantile(waits, 99), quantile(waits, 100),
		quantile(full.Helds, 50), quantile(full.Helds, 99))
	// A disk that stalls once makes all others wait once, and that may be one in a
	// hundred of their waits: then the worst wait is judged, by the longest turn.
	const stall = 250 * time.Millisecond
	percent := 99
	if max(quantile(full.Helds, 100), quantile(helds, 100)) > stall {
		percent = 100
	}
	limit := max(10*time.Millisecond, 2*quantile(full.Helds, percent)+9*quantile(helds, percent))
	if wait := quantile(waits, percent); wait > limit {
		t.Errorf("lock wait p%d is %v, want at most %v", percent, wait, limit)
	}
	if fewest < len(full.Helds)/5 {
		t.Errorf("a process had %d turns beside %d of the greedy one", fewest, len(full.Helds))
	}
	s := open(t, path)
	if n := waiting(t, s); n != 0 {
		t.Errorf("%d messages left", n)
	}
}

func quantile(d []time.Duration, percent int) time.Duration {
	slices.Sort(d)
	return d[min(len(d)*percent/100, len(d)-1)]
}
