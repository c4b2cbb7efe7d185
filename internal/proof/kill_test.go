package proof_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"testing"
	"time"

	"github.com/mvalve/mvalve/internal/testserver"
)

// herd is a writer, readers and consumers on one pipe, killed and started again
// by a test, with all ledgers they leave behind.
type herd struct {
	t       *testing.T
	p       *pipe
	dir     string
	bodies  int
	writers []*process // all that ever ran; the last one is live
	readers []*process
	ledgers []string
}

func newHerd(t *testing.T, p *pipe) *herd { return &herd{t: t, p: p, dir: t.TempDir()} }

// writer starts a writer with bodies that no other writer had.
func (h *herd) writer(n int, rate string) *process {
	h.t.Helper()
	var lines bytes.Buffer
	for range n {
		h.bodies++
		fmt.Fprintf(&lines, "{\"destination\":\"d%d\",\"body\":\"%d\"}\n", h.bodies%7, h.bodies)
	}
	w := h.p.writer(h.t, lines.Bytes(), "--print-ids", "--rate", rate)
	h.writers = append(h.writers, w)
	return w
}

func (h *herd) reader() *process {
	h.t.Helper()
	r := h.p.reader(h.t, "--lease", "1s")
	h.readers = append(h.readers, r)
	return r
}

func (h *herd) consumer() *process {
	h.t.Helper()
	path := filepath.Join(h.dir, fmt.Sprintf("ledger%d", len(h.ledgers)))
	h.ledgers = append(h.ledgers, path)
	return h.p.consumer(h.t, path, 3*time.Millisecond)
}

// drain waits until the pipe is empty and judges.
func (h *herd) drain(live ...*process) {
	h.t.Helper()
	began := time.Now()
	waitFor(h.t, 3*patience, "the pipe is empty", func() bool {
		left, dead := h.p.left(h.t)
		if dead > 0 {
			h.t.Fatalf("%d dead letters", dead)
		}
		return left == 0
	})
	h.t.Logf("the pipe is empty after %v", time.Since(began))
	stopAll(h.t, live...)
	l := newLedger()
	for _, w := range h.writers {
		l.addWriter(w)
	}
	for _, r := range h.readers {
		l.addReader(h.t, r)
	}
	for _, path := range h.ledgers {
		l.addConsumer(h.t, path)
	}
	if len(l.committed) == 0 {
		h.t.Error("nothing was committed: the test proves nothing")
	}
	l.judge(h.t, consumerLease)
}

// TestKillRounds: a writer, a consumer or a reader is killed at a random moment,
// again and again. No message whose id a writer printed is lost, and none whose
// ack returned to its consumer is delivered again.
func TestKillRounds(t *testing.T) {
	rounds := shortOrLong(6, 200)
	for _, backend := range []string{onSQLite, onMariaDB} {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			h := newHerd(t, newPipe(t, backend))
			const lines, rate = 20000, "1500/s"
			w, r := h.writer(lines, rate), h.reader()
			c := []*process{h.consumer(), h.consumer()}
			kills := map[string]int{}
			for range rounds {
				measure(100*time.Millisecond + rand.N(500*time.Millisecond))
				switch victim := rand.N(4); victim {
				case 0:
					w.kill()
					w = h.writer(lines, rate)
					kills["writer"]++
				case 1:
					r.kill()
					r = h.reader()
					kills["reader"]++
				default:
					c[victim-2].kill()
					c[victim-2] = h.consumer()
					kills["consumer"]++
				}
				if !w.running() { // it wrote all its lines
					w = h.writer(lines, rate)
				}
			}
			w.kill()
			t.Logf("killed: %v", kills)
			h.drain(append(c, r)...)
		})
	}
}

// TestDatabaseKilled: MariaDB is killed and started again under load. The
// processes wait and go on by themselves.
func TestDatabaseKilled(t *testing.T) {
	t.Parallel()
	server := testserver.OwnMariaDB(t)
	p := &pipe{queue: server.URL}
	p.init(t)
	h := newHerd(t, p)
	rounds := shortOrLong(2, 15)
	span := time.Duration(rounds)*2500*time.Millisecond + 2*time.Second
	w := h.writer(int(span/time.Millisecond), "1000/s")
	r := h.reader()
	c := []*process{h.consumer(), h.consumer()}
	// A process that finds no database when it starts ends.
	for _, live := range append(c, w, r) {
		waitFor(t, patience, live.name+" is at work", live.atWork)
	}
	for range rounds {
		measure(500*time.Millisecond + rand.N(1500*time.Millisecond))
		server.Kill(t)
		measure(rand.N(500 * time.Millisecond))
		server.Restart(t)
	}
	w.wait(t, span+3*patience)
	h.drain(append(c, r)...)
	l := newLedger()
	if got := l.addWriter(w); got != h.bodies {
		t.Errorf("%d ids printed of %d lines", got, h.bodies)
	}
}
