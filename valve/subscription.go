package valve

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"github.com/mvalve/mvalve/throttle"
)

// Filter selects destinations. The zero Filter selects all.
type Filter struct {
	// Globs: a destination is selected if one of them matches (`*` any bytes,
	// `?` one byte, `\` escapes); none means all.
	Globs []string
}

// Match reports whether the filter selects destination.
func (f Filter) Match(destination string) bool {
	if len(f.Globs) == 0 {
		return true
	}
	for _, g := range f.Globs {
		if throttle.MatchGlob(g, destination) {
			return true
		}
	}
	return false
}

// exact returns the only destination the filter selects, "" if it may select several.
func (f Filter) exact() string {
	if len(f.Globs) != 1 {
		return ""
	}
	name := make([]byte, 0, len(f.Globs[0]))
	for i := 0; i < len(f.Globs[0]); i++ {
		switch c := f.Globs[0][i]; c {
		case '*', '?':
			return ""
		case '\\':
			if i++; i == len(f.Globs[0]) {
				return ""
			}
			name = append(name, f.Globs[0][i])
		default:
			name = append(name, c)
		}
	}
	return string(name)
}

// Subscription is a share of a reader: the destinations of its filter, up to a
// number of deliveries out at once. It is safe for concurrent use.
type Subscription struct {
	r      *Reader
	filter Filter
	only   string // the one destination of an exact filter
	credit int    // most deliveries out; 0: as many as callers wait

	// Guarded by r.mu.
	out      int // handed out, not ended
	assigned int // on the way to this subscription
	waiters  []*waiter
	mailbox  []*entry                  // prepared, ordered by permit time
	noCredit map[*destination]struct{} // parked until there is demand
	reserved map[*destination]struct{} // parked by the slow-consumer rule
	closed   bool
}

// waiter is one blocked Next.
type waiter struct{ ch chan *entry } // capacity 1; closed when the subscription closes

// demand is how many more messages the subscription can take.
func (s *Subscription) demand() int {
	if s.closed {
		return 0
	}
	if s.credit > 0 {
		return s.credit - s.out - s.assigned
	}
	return len(s.waiters) - s.assigned
}

// spare is how much of the demand is kept for destinations with nothing in
// flight, so that one that hangs never takes all workers: a quarter of them.
func (s *Subscription) spare() int {
	switch {
	case s.only != "":
		return 0
	case s.credit > 0:
		return s.credit / 4
	}
	return (s.out + len(s.waiters)) / 4
}

// Next blocks until a message may be dispatched and hands it out; that moment
// is Delivery.DispatchedAt. It returns *EmptyError after ReaderConfig.Wait,
// ErrClosed, or the context's error.
func (s *Subscription) Next(ctx context.Context) (*Delivery, error) {
	var expired <-chan time.Time
	if s.r.cfg.Wait > 0 {
		t := time.NewTimer(s.r.cfg.Wait)
		defer t.Stop()
		expired = t.C
	}
	for {
		e, err := s.receive(ctx, expired)
		if err != nil {
			return nil, err
		}
		d, err := s.r.dispatch(ctx, e)
		if !errors.Is(err, errWentBack) {
			return d, err
		}
	}
}

// receive returns the next prepared entry for this caller.
func (s *Subscription) receive(ctx context.Context, expired <-chan time.Time) (*entry, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	r := s.r
	r.mu.Lock()
	if s.closed {
		r.mu.Unlock()
		return nil, ErrClosed
	}
	if e := s.popMail(); e != nil {
		r.mu.Unlock()
		return e, nil
	}
	w := &waiter{ch: make(chan *entry, 1)}
	s.waiters = append(s.waiters, w)
	r.mu.Unlock()
	r.wakeUp()

	select {
	case e, ok := <-w.ch:
		if !ok {
			return nil, ErrClosed
		}
		return e, nil
	case <-ctx.Done():
		return s.leave(w, ctx.Err())
	case <-expired:
		e, err := s.leave(w, nil)
		if e == nil && err == nil {
			return nil, r.emptyError(s)
		}
		return e, err
	}
}

// leave takes w off the queue of waiters. An entry that arrived meanwhile is
// returned to the caller when err is nil, else given back.
func (s *Subscription) leave(w *waiter, err error) (*entry, error) {
	s.r.mu.Lock()
	if i := slices.Index(s.waiters, w); i >= 0 {
		s.waiters = slices.Delete(s.waiters, i, i+1)
	}
	s.r.mu.Unlock()
	select {
	case e, ok := <-w.ch:
		if !ok {
			return nil, ErrClosed
		}
		if err == nil {
			return e, nil
		}
		s.r.takeBack(e)
	default:
	}
	return nil, err
}

// popMail takes the first prepared entry. The reader's mutex is held.
func (s *Subscription) popMail() *entry {
	if len(s.mailbox) == 0 {
		return nil
	}
	e := s.mailbox[0]
	s.mailbox[0] = nil
	s.mailbox = s.mailbox[1:]
	s.assigned--
	s.out++
	return e
}

// deliver hands e to a caller or keeps it for the next one. The reader's mutex is held.
func (s *Subscription) deliver(e *entry) {
	e.phase = prepared
	if len(s.waiters) > 0 && len(s.mailbox) == 0 {
		w := s.waiters[0]
		s.waiters[0] = nil
		s.waiters = s.waiters[1:]
		s.assigned--
		s.out++
		w.ch <- e
		return
	}
	at := len(s.mailbox)
	if e.permitted {
		at, _ = slices.BinarySearchFunc(s.mailbox, e, func(a, b *entry) int {
			// Equal times stay in order of arrival.
			return cmp.Or(a.permit.At.Compare(b.permit.At), -1)
		})
	}
	s.mailbox = slices.Insert(s.mailbox, at, e)
	for len(s.waiters) > 0 && len(s.mailbox) > 0 {
		w := s.waiters[0]
		s.waiters = s.waiters[1:]
		w.ch <- s.popMail()
	}
}

// Close ends the subscription: blocked calls of Next return ErrClosed, and what
// was prepared for it is given back. Deliveries that are out can still be ended.
func (s *Subscription) Close() error {
	r := s.r
	r.mu.Lock()
	if s.closed {
		r.mu.Unlock()
		return nil
	}
	s.closed = true
	for _, w := range s.waiters {
		close(w.ch)
	}
	s.waiters = nil
	mail := s.mailbox
	s.mailbox = nil
	s.assigned -= len(mail)
	s.out += len(mail)
	r.dropSubscription(s)
	r.unparkSome(s.noCredit, len(s.noCredit))
	r.unparkSome(s.reserved, len(s.reserved))
	r.mu.Unlock()
	for _, e := range mail {
		r.takeBack(e)
	}
	r.wakeUp()
	return nil
}
