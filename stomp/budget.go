package stomp

import (
	"slices"
	"sync"
	"time"
)

// budget bounds the bytes that all connections have somewhere together. Who finds
// it used up waits its turn, first come first served: a connection that waits
// does not read its socket, and TCP tells the producer.
type budget struct {
	limit int64

	mu      sync.Mutex
	n       int64
	waiting []*turn
}

type turn struct {
	n  int
	ch chan struct{} // closed when the bytes are taken for it
}

// acquire takes n bytes, and waits while others use the limit up. What is taken
// may exceed the limit by one n.
func (b *budget) acquire(n int) {
	if t := b.queue(n); t != nil {
		<-t.ch // every byte taken is given back when its commit ends
	}
}

// acquireFor is acquire that gives up after most, which it reports as false.
func (b *budget) acquireFor(n int, most time.Duration) bool {
	t := b.queue(n)
	if t == nil {
		return true
	}
	timer := time.NewTimer(most)
	defer timer.Stop()
	select {
	case <-t.ch:
		return true
	case <-timer.C:
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	i := slices.Index(b.waiting, t)
	if i < 0 {
		return true // its turn came meanwhile
	}
	b.waiting = slices.Delete(b.waiting, i, i+1)
	return false
}

// queue takes n bytes and returns nil, or returns a turn to wait for.
func (b *budget) queue(n int) *turn {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.n < b.limit && len(b.waiting) == 0 {
		b.n += int64(n)
		return nil
	}
	t := &turn{n, make(chan struct{})}
	b.waiting = append(b.waiting, t)
	return t
}

func (b *budget) release(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.n -= int64(n)
	for b.n < b.limit && len(b.waiting) > 0 {
		t := b.waiting[0]
		b.waiting = b.waiting[1:]
		b.n += int64(t.n)
		close(t.ch)
	}
}

func (b *budget) used() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return int(b.n)
}
