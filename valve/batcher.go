package valve

import (
	"sync"
	"time"
)

// batcher is a group commit: items added while a flush is under way go out
// together in the next one. It adds no delay of its own. Goroutines live only
// while there is work.
type batcher[T any] struct {
	workers  int         // flushes under way at once, at least 1
	maxItems int         // most items per flush
	maxBytes int         // most bytes per flush as told by size; a single item may exceed it
	size     func(T) int // nil: items have no size
	cut      func([]T)   // optional: called with each batch in order, before flush; must not add
	flush    func([]T)
	finish   func([]T) // optional: called after flush, in the order in which batches were cut off

	mu      sync.Mutex
	pending []T
	running int
	timer   *time.Timer   // runs while items wait that are not urgent
	last    chan struct{} // closed when the batch cut off last has finished
	closed  bool
	wg      sync.WaitGroup
}

// add queues items; false means that the batcher is closed and took nothing.
func (b *batcher[T]) add(items ...T) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return false
	}
	b.pending = append(b.pending, items...)
	b.start()
	return true
}

// addLater is add for items that may wait as long as most for others to share
// their flush with: a later add, or kick.
func (b *batcher[T]) addLater(most time.Duration, items ...T) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return false
	}
	b.pending = append(b.pending, items...)
	if b.timer == nil {
		b.timer = time.AfterFunc(most, b.kick)
	}
	return true
}

// kick flushes what waits.
func (b *batcher[T]) kick() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.start()
}

// start makes a worker look at what is pending. The mutex is held.
func (b *batcher[T]) start() {
	if b.timer != nil {
		b.timer.Stop()
		b.timer = nil
	}
	if len(b.pending) > 0 && b.running < b.workers {
		b.running++
		b.wg.Go(b.run)
	}
}

func (b *batcher[T]) run() {
	for {
		batch, before, done := b.take()
		if batch == nil {
			return
		}
		b.flush(batch)
		if b.finish != nil {
			if before != nil {
				<-before
			}
			b.finish(batch)
		}
		close(done)
	}
}

// take cuts the next batch off, or ends the worker. before is closed when the
// batch before has finished; done is for this one.
func (b *batcher[T]) take() (batch []T, before, done chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.pending) == 0 {
		b.pending = nil
		b.running--
		return nil, nil, nil
	}
	n, bytes := 0, 0
	for n < len(b.pending) && n < b.maxItems {
		if b.size != nil {
			bytes += b.size(b.pending[n])
			if n > 0 && bytes > b.maxBytes {
				break
			}
		}
		n++
	}
	batch = b.pending[:n:n]
	b.pending = b.pending[n:]
	before, done = b.last, make(chan struct{})
	b.last = done
	if b.cut != nil {
		b.cut(batch)
	}
	return batch, before, done
}

// close refuses further items and waits until what was added is flushed.
func (b *batcher[T]) close() {
	b.mu.Lock()
	b.closed = true
	b.start()
	b.mu.Unlock()
	b.wg.Wait()
}
