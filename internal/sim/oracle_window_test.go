package sim

import (
	"cmp"
	"slices"
	"time"
)

// sent is one dispatch, and the limits that may have let it go.
type sentOnce struct {
	event
	limits  []limitText
	counted bool
}

// ruleAge is how long before a dispatch its reader's rules may have been asked
// for its permit: the slack of a permit, and the way through two stores.
const ruleAge = 400 * time.Millisecond

// windows judges the limits: no half-open window holds more dispatches than one of
// the limits allows that may have been in force for the last of them. Where the
// rules do not change that is the one limit.
func (o *oracle) windows() {
	for _, dest := range o.dests {
		log := o.logOf(dest)
		for i := range log {
			o.window(log, i)
		}
	}
}

// window judges dispatch i.
func (o *oracle) window(log []sentOnce, i int) {
	e := &log[i]
	if o.exempt(e) || o.shortened(log, i) || o.bypassed(log, i) {
		return
	}
	extra := o.extra(e)
	for _, l := range limitsOf(log, i) {
		if l.max == 0 {
			return
		}
		n := int64(0)
		for j := i - 1; j >= 0 && log[j].stamp > e.stamp-l.window; j-- {
			if log[j].counted && (!o.exempt(&log[j]) || log[j].at <= e.at-ruleAge) {
				n++
			}
		}
		if n < l.max*extra {
			return
		}
	}
	o.blame(ruleWindow, e.at, "m%d of %s at %s is one too many for each of %v", e.msg, e.dest, shortTime(e.stamp), e.limits)
}

// limitsOf returns the limits that may have let dispatch i go, and those of what
// has an earlier stamp and was dispatched after it, by a reader whose clock is
// behind: such a one may know a limit that nobody knew at i.
func limitsOf(log []sentOnce, i int) []limitText {
	e, limits := &log[i], slices.Clone(log[i].limits)
	for j := i - 1; j >= 0 && log[j].stamp > e.stamp-ruleAge.Microseconds(); j-- {
		if log[j].at > e.at {
			limits = append(limits, log[j].limits...)
		}
	}
	return limits
}

// clockAge is how long a process may go by the time from before a step.
const clockAge = 11 * time.Second

// extra is how many times its limit a window may hold. After the back end's clock
// went ahead the state of a limit looks expired, which shortens one window: for
// processes that know the step the past is over, others still count in it.
func (o *oracle) extra(e *sentOnce) int64 {
	for _, at := range o.ahead {
		if at <= e.at && e.at <= at+clockAge {
			return 2
		}
	}
	return 1
}

// shortened reports whether a window that ends with dispatch i may be too short because the
// back end's clock went back and then the cache forgot, or the limit moved to the
// other store: the times of that are on the new clock, those of the dispatches
// on the old one. See docs/proof.md, Known limits.
func (o *oracle) shortened(log []sentOnce, i int) bool {
	if o.plan.lone {
		return false
	}
	e, last := &log[i], o.lastIn(log, i)
	for _, step := range o.stepsBack {
		over := step.at + clockAge + 2*step.dur.Abs() + o.longest(e.dest)
		if last < step.at || e.at > over {
			continue
		}
		for _, at := range append(o.moves(e.dest), o.wipes...) {
			if at >= step.at-ruleAge && at <= last {
				return true
			}
		}
	}
	return false
}

// lastIn returns when the last dispatch took place that a window that ends with
// dispatch i may hold: one by a clock that is behind may be later than i.
func (o *oracle) lastIn(log []sentOnce, i int) time.Duration {
	last, from := log[i].at, log[i].stamp-o.longest(log[i].dest).Microseconds()
	for j := i; j >= 0 && log[j].stamp > from; j-- {
		last = max(last, log[j].at)
	}
	return last
}

// moves returns when the limit of a destination moved from one store to the other.
func (o *oracle) moves(dest string) (moves []time.Duration) {
	const durableFrom = 60_000_000
	last := true
	for i := range o.rules {
		l, _ := o.ruleAt(dest, o.rules[i].version)
		if durable := l.max == 0 || l.window > durableFrom; durable != last {
			last = durable
			moves = append(moves, o.rules[i].at, o.rules[i].at+rulesKnown) // until the last reader knows
		}
	}
	return moves
}

// longest returns the longest window that a destination ever had.
func (o *oracle) longest(dest string) time.Duration {
	most := int64(0)
	for i := range o.rules {
		l, _ := o.ruleAt(dest, o.rules[i].version)
		most = max(most, l.window)
	}
	return time.Duration(most) * time.Microsecond
}

// bypassed reports whether a window that ends with dispatch i may hold more than
// its limit because of emergencies that bypassed an earlier one: what a new limit
// must assume of a past that is forgotten is what the old one allowed.
func (o *oracle) bypassed(log []sentOnce, i int) bool {
	e, longest, last := &log[i], o.longest(log[i].dest), o.lastIn(log, i)
	changed := false
	for k := range o.rules {
		r := &o.rules[k]
		changed = changed || r.at > 0 && (r.dest == e.dest || r.dest == "*") && r.at <= last && e.at <= r.at+rulesKnown+ruleAge+2*longest
	}
	if !changed {
		return false
	}
	for j := i; j >= 0 && log[j].stamp > e.stamp-2*longest.Microseconds(); j-- {
		if o.exempt(&log[j]) {
			return true
		}
	}
	return false
}

// exempt: emergencies pass the limit where the policy says so. They count for
// what gets its permit later.
func (o *oracle) exempt(e *sentOnce) bool {
	return o.plan.bypass && o.letters[e.msg].plan.lane == lanes.emergency
}

// logOf returns the dispatches of a destination in order of their stamps.
func (o *oracle) logOf(dest string) []sentOnce {
	var log []sentOnce
	for _, e := range o.h {
		if e.kind == kDispatch && e.dest == dest {
			s := sentOnce{event: e, limits: o.limitsFor(&e), counted: true}
			for _, l := range s.limits {
				s.counted = s.counted && l.max > 0
			}
			log = append(log, s)
		}
	}
	slices.SortStableFunc(log, func(a, b sentOnce) int { return cmp.Compare(a.stamp, b.stamp) })
	return log
}

// limitsFor returns the limits under which a dispatch may have been permitted: of
// the versions that its reader knew lately, up to the newest that any reader knew.
func (o *oracle) limitsFor(e *event) []limitText {
	lo, hi := int64(-1), int64(0)
	must := o.rulesBy(o.sides[e.proc].informed(e.at - ruleAge))
	for _, s := range o.sides[e.proc].versions {
		if lo < 0 || s.at <= e.at-ruleAge {
			lo = s.version
		}
	}
	for i := range o.sides {
		for _, s := range o.sides[i].versions {
			if s.at <= e.at {
				hi = max(hi, s.version)
			}
		}
	}
	var limits []limitText
	lo = max(lo, must)
	for v := lo; v <= max(hi, lo); v++ {
		if l, _ := o.ruleAt(e.dest, v); !slices.Contains(limits, l) {
			limits = append(limits, l)
		}
	}
	return limits
}
