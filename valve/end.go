package valve

import (
	"context"
	"fmt"
	"time"

	"github.com/mvalve/mvalve/queue"
)

// Verb says how EndAsync ends a delivery.
type Verb uint8

// The verbs of End.
const (
	EndAck       Verb = iota + 1 // as Delivery.Ack
	EndRetry                     // as Delivery.Nack: after Delay, at once if 0, after the back-off if negative
	EndRelease                   // as Delivery.Release
	EndReject                    // as Delivery.Reject
	EndThrottled                 // as Delivery.Throttled: the destination waits Delay
	EndExtend                    // as Delivery.Extend: the lease ends Delay from now
)

// End is one delivery and how it ends.
type End struct {
	Delivery *Delivery
	Verb     Verb
	Delay    time.Duration
	Reason   string // of EndRetry and EndReject, for the dead letter
	// Lazy says that nobody waits for the end: while the subscription has used
	// less than half of its credit it may be committed some milliseconds later,
	// with what is inserted meanwhile.
	Lazy bool
}

// ackPatience is how long lazy ends wait for others to share their commit with.
const ackPatience = 5 * time.Millisecond

// EndAsync ends deliveries of this reader without waiting, in as few commits as
// possible. It calls done once, when everything is on disk, from a goroutine that
// commits: done must not block. lost is how many of the leases had been lost;
// those messages were not touched. err is any other failure: what it concerns may
// be ended again. done may be nil.
func (r *Reader) EndAsync(done func(lost int, err error), ends ...End) {
	if done == nil {
		done = func(int, error) {}
	}
	group := &endings{after: done}
	group.left.Store(int64(len(ends)) + 1)
	batch := make([]*ending, 0, len(ends))
	var throttled []*ending
	patient := true
	r.mu.Lock()
	for i := range ends {
		x, err := r.ending(&ends[i])
		switch {
		case err != nil:
			defer group.finish(err)
		case ends[i].Verb == EndThrottled && ends[i].Delay > 0:
			x.group = group
			throttled = append(throttled, x)
		default:
			x.group = group
			batch = append(batch, x)
			s := x.entry.sub
			patient = patient && ends[i].Lazy && int(s.out+s.assigned) < int(s.credit)/2
		}
	}
	r.mu.Unlock()
	add := r.settles.add
	if patient {
		add = func(items ...*ending) bool { return r.settles.addLater(ackPatience, items...) }
	}
	if len(batch) > 0 && !add(batch...) {
		for range batch {
			defer group.finish(ErrClosed)
		}
	}
	for _, x := range throttled {
		go r.endThrottled(x, r.clock.Now().Add(min(x.hold, maxHold)))
	}
	group.finish(nil)
}

// ending claims the delivery of an End. The mutex is held.
func (r *Reader) ending(end *End) (*ending, error) {
	d := end.Delivery
	e := d.entry
	if e.phase != out {
		return nil, ErrLeaseLost
	}
	now := r.clock.Now()
	x := &ending{entry: e, settle: queue.Settle{Ref: e.ref, Token: r.id, Reason: end.Reason}}
	verb := end.Verb
	if verb == EndRetry && d.Attempt >= r.cfg.MaxAttempts {
		verb, x.settle.Reason = EndReject, fmt.Sprintf("%d attempts failed: %s", d.Attempt, end.Reason)
	}
	switch verb {
	case EndAck:
		x.settle.Verb, x.action = queue.Ack, actionAck
	case EndRetry:
		delay := end.Delay
		if delay < 0 {
			delay = r.backoff(d.Attempt)
		}
		x.settle.Verb, x.action, x.settle.At = queue.Retry, actionRetry, now.Add(delay).Truncate(time.Microsecond)
	case EndRelease:
		x.settle.Verb = queue.Release
	case EndReject:
		x.settle.Verb, x.action, x.settle.At = queue.Kill, actionDead, now
	case EndThrottled:
		x.settle.Verb, x.action, x.hold = queue.Release, actionThrottle, end.Delay
		r.stats.Throttled++
	case EndExtend:
		x.settle.Verb, x.settle.At = queue.Extend, now.Add(end.Delay).Truncate(time.Microsecond)
		e.asked = later(e.asked, x.settle.At)
		if end.Delay > r.cfg.Lease { // carried out late, it may make the next lease that long
			r.reach[e.ref.ID] = later(r.reach[e.ref.ID], x.settle.At)
		}
		return x, nil // the delivery goes on
	default:
		return nil, fmt.Errorf("valve: no verb %d", end.Verb)
	}
	e.phase = settling
	return x, nil
}

// endThrottled sets the destination's hold before the message goes back.
func (r *Reader) endThrottled(x *ending, until time.Time) {
	ctx, cancel := context.WithTimeout(context.Background(), backEndTimeout)
	defer cancel()
	err := r.letRest(ctx, x.entry.dest.name, until)
	if err != nil {
		r.mu.Lock()
		x.entry.phase = out
		r.mu.Unlock()
		x.group.finish(fmt.Errorf("valve: hold: %w", err))
		return
	}
	r.end(x)
}

// transaction is what CommitAsync settles together with what it inserts.
type transaction struct {
	r       *Reader
	endings []*ending
	lost    []int
}

// CommitAsync inserts msgs and ends deliveries of this reader in one transaction,
// all or nothing: one lost lease fails it with ErrLeaseLost. It needs
// ReaderConfig.Writer. done is called once as by Writer.InsertAsync, in order
// with it; after an error the deliveries are as before. EndThrottled is not
// allowed. When CommitAsync returns an error nothing was queued and done is not called.
func (r *Reader) CommitAsync(done func(error), msgs []*queue.Message, ends ...End) error {
	w := r.cfg.Writer
	if w == nil {
		return fmt.Errorf("valve: a transaction needs ReaderConfig.Writer")
	}
	tx := &transaction{r: r}
	item := &insert{messages: msgs, done: done, tx: tx}
	if err := w.check(item); err != nil {
		return err
	}
	r.mu.Lock()
	var err error
	for i := range ends {
		var x *ending
		if ends[i].Verb == EndThrottled {
			err = fmt.Errorf("valve: throttled is not allowed in a transaction")
		} else {
			x, err = r.ending(&ends[i])
		}
		if err != nil {
			break
		}
		x.tx = true
		tx.endings = append(tx.endings, x)
	}
	if err != nil {
		tx.restore()
	}
	r.mu.Unlock()
	if err != nil {
		return err
	}
	if !w.commits.add(item) {
		r.mu.Lock()
		tx.restore()
		r.mu.Unlock()
		return ErrClosed
	}
	return nil
}

// restore gives the deliveries back to their consumers. The mutex is held.
func (tx *transaction) restore() {
	for _, x := range tx.endings {
		if x.entry.phase == settling {
			x.entry.phase = out
		}
	}
}

// applyTx commits a transaction.
func (w *Writer) applyTx(i *insert) error {
	tx := i.tx
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	now := w.clock.Now()
	c := &queue.Change{Token: w.ids.New(now), Put: i.messages, Settle: make([]queue.Settle, len(tx.endings)), Strict: true, Told: true}
	tx.r.mu.Lock()
	for k, x := range tx.endings {
		c.Settle[k] = x.fenced()
	}
	tx.r.mu.Unlock()
	outcome, err := w.store.Apply(ctx, now, c)
	switch {
	case err != nil:
		return fmt.Errorf("valve: commit: %w", err)
	case len(outcome.Lost) > 0:
		tx.lost = outcome.Lost
		return ErrLeaseLost
	}
	return nil
}

// finish does the bookkeeping of what was settled, or gives it back.
func (tx *transaction) finish(err error) {
	r := tx.r
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.clock.Now()
	lost := make(map[int]bool, len(tx.lost))
	for _, i := range tx.lost {
		lost[i] = true
	}
	for i, x := range tx.endings {
		switch {
		case err == nil, lost[i]:
			r.ended(x, lost[i], nil, now)
		case x.entry.phase == settling:
			x.entry.phase = out
		}
	}
	r.wakeUp()
}
