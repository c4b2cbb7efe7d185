package sim

import "time"

const (
	// clockRoom is how much a stamp may be off besides the error of the
	// measurement, in µs: both are whole microseconds.
	clockRoom = 3
	// goodTrip is the longest round trip, in µs, of a measurement that counts
	// like a better one: valve's clock takes it for as good.
	goodTrip = 20_000
	// informedAfter is how long a process that nothing keeps from it needs to
	// learn of a rule or hold: half a second until it looks, and the way there.
	informedAfter = time.Second
)

// busy is a time in which a process may not hear of anything.
type busy struct{ from, to time.Duration }

// probed takes a measurement of the clock in. When a process starts it believes
// the one with the shortest round trip; later ones only where they are as good,
// or where the clock stepped.
func (s *side) probed(e *event, stepped bool) {
	switch {
	case e.who == opensWriter:
	case e.who == opensReader:
		if s.trip == 0 || e.until < s.trip {
			s.trip, s.wrong = e.until, 0
		}
		if e.until == s.trip {
			s.wrong = max(s.wrong, e.stamp+clockRoom)
		}
	case stepped || e.until <= max(s.trip, goodTrip):
		s.wrong = max(s.wrong, e.stamp+clockRoom)
	}
}

// faulted takes a planned fault in, as far as it says what processes may know.
func (o *oracle) faulted(e *event) {
	f := e.fault
	if f == nil {
		return
	}
	if f.kind == fStep {
		o.stepped = true
	}
	for p := range o.sides {
		s := &o.sides[p]
		if f.kind == fStep {
			s.wrong += f.dur.Abs().Microseconds()
		}
		switch {
		case e.proc == p, e.proc == 0 && (s.slot == f.proc || s.slot < 0) && (f.kind == fStall || f.kind == fStop):
		case f.kind == fDown, f.kind == fStep:
		default:
			continue
		}
		// One may come on top of the other.
		end := e.at
		if n := len(s.busy); n > 0 {
			end = max(end, s.busy[n-1].to)
		}
		if f.kind == fSlow || f.kind == fStall || f.kind == fDown {
			end += f.dur
		}
		s.busy = append(s.busy, busy{e.at, end})
	}
}

// informed returns a time before at; what was stored until then a process must
// know at at. It is negative if there is none.
func (s *side) informed(at time.Duration) time.Duration {
	next := at
	for i := len(s.busy) - 1; i >= 0; i-- {
		if b := s.busy[i]; b.from < at {
			if t := next - informedAfter; t >= b.to {
				return t
			}
			next = b.from
		}
	}
	return -1
}

// rulesBy returns the newest version of the rules that was stored by a time.
func (o *oracle) rulesBy(at time.Duration) int64 {
	v := int64(0)
	for i := range o.rules {
		if r := &o.rules[i]; r.at <= at {
			v = max(v, r.version)
		}
	}
	return v
}

// heard is what a process had read of the holds by a time.
type heard struct {
	at      time.Duration
	version int64
}

// knowsHold reports whether a process knew a hold before a moment, or should have.
func (s *side) knowsHold(h *event, at, informed time.Duration) bool {
	if h.at < informed {
		return true
	}
	if told, ok := s.told[h.version]; ok && told < at {
		return true
	}
	for i := len(s.holds) - 1; i >= 0; i-- {
		if s.holds[i].at < at {
			return s.holds[i].version >= h.version
		}
	}
	return false
}

// inTime: what its reader knew, or had to know, must not have forbidden the
// delivery.
func (o *oracle) inTime(e *event, m *letter, s *side) {
	if m.expires != 0 && e.stamp >= m.expires {
		o.blame(ruleEarly, e.at, "m%d is delivered by p%d at %s and expired at %s", e.msg, e.proc, shortTime(e.stamp), shortTime(m.expires))
	}
	if off := max(e.stamp-e.clock, e.clock-e.stamp); off > s.wrong {
		o.blame(ruleStamp, e.at, "m%d is delivered by p%d with stamp %s at %s; its clock may be %dµs wrong", e.msg, e.proc, shortTime(e.stamp), shortTime(e.clock), s.wrong)
	}
	informed := s.informed(e.at)
	version := max(s.version, o.rulesBy(informed))
	if _, paused := o.ruleAt(e.dest, version); paused {
		o.blame(ruleEarly, e.at, "m%d is delivered by p%d, which knows that %s is paused (v%d)", e.msg, e.proc, e.dest, version)
	}
	o.inHolds(e, m, s, informed)
}

// inHolds: no hold keeps back what is delivered. A message passes what its own
// duration set, and an emergency what another one's did.
func (o *oracle) inHolds(e *event, m *letter, s *side, informed time.Duration) {
	var own, emergency int64 // until when, at most
	for i := range o.held {
		h := &o.held[i]
		switch {
		case h.dest != e.dest:
		case o.ownHold(h, e, m):
			own = max(own, h.until)
		case h.text == emergencyText:
			emergency = max(emergency, h.until)
		}
	}
	urgent := m.plan.lane == lanes.emergency
	for i := range o.held {
		h := &o.held[i]
		if h.dest != e.dest || h.until <= e.stamp || !s.knowsHold(h, e.at, informed) {
			continue
		}
		switch {
		case h.text == throttledText:
		case h.until <= own, urgent && h.until <= emergency:
			continue // a destination has one hold: that of the later end
		}
		o.blame(ruleEarly, e.at, "m%d is delivered by p%d, which knows that %s is held until %s: %s", e.msg, e.proc, e.dest, shortTime(h.until), h.text)
	}
	if m.plan.hold >= time.Microsecond && own == 0 && m.holder == e.proc && !o.jump {
		o.blame(ruleEarly, e.at, "m%d is delivered by p%d, and the hold of its duration is not stored", e.msg, e.proc)
	}
}

// ownHold reports whether a message that is delivered has set a hold itself.
func (o *oracle) ownHold(h, e *event, m *letter) bool {
	hold := m.plan.hold.Microseconds()
	return hold > 0 && h.proc == e.proc && h.at >= m.leasedAt && h.text != throttledText && h.until-h.stamp == hold
}

// The reasons of holds.
const (
	throttledText = "throttled by the destination"
	emergencyText = "emergency"
)
