package proof_test

import (
	"errors"
	"maps"
	"slices"
	"sync"
	"testing"

	"github.com/mvalve/mvalve/internal/stomptest"
)

// fate is what clients know about one message: a body in a queue, sent once.
type fate struct {
	receipted  bool   // the RECEIPT of its SEND, or of the COMMIT around it, came
	acked      int    // which delivery was: the RECEIPT of its ACK, or of the COMMIT around it, came; 0: none
	deliveries int    // MESSAGEs
	last       int    // the highest x-delivery-count of them
	id         string // of the first MESSAGE
	doubled    bool   // it came with another id, too: it was stored twice
}

// stompLedger is what the clients of brokers that are killed know.
type stompLedger struct {
	mu     sync.Mutex
	fates  map[string]map[string]*fate // queue, body
	errors map[string]int              // ERROR frames by message
	dials  int
}

func newSTOMPLedger() *stompLedger {
	return &stompLedger{fates: make(map[string]map[string]*fate), errors: make(map[string]int)}
}

// change changes the fate of a message.
func (l *stompLedger) change(queue, body string, how func(*fate)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	of := l.fates[queue]
	if of == nil {
		of = make(map[string]*fate)
		l.fates[queue] = of
	}
	f := of[body]
	if f == nil {
		f = &fate{}
		of[body] = f
	}
	how(f)
}

func (l *stompLedger) delivered(queue, body, id string, attempt int) {
	l.change(queue, body, func(f *fate) {
		f.deliveries++
		f.last = max(f.last, attempt)
		if f.id == "" {
			f.id = id
		}
		f.doubled = f.doubled || f.id != id
	})
}

func (l *stompLedger) receipted(queue, body string) {
	l.change(queue, body, func(f *fate) { f.receipted = true })
}

func (l *stompLedger) acked(queue, body string, attempt int) {
	l.change(queue, body, func(f *fate) {
		if f.acked == 0 || attempt < f.acked {
			f.acked = attempt
		}
	})
}

// toCome is how many messages of a queue have a RECEIPT and were not delivered.
func (l *stompLedger) toCome(queue string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for _, f := range l.fates[queue] {
		if f.receipted && f.deliveries == 0 {
			n++
		}
	}
	return n
}

// ended notes how a connection ended.
func (l *stompLedger) ended(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if said := (*stomptest.Error)(nil); errors.As(err, &said) {
		l.errors[said.Message]++
	}
	l.dials++
}

// judge prints the counts of a queue and fails if a promise was broken. The
// queues are empty.
func (l *stompLedger) judge(t *testing.T, queue string) {
	t.Helper()
	var receipted, delivered, acked, repeats, lost, again, doubled int
	first := make(map[string]string)
	for _, body := range slices.Sorted(maps.Keys(l.fates[queue])) {
		f := l.fates[queue][body]
		bad := func(n *int, kind string) {
			*n++
			if first[kind] == "" {
				first[kind] = body
			}
		}
		if f.receipted {
			receipted++
			if f.deliveries == 0 {
				bad(&lost, "lost")
			}
		}
		if f.deliveries > 0 {
			delivered++
			repeats += f.deliveries - 1
		}
		if f.acked > 0 {
			acked++
		}
		// Not by the order in which the clients read: a MESSAGE of before may be read after.
		if f.acked > 0 && f.last > f.acked {
			bad(&again, "acked with RECEIPT and delivered again")
		}
		if f.doubled {
			bad(&doubled, "stored twice")
		}
	}
	t.Logf("queue %-5s %6d with RECEIPT, %6d delivered (%d deliveries repeated), %6d acked with RECEIPT; lost %d, acked and again %d, doubled %d",
		queue+":", receipted, delivered, repeats, acked, lost, again, doubled)
	for kind, body := range first {
		t.Errorf("queue %s: %s: %q: %+v", queue, kind, body, *l.fates[queue][body])
	}
	if receipted == 0 || delivered == 0 {
		t.Errorf("queue %s: nothing was sent or nothing came: the test proves nothing", queue)
	}
}

// judgeMoved checks that what transactions moved was moved whole: what left the
// one queue came from the other, and nothing else did.
func (l *stompLedger) judgeMoved(t *testing.T, from, to string) {
	t.Helper()
	var taken, half, invented int
	for body, f := range l.fates[from] {
		if f.deliveries == 0 {
			continue
		}
		taken++
		if moved := l.fates[to][body]; moved == nil || moved.deliveries == 0 {
			half++
		}
	}
	for body := range l.fates[to] {
		if came := l.fates[from][body]; came == nil || came.deliveries == 0 {
			invented++
		}
	}
	t.Logf("moved by transactions, %s → %s: %d; taken and not moved %d, moved and not taken %d", from, to, taken, half, invented)
	if half+invented > 0 {
		t.Errorf("%d transactions happened by half", half+invented)
	}
}
