package stomp

import "sync"

// budget bounds the bytes of all connections on their way to disk. Who finds it
// used up waits its turn, first come first served: a connection that waits does
// not read its socket, and TCP tells the producer.
type budget struct {
	limit int64

	mu      sync.Mutex
	n       int64
	waiting []turn
}

type turn struct {
	n  int
	ch chan struct{} // closed when the bytes are taken for it
}

// acquire takes n bytes, and waits while others use the limit up. What is taken
// may exceed the limit by one n.
func (b *budget) acquire(n int) {
	b.mu.Lock()
	if b.n < b.limit && len(b.waiting) == 0 {
		b.n += int64(n)
		b.mu.Unlock()
		return
	}
	t := turn{n, make(chan struct{})}
	b.waiting = append(b.waiting, t)
	b.mu.Unlock()
	<-t.ch // every byte taken is given back when its commit ends
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
