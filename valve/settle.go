package valve

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/mvalve/mvalve/queue"
)

// settleItems is the most endings of one commit.
const settleItems = 2000

// ending is one lease on its way to its end.
type ending struct {
	entry  *entry
	settle queue.Settle
	action string // for the statistics; "" for none
	group  *endings
	hold   time.Duration // EndThrottled: what the destination waits
	tx     bool          // part of a transaction
}

// fenced returns the settle with the fence of its lease. One that ends another
// way than by Retry or Release is as true of a later lease of this reader. The
// mutex is held.
func (x *ending) fenced() queue.Settle {
	s := x.settle
	if s.Verb == queue.Retry || s.Verb == queue.Release {
		s.Until = x.entry.asked
	}
	return s
}

func later(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

// endings are the endings that one caller waits for.
type endings struct {
	left  atomic.Int64
	lost  atomic.Int64          // of EndAsync: leases that were lost
	err   atomic.Pointer[error] // the first; of EndAsync any but lost leases
	done  chan struct{}
	after func(lost int, err error) // of EndAsync
}

func newEndings(n int) *endings {
	g := &endings{done: make(chan struct{})}
	g.left.Store(int64(n))
	return g
}

func (g *endings) finish(err error) {
	switch {
	case err == nil:
	case g.after != nil && errors.Is(err, ErrLeaseLost):
		g.lost.Add(1)
	default:
		g.err.CompareAndSwap(nil, &err)
	}
	if g.left.Add(-1) > 0 {
		return
	}
	if g.after == nil {
		close(g.done)
		return
	}
	var first error
	if e := g.err.Load(); e != nil {
		first = *e
	}
	g.after(int(g.lost.Load()), first)
}

func (g *endings) wait(ctx context.Context) error {
	select {
	case <-g.done:
	case <-ctx.Done():
		return fmt.Errorf("valve: settle: %w", ctx.Err())
	}
	if err := g.err.Load(); err != nil {
		return *err
	}
	return nil
}

// end queues an ending; it may be called with or without the mutex.
func (r *Reader) end(x *ending) {
	if !r.settles.add(x) && x.group != nil {
		x.group.finish(ErrClosed)
	}
}

// settleBatch commits endings together.
func (r *Reader) settleBatch(batch []*ending) {
	ctx, cancel := context.WithTimeout(context.Background(), backEndTimeout)
	defer cancel()
	c := &queue.Change{Settle: make([]queue.Settle, len(batch))}
	r.mu.Lock()
	for i, x := range batch {
		c.Settle[i] = x.fenced()
	}
	r.mu.Unlock()
	outcome, err := r.store.Apply(ctx, r.clock.Now(), c)
	lost, vanished := indexSet(outcome.Lost), indexSet(outcome.Vanished)
	if err != nil {
		r.log.Warn("settle", "messages", len(batch), "err", err)
	}
	r.mu.Lock()
	now := r.clock.Now()
	for i, x := range batch {
		if lost[i] && x.repeats() || vanished[i] {
			// While the lease lasts nobody else can have taken the row: the ack
			// whose answer was lost had been carried out.
			lost[i] = !now.Add(r.cfg.Lease / 8).Before(x.entry.leaseUntil)
		}
		if x.settle.Verb == queue.Extend && x.entry.phase == gone {
			lost[i] = true // what was extended, if anything, is a later lease of this reader
		}
		r.ended(x, lost[i], err, now)
	}
	r.mu.Unlock()
	r.wakeUp()
	for i, x := range batch {
		if x.group != nil {
			x.group.finish(endError(err, lost[i]))
		}
	}
}

// repeats reports whether x is an ack after one of unknown outcome, and no other
// ending may have let go of the row.
func (x *ending) repeats() bool {
	return x.settle.Verb == queue.Ack && x.entry.unknown && !x.entry.unsure
}

func indexSet(of []int) map[int]bool {
	set := make(map[int]bool, len(of))
	for _, i := range of {
		set[i] = true
	}
	return set
}

func endError(err error, lost bool) error {
	switch {
	case err != nil:
		return fmt.Errorf("valve: settle: %w", err)
	case lost:
		return ErrLeaseLost
	}
	return nil
}

// ended does the bookkeeping of one ending. The mutex is held.
func (r *Reader) ended(x *ending, lost bool, err error, now time.Time) {
	e, d := x.entry, x.entry.dest
	if x.settle.Verb == queue.Extend {
		if err == nil && !lost && x.settle.At.After(e.leaseUntil) {
			e.leaseUntil = x.settle.At
		}
		return
	}
	if err != nil && x.group != nil {
		e.phase = out // the consumer may try again; else the lease runs out
		if errors.Is(err, queue.ErrUnknown) {
			e.unknown = e.unknown || x.settle.Verb == queue.Ack
			e.unsure = e.unsure || x.settle.Verb != queue.Ack
		}
		return
	}
	if e.phase == gone {
		return
	}
	if e.sub != nil && e.phase == settling && (x.group != nil || x.tx) {
		e.sub.returned()
	}
	d.inFlight--
	delete(r.leased, e)
	ref := e.ref
	r.x.forget(e)
	switch {
	case err != nil: // nobody waits for it: the lease runs out
	case lost:
		r.stats.LeaseLost++
	default:
		r.settled(x, ref, now)
	}
	if d.parked && d.busy() == 0 {
		d.parked = false
	}
	r.touch(d, now)
}

// settled counts a successful ending and offers what came back into the lanes.
func (r *Reader) settled(x *ending, ref queue.Ref, now time.Time) {
	switch x.settle.Verb {
	case queue.Ack:
		r.x.end(ref.ID)
		if x.settle.Token == r.id {
			r.stats.Acked++
		}
	case queue.Retry:
		r.stats.Retried++
		ref.Table, ref.ReadyAt = queue.Timed, x.settle.At.UnixMicro()
		r.x.offer(ref, nil, now)
	case queue.Release:
		ref.Attempts--
		if !r.closing {
			r.x.offer(ref, nil, now)
		}
	case queue.Kill:
		r.x.end(ref.ID)
		r.stats.Dead++
	}
	if x.action != "" {
		if x.action == actionExpire {
			r.stats.Expired++
		}
		r.count(x.action, ref.Destination)
	}
}

// count adds to the statistics of a destination.
func (r *Reader) count(action, destination string) { r.statlog.add(action, destination, 1) }

// claim marks a delivery as being ended by the caller.
func (r *Reader) claim(d *Delivery) (*ending, error) {
	e := d.entry
	r.mu.Lock()
	defer r.mu.Unlock()
	if e.phase != out {
		return nil, ErrLeaseLost
	}
	e.phase = settling
	return &ending{entry: e, settle: queue.Settle{Ref: e.ref, Token: r.id}}, nil
}

// finish ends one delivery by verb and waits for the commit.
func (d *Delivery) finish(ctx context.Context, action string, fill func(s *queue.Settle)) error {
	r := d.reader
	x, err := r.claim(d)
	if err != nil {
		return err
	}
	fill(&x.settle)
	x.action = action
	x.group = newEndings(1)
	r.end(x)
	return x.group.wait(ctx)
}

// Ack ends the delivery with success: the message is deleted, durably when Ack
// returns. It shares its commit with concurrent calls; for loops see Reader.Ack.
func (d *Delivery) Ack(ctx context.Context) error {
	return d.finish(ctx, actionAck, func(s *queue.Settle) { s.Verb = queue.Ack })
}

// Ack ends all deliveries with success in as few commits as possible and returns
// when they are durable. If some leases were lost the error is ErrLeaseLost; the
// others are acked all the same.
func (r *Reader) Ack(ctx context.Context, ds ...*Delivery) error {
	if len(ds) == 0 {
		return nil
	}
	group := newEndings(len(ds))
	batch := make([]*ending, 0, len(ds))
	for _, d := range ds {
		x, err := r.claim(d)
		if err != nil {
			group.finish(err)
			continue
		}
		x.settle.Verb, x.action, x.group = queue.Ack, actionAck, group
		batch = append(batch, x)
	}
	if len(batch) > 0 && !r.settles.add(batch...) {
		return ErrClosed
	}
	return group.wait(ctx)
}

// Nack ends the delivery without success: the message is tried again after
// delay, or after the back-off when delay is negative; once MaxAttempts are used
// up it becomes a dead letter with reason.
func (d *Delivery) Nack(ctx context.Context, delay time.Duration, reason string) error {
	r := d.reader
	if d.Attempt >= r.cfg.MaxAttempts {
		return d.Reject(ctx, fmt.Sprintf("%d attempts failed: %s", d.Attempt, reason))
	}
	if delay < 0 {
		delay = r.backoff(d.Attempt)
	}
	at := r.clock.Now().Add(delay).Truncate(time.Microsecond)
	return d.finish(ctx, actionRetry, func(s *queue.Settle) { s.Verb, s.At, s.Reason = queue.Retry, at, reason })
}

// backoff is exponential with ±20 % of jitter.
func (r *Reader) backoff(attempt int) time.Duration {
	b := r.cfg.RetryMin
	for i := 1; i < attempt && b < r.cfg.RetryMax; i++ {
		b *= 2
	}
	b = min(b, r.cfg.RetryMax)
	return b - b/5 + rand.N(2*b/5+1)
}

// Throttled ends the delivery because the destination said "too many": the whole
// destination waits retryAfter, for all readers; this message goes back to its
// place and waits with it. The attempt is not counted, the permit is not refunded.
func (d *Delivery) Throttled(ctx context.Context, retryAfter time.Duration) error {
	r := d.reader
	if retryAfter > 0 {
		until := r.clock.Now().Add(min(retryAfter, maxHold))
		if err := r.letRest(ctx, d.Message.Destination, until); err != nil {
			return fmt.Errorf("valve: hold: %w", err)
		}
	}
	r.mu.Lock()
	r.stats.Throttled++
	r.mu.Unlock()
	return d.finish(ctx, actionThrottle, func(s *queue.Settle) { s.Verb = queue.Release })
}

// Reject ends the delivery for good: the message becomes a dead letter.
func (d *Delivery) Reject(ctx context.Context, reason string) error {
	return d.finish(ctx, actionDead, func(s *queue.Settle) {
		s.Verb, s.Reason, s.At = queue.Kill, reason, d.reader.clock.Now()
	})
}

// Release gives the message back as if it had not been handed out.
func (d *Delivery) Release(ctx context.Context) error {
	return d.finish(ctx, "", func(s *queue.Settle) { s.Verb = queue.Release })
}

// Extend lengthens the lease: it ends extra from now on.
func (d *Delivery) Extend(ctx context.Context, extra time.Duration) error {
	r := d.reader
	r.mu.Lock()
	x, err := r.ending(&End{Delivery: d, Verb: EndExtend, Delay: extra})
	r.mu.Unlock()
	if err != nil {
		return err
	}
	x.group = newEndings(1)
	r.end(x)
	return x.group.wait(ctx)
}
