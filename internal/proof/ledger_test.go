package proof_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// delivery is one handing out of a message, as its consumer saw it.
type delivery struct {
	from    string // the ledger, or the process, that tells
	attempt int
	at      int64 // microseconds, the pipe's clock
	began   bool  // the ack was called
	acked   bool  // the ack returned: it is durable
}

// ledger is what is known outside of the pipe.
type ledger struct {
	committed map[string]bool        // ids that a writer printed: it does so after the commit
	delivered map[string][]*delivery // by id
	bodies    map[string]string      // body to id, of what was delivered
	failures  []string
}

func newLedger() *ledger {
	return &ledger{committed: make(map[string]bool), delivered: make(map[string][]*delivery), bodies: make(map[string]string)}
}

// addWriter reads what a writer with --print-ids printed. A last line without
// its end is not complete.
func (l *ledger) addWriter(p *process) int {
	n := 0
	for line := range bytes.Lines(p.whole()) {
		l.committed[string(bytes.TrimSuffix(line, []byte("\n")))] = true
		n++
	}
	return n
}

// addReader reads what mvalve-reader printed: it acks after printing, but does
// not say when that is done.
func (l *ledger) addReader(t *testing.T, p *process) {
	t.Helper()
	for line := range bytes.Lines(p.whole()) {
		var m struct {
			ID, Body     string
			Attempt      int
			DispatchedAt time.Time `json:"dispatched_at"`
		}
		if err := json.Unmarshal(line, &m); err != nil {
			t.Fatalf("line of a reader: %v: %q", err, line)
		}
		l.got(m.ID, m.Body, &delivery{from: fmt.Sprint(p.cmd.Process.Pid), attempt: m.Attempt, at: m.DispatchedAt.UnixMicro(), began: true})
	}
}

// addConsumer reads the ledger of a consumer.
func (l *ledger) addConsumer(t *testing.T, path string) {
	t.Helper()
	text, err := os.ReadFile(path)
	if os.IsNotExist(err) {
		return // killed before it began
	}
	if err != nil {
		t.Fatal(err)
	}
	open := make(map[string]*delivery)
	for line := range bytes.Lines(text[:bytes.LastIndexByte(text, '\n')+1]) { // it may have been killed while writing the last one
		var (
			event, id string
			attempt   int
			at        int64
		)
		text := strings.TrimSuffix(string(line), "\n")
		fields := strings.SplitN(text, " ", 5)
		if _, err := fmt.Sscan(text, &event, &id, &attempt, &at); err != nil || len(fields) != 5 {
			t.Fatalf("line of a ledger: %v: %q", err, text)
		}
		key := fmt.Sprint(id, attempt)
		d := open[key]
		switch event {
		case "G":
			open[key] = &delivery{from: path, attempt: attempt, at: at}
			l.got(id, fields[4], open[key])
		case "B":
			d.began = true
		case "A":
			d.acked = true
		case "E":
			l.failures = append(l.failures, fields[4])
		}
	}
}

func (l *ledger) got(id, body string, d *delivery) {
	l.delivered[id] = append(l.delivered[id], d)
	if other, ok := l.bodies[body]; ok && other != id {
		l.failures = append(l.failures, fmt.Sprintf("DOUBLED %q as %s and %s", body, other, id))
	}
	l.bodies[body] = id
}

// clockError is how far two processes may be apart on the pipe's clock.
const clockError = 20 * time.Millisecond

// judge compares what was committed, delivered and acked. The pipe is empty.
func (l *ledger) judge(t *testing.T, lease time.Duration) {
	t.Helper()
	var lost, dropped, again, overlap, doubled, repeats int
	first := make(map[string]string) // kind to the first case
	found := func(n *int, kind, format string, args ...any) {
		*n++
		if first[kind] == "" {
			first[kind] = fmt.Sprintf(format, args...)
		}
	}
	for id := range l.committed {
		if len(l.delivered[id]) == 0 {
			found(&lost, "lost", "%s was committed and never delivered", id)
		}
	}
	for id, ds := range l.delivered {
		slices.SortFunc(ds, func(a, b *delivery) int { return int(a.at - b.at) })
		repeats += len(ds) - 1
		// Nobody acked it, the last holder did not even begin, and it is gone.
		if !slices.ContainsFunc(ds, func(d *delivery) bool { return d.began }) {
			found(&dropped, "dropped", "%s was delivered, not acked, and is gone", id)
		}
		for i, d := range ds[1:] {
			before := ds[i]
			if before.acked {
				found(&again, "again", "%s was acked and delivered again: %+v, %+v", id, *before, *d)
			}
			if d.at-before.at < (lease/2 - clockError).Microseconds() {
				found(&overlap, "overlap", "%s was delivered twice within half a lease: %+v, %+v", id, *before, *d)
			}
		}
	}
	for _, f := range l.failures {
		if strings.HasPrefix(f, "DOUBLED") {
			found(&doubled, "doubled", "%s", f)
		}
	}
	t.Logf("ledger: %d committed, %d delivered, %d of them again before an ack, %d failed acks; lost %d, dropped %d, acked and again %d, leases overlapping %d, doubled %d",
		len(l.committed), len(l.delivered), repeats, len(l.failures)-doubled, lost, dropped, again, overlap, doubled)
	for kind, text := range first {
		t.Errorf("%s: %s", kind, text)
	}
}
