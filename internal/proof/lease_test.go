package proof_test

import (
	"math/rand/v2"
	"syscall"
	"testing"
	"time"
)

// TestLeases: consumers that work too long, are frozen past the end of their
// leases and go on as if nothing had been, never hold a message together; an ack
// that comes too late is refused.
func TestLeases(t *testing.T) {
	for _, backend := range []string{onSQLite, onMariaDB} {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			h := newHerd(t, newPipe(t, backend))
			rounds := shortOrLong(2, 40)
			w := h.writer(rounds*400, "200/s")
			consumers := []*process{h.consumer(), h.consumer(), h.consumer()}
			measure(500 * time.Millisecond)
			for range rounds {
				victim := consumers[rand.N(len(consumers))]
				victim.signal(t, syscall.SIGSTOP)
				measure(consumerLease + 300*time.Millisecond + rand.N(300*time.Millisecond))
				victim.signal(t, syscall.SIGCONT)
				measure(rand.N(300 * time.Millisecond))
			}
			w.wait(t, 3*patience)
			h.drain(consumers...)
		})
	}
}

// TestReadersTogether: several readers of one backlog are not slower than one.
func TestReadersTogether(t *testing.T) {
	if !long {
		t.Skip("long form only: compares speeds")
	}
	for _, backend := range []string{onSQLite, onMariaDB} {
		t.Run(backend, func(t *testing.T) {
			took := map[int]time.Duration{}
			for _, n := range []int{1, 3} {
				h := newHerd(t, newPipe(t, backend))
				h.writer(5000, "1000000/s").wait(t, time.Minute)
				began := time.Now()
				var consumers []*process
				for range n {
					consumers = append(consumers, h.consumer())
				}
				h.drain(consumers...)
				took[n] = time.Since(began)
			}
			t.Logf("5000 messages: one consumer %v, three together %v", took[1], took[3])
			if took[3] > took[1]*5/4 {
				t.Errorf("three consumers take %v, one takes %v", took[3], took[1])
			}
		})
	}
}
