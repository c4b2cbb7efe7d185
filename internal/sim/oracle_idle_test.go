package sim

import "time"

const (
	// lookEvery is how often the oracle looks for messages that wait in vain.
	lookEvery = 50 * time.Millisecond
	// idleCalm and idleTroubled are how long one may wait for a reader that is
	// idle: in runs without faults, and else once things have settled. Then a
	// destination pass may have to find it.
	idleCalm     = 300 * time.Millisecond
	idleTroubled = 3 * time.Second
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
// is idle, at a moment.
func (o *oracle) lookForIdle(at time.Duration, clock int64) {
	bound := idleCalm + 20*o.plan.latency
	if !o.plan.calm {
		bound = idleTroubled + 20*o.plan.latency
	}
	if o.jump || !o.plan.calm && !o.settledFor(at, settleTime+bound) {
		return
	}
	if o.back && o.wiped && at < o.lastWipe+lostAhead {
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
		if at-since < bound || !o.mayGo(m.plan.dest, clock, bound) {
			continue
		}
		for p := range o.sides {
			if o.idle(p, m.plan.dest, at-bound) {
				o.blame(ruleIdle, at, "m%d of %s may go since %.6fs, and p%d is idle", m.n, m.plan.dest, since.Seconds(), p)
			}
		}
	}
}

// idle reports whether a process has had a consumer waiting for a destination
// since a time, and nothing out.
func (o *oracle) idle(proc int, dest string, since time.Duration) bool {
	s := &o.sides[proc]
	if !s.live || !o.serves(proc, dest) || s.out > 0 || s.emptied > since {
		return false
	}
	for _, from := range s.idle {
		if from <= since {
			return true
		}
	}
	return false
}

// mayGo reports whether nothing kept a destination's messages from going for the
// whole time d before now.
func (o *oracle) mayGo(dest string, now int64, d time.Duration) bool {
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
	if limit.max == 0 {
		return true
	}
	// Emergencies with policy Bypass do not wait for the pace, but take part in it:
	// many at once keep the others waiting for longer than a window.
	if limit.pace > 0 && o.pace[dest]-limit.pace > now-d.Microseconds()-permitRoom.Microseconds() {
		return false
	}
	n := int64(0)
	for _, stamp := range o.sent[dest] {
		if stamp > now-d.Microseconds()-limit.window-permitRoom.Microseconds() {
			n++
		}
	}
	return n == 0
}
