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
	if x.leases > 1 || o.jump || x.leases == 1 && e.kind == kLeased || !o.settledFor(e.at, settleTime) && !o.plan.calm {
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
		case !o.serves(e.proc, y.plan.dest):
		case o.leasedSoon(y, e):
		default:
			o.blame(ruleOrder, e.at, "p%d leases m%d of %s and passes over m%d, stored at %.6fs", e.proc, x.n, x.plan.dest, y.n, y.at.Seconds())
		}
	}
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
