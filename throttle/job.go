package throttle

import (
	"sync"
	"time"

	"github.com/mvalve/mvalve/state"
)

// origin is what all permits of one grant have in common.
type origin struct {
	limit   Limit
	era     int64
	crowded bool  // a slot given back or known better would matter
	hold    int64 // µs that its dispatch closes the destination for
	charge  bool
}

// job is one request on its way through a store. run may be called several
// times; all it finds out is overwritten by the next call.
type job struct {
	limiter *Limiter
	req     *Request // nil: only notes are written
	grant   *Grant
	dest    string
	key     string
	store   state.Store
	limit   Limit
	ttl     time.Duration
	now     int64
	nonce   uint64
	notes   *notes // claimed from the limiter, or nil
	permit  origin

	asked, askOther bool  // the other store
	otherState      *ring // what it held

	// of the last run
	ring    ring
	before  ring // without entries: closing and tat before the grant
	stamps  []stamp
	next    int64
	need    time.Duration // ttl, if longer than ttl
	stale   bool
	written bool
	done    bool
}

// jobPool keeps finished jobs for the room of their entries.
var jobPool = sync.Pool{New: func() any { return new(job) }}

// release ends the use of j. Nothing that was handed out refers to it.
func (j *job) release() {
	entries, stamps := j.ring.entries, j.stamps
	*j = job{stamps: stamps}
	j.ring.entries = entries
	jobPool.Put(j)
}

func (l *Limiter) newJob(req *Request, grant *Grant, now time.Time) *job {
	j := jobPool.Get().(*job)
	entries, stamps := j.ring.entries[:0], j.stamps[:0]
	*j = job{
		limiter: l, req: req, grant: grant, dest: req.Destination, key: l.key(req.Destination),
		store: l.store(req.Limit), limit: req.Limit, now: now.UnixMicro(), nonce: l.random(),
	}
	j.ring.entries, j.stamps = entries, stamps
	j.ttl = max(ttl(req.Limit), req.Hold+extraTTL) + ttlRoom
	j.notes = l.claim(j.dest)
	return j
}

// was returns what the destination was held to before, the zero Limit if nothing
// did or nobody knows.
func (j *job) was() Limit {
	if j.req == nil || j.req.Was == nil {
		return Limit{}
	}
	return *j.req.Was
}

// again reports whether the job must go round once more.
func (j *job) again() bool {
	if j.need > j.ttl {
		j.ttl, j.need = j.need, 0
		return true
	}
	return j.askOther
}

// run is the change of one value: settle the notes, take permits.
func (j *job) run(old state.Entry) []byte {
	r := &j.ring
	j.stamps, j.next, j.need, j.stale, j.askOther, j.written = j.stamps[:0], 0, 0, false, false, false
	dirty, ok := j.load(r, old)
	if !ok {
		return nil
	}
	r.high = max(r.high, j.now)
	r.prune(r.high)
	dirty = j.settleNotes(r) || dirty
	j.before = ring{closed: r.closed, closer: r.closer, hold: r.hold, tat: r.tat}
	if j.req != nil {
		hold := int64(j.req.Hold / time.Microsecond)
		if j.req.Charge {
			j.stamps = r.charge(j.stamps, j.now, j.req.Want, hold)
		} else {
			j.stamps, j.next = r.take(j.stamps, j.now, j.limit.runFor(j.req.Lead), j.req.Want, hold)
		}
	}
	if !dirty && len(j.stamps) == 0 {
		return nil
	}
	if j.need = r.lifetime(j.now); j.need > j.ttl {
		return nil // once more, with a longer life
	}
	r.nonce = j.nonce
	j.permit = origin{limit: r.limit, era: r.era, hold: r.hold, crowded: r.crowded()}
	j.written = true
	return r.encode()
}

// lifetime returns how long the value must be kept from now on. If the clock is
// behind the one that wrote last, the value must live by the later one.
func (r *ring) lifetime(now int64) time.Duration {
	const most = 2 * int64(MaxInterval/time.Microsecond)
	_, closed := r.closedUntil()
	keep := int64(ttl(r.limit)/time.Microsecond) + max(0, r.high-now)
	keep = max(keep, closed-now+extraTTL.Microseconds())
	return time.Duration(min(keep, most)) * time.Microsecond
}

// load makes r the state under the job's limit. dirty says that it must be
// written even if nothing is granted; ok is false if there is nothing to do.
func (j *job) load(r *ring, old state.Entry) (dirty, ok bool) {
	if old.Data == nil {
		if j.req == nil {
			return false, false // the notes are about nothing
		}
		return j.loadAbsent(r, old.Lost)
	}
	if err := r.decode(old.Data); err != nil {
		j.limiter.log.Error("limiter state is malformed; its window counts as used up",
			"destination", j.dest, "bytes", len(old.Data))
		j.loadUnknown(r)
		r.full(j.now+r.limit.slack()+r.limit.longestRun(), j.was())
		return true, true
	}
	if j.req == nil {
		return false, true
	}
	if j.req.Version < r.version {
		j.stale = true
		return false, false
	}
	if r.limit == j.limit && !r.moved {
		r.version = j.req.Version
		return false, true
	}
	if j.mayHaveMoved() {
		j.askOther = true
		return false, false
	}
	// Where both say that the other one has the state, a move was broken off: the
	// later era has it, for each move begins one.
	if o := j.otherState; o != nil && (!o.moved || r.moved && o.era > r.era) {
		_, closed := r.closedUntil()
		r.adopt(o)
		r.closed = max(r.closed, closed)
	}
	r.change(j.limit, j.req.Version, j.now)
	return true, true
}

func (r *ring) adopt(o *ring) {
	_, closed := o.closedUntil()
	*r = ring{
		limit: o.limit, version: o.version, era: o.era, high: o.high, forgot: o.forgot, tat: o.tat,
		closed: closed, pasts: o.pasts, entries: append(r.entries[:0], o.entries...), total: o.total, moved: true,
	}
	r.era++
	for i := range r.entries {
		r.entries[i].open = false
	}
}

// loadUnknown makes r an empty state of the job's limit.
func (j *job) loadUnknown(r *ring) {
	*r = ring{limit: j.limit, era: j.now, high: j.now, entries: r.entries[:0]}
	if j.req != nil {
		r.version = j.req.Version
		r.closed = 0
		if j.req.Hold > 0 {
			r.closed = j.now + int64(j.req.Hold/time.Microsecond)
		}
	}
}

// loadAbsent decides what an absent value means.
func (j *job) loadAbsent(r *ring, lost time.Time) (dirty, ok bool) {
	if j.mayHaveMoved() {
		j.askOther = true
		return false, false
	}
	if j.otherState != nil {
		r.adopt(j.otherState)
		r.change(j.limit, j.req.Version, j.now)
		j.loseUntil(r, lost)
		return true, true
	}
	j.loadUnknown(r)
	r.closed = 0
	j.loseUntil(r, lost)
	// What the old limit admitted longer ago than values are kept may still
	// count in a window that is longer now.
	was := j.was()
	last := j.now - int64(ttl(was)/time.Microsecond) + (extraTTL / 2).Microseconds()
	if !was.IsNone() && j.req.Changed.UnixMicro()+j.limit.window()+extraTTL.Microseconds() > j.now &&
		last > j.now-j.limit.window() {
		r.assume(was, last, j.now)
		return true, true
	}
	return false, true
}

// loseUntil counts r's window as used up at lost, when the store that forgot the
// value may have held it last. What r knows of later times stays.
func (j *job) loseUntil(r *ring, lost time.Time) {
	if lost.IsZero() {
		return
	}
	// Permits that were out then may have been used a little later.
	at := lost.UnixMicro() + maxEasy + maxAsked
	if j.limit == j.was() || j.req.Was == nil {
		at = lost.UnixMicro() + j.limit.easy() + j.limit.longestRun()
	}
	if n := len(r.entries); n > 0 {
		at = max(at, r.entries[n-1].hi)
	}
	if !j.limit.IsNone() && at+j.limit.window() > j.now {
		r.full(at, j.was())
	}
	if closed := at + int64(j.req.Hold/time.Microsecond); j.req.Hold > 0 && closed > j.now {
		r.closed = max(r.closed, closed)
	}
}

// mayHaveMoved reports whether the other store must be asked first. It is asked
// after every change of late, wherever the limit before was counted: that one may
// have been in force so shortly that readers still count by the one before it.
func (j *job) mayHaveMoved() bool {
	if j.asked || j.req.Changed.IsZero() {
		return false
	}
	if j.limiter.other(j.limit) == nil {
		return false
	}
	keep := max(ttl(j.was()), ttl(j.limit))
	return j.req.Changed.UnixMicro()+keep.Microseconds() > j.now
}

// fence is the change of the value in the store the limit moved away from.
func (j *job) fence(old state.Entry) []byte {
	r := &ring{}
	j.otherState, j.stale = nil, false
	switch {
	case old.Data == nil:
		*r = ring{limit: j.was(), high: j.now} // era 0: it knows nothing
		if !old.Lost.IsZero() && !r.limit.IsNone() {
			if at := old.Lost.UnixMicro() + maxEasy + maxAsked; at+j.limit.window() > j.now {
				r.full(at, j.was())
				r.era = j.now
				j.otherState = r
			}
		}
	case r.decode(old.Data) != nil:
		*r = ring{limit: j.limit, era: j.now, high: j.now}
		r.full(j.now, j.was())
		j.otherState = r
	case r.version > j.req.Version:
		j.stale = true
		return nil
	default:
		j.otherState = r
		if r.moved && r.version == j.req.Version {
			return nil
		}
	}
	copied := *r
	copied.version, copied.moved = j.req.Version, true
	return copied.encode()
}

// permits returns what the last run granted.
func (j *job) permits() []Permit {
	if len(j.stamps) == 0 {
		return nil
	}
	from := new(origin)
	*from = j.permit
	from.charge = j.req.Charge
	permits := make([]Permit, len(j.stamps))
	for i, p := range j.stamps {
		at := time.UnixMicro(p.p).UTC()
		permits[i] = Permit{At: at, Until: at.Add(time.Duration(p.slack) * time.Microsecond), dest: j.dest, from: from}
	}
	return permits
}
