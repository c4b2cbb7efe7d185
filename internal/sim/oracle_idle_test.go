package sim

import (
	"slices"
	"time"
)

const (
	// lookEvery is how often the oracle looks for messages that wait in vain.
	lookEvery = 50 * time.Millisecond
	// idleCalm and idleTroubled are how long one may wait for a reader that is
	// idle: in runs without faults, and else once things have settled. Then a
	// destination pass may have to find it.
	idleCalm     = 300 * time.Millisecond
	idleTroubled = 3 * time.Second
	// idlePart is how long one may wait at least while a part of its limit is
	// used: a permit that another reader gives back is noticed within a second.
	idlePart = 1500 * time.Millisecond
	// rulesKnown is how long a change of the rules may take to become effective.
	rulesKnown = time.Second
	// lostAhead is how long after a loss of the cache limits may keep everything
	// back where the clock went back before: a reader that has not noticed may
	// have used them until ten seconds after it was last seen, by its own clock.
	lostAhead = 15 * time.Second
	// permitRoom is how much earlier than by its dispatches a limit may be used
	// up: permits count at their latest until they are reported.
	permitRoom = 600 * time.Millisecond
)

// lookForIdle looks for a message that may go while a reader of its destination
// has a consumer that waits, at a moment.
func (o *oracle) lookForIdle(at time.Duration, clock int64) {
	bound := idleCalm + 20*o.plan.latency
	if !o.plan.calm {
		bound = idleTroubled + 20*o.plan.latency
	}
	if o.jump || !o.plan.calm && !o.settledFor(at, settleTime+bound) {
		return
	}
	if len(o.stepsBack) > 0 && len(o.wipes) > 0 && at < slices.Max(o.wipes)+lostAhead {
		return
	}
	for i := range o.letters {
		m := &o.letters[i]
		if !m.committed || m.ended != 0 || m.holder != 0 && m.until > clock-bound.Microseconds() || m.plan.expires > 0 {
			continue
		}
		since := m.freeSince
		if m.table == lanes.timed {
			since = max(since, at-time.Duration(clock-m.ready)*time.Microsecond)
			if o.plan.cap > 0 {
				since += foundAgain
			}
		}
		if at-since < bound || !o.mayGo(m.plan.dest, at, clock, bound, at-since) {
			continue
		}
		for p := range o.sides {
			if o.idle(p, m.plan.dest, at-bound) {
				o.blame(ruleIdle, at, "m%d of %s may go since %.6fs, and p%d is idle", m.n, m.plan.dest, since.Seconds(), p)
			}
		}
	}
}

// back is a delivery that a consumer had no more from a time on.
type back struct {
	at   time.Duration
	who  int
	dest string
}

// idle reports whether a process has had a consumer waiting for a destination
// since a time, with room for its messages all that time.
func (o *oracle) idle(proc int, dest string, since time.Duration) bool {
	s := &o.sides[proc]
	if !s.live || !o.serves(proc, dest) {
		return false
	}
	pp := &o.plan.procs[s.slot]
	waiting := 0
	for who, from := range s.idle {
		if from > since {
			continue
		}
		waiting++
		credit, out := 1+who, o.outOf(proc, since, func(w int, _ string) bool { return w == who })
		switch {
		case pp.style == 0:
			continue
		case pp.style == 2 && pp.dests == nil:
			credit = 2 * pp.consumers
		case pp.style == 2:
			credit, out = pp.consumers, o.outOf(proc, since, func(_ int, d string) bool { return d == dest })
		}
		if out == 0 || credit-out-credit/4 > 0 { // the last quarter is for destinations with nothing out
			return true
		}
	}
	out := o.outOf(proc, since, func(int, string) bool { return true })
	return pp.style == 0 && waiting > (out+waiting)/4
}

// outOf returns how many deliveries of a process that count may have been out at
// once since a time, at most.
func (o *oracle) outOf(proc int, since time.Duration, counts func(who int, dest string) bool) int {
	n := 0
	for i := range o.letters {
		if m := &o.letters[i]; m.out && m.outProc == proc && counts(m.outWho, m.plan.dest) {
			n++
		}
	}
	backs := o.sides[proc].backs
	for i := len(backs) - 1; i >= 0 && backs[i].at > since; i-- {
		if counts(backs[i].who, backs[i].dest) {
			n++
		}
	}
	return n
}

// mayGo reports whether nothing kept a destination's messages, of which one waits
// for so long already, from going for the whole time d before now.
func (o *oracle) mayGo(dest string, at time.Duration, now int64, d, waits time.Duration) bool {
	newest := int64(0)
	if n := len(o.rules); n > 0 {
		newest = o.rules[n-1].version
		if since := o.rules[n-1].clock; o.rules[n-1].at > 0 && since+(d+rulesKnown).Microseconds() > now {
			return false
		}
	}
	limit, paused := o.ruleAt(dest, newest)
	if paused {
		return false
	}
	for _, h := range o.held {
		if h.dest == dest && h.until > now-d.Microseconds() {
			return false
		}
	}
	// What a limit let through before a fault may count for as long as its window.
	past := time.Duration(limit.window)*time.Microsecond + permitRoom
	if !o.plan.calm && !o.unchanged(dest, at, settleTime+d+past) {
		return false
	}
	if limit.max == 0 {
		return true
	}
	// Emergencies with policy Bypass do not wait for the pace, but take part in it:
	// many at once keep the others waiting for longer than a window.
	if limit.pace > 0 && o.pace[dest]-limit.pace > now-d.Microseconds()-permitRoom.Microseconds() {
		return false
	}
	o.looks++
	if o.sentSince(dest, now-(d+past).Microseconds()) == 0 {
		return true
	}
	d = max(d, idlePart)
	return waits >= d && o.sentSince(dest, now-(d+past).Microseconds()) < limit.max
}

// sentSince counts the dispatches of a destination after a time.
func (o *oracle) sentSince(dest string, since int64) int64 {
	n := int64(0)
	for _, stamp := range o.sent[dest] {
		if stamp > since {
			n++
		}
	}
	return n
}
