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
	// jobItemsLimited is jobItems where permits are asked for.
	jobItemsLimited = 128
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

// items is how many messages a job of the class takes. Smaller jobs overlap
// better where each waits for two commits.
func (c class) items() int {
	if c == unlimited {
		return jobItems
	}
	return jobItemsLimited
}

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
	asking  bool              // no other job may start for the destination
	done    bool              // leased; waits for earlier items of the destination
	batch   *batch            // of messages that are being inserted leased
	pending int               // of those, not yet known to be stored
	// returned is destination.returned as it was when the limiter was asked.
	returned uint32
}

// job is one round trip to the limiter and one to the store.
type job struct {
	class class
	lead  time.Duration // what its like needed lately from asking to dispatch
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

const (
	whyHold  = "hold"
	whyLimit = "limit"
)

var never = time.Unix(1<<40, 0)

// refresh brings d's rule up to date.
func (r *Reader) refresh(d *destination) {
	if d.ruled && d.rule.Version == r.rules.Version() {
		return
	}
	rule := r.rules.Resolve(d.name)
	if rule.Version != d.rule.Version || rule.Limit != d.rule.Limit {
		d.notBefore = time.Time{}
	}
	d.rule, d.ruled = rule, true
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
	if h, ok := r.rules.Hold(d.name); ok {
		own := len(d.held) > 0 && d.held[0].set(h)
		if until := heldUntil(h, urgent, own); until.After(at) {
			at, why = until, whyHold
		}
	}
	if d.notBefore.After(at) && (!urgent || r.cfg.Emergency != Bypass || d.why != whyLimit) {
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
	if d.more && d.low() {
		r.wantRefill(d)
	}
	if d.backlog() == 0 {
		d.deficit = 0
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
	if at.After(now) {
		d.deficit = 0 // what cannot go loses its turn
	}
	switch {
	case at.Equal(never):
		r.x.awake(d)
	case at.After(now):
		r.x.sleep(d, at)
	default:
		r.x.awake(d)
		r.enqueue(d)
	}
}

// enqueue puts an eligible destination into its ring: at the end, or at the front
// while its turn is not over.
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
	if d.inFlight == 0 && d.behind == 0 && !d.more && !d.refill && !d.asking && !d.inRing && !d.inExpress && !d.parked &&
		d.backlog() == 0 && !d.notBefore.After(r.clock.Now()) && r.x.dests[d.name] == d {
		delete(r.x.dests, d.name)
	}
}

// nextClass chooses the class to pick from: of those that can start a job, the
// one whose destinations had the least turns for their number.
func (r *Reader) nextClass(open *[classes]*job) (class, bool) {
	best, found := class(0), false
	for c := range classes {
		full := r.jobs[c] >= c.jobs() || open[c] != nil && open[c].n >= c.items()
		if full || r.rings[c].len() == 0 || r.room(c, relaxedShare) <= 0 {
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
	for _, s := range r.wild {
		demand += max(0, s.demand())
	}
	for c := range r.rings {
		eligible += r.rings[c].len()
	}
	quantum := min(max(demand/max(1, eligible), 1), maxQuantum)
	for demand > 0 || len(r.exact) > 0 {
		c, ok := r.nextClass(&open)
		if !ok {
			break
		}
		d := r.rings[c].pop()
		if d.backlog() == 0 || d.asking {
			r.maybeDrop(d)
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
		if open[c] == nil {
			open[c] = &job{class: c, lead: r.leads[c].estimate()}
		}
		n := r.chooseInTurn(open[c], d, sub, room, quantum, now)
		if n == 0 && d.open != nil {
			continue // what is next begins a job of its own, after the one being put together
		}
		if sub.only == "" {
			demand -= n
		}
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

// chooseInTurn lets d have its turn: quantum messages times its weight, at most
// room. Deficit round robin (Shreedhar, Varghese 1995): what it cannot have of its
// turn now, for want of consumers, it has before the next one gets its own.
func (r *Reader) chooseInTurn(j *job, d *destination, sub *Subscription, room, quantum int, now time.Time) int {
	turn, most := quantum, 0
	switch {
	case sub.only != "" && sub.next != sub:
		turn = 1 // its consumers take turns
	case r.rings[j.class].len() == 0 || sub.only != "":
		most = maxQuantum // nobody else wants it now
	case j.class == unlimited:
		// One of each takes the oldest of all, which lie close together in
		// the store; where permits are asked for, several share an update.
		turn = 1
	}
	if turn *= max(1, d.rule.Weight); d.deficit == 0 || d.deficit > turn {
		d.deficit = turn
	}
	n := r.choose(j, d, sub, min(room, r.room(j.class, d.weight()), max(d.deficit, most)), now)
	if d.deficit -= n; n == 0 || d.deficit < 0 {
		d.deficit = 0
	}
	return n
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
