package valve

import (
	"time"

	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/throttle"
)

// class separates jobs by what they may have to wait for, so that a limiter
// store that hangs stops only the destinations it rules.
type class uint8

const (
	unlimited class = iota
	fastState
	durableState
	classes
)

const (
	// jobItems is the most messages one job leases.
	jobItems = 1000
	// jobsPlain and jobsLimited are how many jobs of a class may be under way:
	// those that ask the limiter first wait for two commits.
	jobsPlain   = 3
	jobsLimited = 8
	// othersWait is how long a destination that another reader prefers must
	// have been eligible before this reader takes it.
	othersWait = 50 * time.Millisecond
	// expressShare: of this many picks one goes to a destination without an
	// emergency, so that emergencies of one destination never starve others.
	expressShare = 4
	maxQuantum   = 64
)

func (c class) jobs() int {
	if c == unlimited {
		return jobsPlain
	}
	return jobsLimited
}

// item is what a job does for one destination.
type item struct {
	d       *destination
	sub     *Subscription
	entries []*entry
	limit   throttle.Limit
	limited bool              // asks the limiter
	charge  bool              // emergency with policy bypass: charged, not asked
	hold    time.Duration     // the entry spaces a series
	spare   []throttle.Permit // of entries whose lease was lost
}

// job is one round trip to the limiter and one to the store.
type job struct {
	class class
	items []*item
	n     int
}

// loop is the scheduler: it wakes when something changed or becomes due.
func (r *Reader) loop() {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		r.mu.Lock()
		now := r.clock.Now()
		next := r.schedule(now)
		r.mu.Unlock()
		wait := time.Hour
		if !next.IsZero() {
			wait = max(next.Sub(now), 50*time.Microsecond)
		}
		timer.Reset(wait)
		select {
		case <-r.wake:
		case <-timer.C:
		case <-r.ctx.Done():
			return
		}
	}
}

// schedule starts the jobs that can start now and returns when to look again
// (zero: when woken). The mutex is held.
func (r *Reader) schedule(now time.Time) time.Time {
	if r.closing {
		return time.Time{}
	}
	for _, d := range r.x.dueSoon(now) {
		r.added(d, now)
	}
	for len(r.x.sleeps) > 0 && !r.x.sleeps[0].wakeAt.After(now) {
		d := r.x.sleeps[0]
		r.x.awake(d)
		r.touch(d, now)
	}
	for _, j := range r.pick(now) {
		r.jobs[j.class]++
		r.wg.Go(func() { r.run(j) })
	}
	var next time.Time
	if len(r.x.sleeps) > 0 {
		next = r.x.sleeps[0].wakeAt
	}
	if len(r.x.soon) > 0 {
		if due := queue.Time(r.x.soon[0].ref.ReadyAt); next.IsZero() || due.Before(next) {
			next = due
		}
	}
	return next
}

// added notes that d got a reference.
func (r *Reader) added(d *destination, now time.Time) {
	if d.backlog() == 1 {
		d.readySince = now
	}
	r.touch(d, now)
	if r.x.total > r.x.limit {
		r.x.trim(func(d *destination) time.Time { at, _ := r.eligibleAt(d, now); return at })
	}
}

const whyHold = "hold"

var never = time.Unix(1<<40, 0)

// refresh brings d's rule up to date.
func (r *Reader) refresh(d *destination) {
	if d.ruleGen == r.ruleGen {
		return
	}
	rule := r.rules.Resolve(d.name)
	if rule.Version != d.rule.Version || rule.Limit != d.rule.Limit {
		d.notBefore = time.Time{}
	}
	d.rule, d.ruleGen = rule, r.ruleGen
}

// eligibleAt returns when the next message of d may be asked for, never if an
// event must come first, and what it waits for.
func (r *Reader) eligibleAt(d *destination, now time.Time) (time.Time, string) {
	r.refresh(d)
	if d.rule.Paused {
		return never, "paused"
	}
	if d.rule.MaxInFlight > 0 && d.busy() >= d.rule.MaxInFlight {
		return never, "max_in_flight"
	}
	at, why := now, ""
	urgent := d.urgent()
	own := len(d.held) > 0 && d.held[0].holds
	if h, ok := r.rules.Hold(d.name); ok && h.Until.After(at) && !own && !(urgent && h.Reason == holdEmergency) {
		at, why = h.Until, whyHold
	}
	if d.notBefore.After(at) && !(urgent && r.cfg.Emergency == Bypass) {
		at, why = d.notBefore, d.why
	}
	if d.rule.Limit.Max == 0 && !r.mine(d.name) {
		if t := d.readySince.Add(othersWait); t.After(at) {
			at, why = t, "preferred by another reader"
		}
	}
	return at, why
}

// touch puts d where it belongs after anything about it changed.
func (r *Reader) touch(d *destination, now time.Time) {
	if d.more && len(d.ready) < refillBelow {
		r.wantRefill(d)
	}
	if d.backlog() == 0 {
		r.x.awake(d)
		r.maybeDrop(d)
		return
	}
	if d.asking {
		return // the job touches it when it ends
	}
	at, why := r.eligibleAt(d, now)
	if why == whyHold {
		r.onHold[d] = struct{}{}
	}
	switch {
	case at == never:
		r.x.awake(d)
	case at.After(now):
		r.x.sleep(d, at)
	default:
		r.x.awake(d)
		r.enqueue(d)
	}
}

// rings are the eligible destinations of one class, in turn.
type rings struct {
	normal, express fifo    // express: those with an emergency
	turn            int     // picks so far
	passed          float64 // virtual time: picks, each divided by how many wait
}

func (q *rings) len() int { return q.normal.len() + q.express.len() }

// pop takes the next destination, mostly one with an emergency.
func (q *rings) pop() *destination {
	q.passed += 1 / float64(q.len())
	q.turn++
	if d := q.express.peek(); d != nil && (q.turn%expressShare != 0 || q.normal.len() == 0) {
		q.express.pop()
		d.inExpress = false
		return d
	}
	d := q.normal.pop()
	d.inRing = false
	return d
}

// enqueue puts an eligible destination at the end of its ring.
func (r *Reader) enqueue(d *destination) {
	r.refresh(d)
	q := &r.rings[classOf(d)]
	switch {
	case d.parked:
	case d.urgent() && !d.inExpress:
		d.inExpress = true
		q.express.push(d)
	case !d.urgent() && !d.inRing:
		d.inRing = true
		q.normal.push(d)
	}
}

// maybeDrop forgets a destination about which nothing is known any more.
func (r *Reader) maybeDrop(d *destination) {
	if d.inFlight == 0 && !d.more && !d.refill && !d.asking && !d.inRing && !d.inExpress && !d.parked &&
		d.backlog() == 0 && !d.notBefore.After(r.clock.Now()) && r.x.dests[d.name] == d {
		delete(r.x.dests, d.name)
	}
}

// nextClass chooses the class to pick from: of those that can start a job, the
// one whose destinations had the least turns for their number.
func (r *Reader) nextClass(open *[classes]*job) (class, bool) {
	best, found := class(0), false
	for c := range classes {
		full := r.jobs[c] >= c.jobs() || open[c] != nil && open[c].n >= jobItems
		if full || r.rings[c].len() == 0 || c != unlimited && r.ahead[c].out >= r.ahead[c].limit() {
			continue
		}
		if !found || r.rings[c].passed < r.rings[best].passed {
			best, found = c, true
		}
	}
	if found {
		// A class that had nothing to do gets no credit for that.
		for c := range classes {
			r.rings[c].passed = max(r.rings[c].passed, r.rings[best].passed)
		}
	}
	return best, found
}

// pick chooses what to take next: destinations in turn, for subscriptions with
// demand, until demand, backlog or job slots are used up.
func (r *Reader) pick(now time.Time) []*job {
	r.unpark()
	var open [classes]*job
	demand, eligible := 0, 0
	for _, s := range r.subs {
		demand += max(0, s.demand())
	}
	for c := range r.rings {
		eligible += r.rings[c].len()
	}
	quantum := min(max(demand/max(1, eligible), 1), maxQuantum)
	for demand > 0 && r.bytes < aheadBytes {
		c, ok := r.nextClass(&open)
		if !ok {
			break
		}
		d := r.rings[c].pop()
		if d.backlog() == 0 || d.asking {
			continue
		}
		if at, _ := r.eligibleAt(d, now); at.After(now) || classOf(d) != c {
			r.touch(d, now)
			continue
		}
		sub, room := r.match(d)
		if sub == nil {
			continue // parked
		}
		turn := quantum
		if c == unlimited {
			// One of each takes the oldest of all, which lie close together in
			// the store; where permits are asked for, several share an update.
			turn = 1
		}
		if open[c] == nil {
			open[c] = &job{class: c}
		}
		if c != unlimited {
			room = min(room, r.ahead[c].limit()-r.ahead[c].out)
		}
		n := r.choose(open[c], d, sub, min(room, turn*max(1, d.rule.Weight)), now)
		demand -= n
		r.touch(d, now)
	}
	var jobs []*job
	for _, j := range open {
		if j != nil && j.n > 0 {
			jobs = append(jobs, j)
			for _, it := range j.items {
				it.d.open = nil
			}
		}
	}
	return jobs
}

// classOf says which store d's next message needs.
func classOf(d *destination) class {
	l := d.rule.Limit
	switch {
	case l.Max == 0:
		return unlimited
	case l.Window() > 60*time.Second:
		return durableState
	}
	return fastState
}

// match finds a subscription with demand for d and how many messages it takes.
// Without one, d is parked with those that would want it.
func (r *Reader) match(d *destination) (*Subscription, int) {
	var wanting []*Subscription
	try := func(s *Subscription) (*Subscription, int) {
		demand := s.demand()
		room := demand - s.spare()
		if d.busy() == 0 && demand > 0 {
			room = max(room, 1)
		}
		if room > 0 {
			return s, room
		}
		wanting = append(wanting, s)
		return nil, 0
	}
	for i := range r.exact[d.name] {
		list := r.exact[d.name]
		if s, room := try(list[(i+r.turn)%len(list)]); s != nil {
			return s, room
		}
	}
	for i := range r.wild {
		s := r.wild[(i+r.turn)%len(r.wild)]
		if !s.filter.Match(d.name) {
			continue
		}
		if s, room := try(s); s != nil {
			return s, room
		}
	}
	for _, s := range wanting {
		d.parked = true
		if s.demand() > 0 {
			s.reserved[d] = struct{}{}
		} else {
			s.noCredit[d] = struct{}{}
		}
	}
	return nil, 0
}

// unpark lets destinations compete again for subscriptions that have demand.
func (r *Reader) unpark() {
	for _, s := range r.subs {
		demand := s.demand()
		if demand <= 0 {
			continue
		}
		r.unparkSome(s.noCredit, demand)
		if demand > s.spare() {
			r.unparkSome(s.reserved, demand)
		}
	}
}

func (r *Reader) unparkSome(set map[*destination]struct{}, n int) {
	for d := range set {
		if n--; n < 0 {
			return
		}
		delete(set, d)
		if d.parked {
			d.parked = false
			r.enqueue(d)
		}
	}
}

// choose takes up to n entries of d for sub into j and returns how many it took.
func (r *Reader) choose(j *job, d *destination, sub *Subscription, n int, now time.Time) int {
	it := d.open // of an earlier turn of this pick
	if it == nil || it.sub != sub {
		it = &item{d: d, sub: sub, limit: d.rule.Limit, limited: d.rule.Limit.Max > 0}
	}
	before, bytes := len(it.entries), r.bytes
	n += before
	if d.rule.MaxInFlight > 0 {
		n = min(n, before+d.rule.MaxInFlight-d.busy())
	}
	for len(it.entries) < n && len(d.held) > 0 && it.hold == 0 {
		e := d.held[0]
		spaced := rank(&e.ref) != 0 && e.ref.Hold > 0
		if spaced && len(it.entries) > 0 {
			break
		}
		d.held = d.held[1:]
		r.assign(it, e, false)
		if spaced {
			it.hold, it.limited = e.ref.Hold, true
		}
	}
	hold, _ := r.rules.Hold(d.name)
	for it.hold == 0 && len(it.entries) < n && len(d.ready) > 0 && bytes < aheadBytes {
		if r.discardHead(d, hold, now) {
			continue
		}
		head := d.ready[0]
		urgent := rank(&head.ref) == 0
		bypass := urgent && r.cfg.Emergency == Bypass && it.limited
		spaced := !urgent && head.ref.Hold > 0
		if len(it.entries) > 0 && (spaced || bypass != it.charge) {
			break
		}
		r.x.popReady(d)
		bytes += head.ref.Size
		r.assign(it, head, true)
		it.charge = bypass
		if spaced {
			it.hold, it.limited = head.ref.Hold, true
			break
		}
		if urgent && head.ref.Hold > 0 {
			d.asking = true // what follows must see the hold that the job sets
			break
		}
	}
	took := len(it.entries) - before
	for _, e := range it.entries[before:] {
		r.goAhead(e, j.class)
	}
	if took > 0 && d.open != it {
		d.open = it
		j.items = append(j.items, it)
	}
	if took > 0 && it.limited {
		for _, e := range it.entries {
			e.limited = true
		}
		d.asking = true
	}
	j.n += took
	return took
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

// fifo is a queue of destinations.
type fifo struct{ items []*destination }

func (f *fifo) push(d *destination) { f.items = append(f.items, d) }
func (f *fifo) len() int            { return len(f.items) }

func (f *fifo) peek() *destination {
	if len(f.items) == 0 {
		return nil
	}
	return f.items[0]
}

func (f *fifo) pop() *destination {
	if len(f.items) == 0 {
		return nil
	}
	d := f.items[0]
	f.items[0] = nil
	f.items = f.items[1:]
	return d
}
