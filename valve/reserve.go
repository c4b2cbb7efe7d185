package valve

import (
	"slices"
	"time"

	"github.com/mvalve/mvalve/queue"
)

// batch tells the messages of one commit from those of another.
type batch struct {
	now, leased time.Time
}

// behind is a destination of a reader with a message on its way to the store
// that was not reserved: later ones must not overtake it.
type behind struct {
	r *Reader
	d *destination
}

// reserve takes messages that are about to be inserted for subscriptions of this
// reader, as far as nothing stands before them: they are stored leased, and need
// neither a read back nor a transaction of their own before they go out. A
// destination with a limit, a hold or anything known to wait takes the usual way.
func (r *Reader) reserve(group []*insert) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closing || len(r.exact)+len(r.wild) == 0 {
		return
	}
	now := r.clock.Now()
	b := &batch{now: now, leased: now.Add(r.cfg.Lease).Truncate(time.Microsecond)}
	for _, i := range group { // urgent ones first: the others are not to pass them
		for _, m := range i.messages {
			if m.LeaseToken.IsZero() && (i.tx != nil || m.Hold > 0 || m.Lane == queue.Emergency) {
				r.storeFree(i, m)
			}
		}
	}
	for _, i := range group {
		for _, m := range i.messages {
			if m.LeaseToken.IsZero() && i.tx == nil && m.Hold == 0 && m.Lane != queue.Emergency && m.ReadyAt.IsZero() && !r.book(m, b) {
				r.storeFree(i, m)
			}
		}
	}
}

// storeFree notes that m is stored free. The mutex is held.
func (r *Reader) storeFree(i *insert, m *queue.Message) {
	if m.ReadyAt.After(m.EnqueuedAt) || !r.wanted(m.Destination) {
		return
	}
	d := r.x.dest(m.Destination)
	d.behind++
	i.behind = append(i.behind, behind{r, d})
}

// free reports whether a new message of d may go at once. The mutex is held.
func (r *Reader) free(d *destination, now time.Time) bool {
	if d.backlog() > 0 || d.behind > 0 || d.more || d.refill || d.asking || d.parked {
		return false
	}
	r.refresh(d)
	if d.rule.Limit.Max > 0 || d.rule.Paused || d.rule.MaxInFlight > 0 && d.busy() >= d.rule.MaxInFlight {
		return false
	}
	h, held := r.rules.Hold(d.name)
	return !held || !h.Until.After(now)
}

// book puts m on its way to a subscription, if it may go at once. The mutex is held.
func (r *Reader) book(m *queue.Message, b *batch) bool {
	d := r.x.dests[m.Destination]
	if d == nil && (r.surveyed < r.surveys || !r.wanted(m.Destination)) {
		return false // older ones may not be known yet
	}
	if d == nil {
		d = r.x.dest(m.Destination)
	}
	if !r.free(d, b.now) {
		return false
	}
	sub, _ := r.find(d, len(m.Body))
	if sub == nil {
		return false
	}
	m.LeaseToken, m.LeaseUntil, m.Attempts = r.id, b.leased, 1
	e := &entry{ref: m.Ref(), dest: d, message: m, leaseUntil: b.leased, asked: b.leased}
	e.ref.Destination = d.name
	r.x.known[m.ID] = e
	r.leased[e] = struct{}{}
	var it *item
	if n := len(d.pipeline); n > 0 && d.pipeline[n-1].batch == b && d.pipeline[n-1].sub == sub {
		it = d.pipeline[n-1]
	} else {
		it = &item{d: d, sub: sub, batch: b}
		d.pipeline = append(d.pipeline, it)
	}
	it.pending++
	e.item = it
	r.assign(it, e, true)
	r.goAhead(e, unlimited)
	return true
}

// reserved lets m go, which is on disk now. The mutex is held.
func (r *Reader) reserved(m *queue.Message) {
	e := r.x.known[m.ID]
	if m.LeaseToken != r.id || e == nil || e.item == nil {
		return
	}
	it := e.item
	e.item = nil
	r.inserted(it)
}

// unreserve takes back what reserve did for messages that were not stored.
func (r *Reader) unreserve(messages []*queue.Message) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, m := range messages {
		e := r.x.known[m.ID]
		if m.LeaseToken != r.id || e == nil || e.item == nil {
			continue
		}
		it := e.item
		e.item = nil
		it.entries = slices.DeleteFunc(it.entries, func(o *entry) bool { return o == e })
		it.sub.unassign()
		it.d.inFlight--
		r.stopAhead(e)
		delete(r.leased, e)
		r.x.forget(e)
		r.inserted(it)
	}
	r.wakeUp()
}

// inserted notes that the outcome of one more message of it is known. The mutex
// is held.
func (r *Reader) inserted(it *item) {
	if it.pending--; it.pending == 0 {
		it.done = true
		r.deliverInOrder(it.d)
		r.touch(it.d, r.clock.Now())
	}
}

// caughtUp ends what storeFree began for the messages of an insert.
func (i *insert) caughtUp() {
	for _, b := range i.behind {
		b.r.mu.Lock()
		if b.d.behind--; b.d.behind == 0 {
			b.r.maybeDrop(b.d)
		}
		b.r.mu.Unlock()
	}
	i.behind = nil
}
