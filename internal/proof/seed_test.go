package proof_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mvalve/mvalve/internal/checker"
)

// TestOneByOne: the historic test. Of a burst at once one passes, all others
// are throttled and then arrive one by one; the log counts what went in and out.
func TestOneByOne(t *testing.T) {
	t.Parallel()
	n := shortOrLong(5, 32)
	p := newPipe(t, onSQLite)
	p.limit(t, "*", "1/1.4s")
	writer := p.writer(t, backlog(n, "a"))
	writer.wait(t, patience)
	reader := p.reader(t, "--drain")
	limit := checker.Limit{Max: 1, Window: 1400 * time.Millisecond}
	reader.wait(t, time.Duration(n)*limit.Window+patience)
	log := dispatches(t, reader)
	judge(t, log, "a", limit, use(limit))
	if len(log["a"]) != n {
		t.Errorf("%d arrived of %d", len(log["a"]), n)
	}
	counted := map[string]int64{}
	for line := range bytes.Lines([]byte(p.mvalve(t, "stats", "--json"))) {
		var row struct{ Actions map[string]int64 }
		if err := json.Unmarshal(line, &row); err != nil {
			t.Fatalf("%v: %q", err, line)
		}
		for action, count := range row.Actions {
			counted[action] += count
		}
	}
	for action, by := range map[string]*process{"enqueue": writer, "dequeue": reader} {
		// Statistics are given up where a disk stalls for long, and the log says so.
		if counted[action] < int64(n) && strings.Contains(by.stderr(), "statistics not written") {
			continue
		}
		if counted[action] != int64(n) {
			t.Errorf("the log counts %d %s, want %d (%v)", counted[action], action, n, counted)
		}
	}
}

// TestDuration: X-Mvalve-Duration on messages that are no emergency delays the
// first and spaces the series, as in the historic test.
func TestDuration(t *testing.T) {
	t.Parallel()
	n, gap := shortOrLong(4, 8), shortOrLong(time.Second, 3*time.Second)
	p := newPipe(t, onSQLite)
	p.limit(t, "*", "10/1s")
	reader := p.reader(t, "--count", fmt.Sprint(n))
	p.write(t, backlog(n, "a"), "--header", fmt.Sprintf("X-Mvalve-Duration=%v", gap.Seconds()))
	reader.wait(t, time.Duration(n)*gap+patience)
	var enqueued time.Time
	for line := range bytes.Lines(reader.stdout()) {
		var m struct {
			EnqueuedAt time.Time `json:"enqueued_at"`
		}
		if err := json.Unmarshal(line, &m); err != nil {
			t.Fatal(err)
		}
		enqueued = m.EnqueuedAt
	}
	stamps := slices.Sorted(slices.Values(dispatches(t, reader)["a"]))
	if len(stamps) != n {
		t.Fatalf("%d arrived of %d", len(stamps), n)
	}
	before := enqueued.UnixMicro()
	for i, s := range stamps {
		took := time.Duration(s-before) * time.Microsecond
		t.Logf("%d after %v", i, took)
		if took < gap || long && took > gap+500*time.Millisecond {
			t.Errorf("message %d came %v after the one before, want %v", i, took, gap)
		}
		before = s
	}
}
