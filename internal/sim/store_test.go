package sim

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/mvalve/mvalve/queue"
)

// queueOf is the database as one process sees it: calls take a while, and faults
// happen to them. The types around it say what else the store can do.
type queueOf struct{ p *proc }

type dirtyQueue struct{ *queueOf }

type foreignQueue struct{ *queueOf }

var (
	_ queue.Registry       = (*queueOf)(nil)
	_ queue.DirtyChecker   = dirtyQueue{}
	_ queue.ForeignChecker = foreignQueue{}
)

func (p *proc) queue() queue.Store {
	switch q := (&queueOf{p}); p.w.plan.dirty {
	case 1:
		return dirtyQueue{q}
	case 2:
		return foreignQueue{q}
	default:
		return q
	}
}

// Errors of a port: nothing was done, and nobody knows.
type portErrors struct{ unavailable, unknown error }

var queueErrors = portErrors{queue.ErrUnavailable, queue.ErrUnknown}

// lag is how long the next call takes: each a little different, so that time
// and not the scheduler decides what comes first. The mutex is held.
func (p *proc) lag() time.Duration {
	p.w.uses++
	if p.w.plan.grid > 0 {
		return time.Duration(p.w.uses%997) * time.Nanosecond
	}
	return p.dice.upTo(p.w.plan.latency/2) + time.Duration(p.w.uses%997)*time.Nanosecond
}

// call carries effect out as a call of the process.
func (p *proc) call(ctx context.Context, m method, errs portErrors, effect func() error) error {
	w := p.w
	w.mu.Lock()
	w.calls++
	before, after := p.lag(), p.lag()
	s := &w.slots[p.slot]
	f, faulty := fault{}, false
	if s.proc == p {
		f, faulty = s.take(m)
	}
	if wait := time.Until(s.stallTo); wait > 0 {
		before += wait
	}
	down := time.Now().Before(w.downTo) && m != mState
	if m == mNow && s.skew < 0 {
		before -= s.skew
	} else if m == mNow {
		after += s.skew
	}
	if faulty {
		w.fired[f.kind]++
		w.note(event{kind: kFault, proc: p.id, text: f.String(), fault: &f})
		if f.kind == fSlow {
			extra := time.Duration(p.dice.Int64N(int64(f.dur) + 1))
			before, after = before+extra, after+f.dur-extra
		}
	}
	w.mu.Unlock()
	if err := p.wait(ctx, before); err != nil {
		return fmt.Errorf("%w: %w", errs.unavailable, err)
	}
	switch {
	case down, faulty && f.kind == fBefore:
		return fmt.Errorf("%w: injected", errs.unavailable)
	case faulty && f.kind == fCrash && f.phase == 0:
		p.crash(f.dur)
		return fmt.Errorf("%w: crash", errs.unavailable)
	case faulty && f.kind == fNever:
		return fmt.Errorf("%w: injected, not done", errs.unknown)
	case faulty && f.kind == fLater && (m == mApply || m == mLease || m == mPutHold):
		w.owed.Add(1)
		w.wg.Go(func() {
			defer w.owed.Add(-1)
			pass(f.dur)
			w.mu.Lock()
			defer w.mu.Unlock()
			w.late = true
			_ = effect()
			w.late = false
		})
		return fmt.Errorf("%w: injected, done later", errs.unknown)
	}
	err, dead := p.effect(effect, faulty && f.kind == fTwice && m == mApply)
	if dead {
		return fmt.Errorf("%w: dead", errs.unavailable)
	}
	switch {
	case faulty && f.kind == fCrash:
		p.crash(f.dur)
		return fmt.Errorf("%w: crash", errs.unknown)
	case faulty && (f.kind == fAfter || f.kind == fLater):
		return fmt.Errorf("%w: injected, done", errs.unknown)
	}
	if werr := p.wait(ctx, after); werr != nil {
		return fmt.Errorf("%w: %w", errs.unknown, werr)
	}
	return err
}

// effect is the moment at which a call takes effect.
func (p *proc) effect(do func() error, twice bool) (err error, dead bool) {
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	if p.isDead() {
		return nil, true
	}
	err = do()
	if twice && err == nil {
		err = do() // the driver did not hear the answer
	}
	return err, false
}

// wait lets a call take its time.
func (p *proc) wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-p.dead:
		return context.Canceled
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Apply implements queue.Store.
func (q *queueOf) Apply(ctx context.Context, now time.Time, c *queue.Change) (queue.Outcome, error) {
	copied := *c
	copied.Put = make([]*queue.Message, len(c.Put))
	for i, m := range c.Put {
		msg := *m
		copied.Put[i] = &msg
	}
	copied.Settle = slices.Clone(c.Settle)
	var out queue.Outcome
	first := true
	err := q.p.call(ctx, mApply, queueErrors, func() error {
		if !first && len(c.Put) == 0 && !c.Strict {
			return nil // what vanished counts as done: drivers look at what still carries the token
		}
		first = false
		var err error
		out, err = q.p.w.apply(q.p, now, &copied)
		return err
	})
	if err != nil {
		return queue.Outcome{}, err
	}
	return out, nil
}

// apply carries a change out and notes the truth about it. The mutex is held.
func (w *world) apply(p *proc, now time.Time, c *queue.Change) (queue.Outcome, error) {
	if w.bugs.apply != nil {
		c = w.bugs.apply(w, c)
	}
	again := !c.Token.IsZero() && w.tokens[c.Token]
	out, err := w.db.Apply(context.Background(), now, c)
	if err != nil {
		return out, err
	}
	if w.bugs.after != nil {
		w.bugs.after(w, c)
	}
	undone := c.Strict && len(out.Lost) > 0
	if again || undone {
		return out, nil
	}
	if !c.Token.IsZero() {
		w.tokens[c.Token] = true
	}
	if len(c.Put) > 0 || len(c.Settle) > 0 {
		w.commits++
		if c.Told || len(c.Put) == 0 {
			p.told++
		}
	}
	for _, m := range c.Put {
		n := numberOf(m)
		w.ids[m.ID] = n
		w.note(event{
			kind: kCommitted, proc: p.id, msg: n, dest: m.Destination, table: m.Table(), until: queue.Micros(m.LeaseUntil), stamp: queue.Micros(m.ReadyAt),
			expires: queue.Micros(m.ExpiresAt), late: w.late, text: m.ID.String(),
		})
	}
	for i := range c.Settle {
		s := &c.Settle[i]
		e := event{kind: kSettled, proc: p.id, msg: w.ids[s.Ref.ID], dest: s.Ref.Destination, table: s.Ref.Table, verb: s.Verb, until: queue.Micros(s.At), text: s.Reason, late: w.late}
		if s.Token.IsZero() {
			e.text = nobodys + s.Reason
		}
		if slices.Contains(out.Lost, i) {
			e.kind = kLost
		}
		w.note(e)
	}
	return out, nil
}

// nobodys marks what was done to a message that nobody held.
const nobodys = "nobody's: "

func numberOf(m *queue.Message) int {
	n := 0
	for _, c := range m.Body[1:] {
		n = n*10 + int(c-'0')
	}
	return n
}

// Lease implements queue.Store.
func (q *queueOf) Lease(ctx context.Context, now, until time.Time, token queue.ID, refs []queue.Ref) ([]queue.Leased, error) {
	refs = slices.Clone(refs)
	var won []queue.Leased
	err := q.p.call(ctx, mLease, queueErrors, func() error {
		w := q.p.w
		if w.bugs.lease != nil {
			now, until = w.bugs.lease(w, now, until)
		}
		var err error
		won, err = w.db.Lease(context.Background(), now, until, token, refs)
		for _, l := range won {
			w.note(event{
				kind: kLeased, proc: q.p.id, msg: w.ids[l.Ref.ID], dest: l.Ref.Destination, table: l.Ref.Table,
				stamp: queue.Micros(now), until: queue.Micros(until), attempt: l.Ref.Attempts,
			})
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return won, nil
}

// Scan implements queue.Store.
func (q *queueOf) Scan(ctx context.Context, now time.Time, table queue.Lane, after queue.Cursor, upTo time.Time, n int) (refs []queue.Ref, next queue.Cursor, err error) {
	next = after
	err = q.p.call(ctx, mScan, queueErrors, func() (err error) {
		if q.p.w.bugs.blind {
			return nil
		}
		refs, next, err = q.p.w.db.Scan(context.Background(), now, table, after, upTo, n)
		if q.p.w.bugs.refs != nil {
			refs = q.p.w.bugs.refs(q.p.w, refs)
		}
		return err
	})
	if err != nil {
		return nil, after, err
	}
	return refs, next, nil
}

// Heads implements queue.Store.
func (q *queueOf) Heads(ctx context.Context, now time.Time, query queue.HeadQuery) (refs []queue.Ref, more string, err error) {
	err = q.p.call(ctx, mHeads, queueErrors, func() (err error) {
		if q.p.w.bugs.blind {
			return nil
		}
		refs, more, err = q.p.w.db.Heads(context.Background(), now, query)
		if q.p.w.bugs.refs != nil && query.Destination != "" {
			refs = q.p.w.bugs.refs(q.p.w, refs)
		}
		return err
	})
	if err != nil {
		return nil, "", err
	}
	return refs, more, nil
}

// Now implements queue.Store.
func (q *queueOf) Now(ctx context.Context) (now time.Time, err error) {
	w, sent := q.p.w, time.Now()
	err = q.p.call(ctx, mNow, queueErrors, func() error { now = w.now(); return nil })
	if err != nil {
		return now, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	trip := time.Since(sent)
	wrong := now.Add(trip / 2).Sub(w.now()).Abs()
	w.note(event{kind: kProbe, proc: q.p.id, who: q.p.phase, stamp: wrong.Microseconds() + 1, until: trip.Microseconds()})
	return now.Add(w.bugs.now), nil
}

// Close implements queue.Store.
func (q *queueOf) Close() error { return nil }

// Announce implements queue.Registry.
func (q *queueOf) Announce(ctx context.Context, now, since time.Time, pr queue.Presence) (live []queue.Presence, err error) {
	err = q.p.call(ctx, mAnnounce, queueErrors, func() (err error) {
		live, err = q.p.w.db.Announce(context.Background(), now, since, pr)
		return err
	})
	return live, err
}

// Leave implements queue.Registry.
func (q *queueOf) Leave(ctx context.Context, id queue.ID) error {
	return q.p.call(ctx, mAnnounce, queueErrors, func() error { return q.p.w.db.Leave(context.Background(), id) })
}

// Dirty implements queue.DirtyChecker.
func (q dirtyQueue) Dirty(context.Context) (int64, error) {
	q.p.w.mu.Lock()
	defer q.p.w.mu.Unlock()
	return q.p.w.commits, nil
}

// Foreign implements queue.ForeignChecker.
func (q foreignQueue) Foreign(context.Context) (int64, error) {
	q.p.w.mu.Lock()
	defer q.p.w.mu.Unlock()
	return q.p.w.commits - q.p.told, nil
}
