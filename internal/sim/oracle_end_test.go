package sim

import (
	"strings"
	"time"

	"github.com/mvalve/mvalve/queue"
)

// call is a consumer's call that ends a delivery. Its process may settle the
// message that way until it is answered; what is carried out after that is late.
type call struct {
	proc, serial, attempt int
	verb                  queue.Verb
	delay                 int64 // µs, of a 429
	clock                 int64
	throttled, open       bool
}

// answered closes the call of a delivery and returns it.
func (m *letter) answered(e *event) call {
	for i := len(m.calls) - 1; i >= 0; i-- {
		if c := &m.calls[i]; c.open && c.proc == e.proc && c.serial == e.serial {
			c.open = false
			return *c
		}
	}
	return call{}
}

// wanted reports whether a consumer in the process of e asks for what it carries
// out, or asked for it once, where it is late.
func (m *letter) wanted(e *event, is func(c *call) bool) bool {
	for i := range m.calls {
		if c := &m.calls[i]; c.proc == e.proc && (c.open || e.late) && is(c) {
			return true
		}
	}
	return false
}

// settled takes the end of a lease in.
func (o *oracle) settled(e *event, m *letter) {
	switch e.verb {
	case queue.Extend:
		m.until = e.until
		if m.out {
			m.outUntil = e.until
		}
		return
	case queue.Ack:
		if !m.wanted(e, func(c *call) bool { return c.verb == queue.Ack }) {
			o.blame(ruleLoss, e.at, "m%d is deleted by p%d, whose consumer does not ack it", e.msg, e.proc)
		}
		m.ended = e.verb
	case queue.Kill:
		o.killed(e, m)
		m.ended = e.verb
	case queue.Retry:
		if !m.wanted(e, func(c *call) bool { return c.verb == queue.Retry && c.attempt < maxAttempts }) {
			o.blame(ruleLoss, e.at, "m%d is to be tried again by p%d, whose consumer does not nack it, or too often", e.msg, e.proc)
		}
		m.table, m.ready = queue.Timed, e.until
	}
	m.late = e.late
	m.released = m.released || e.verb == queue.Release
	m.holder, m.until, m.freeSince = 0, 0, e.at
	o.returned(m, e.at)
}

// returned notes that the consumer that had m has it no more.
func (o *oracle) returned(m *letter, at time.Duration) {
	if m.out {
		m.out = false
		s := o.side(m.outProc)
		s.backs = append(s.backs, back{at, m.outWho, m.plan.dest})
	}
}

// killed: a message is given up only for a reason.
func (o *oracle) killed(e *event, m *letter) {
	reason, nobodys := strings.CutPrefix(e.text, nobodys)
	switch {
	case !nobodys:
		if !m.wanted(e, func(c *call) bool { return c.verb == queue.Kill || c.verb == queue.Retry && c.attempt >= maxAttempts }) {
			o.blame(ruleLoss, e.at, "m%d is given up by p%d, whose consumer does not reject it: %s", e.msg, e.proc, e.text)
		}
	case reason == "expired":
		if now := e.clock + o.side(e.proc).wrong; m.expires == 0 || now < m.expires {
			o.blame(ruleLoss, e.at, "m%d is given up as expired at %s and expires at %s", e.msg, shortTime(now), shortTime(m.expires))
		}
	case reason == "lease expired too often":
		if m.leases < 2*maxAttempts {
			o.blame(ruleLoss, e.at, "m%d is given up after %d leases", e.msg, m.leases)
		}
	default:
		o.blame(ruleLoss, e.at, "m%d is given up: %s", e.msg, reason)
	}
}

// confirmed judges what a consumer was told.
func (o *oracle) confirmed(e *event, m *letter) {
	if e.verb == queue.Extend {
		return
	}
	c := m.answered(e)
	if (e.verb == queue.Ack || e.verb == queue.Kill) && m.ended == 0 && !o.jump { // in a jump somebody else may have it, by another clock
		o.blame(ruleLoss, e.at, "m%d: %s is confirmed, but not stored", e.msg, verbNames[e.verb])
	}
	m.confirmed = m.confirmed || e.verb == queue.Ack
	if c.throttled && c.delay > 0 && !o.rests(e, &c, m.plan.dest) {
		o.blame(ruleEarly, e.at, "a 429 of %s for %.6fs is confirmed, but no hold of p%d stored", m.plan.dest, float64(c.delay)/1e6, e.proc)
	}
}

// rests reports whether the hold that a 429 asked for is stored.
func (o *oracle) rests(e *event, c *call, dest string) bool {
	for i := range o.held {
		h := &o.held[i]
		if h.proc == e.proc && h.dest == dest && h.text == throttledText && h.until >= c.clock-o.side(e.proc).wrong+c.delay {
			return true
		}
	}
	return false
}
