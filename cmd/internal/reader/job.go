package reader

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mvalve/mvalve/cmd/internal/setup"
	"github.com/mvalve/mvalve/valve"
)

// end is how a delivery ends.
type end int

const (
	ack       end = iota // done
	ackLater             // done; acknowledged together with others
	retry                // again after delay, or after the back-off if it is negative
	throttled            // the whole destination waits for delay
	dead                 // dead letter
	release              // as if it had not been handed out
)

// verdict is an end, and for some the delay and why. stop, when set, ends the
// whole run.
type verdict struct {
	end    end
	delay  time.Duration
	reason string
	stop   error
}

// giveBackWithin is how long messages may take to be given back once the work
// under way was ended: a disk may stall.
const giveBackWithin = 10 * time.Second

// errEnough stops the taking of messages and is no failure.
var errEnough = errors.New("enough")

// job is one run of the command.
type job struct {
	o       *options
	r       *valve.Reader
	sub     *valve.Subscription
	pipe    *setup.Pipe
	name    string
	stderr  io.Writer
	keeper  *keeper
	started time.Time

	taking context.Context // ends when no more messages are to be taken
	stop   context.CancelCauseFunc
	acks   chan *valve.Delivery

	tickets  atomic.Int64 // of --count, given out
	busy     atomic.Int64 // deliveries out
	taken    atomic.Int64 // deliveries so far
	lastBusy atomic.Int64 // nanoseconds since started when busy last changed
}

func newJob(o *options, r *valve.Reader, sub *valve.Subscription, pipe *setup.Pipe, name string, stderr io.Writer) *job {
	j := &job{
		o: o, r: r, sub: sub, pipe: pipe, name: name, stderr: stderr, started: time.Now(),
		keeper: newKeeper(o.lease, pipe.Log), acks: make(chan *valve.Delivery, printCredit),
	}
	j.taking, j.stop = context.WithCancelCause(context.Background())
	return j
}

// run takes messages until something ends it, then lets the work under way end:
// for as long as it takes, or for the grace period once a signal came.
func (j *job) run(ctx context.Context, c consumer) error {
	working, abort := context.WithCancel(context.WithoutCancel(ctx))
	defer abort()
	unhook := context.AfterFunc(ctx, func() { j.stop(context.Cause(ctx)) })
	defer unhook()

	var workers, helpers sync.WaitGroup
	for range j.o.concurrency {
		workers.Go(func() { j.work(working, c) })
	}
	helpers.Go(j.acknowledge)
	helpers.Go(func() { j.keeper.run(working) })
	helpers.Go(func() { j.monitor(j.taking) })

	<-j.taking.Done()
	finished := make(chan struct{})
	go func() { workers.Wait(); close(finished) }()
	stuck := j.finish(ctx, abort, finished)
	if stuck {
		fmt.Fprintf(j.stderr, "%s: %d messages under way did not end within --grace %v; they come back when their leases end\n", j.name, j.busy.Load(), j.o.grace)
		return j.outcome(nil)
	}
	closing, cancel := context.WithTimeout(working, j.o.grace)
	closeErr := c.close(closing)
	cancel()
	close(j.acks)
	abortKeeper := func() { abort(); helpers.Wait() }
	abortKeeper()
	leaving, cancel := context.WithTimeout(context.Background(), max(j.o.grace, giveBackWithin))
	defer cancel()
	if err := j.r.Shutdown(leaving); err != nil {
		j.pipe.Log.Warn("reader not shut down in order", "err", err)
	}
	return j.outcome(closeErr)
}

// finish waits for the workers and reports whether some would not end.
func (j *job) finish(ctx context.Context, abort func(), finished <-chan struct{}) (stuck bool) {
	select {
	case <-finished:
		return false
	case <-ctx.Done():
	}
	grace := time.NewTimer(j.o.grace)
	defer grace.Stop()
	select {
	case <-finished:
		return false
	case <-grace.C:
	case <-setup.Aborted(ctx):
	}
	abort() // ends commands and requests; their messages are given back
	select {
	case <-finished:
		return false
	case <-time.After(giveBackWithin):
		return true
	}
}

// outcome is what the command returns: nothing for a signal or a reached end.
func (j *job) outcome(closeErr error) error {
	cause := context.Cause(j.taking)
	var signalled setup.Signalled
	if errors.As(cause, &signalled) || errors.Is(cause, errEnough) {
		return closeErr
	}
	return cause
}

// work takes and consumes one message after the other.
func (j *job) work(ctx context.Context, c consumer) {
	for {
		if n := j.tickets.Add(1); j.o.count > 0 && n > int64(j.o.count) {
			return
		}
		d, err := j.sub.Next(j.taking)
		if err != nil {
			if j.taking.Err() == nil {
				j.stop(fmt.Errorf("take a message: %w", err))
			}
			return
		}
		j.begin(d)
		v := c.consume(ctx, d)
		j.settle(d, v)
		if v.stop != nil {
			j.stop(v.stop)
		}
	}
}

func (j *job) begin(d *valve.Delivery) {
	j.busy.Add(1)
	j.touch()
	j.keeper.add(d)
	if n := j.taken.Add(1); j.o.count > 0 && n >= int64(j.o.count) {
		j.stop(errEnough)
	}
}

func (j *job) touch() { j.lastBusy.Store(int64(time.Since(j.started))) }

// done books the end of a delivery, settled or not.
func (j *job) done(ds ...*valve.Delivery) {
	for _, d := range ds {
		j.keeper.remove(d)
	}
	j.touch()
	j.busy.Add(-int64(len(ds)))
}

// settle carries out a verdict.
func (j *job) settle(d *valve.Delivery, v verdict) {
	if v.end == ackLater {
		j.acks <- d
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var err error
	switch v.end {
	case ack:
		err = j.r.Ack(ctx, d)
	case retry:
		err = d.Nack(ctx, v.delay, v.reason)
	case throttled:
		err = d.Throttled(ctx, v.delay)
	case dead:
		err = d.Reject(ctx, v.reason)
	default:
		err = d.Release(ctx)
	}
	j.report(err, 1)
	j.done(d)
}

// acknowledge acks printed messages in batches until acks is closed.
func (j *job) acknowledge() {
	batch := make([]*valve.Delivery, 0, printCredit)
	for d := range j.acks {
		batch = append(batch[:0], d)
		for len(batch) < cap(batch) && len(j.acks) > 0 {
			batch = append(batch, <-j.acks)
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		j.report(j.r.Ack(ctx, batch...), len(batch))
		cancel()
		j.done(batch...)
	}
}

// report logs a delivery that could not be ended. It will be delivered again.
func (j *job) report(err error, n int) {
	if err != nil {
		j.pipe.Log.Error("deliveries not settled; they come back when their leases end", "at_most", n, "err", err)
	}
}
