package bench

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mvalve/mvalve/valve"
)

// flow drives the life-cycle through the engine: writers insert, consumers take
// and ack, all in one process.
type flow struct {
	writer *valve.Writer
	reader *valve.Reader

	prefix       string // of their names
	destinations int
	batch        int // messages per Insert
	writers      int
	consumers    int
	credit       int // of the subscription
	ackMost      int // deliveries per Reader.Ack
	backlog      int // most messages inserted and not acked

	inserted, acked atomic.Int64
	failed          atomic.Pointer[error]
	room            chan struct{} // one per batch within backlog
	stop            chan struct{}
}

// batchedFlow inserts in batches of 100 and acks what is there.
func batchedFlow(p *pipe, destinations int) *flow {
	return &flow{
		writer: p.writer, reader: p.reader, prefix: p.prefix, destinations: destinations,
		batch: 100, writers: 4, consumers: 4, credit: 4000, ackMost: 500, backlog: 6000,
	}
}

// singleFlow inserts and acks one message per call, from many goroutines.
func singleFlow(p *pipe, destinations int) *flow {
	return &flow{
		writer: p.writer, reader: p.reader, prefix: p.prefix, destinations: destinations,
		batch: 1, writers: 128, consumers: 128, credit: 4000, ackMost: 1, backlog: 2000,
	}
}

// run measures the acked messages for d, then lets the rest through and checks
// that as many were acked as were inserted.
func (f *flow) run(ctx context.Context, d time.Duration) (span, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	sub, err := f.reader.Subscribe(valve.Filter{}, f.credit)
	if err != nil {
		return span{}, err
	}
	f.room = make(chan struct{}, f.backlog/f.batch)
	f.stop = make(chan struct{})
	var writers, consumers sync.WaitGroup
	fail := func(err error) {
		f.failed.CompareAndSwap(nil, &err)
		cancel(err)
	}
	for range f.consumers {
		consumers.Go(func() { f.consume(ctx, sub, fail) })
	}
	for range f.writers {
		writers.Go(func() { f.write(ctx, fail) })
	}
	s, err := measure(ctx, d, f.acked.Load)
	close(f.stop)
	writers.Wait()
	if err == nil {
		err = f.drain(ctx)
	}
	_ = sub.Close() // ends the consumers; it cannot fail
	consumers.Wait()
	if first := f.failed.Load(); first != nil {
		err = *first
	}
	return s, err
}

func (f *flow) write(ctx context.Context, fail func(error)) {
	src := newSource(f.prefix, f.destinations)
	for {
		select {
		case f.room <- struct{}{}:
		case <-f.stop:
			return
		case <-ctx.Done():
			return
		}
		if err := f.writer.Insert(ctx, src.messages(f.batch)...); err != nil {
			fail(fmt.Errorf("insert: %w", err))
			return
		}
		f.inserted.Add(int64(f.batch))
	}
}

// consume takes deliveries one by one and acks them at its side, as many at
// once as came meanwhile.
func (f *flow) consume(ctx context.Context, sub *valve.Subscription, fail func(error)) {
	if f.ackMost == 1 {
		f.consumeSingle(ctx, sub, fail)
		return
	}
	taken := make(chan *valve.Delivery, f.ackMost)
	var acker sync.WaitGroup
	acker.Go(func() { f.ack(ctx, taken, fail) })
	defer acker.Wait()
	defer close(taken)
	for {
		d, err := sub.Next(ctx)
		if err != nil {
			if !errors.Is(err, valve.ErrClosed) && ctx.Err() == nil {
				fail(fmt.Errorf("next: %w", err))
			}
			return
		}
		taken <- d
	}
}

func (f *flow) consumeSingle(ctx context.Context, sub *valve.Subscription, fail func(error)) {
	for {
		d, err := sub.Next(ctx)
		if err == nil {
			err = d.Ack(ctx)
		}
		if err != nil {
			if !errors.Is(err, valve.ErrClosed) && ctx.Err() == nil {
				fail(fmt.Errorf("next and ack: %w", err))
			}
			return
		}
		f.count(1)
	}
}

func (f *flow) ack(ctx context.Context, taken <-chan *valve.Delivery, fail func(error)) {
	batch := make([]*valve.Delivery, 0, f.ackMost)
	for d := range taken {
		batch = append(batch[:0], d)
		for len(batch) < f.ackMost && len(taken) > 0 {
			batch = append(batch, <-taken)
		}
		if err := f.reader.Ack(ctx, batch...); err != nil {
			if ctx.Err() == nil {
				fail(fmt.Errorf("ack: %w", err))
			}
			for range taken { // the consumer must not block
			}
			return
		}
		f.count(int64(len(batch)))
	}
}

// count notes acks and lets writers go on for every batch that is through.
func (f *flow) count(n int64) {
	now := f.acked.Add(n)
	for range now/int64(f.batch) - (now-n)/int64(f.batch) {
		<-f.room
	}
}

// drain waits until everything inserted is acked.
func (f *flow) drain(ctx context.Context) error {
	deadline := time.Now().Add(time.Minute)
	for f.acked.Load() < f.inserted.Load() {
		if err := wait(ctx, 5*time.Millisecond); err != nil {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%d messages inserted, %d acked a minute later", f.inserted.Load(), f.acked.Load())
		}
	}
	if n, m := f.acked.Load(), f.inserted.Load(); n != m {
		return fmt.Errorf("%d messages inserted, %d acked", m, n)
	}
	return nil
}
