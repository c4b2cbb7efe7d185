package bench

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// stall is how long nothing may happen before a case is given up.
var stall = 30 * time.Second // tests lower it

// load is one case under way.
type load struct {
	target   *target
	measured atomic.Bool // latencies count
	work     sync.WaitGroup
	fail     context.CancelCauseFunc
}

// start runs work beside the caller; its error ends the case.
func (l *load) start(work func() error) {
	l.work.Go(func() {
		if err := work(); err != nil {
			l.fail(err)
		}
	})
}

// await returns when reached is true; progress grows until then.
func (l *load) await(ctx context.Context, what string, want int64, progress func() int64) error {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	last, moved := progress(), time.Now()
	for last < want {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
		if n := progress(); n != last {
			last, moved = n, time.Now()
		} else if time.Since(moved) > stall {
			return fmt.Errorf("%d of %d %s after %v without progress", last, want, what, stall)
		}
	}
	return nil
}

// end hangs up, unless the case failed with err, and waits for everything.
func (l *load) end(ctx context.Context, err error, consumers ...*consumer) error {
	for _, c := range consumers {
		if err == nil {
			err = c.hangUp()
		}
	}
	if err != nil {
		l.fail(err)
	}
	return l.finish(ctx)
}

// finish waits for the goroutines and returns why the case failed, if it did.
func (l *load) finish(ctx context.Context) error {
	done := make(chan struct{})
	go func() {
		l.work.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(stall):
		l.fail(fmt.Errorf("a connection did not end within %v", stall))
		<-done
	}
	return context.Cause(ctx)
}

func confirmed(producers []*producer) func() int64 {
	return func() (n int64) {
		for _, p := range producers {
			n += p.confirmed.Load()
		}
		return n
	}
}

func delivered(consumers []*consumer) func() int64 {
	return func() (n int64) {
		for _, c := range consumers {
			n += c.delivered.Load()
		}
		return n
	}
}

// producers connects n of them, each with its own range of numbers.
func (l *load) producers(ctx context.Context, n, inFlight int, destination func(int) string) ([]*producer, error) {
	all := make([]*producer, n)
	for i := range all {
		var err error
		if all[i], err = l.newProducer(ctx, destination(i), uint64(i+1)<<32, inFlight); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// consumers connects n of them.
func (l *load) consumers(ctx context.Context, n int, acks bool) ([]*consumer, error) {
	all := make([]*consumer, n)
	for i := range all {
		var err error
		if all[i], err = l.newConsumer(ctx, acks); err != nil {
			return nil, err
		}
		l.start(all[i].work)
	}
	return all, nil
}

// subscribed waits for the RECEIPTs of all SUBSCRIBEs.
func subscribed(ctx context.Context, consumers []*consumer) error {
	for _, c := range consumers {
		select {
		case <-c.ready:
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(stall):
			return fmt.Errorf("no RECEIPT for SUBSCRIBE within %v", stall)
		}
	}
	return nil
}

func batches(producers []*producer) (all []batch, total int64) {
	for _, p := range producers {
		all = append(all, batch{p.first, p.next})
		total += int64(p.next)
	}
	return all, total
}

// fill puts messages into a queue over four connections, 100 in flight each.
func (l *load) fill(ctx context.Context, destination string, messages int) ([]*producer, error) {
	all, err := l.producers(ctx, 4, 100, func(int) string { return destination })
	if err != nil {
		return nil, err
	}
	want := int64(0)
	for i, p := range all {
		p.most = uint64((messages + i) / len(all))
		want += int64(p.most)
		l.start(p.work)
	}
	if err := l.await(ctx, "messages confirmed", want, confirmed(all)); err != nil {
		return nil, err
	}
	return all, nil
}

// empty takes everything out of the queue and judges it.
func (l *load) empty(ctx context.Context, destination string, sent []batch, total int64) (verdict, error) {
	all, err := l.consumers(ctx, 1, true)
	if err != nil {
		return verdict{}, err
	}
	if err := all[0].subscribe(destination); err != nil {
		return verdict{}, err
	}
	err = l.end(ctx, l.await(ctx, "messages delivered", total, delivered(all)), all...)
	return judge(sent, all), err
}

// leftOver returns how many messages a queue still holds that should be empty.
func (l *load) leftOver(ctx context.Context, destination string) (int64, error) {
	all, err := l.consumers(ctx, 1, true)
	if err != nil {
		return 0, err
	}
	if err := all[0].subscribe(destination); err != nil {
		return 0, err
	}
	if err = subscribed(ctx, all); err == nil {
		err = wait(ctx, leftOverTime)
	}
	err = l.end(ctx, err, all...)
	return int64(len(all[0].got)), err
}

// leftOverTime is how long a queue that should be empty is watched.
const leftOverTime = 200 * time.Millisecond
