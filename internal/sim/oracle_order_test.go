package sim

import (
	"cmp"
	"time"

	"github.com/mvalve/mvalve/queue"
)

var lanes = struct{ emergency, timed, incoming queue.Lane }{queue.Emergency, queue.Timed, queue.Incoming}

// rank is the order of lanes within a destination.
func (m *letter) rank() int {
	switch {
	case m.plan.lane == lanes.emergency:
		return 0
	case m.table == lanes.timed:
		return 1
	}
	return 2
}

// compare is the order in which messages of a destination should leave.
func (m *letter) compare(x *letter) int {
	c := cmp.Or(cmp.Compare(m.rank(), x.rank()), cmp.Compare(x.plan.level, m.plan.level))
	if c == 0 && (m.table == lanes.timed || x.table == lanes.timed) {
		c = cmp.Compare(m.ready, x.ready)
	}
	return cmp.Or(c, cmp.Compare(m.id, x.id))
}

// knownAfter is how long after its commit, or its time, a message must be known
// to every reader in settled times: two polls when idle, and the way there.
func (o *oracle) knownAfter() time.Duration {
	d := 150*time.Millisecond + 20*o.plan.latency
	if o.plan.cap > 0 {
		d += foundAgain
	}
	return d
}

// foundAgain is how long after its time a message must be found that a full index
// forgot while it was not due: the look-ahead comes every half second.
const foundAgain = 1500 * time.Millisecond

// settleTime is how long after trouble everything must run as usual again.
const settleTime = 3 * time.Second

// passedOver: a first lease must not pass over a message that comes before, was
// never leased and has been there for a while. A job under way may still lease
// that one: it is judged at the next look.
func (o *oracle) passedOver(e *event, x *letter) {
	if x.leases > 1 || o.jump || x.leases == 1 && e.kind == kLeased || !o.unchanged(x.plan.dest, e.at, settleTime) && !o.plan.calm {
		return
	}
	shared := o.readersOf(x.plan.dest) > 1
	for i := range o.letters {
		y := &o.letters[i]
		switch {
		case y == x || !y.committed || y.ended != 0 || y.leases > 0 || y.plan.dest != x.plan.dest:
		case y.at+o.knownAfter() > e.at || y.compare(x) >= 0:
		case y.table == lanes.timed && y.ready+o.knownAfter().Microseconds() > e.clock:
		case y.plan.expires > 0:
		case shared && y.rank() == x.rank(): // readers may interleave by a batch
		case o.plan.cap > 0 && y.rank() == x.rank(): // a full index forgot it
		case !o.serves(e.proc, y.plan.dest):
		case o.leasedSoon(y, e):
		default:
			o.blame(ruleOrder, e.at, "p%d leases m%d of %s and passes over m%d, stored at %.6fs", e.proc, x.n, x.plan.dest, y.n, y.at.Seconds())
		}
	}
}

// overtakes: of two messages of a lane and priority that one reader knew, the one
// that comes before leaves first. Those of one Insert are known at once.
func (o *oracle) overtakes(e *event, y *letter, s *side) {
	switch {
	case !o.plan.calm && !o.settledFor(e.at, settleTime), o.jump, o.plan.cap > 0, o.plan.latency > slowOrder:
		return
	case y.delivered > 0 || y.leases > 1 || y.released || y.holder != e.proc, o.readersOf(e.dest) > 1:
		return
	case !o.unchanged(e.dest, e.at, settleTime) && !o.plan.calm, !o.oneByOne(s):
		return // what has its permit yet is passed by what needs none
	case o.plan.calm && max(o.changed["*"], o.changed[e.dest]) > 0:
		return
	}
	for i := range o.held {
		if h := &o.held[i]; h.dest == e.dest && h.until > e.stamp-settleTime.Microseconds() {
			return // what it keeps back goes back
		}
	}
	for i := range o.letters {
		x := &o.letters[i]
		switch {
		case x == y || !x.committed || x.ended != 0 || x.delivered > 0 || x.leases > 1 || x.leases == 1 && x.holder != e.proc || x.released || x.plan.dest != e.dest:
		case x.rank() != y.rank() || x.plan.level != y.plan.level || x.compare(y) >= 0 || x.plan.expires > 0:
		case x.leases == 1 && (e.at-x.leasedAt) > o.plan.lease/2: // its reader did not hear of the lease, or no longer trusts it
		case x.plan.group != y.plan.group && x.at+o.knownAfter() > y.leasedAt:
		case x.table == lanes.timed && x.plan.group != y.plan.group && x.ready+o.knownAfter().Microseconds() > e.clock-(e.at-y.leasedAt).Microseconds():
		case o.plan.procs[s.slot].consumers > 1 && o.deliveredWith(x, e): // they wait side by side
		default:
			o.blame(ruleOrder, e.at, "p%d delivers m%d of %s before m%d, stored at %.6fs", e.proc, y.n, e.dest, x.n, x.at.Seconds())
		}
	}
}

// slowOrder is the latency above which permits lapse, and messages wait for
// others behind those that did not.
const slowOrder = 3 * time.Millisecond

// oneByOne reports whether the consumers of a process share what is prepared:
// what waits for one with credit may be passed by what goes to others.
func (o *oracle) oneByOne(s *side) bool {
	pp := &o.plan.procs[s.slot]
	return pp.style != 1 || pp.consumers == 1
}

// readersOf counts the processes that read a destination.
func (o *oracle) readersOf(dest string) int {
	n := 0
	for p := range o.sides {
		if o.serves(p, dest) {
			n++
		}
	}
	return n
}

// leasedSoon reports whether a job that was under way at e leases y.
func (o *oracle) leasedSoon(y *letter, e *event) bool {
	for i := range o.h {
		l := &o.h[i]
		if l.at > e.at+20*o.plan.latency+60*time.Millisecond {
			break
		}
		if l.at >= e.at && l.msg == y.n && l.kind == kLeased {
			return true
		}
	}
	return false
}

// deliveredWith reports whether x is delivered by the process of e at the very
// moment of e.
func (o *oracle) deliveredWith(x *letter, e *event) bool {
	for i := range o.h {
		if d := &o.h[i]; d.at > e.at {
			break
		} else if d.at == e.at && d.kind == e.kind && d.proc == e.proc && d.msg == x.n {
			return true
		}
	}
	return false
}

// serves reports whether a process reads a destination.
func (o *oracle) serves(proc int, dest string) bool {
	s := o.side(proc)
	if s.slot < 0 || !s.live {
		return false
	}
	pp := &o.plan.procs[s.slot]
	if !pp.reader {
		return false
	}
	for _, d := range pp.dests {
		if d == dest {
			return true
		}
	}
	return len(pp.dests) == 0
}
