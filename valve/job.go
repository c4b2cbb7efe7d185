package valve

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/throttle"
)

const (
	// backEndTimeout bounds one call of a store.
	backEndTimeout = 30 * time.Second
	// lastCallTimeout bounds those that a process waits for before it ends: a
	// disk may stall, but a back end that is gone should not hold it up.
	lastCallTimeout = 10 * time.Second
	// retryPause is how long a destination rests after its store failed.
	retryPause = 200 * time.Millisecond
	// leaseTries is how often the permits of lost races are tried on the
	// destination's next messages.
	leaseTries = 3
)

// raceWait is how long a destination without a limit rests after another reader
// was quicker.
const raceWait = 5 * time.Millisecond

// askAgain is how soon the limiter is asked again while permits are out that may
// come back unused.
const askAgain = time.Second

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// holdEmergency is the reason of holds that emergencies set; emergencies pass them.
const holdEmergency = "emergency"

// run takes the permits and leases of a job and hands over what it won.
func (r *Reader) run(j *job) {
	ctx, cancel := context.WithTimeout(r.ctx, backEndTimeout)
	defer cancel()
	began := time.Now()
	r.takePermits(ctx, j)
	for try := 1; r.leaseMissing(ctx, j, try < leaseTries); try++ {
	}
	r.setHolds(ctx, j)

	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.clock.Now()
	r.jobs[j.class]--
	if j.class != unlimited && j.won() {
		r.leads[j.class].add(time.Since(began))
		r.warnSlow(now, r.leads[j.class].estimate())
	}
	for _, it := range j.items {
		it.done = true
		r.asked(it)
		r.deliverInOrder(it.d)
		r.touch(it.d, now)
	}
	r.wakeUp()
}

// won reports whether the job has anything to hand over.
func (j *job) won() bool {
	return slices.ContainsFunc(j.items, func(it *item) bool { return len(it.entries) > 0 })
}

// asked lets the next job start for the item's destination. The mutex is held.
func (r *Reader) asked(it *item) {
	if it.asking {
		it.asking, it.d.asking = false, false
	}
}

// deliverInOrder hands over what jobs have leased of d: jobs may end in any
// order, messages leave in theirs. The mutex is held.
func (r *Reader) deliverInOrder(d *destination) {
	for len(d.pipeline) > 0 && d.pipeline[0].done {
		it := d.pipeline[0]
		d.pipeline[0] = nil
		d.pipeline = d.pipeline[1:]
		for _, e := range it.entries {
			r.deliver(it, e)
		}
	}
}

// deliver hands a leased entry to its subscription. The mutex is held.
func (r *Reader) deliver(it *item, e *entry) {
	if r.closing || it.sub.closed {
		it.sub.unassign()
		r.giveBack(e)
		return
	}
	it.sub.box.put(e)
}

// takePermits asks the limiter for all limited items of the job in one call;
// entries without a permit go back untouched.
func (r *Reader) takePermits(ctx context.Context, j *job) {
	var reqs []throttle.Request
	var asked []*item
	r.mu.Lock()
	for _, it := range j.items {
		if it.limited {
			it.returned = it.d.returned
			reqs = append(reqs, throttle.Request{
				Destination: it.d.name, Limit: it.limit, Version: it.d.rule.Version, Was: it.d.rule.Was,
				Changed: it.d.rule.Changed, Want: len(it.entries), Lead: j.lead, Hold: it.hold, Charge: it.charge,
			})
			asked = append(asked, it)
		}
	}
	r.mu.Unlock()
	if len(reqs) == 0 {
		return
	}
	now := r.clock.Now()
	grants := r.limiter.Take(ctx, now, reqs)
	stale := false
	r.mu.Lock()
	for i, g := range grants {
		stale = stale || g.Stale
		r.granted(asked[i], g, now)
	}
	r.mu.Unlock()
	if stale {
		r.reloadRules(ctx)
	}
}

// granted gives the permits of g to the first entries of it and puts the others
// back. The mutex is held.
func (r *Reader) granted(it *item, g throttle.Grant, now time.Time) {
	d := it.d
	d.notBefore, d.why = g.NotBefore, whyLimit
	if it.charge {
		d.why = "limiter busy" // it is not asked whether, only told
	}
	if d.notBefore.After(now) && !r.mine(d.name) {
		// All readers are told the same moment. Who asks first gets all that is
		// free then; the others ask in time if that one does not.
		d.notBefore = d.notBefore.Add(g.Lead / 2)
	}
	if g.Out {
		// Permits of other readers are out; one that comes back unused is free.
		d.notBefore = earlier(d.notBefore, now.Add(askAgain))
	}
	if d.returned != it.returned {
		d.notBefore = time.Time{} // what came back meanwhile may be free, and the answer does not know
	}
	if g.Err != nil {
		r.warnLimiter(now, d.name, g.Err)
		d.notBefore, d.why = now.Add(retryPause), "limiter unreachable"
	}
	if g.Stale { // until the newer rules are here, if they can be read
		d.notBefore, d.why = now.Add(retryPause), "its limit has changed"
	}
	n := min(len(g.Permits), len(it.entries))
	if n > 0 {
		d.relaxed = g.Permits[n-1].Until.Sub(g.Permits[n-1].At) >= relaxedSlack
	}
	for i, e := range it.entries[:n] {
		e.permit, e.permitted = g.Permits[i], true
	}
	for _, e := range it.entries[n:] {
		it.sub.unassign()
		r.putBack(e)
	}
	it.entries = it.entries[:n]
	if it.hold == 0 {
		r.asked(it)
		r.touch(d, now)
	}
	if n == 0 && g.Err == nil && !g.Stale {
		r.count(actionThrottle, d.name)
	}
}

// warnLimiter logs that the limiter's store fails, at most every ten seconds. The
// mutex is held.
func (r *Reader) warnLimiter(now time.Time, destination string, err error) {
	r.stats.LimiterErrors++
	if r.ctx.Err() == nil && now.Sub(r.warned) >= 10*time.Second {
		r.warned = now
		r.log.Warn("limiter unreachable; limited destinations wait", "destination", destination, "err", err)
	}
}

// tooSlow is how long a job may take before its permits begin to lapse: they are
// asked for no earlier, and last little longer.
const tooSlow = 100 * time.Millisecond

// warnSlow logs that limits cannot be used up when jobs have needed too long for
// ten seconds, and then every ten seconds. The mutex is held.
func (r *Reader) warnSlow(now time.Time, needed time.Duration) {
	switch {
	case needed <= tooSlow:
		r.slowSince = time.Time{}
	case r.slowSince.IsZero():
		r.slowSince = now
	case now.Sub(r.slowSince) >= 10*time.Second:
		r.slowSince = now
		r.log.Warn("the stores are too slow for limits: permits lapse before their messages may leave; use a faster disk, or count in memcached",
			"needed", needed.Round(time.Millisecond), "at_most", tooSlow)
	}
}

// leaseMissing leases the job's entries that are not leased yet. Where races
// were lost and retry is set, it puts the destination's next messages on the
// permits and reports that they want a lease.
func (r *Reader) leaseMissing(ctx context.Context, j *job, retry bool) bool {
	var refs []queue.Ref
	var wanted []*entry
	lost := make(map[*entry]bool)
	for _, it := range j.items {
		for _, e := range it.entries {
			if !e.leaseUntil.IsZero() {
				continue
			}
			if e.ref.Attempts >= r.cfg.MaxAttempts {
				// Its lease ran out often; its batch mates may be innocent.
				r.lease(ctx, []queue.Ref{e.ref}, []*entry{e}, lost)
				continue
			}
			refs, wanted = append(refs, e.ref), append(wanted, e)
		}
	}
	if len(refs) > 0 {
		r.lease(ctx, refs, wanted, lost)
	}
	again := false
	retry = retry && ctx.Err() == nil
	for _, it := range j.items {
		if r.settleLost(it, lost, retry) && retry {
			again = r.replace(ctx, it) || again
		}
	}
	return again
}

// lease leases refs and marks the entries that were lost.
func (r *Reader) lease(ctx context.Context, refs []queue.Ref, entries []*entry, lost map[*entry]bool) {
	now := r.clock.Now()
	until := now.Add(r.cfg.Lease)
	won, err := r.store.Lease(ctx, now, until, r.id, refs)
	if err != nil && ctx.Err() == nil {
		r.log.Warn("lease", "messages", len(refs), "err", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	byID := make(map[queue.ID]*queue.Leased, len(won))
	for i := range won {
		byID[won[i].Ref.ID] = &won[i]
	}
	for _, e := range entries {
		l := byID[e.ref.ID]
		if l == nil {
			lost[e] = true
			if err != nil && !errors.Is(err, queue.ErrUnknown) {
				e.dest.notBefore, e.dest.why = now.Add(retryPause), "back end unreachable"
			}
			continue
		}
		e.leaseUntil, e.asked, e.message = until, later(until, r.reach[e.ref.ID]), l.Message
		e.ref.Attempts = l.Ref.Attempts
		r.leased[e] = struct{}{}
		if l.Err != nil {
			lost[e] = true
			r.log.Error("message damaged", "destination", e.dest.name, "message_id", e.ref.ID, "err", l.Err)
			e.phase = settling
			r.end(&ending{entry: e, action: actionDead, settle: queue.Settle{Ref: e.ref, Verb: queue.Kill, Token: r.id, Reason: l.Err.Error(), At: now}})
		}
	}
}

// settleLost takes the lost entries out of it and reports whether there are any.
// Their permits are kept as spare for replace, if it will come.
func (r *Reader) settleLost(it *item, lost map[*entry]bool, retry bool) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	kept := it.entries[:0]
	missing := 0
	for _, e := range it.entries {
		if !lost[e] {
			kept = append(kept, e)
			continue
		}
		missing++
		it.sub.unassign()
		r.stopAhead(e)
		if e.permitted {
			it.spare = append(it.spare, e.permit)
			e.permitted = false
		}
		if e.phase == settling {
			continue // damaged: its end gives up its place
		}
		it.d.inFlight--
		r.x.forget(e)
	}
	it.entries = kept
	if missing > 0 {
		it.d.more = true // what the index says about it is not what the store has
		it.d.shared()
		if !it.limited && !r.mine(it.d.name) {
			it.d.readySince = r.clock.Now().Add(raceWait - othersWait) // somebody else is at it
		}
	}
	switch {
	case len(it.spare) == 0:
	case !retry || it.hold > 0 || it.charge || it.d.asking || it.d.pipeline[len(it.d.pipeline)-1] != it:
		// What a later job has chosen comes before all that could go on these.
		r.giveUp(it)
	default:
		it.d.asking, it.asking = true, true // no other job may choose before replace does
	}
	return missing > 0
}

// giveUp gives the spare permits of it back. The mutex is held.
func (r *Reader) giveUp(it *item) {
	for _, p := range it.spare {
		r.unused(it.d, p)
	}
	it.spare = nil
}

// replace reads the destination's head again and puts its next messages on the
// spare permits (or, without any, leaves them to the next job).
func (r *Reader) replace(ctx context.Context, it *item) bool {
	r.refillNow(ctx, it.d)
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(it.spare) == 0 {
		return false
	}
	now := r.clock.Now()
	hold, _ := r.rules.Hold(it.d.name)
	took := false
	for len(it.spare) > 0 && len(it.d.ready) > 0 && it.sub.demand() > 0 {
		if r.discardHead(it.d, hold, now) {
			continue
		}
		if it.d.ready[0].ref.Hold > 0 {
			break
		}
		e := r.x.popReady(it.d)
		r.assign(it, e, true)
		r.goAhead(e, classOf(it.d))
		e.permit, e.permitted = it.spare[0], true
		it.spare = it.spare[1:]
		took = true
	}
	r.giveUp(it)
	r.asked(it)
	r.touch(it.d, now)
	return took
}

// setHolds commits what the entries' durations say before they are dispatched.
func (r *Reader) setHolds(ctx context.Context, j *job) {
	for _, it := range j.items {
		kept := it.entries[:0]
		for _, e := range it.entries {
			if e.message.Hold > 0 && !r.setHold(ctx, e) {
				r.mu.Lock()
				it.sub.unassign()
				r.giveBack(e)
				r.mu.Unlock()
				continue
			}
			kept = append(kept, e)
		}
		it.entries = kept
	}
}

// setHold commits the hold of e, unless e must not go: what would keep it back
// cannot be told from its own hold afterwards.
func (r *Reader) setHold(ctx context.Context, e *entry) bool {
	now := r.clock.Now()
	r.mu.Lock()
	blocked := r.blocked(e, now)
	r.mu.Unlock()
	if blocked {
		return false
	}
	h := throttle.Hold{Destination: e.dest.name, Until: now.Add(e.message.Hold), Reason: "duration"}
	if e.ref.Lane == queue.Emergency {
		h.Reason = holdEmergency
		if r.cfg.OnEmergency == DropOthers {
			h.SupersededBefore = now
		}
	}
	before, err := r.putHold(ctx, h)
	if err != nil {
		r.log.Error("hold not stored; the message waits", "destination", h.Destination, "err", err)
		return false
	}
	if e.waits(before).After(r.clock.Now()) {
		return false // it came while this one was being stored
	}
	e.holds, e.why = h.Until, h.Reason
	return true
}

// putHold commits a hold, makes it effective here at once, and returns the one
// that was known before.
func (r *Reader) putHold(ctx context.Context, h throttle.Hold) (before throttle.Hold, err error) {
	if err := r.ruleStore.PutHold(ctx, r.clock.Now(), h); err != nil {
		return before, err
	}
	before = r.rules.Note(h)
	r.mu.Lock()
	defer r.mu.Unlock()
	if d := r.x.dests[h.Destination]; d != nil {
		r.touch(d, r.clock.Now())
	}
	return before, nil
}

// letRest holds a destination that said "too many".
func (r *Reader) letRest(ctx context.Context, destination string, until time.Time) error {
	_, err := r.putHold(ctx, throttle.Hold{Destination: destination, Until: until, RestUntil: until, Reason: "throttled by the destination"})
	return err
}

// putBack returns a chosen entry to its destination: to the index if it is not
// leased, else among the held ones. The mutex is held.
func (r *Reader) putBack(e *entry) {
	d := e.dest
	r.stopAhead(e)
	if e.leaseUntil.IsZero() {
		d.inFlight--
		delete(r.x.known, e.ref.ID)
		r.x.insert(d, e)
		return
	}
	r.hold(e)
}

// heldTime is how long a leased entry may wait for another permit while other
// readers, which do not see it, might be quicker.
const heldTime = time.Second

// hold keeps a leased entry that waits for a permit. An emergency goes back at
// once if others could take it. The mutex is held.
func (r *Reader) hold(e *entry) {
	if rank(&e.ref) == 0 && len(r.peers) > 1 {
		r.giveBack(e)
		return
	}
	r.stopAhead(e)
	e.phase, e.sub, e.heldSince = prepared, nil, r.clock.Now()
	d := e.dest
	at := 0
	for at < len(d.held) && before(&d.held[at].ref, &e.ref) < 0 {
		at++
	}
	d.held = append(d.held, nil)
	copy(d.held[at+1:], d.held[at:])
	d.held[at] = e
}

// giveBack ends the lease of an entry that was not handed out. The mutex is held.
func (r *Reader) giveBack(e *entry) {
	r.stopAhead(e)
	if e.permitted {
		r.unused(e.dest, e.permit)
		e.permitted = false
	}
	if e.leaseUntil.IsZero() {
		e.dest.inFlight--
		r.x.forget(e)
		e.dest.more = true
		return
	}
	e.phase = settling
	r.end(&ending{entry: e, settle: queue.Settle{Ref: e.ref, Verb: queue.Release, Token: r.id}})
}

// takeBack is giveBack for an entry that a caller had in hand.
func (r *Reader) takeBack(e *entry) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e.sub.returned()
	if e.permitted {
		r.unused(e.dest, e.permit)
		e.permitted = false
	}
	if r.closing || e.limited {
		r.giveBack(e)
	} else {
		r.hold(e)
		r.touch(e.dest, r.clock.Now())
	}
	r.wakeUp()
}
