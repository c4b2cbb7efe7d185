package valve

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Inbox is where the messages of its subscriptions arrive: many subscriptions
// with one consumer, such as those of one connection. A subscription costs about
// 100 bytes and no goroutine. It is safe for concurrent use; make one with
// Reader.NewInbox.
type Inbox struct {
	r      *Reader
	shared bool          // made by NewInbox: Next takes whatever may go
	notify chan struct{} // capacity 1, of a shared one: something arrived, or it closed

	// Guarded by r.mu.
	waiters []*waiter
	mailbox []*entry      // prepared, ordered by permit time
	subs    *Subscription // list
	closed  bool
}

// waiter is one blocked Next of a single subscription.
type waiter struct{ ch chan *entry } // capacity 1; closed when the subscription closes

// NewInbox returns an Inbox without subscriptions.
func (r *Reader) NewInbox() *Inbox {
	return &Inbox{r: r, shared: true, notify: make(chan struct{}, 1)}
}

// Subscribe opens a subscription whose messages come out of Next. credit, at
// least 1, is the most deliveries out at once, which the reader also prepares
// ahead; Subscription.Tag returns tag.
func (b *Inbox) Subscribe(filter Filter, credit int, tag any) (*Subscription, error) {
	if credit < 1 {
		return nil, fmt.Errorf("valve: credit %d is not positive", credit)
	}
	return b.r.subscribe(b, filter, credit, tag)
}

// Next blocks until at least one message may be dispatched, appends all that may
// go now to dst, as far as its capacity reaches (at least one), and returns it;
// that moment is their DispatchedAt. It returns ErrClosed once the inbox or its
// reader is closed, or the context's error.
func (b *Inbox) Next(ctx context.Context, dst []*Delivery) ([]*Delivery, error) {
	most := max(1, cap(dst)-len(dst))
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		if err := ctx.Err(); err != nil {
			return dst, err
		}
		got, next, err := b.take(dst, most)
		if err != nil || len(got) > len(dst) {
			return got, err
		}
		wait := time.Hour
		if !next.IsZero() {
			wait = max(0, next.Sub(b.r.clock.Now()))
		}
		timer.Reset(wait)
		select {
		case <-b.notify:
		case <-timer.C:
		case <-ctx.Done():
		}
	}
}

// take hands out up to most prepared messages whose time has come, and returns
// when the next one's does.
func (b *Inbox) take(dst []*Delivery, most int) ([]*Delivery, time.Time, error) {
	r := b.r
	r.mu.Lock()
	defer r.mu.Unlock()
	if b.closed || r.closing {
		signal(b.notify) // for other callers
		return dst, time.Time{}, ErrClosed
	}
	now := r.clock.Now().Truncate(time.Microsecond)
	back := false
	for most > 0 && len(b.mailbox) > 0 {
		if e := b.mailbox[0]; e.limited && e.permit.At.After(now) {
			return dst, e.permit.At, nil
		}
		d, err := r.handOut(b.pop(), now)
		if err != nil {
			back = true
			continue
		}
		dst = append(dst, d)
		most--
	}
	if back {
		r.wakeUp()
	}
	if len(b.mailbox) > 0 {
		signal(b.notify)
	}
	return dst, time.Time{}, nil
}

// nextOne is Next of a subscription of its own.
func (b *Inbox) nextOne(ctx context.Context, s *Subscription) (*Delivery, error) {
	if b.shared {
		got, err := b.Next(ctx, make([]*Delivery, 0, 1))
		if err != nil {
			return nil, err
		}
		return got[0], nil
	}
	var expired <-chan time.Time
	if b.r.cfg.Wait > 0 {
		t := time.NewTimer(b.r.cfg.Wait)
		defer t.Stop()
		expired = t.C
	}
	for {
		e, err := b.receive(ctx, s, expired)
		if err != nil {
			return nil, err
		}
		d, err := b.r.dispatch(ctx, e)
		if !errors.Is(err, errWentBack) {
			return d, err
		}
	}
}

// receive returns the next prepared entry for this caller.
func (b *Inbox) receive(ctx context.Context, s *Subscription, expired <-chan time.Time) (*entry, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	r := b.r
	r.mu.Lock()
	if s.closed {
		r.mu.Unlock()
		return nil, ErrClosed
	}
	if len(b.mailbox) > 0 {
		e := b.pop()
		r.mu.Unlock()
		return e, nil
	}
	w := &waiter{ch: make(chan *entry, 1)}
	b.waiters = append(b.waiters, w)
	s.freed()
	r.mu.Unlock()
	r.wakeUp()

	select {
	case e, ok := <-w.ch:
		if !ok {
			return nil, ErrClosed
		}
		return e, nil
	case <-ctx.Done():
		return b.leave(w, ctx.Err())
	case <-expired:
		e, err := b.leave(w, nil)
		if e == nil && err == nil {
			return nil, r.emptyError(s)
		}
		return e, err
	}
}

// leave takes w off the queue of waiters. An entry that arrived meanwhile is
// returned to the caller when err is nil, else given back.
func (b *Inbox) leave(w *waiter, err error) (*entry, error) {
	b.r.mu.Lock()
	if i := slices.Index(b.waiters, w); i >= 0 {
		b.waiters = slices.Delete(b.waiters, i, i+1)
	}
	b.r.mu.Unlock()
	select {
	case e, ok := <-w.ch:
		if !ok {
			return nil, ErrClosed
		}
		if err == nil {
			return e, nil
		}
		b.r.takeBack(e)
	default:
	}
	return nil, err
}

// pop takes the first prepared entry. The reader's mutex is held.
func (b *Inbox) pop() *entry {
	e := b.mailbox[0]
	b.mailbox[0] = nil
	if b.mailbox = b.mailbox[1:]; len(b.mailbox) == 0 {
		b.mailbox = nil
	}
	e.sub.assigned--
	e.sub.out++
	return e
}

// put hands e to a caller or keeps it for the next one. The reader's mutex is held.
func (b *Inbox) put(e *entry) {
	e.phase = prepared
	if len(b.waiters) > 0 && len(b.mailbox) == 0 {
		w := b.waiters[0]
		b.waiters[0] = nil
		b.waiters = b.waiters[1:]
		e.sub.assigned--
		e.sub.out++
		w.ch <- e
		return
	}
	at, _ := slices.BinarySearchFunc(b.mailbox, e, func(a, b *entry) int {
		// Equal times stay in order of arrival.
		return cmp.Or(a.notBefore().Compare(b.notBefore()), -1)
	})
	b.mailbox = slices.Insert(b.mailbox, at, e)
	if b.shared {
		signal(b.notify)
		return
	}
	for len(b.waiters) > 0 && len(b.mailbox) > 0 {
		w := b.waiters[0]
		b.waiters = b.waiters[1:]
		w.ch <- b.pop()
	}
}

// notBefore is the time of the entry's permit, zero if it needs none.
func (e *entry) notBefore() time.Time {
	if !e.limited {
		return time.Time{}
	}
	return e.permit.At
}

// remove takes what was prepared for s out of the mailbox, as if handed out. The
// reader's mutex is held.
func (b *Inbox) remove(s *Subscription) []*entry {
	var mail []*entry
	kept := b.mailbox[:0]
	for _, e := range b.mailbox {
		if e.sub != s {
			kept = append(kept, e)
			continue
		}
		s.assigned--
		s.out++
		mail = append(mail, e)
	}
	clear(b.mailbox[len(kept):])
	b.mailbox = kept
	return mail
}

// close lets blocked callers go. The reader's mutex is held.
func (b *Inbox) close() {
	b.closed = true
	for _, w := range b.waiters {
		close(w.ch)
	}
	b.waiters = nil
	if b.notify != nil {
		signal(b.notify)
	}
}

// Close closes the inbox and all its subscriptions; blocked calls of Next return
// ErrClosed. Deliveries that are out can still be ended. It is safe to call twice.
func (b *Inbox) Close() error {
	b.r.mu.Lock()
	b.close()
	var subs []*Subscription
	for s := b.subs; s != nil; s = s.mate {
		subs = append(subs, s)
	}
	b.r.mu.Unlock()
	for _, s := range subs {
		_ = s.Close()
	}
	return nil
}
