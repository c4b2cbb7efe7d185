package valve

import (
	"time"

	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/throttle"
)

// match finds a subscription with demand for d and how many messages it takes.
// Without one, d is parked with those that would want it.
func (r *Reader) match(d *destination) (*Subscription, int) {
	s, room := r.find(d, d.nextSize())
	if s == nil {
		r.each(d.name, func(s *Subscription) bool {
			d.parked = true
			s.park(d)
			return true
		})
	}
	return s, room
}

// find returns the next subscription that has room for a message of d with a body
// of size bytes, and for how many. Those with one destination and those with many
// take turns.
func (r *Reader) find(d *destination, size int) (found *Subscription, room int) {
	idle := d.busy() == 0
	r.each(d.name, func(s *Subscription) bool {
		demand := s.demand()
		n := demand - s.spare()
		if idle && demand > 0 {
			n = max(n, 1)
		}
		if n > 0 && r.fits(s.ahead, size) {
			found, room = s, n
		}
		return found == nil
	})
	if found != nil {
		r.turn++
		switch {
		case found.only == "":
			r.wildTurn++
		case found.next != found:
			r.exact[found.only] = found
		}
	}
	return found, room
}

// each calls try for the subscriptions that select destination, beginning with
// the one whose turn it is, until it returns false.
func (r *Reader) each(destination string, try func(*Subscription) bool) {
	exact := func() bool {
		last := r.exact[destination]
		if last == nil {
			return true
		}
		for s := last.next; ; s = s.next {
			if !try(s) {
				return false
			}
			if s == last {
				return true
			}
		}
	}
	wildFirst := r.turn%2 == 1
	if !wildFirst && !exact() {
		return
	}
	for i := range r.wild {
		if s := r.wild[(i+r.wildTurn)%len(r.wild)]; s.match(destination) && !try(s) {
			return
		}
	}
	if wildFirst {
		exact()
	}
}

// unpark lets destinations compete again for subscriptions that got demand.
func (r *Reader) unpark() {
	freed := r.freed
	r.freed = nil
	for _, s := range freed {
		s.listed = false
		p, demand := s.parked, s.demand()
		if p == nil || demand <= 0 {
			continue
		}
		r.unparkSome(p.noCredit, demand)
		if demand > s.spare() {
			r.unparkSome(p.reserved, demand)
		}
		if p.len() == 0 {
			s.parked = nil
			continue
		}
		s.freed() // what was let go may take less
	}
}

func (r *Reader) unparkSome(set map[*destination]struct{}, n int) {
	for d := range set {
		if n--; n < 0 {
			return
		}
		delete(set, d)
		r.unparkOne(d)
	}
}

// unparkOne lets d compete again if it is parked. The mutex is held.
func (r *Reader) unparkOne(d *destination) {
	if d.parked {
		d.parked = false
		r.enqueue(d)
	}
}

// choose takes up to n entries of d for sub into j and returns how many it took.
func (r *Reader) choose(j *job, d *destination, sub *Subscription, n int, now time.Time) int {
	it := d.open // of an earlier turn of this pick
	if it == nil || it.sub != sub {
		it = &item{d: d, sub: sub, limit: d.rule.Limit, limited: d.rule.Limit.Max > 0}
	}
	before, ahead := len(it.entries), sub.ahead
	n += before
	if d.rule.MaxInFlight > 0 {
		n = min(n, before+d.rule.MaxInFlight-d.busy())
	}
	ahead = r.chooseHeld(it, n, ahead)
	hold, _ := r.rules.Hold(d.name)
	for it.hold == 0 && len(d.held) == 0 && len(it.entries) < n && len(d.ready) > 0 {
		if r.discardHead(d, hold, now) {
			continue
		}
		head := d.ready[0]
		urgent := rank(&head.ref) == 0
		bypass := r.bypasses(it, head)
		spaced := !urgent && head.ref.Hold > 0
		if len(it.entries) > 0 && (spaced || bypass != it.charge) || !r.fits(ahead, head.ref.Size) {
			break
		}
		r.x.popReady(d)
		ahead += head.ref.Size
		r.assign(it, head, true)
		it.charge = bypass
		if spaced {
			it.hold, it.limited = head.ref.Hold, true
			break
		}
		if urgent && head.ref.Hold > 0 {
			d.asking, it.asking = true, true // what follows must see the hold that the job sets
			break
		}
	}
	took := len(it.entries) - before
	for _, e := range it.entries[before:] {
		r.goAhead(e, j.class)
	}
	if took > 0 && d.open != it {
		d.open = it
		d.pipeline = append(d.pipeline, it)
		j.items = append(j.items, it)
	}
	if took > 0 && it.limited {
		for _, e := range it.entries {
			e.limited = true
		}
		d.asking, it.asking = true, true // permits are taken in order
	}
	j.n += took
	return took
}

// chooseHeld takes entries that are leased already, up to n in it; ahead is how
// many bytes the subscription has on the way before and after.
func (r *Reader) chooseHeld(it *item, n, ahead int) int {
	for len(it.entries) < n && len(it.d.held) > 0 && it.hold == 0 {
		e := it.d.held[0]
		bypass := r.bypasses(it, e)
		spaced := rank(&e.ref) != 0 && e.ref.Hold > 0
		if len(it.entries) > 0 && (spaced || bypass != it.charge) || !r.fits(ahead, e.ref.Size) {
			break
		}
		it.d.held = it.d.held[1:]
		ahead += e.ref.Size
		r.assign(it, e, false)
		it.charge = bypass
		if spaced {
			it.hold, it.limited = e.ref.Hold, true
		}
	}
	return ahead
}

// bypasses reports whether e is counted by the limit of it, but does not wait for it.
func (r *Reader) bypasses(it *item, e *entry) bool {
	return it.limited && r.cfg.Emergency == Bypass && rank(&e.ref) == 0
}

func (r *Reader) assign(it *item, e *entry, fresh bool) {
	e.phase, e.sub = chosen, it.sub
	e.limited = it.limited
	it.entries = append(it.entries, e)
	it.sub.assigned++
	if fresh {
		it.d.inFlight++
	}
}

// discardHead ends the head of d if it must not be dispatched any more: expired,
// superseded by an emergency, or leased in vain far too often. No permit is spent.
func (r *Reader) discardHead(d *destination, hold throttle.Hold, now time.Time) bool {
	ref := &d.ready[0].ref
	verb, reason, action := queue.Kill, "", actionDead
	switch {
	case ref.ExpiresAt != 0 && ref.ExpiresAt <= now.UnixMicro():
		reason, action = "expired", actionExpire
		if r.cfg.DropExpired {
			verb = queue.Ack
		}
	case ref.Lane != queue.Emergency && !hold.SupersededBefore.IsZero() && ref.EnqueuedAt < hold.SupersededBefore.UnixMicro():
		reason = "superseded"
	case ref.Attempts >= 2*r.cfg.MaxAttempts:
		reason = "lease expired too often"
	default:
		return false
	}
	e := r.x.popReady(d)
	e.phase = settling
	d.inFlight++
	r.end(&ending{entry: e, action: action, settle: queue.Settle{Ref: e.ref, Verb: verb, Reason: reason, At: now}})
	return true
}
