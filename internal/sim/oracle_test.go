package sim

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/mvalve/mvalve/queue"
)

// The oracle reads a history and says what in it must not be. It is naive on
// purpose: it keeps everything, computes everything anew, and shares no code with
// what it judges.

// violation is one thing that must not be.
type violation struct {
	rule string
	at   time.Duration
	text string
}

func (v violation) String() string {
	return fmt.Sprintf("%s at %.6fs: %s", v.rule, v.at.Seconds(), v.text)
}

// The rules.
const (
	ruleWindow  = "window"  // more dispatches in a half-open window than the limit allows
	ruleLoss    = "loss"    // a committed message vanished, or one was made up
	ruleAgain   = "again"   // delivered after its end was committed
	ruleLease   = "lease"   // leased while another held it, or delivered without a lease
	ruleOrder   = "order"   // passed over by one that comes later
	ruleEarly   = "early"   // delivered before its time, after its expiry, or in a hold or pause its reader knew of
	ruleStamp   = "stamp"   // not stamped with the time
	ruleIdle    = "idle"    // waits though it may go and somebody waits for it
	ruleUse     = "use"     // less than the promised share of a limit is used
	ruleFair    = "fair"    // a destination gets less than its share
	ruleStuck   = "stuck"   // not drained
	ruleBusy    = "busy"    // calls of the stores without end
	ruleFailure = "failure" // an error nobody injected
)

// letter is what the oracle knows of a message.
type letter struct {
	n            int
	plan         *msgPlan
	committed    bool
	at           time.Duration // of its commit
	id           string
	table        queue.Lane
	ready        int64 // µs; timed only
	asked        int64 // what its producer asked for
	askedExpires int64
	leases       int // ever
	holder       int // process
	until        int64
	leasedAt     time.Duration
	freeSince    time.Duration
	out          bool // with a consumer of holder
	outProc      int  // process that dispatched it last
	outWho       int  // and its consumer
	outUntil     int64
	delivered    int
	released     bool       // ever
	ended        queue.Verb // 0: not yet
	late         bool       // its end was carried out after its caller gave up
	confirmed    bool
	expires      int64         // µs, 0: never
	calls        []call        // of its consumers, to end it
	due          map[int]int64 // what its row said when a process leased it (µs); timed only
}

// side is what the oracle knows of a process.
type side struct {
	slot     int
	live     bool
	version  int64
	versions []seen                  // rules it knew, by time
	holds    []heard                 // it knew those up to a version, by time
	told     map[int64]time.Duration // and these, since when
	wrong    int64                   // its clock may be off by so many µs
	trip     int64                   // of the measurement it believed when it started, µs
	busy     []busy                  // may not hear of anything
	idle     map[int]time.Duration   // consumers that wait, since when
	backs    []back                  // deliveries that came back
}

type seen struct {
	at      time.Duration
	version int64
}

type oracle struct {
	plan      *plan
	h         []event
	letters   []letter // by number
	sides     []side   // by process
	rules     []event  // kRule
	held      []event  // kHold
	found     []violation
	trouble   []time.Duration          // of faults
	changed   map[string]time.Duration // when the rule of a pattern did, the last time
	looks     int                      // for messages that wait in vain, of destinations with a limit
	jump      bool                     // the clock stepped far: who is behind waits
	stepped   bool                     // it stepped already
	stepsBack []fault                  // of the clock
	wipes     []time.Duration          // of the cache
	ahead     []time.Duration          // it stepped far ahead
	dests     []string
	sent      map[string][]int64 // stamps so far
	pace      map[string]int64   // until when dispatches so far have used up a paced limit
}

// farStep is the largest step of the clock that leases and limits take without
// a word.
const farStep = 100 * time.Millisecond

// judge returns what is wrong with a history, at most one violation per rule.
func judge(w *world) []violation {
	p, h, overtime := w.plan, w.history, w.overtime
	o := &oracle{plan: p, h: h, letters: make([]letter, len(p.msgs)+1), sent: make(map[string][]int64), pace: make(map[string]int64), changed: make(map[string]time.Duration)}
	for i := range p.msgs {
		o.letters[i+1] = letter{n: i + 1, plan: &p.msgs[i]}
		if !slices.Contains(o.dests, p.msgs[i].dest) {
			o.dests = append(o.dests, p.msgs[i].dest)
		}
	}
	for _, f := range p.faults {
		switch f.kind {
		case fStep:
			o.jump = o.jump || f.dur.Abs() > farStep
			if f.dur < 0 {
				o.stepsBack = append(o.stepsBack, f)
			}
			if f.dur > farStep {
				o.ahead = append(o.ahead, f.at)
			}
		case fWipe:
			o.wipes = append(o.wipes, f.at)
		}
	}
	next := time.Duration(0)
	for i := range h {
		for ; next <= h[i].at; next += lookEvery {
			o.lookForIdle(next, h[i].clock-(h[i].at-next).Microseconds())
		}
		o.step(&h[i])
	}
	if w.calls > mostCalls {
		o.blame(ruleBusy, h[len(h)-1].at, "%d calls of the stores", w.calls)
	} else if overtime {
		o.blame(ruleStuck, h[len(h)-1].at, "messages are left after two minutes without faults or limits")
	} else {
		o.atTheEnd()
	}
	o.windows()
	o.shares()
	w.looks = o.looks
	slices.SortStableFunc(o.found, func(a, b violation) int { return cmp.Compare(a.at, b.at) })
	return o.found
}

func (o *oracle) blame(rule string, at time.Duration, format string, args ...any) {
	for _, v := range o.found {
		if v.rule == rule {
			return
		}
	}
	o.found = append(o.found, violation{rule, at, fmt.Sprintf(format, args...)})
}

func (o *oracle) side(proc int) *side {
	for len(o.sides) <= proc {
		o.sides = append(o.sides, side{idle: make(map[int]time.Duration), told: make(map[int64]time.Duration), slot: -1})
	}
	return &o.sides[proc]
}

// step takes one event in.
func (o *oracle) step(e *event) {
	s := o.side(e.proc)
	switch e.kind {
	case kStart:
		s.live = true
		s.versions = []seen{{0, s.version}} // it read them before it did anything
		_, _ = fmt.Sscanf(e.text, "slot %d", &s.slot)
		s.busy = append(s.busy, busy{e.at, e.at})
	case kCrash, kStop:
		s.live = false
		o.trouble = append(o.trouble, e.at)
		clear(s.idle)
	case kFault, kQuiet:
		o.trouble = append(o.trouble, e.at)
		o.faulted(e)
	case kProbe:
		s.probed(e, o.stepped)
	case kRulesSeen:
		s.version = e.version
		s.versions = append(s.versions, seen{e.at, e.version})
	case kHoldsSeen:
		s.holds = append(s.holds, heard{e.at, e.version})
	case kHoldTold:
		s.told[e.version] = e.at
	case kRule:
		o.rules = append(o.rules, *e)
		o.changed[e.dest] = e.at
	case kHold:
		o.held = append(o.held, *e)
	case kWaits:
		s.idle[e.who] = e.at
	case kServed:
		delete(s.idle, e.who)
	case kAsked:
		o.letters[e.msg].asked, o.letters[e.msg].askedExpires = e.stamp, e.expires
	case kCommitted, kInserted, kLeased, kSettled, kEnds, kLost, kDispatch, kConfirmed, kEndFailed:
		o.message(e)
	}
}

func (o *oracle) message(e *event) {
	if e.msg == 0 {
		if e.kind == kEndFailed {
			o.blame(ruleFailure, e.at, "p%d: %s", e.proc, e.text)
		}
		return
	}
	m := &o.letters[e.msg]
	switch e.kind {
	case kCommitted:
		if m.committed {
			o.blame(ruleLoss, e.at, "m%d is stored twice", e.msg)
		}
		m.committed, m.at, m.id, m.table, m.ready, m.freeSince, m.expires = true, e.at, e.text, e.table, e.stamp, e.at, e.expires
		if e.until != 0 {
			m.holder, m.until, m.leases, m.leasedAt = e.proc, e.until, 1, e.at
			o.passedOver(e, m)
		}
	case kInserted:
		if m.expires != m.askedExpires {
			o.blame(ruleLoss, e.at, "m%d is stored with another expiry than its producer asked for", e.msg)
		}
		if !m.committed {
			o.blame(ruleLoss, e.at, "Insert of m%d returned, but it is not stored", e.msg)
		}
	case kLeased:
		o.leased(e, m)
	case kSettled:
		o.settled(e, m)
	case kDispatch:
		o.dispatched(e, m)
	case kEnds:
		m.calls = append(m.calls, call{
			proc: e.proc, serial: e.serial, attempt: e.attempt, verb: e.verb, delay: e.until, clock: e.clock, throttled: e.text == throttledText, open: true,
		})
	case kEndFailed:
		if e.verb != queue.Extend {
			m.answered(e)
		}
	case kConfirmed:
		o.confirmed(e, m)
	}
}

// leased: nobody else may hold the row.
func (o *oracle) leased(e *event, m *letter) {
	if m.holder != 0 && m.until > e.stamp {
		o.blame(ruleLease, e.at, "m%d is leased to p%d at %s, p%d holds it until %s", e.msg, e.proc, shortTime(e.stamp), m.holder, shortTime(m.until))
	}
	if !m.committed || m.ended != 0 {
		o.blame(ruleLease, e.at, "m%d is leased to p%d and does not exist", e.msg, e.proc)
	}
	o.passedOver(e, m)
	m.holder, m.until, m.leasedAt = e.proc, e.until, e.at
	m.leases++
	if m.due == nil {
		m.due = make(map[int]int64)
	}
	if m.due[e.proc] = 0; m.table == queue.Timed {
		m.due[e.proc] = m.ready
	}
}

// dispatched judges a delivery.
func (o *oracle) dispatched(e *event, m *letter) {
	s := o.side(e.proc)
	switch {
	case !m.committed:
		o.blame(ruleLoss, e.at, "m%d is delivered and was never committed", e.msg)
	case m.ended != 0 && (!m.late || m.confirmed) && !o.jump:
		o.blame(ruleAgain, e.at, "m%d is delivered after its %s was committed", e.msg, verbNames[m.ended])
	case m.plan.dest != e.dest:
		o.blame(ruleLoss, e.at, "m%d for %s came as one for %s", e.msg, m.plan.dest, e.dest)
	case o.jump:
	case m.holder != e.proc && m.ended == 0:
		o.blame(ruleLease, e.at, "m%d is delivered by p%d, p%d holds it", e.msg, e.proc, m.holder)
	case m.ended == 0 && m.until < e.stamp+o.plan.lease.Microseconds()/2:
		o.blame(ruleLease, e.at, "m%d is delivered with less than half of its lease left, until %s", e.msg, shortTime(m.until))
	case m.out && e.stamp < m.outUntil:
		o.blame(ruleLease, e.at, "m%d is delivered while p%d has it until %s", e.msg, m.outProc, shortTime(m.outUntil))
	}
	if e.attempt > m.leases {
		o.blame(ruleLease, e.at, "m%d is delivered as attempt %d and was leased %d times", e.msg, e.attempt, m.leases)
	}
	// Who lost its lease does not know of a retry by the one who has it now: that
	// it delivers at all is a matter of the rule "lease".
	if due := max(m.asked, m.due[e.proc]); e.stamp < due {
		o.blame(ruleEarly, e.at, "m%d is delivered before %s", e.msg, shortTime(due))
	}
	o.inTime(e, m, s)
	o.overtakes(e, m, s)
	o.returned(m, e.at)
	m.out, m.outProc, m.outWho, m.outUntil = true, e.proc, e.who, m.until
	m.delivered++
	o.sent[e.dest] = append(o.sent[e.dest], e.stamp)
	if limit, _ := o.ruleAt(e.dest, s.version); limit.pace > 0 {
		o.pace[e.dest] = max(o.pace[e.dest], e.stamp) + limit.pace
	}
}

// ruleAt returns what the rules of a version say of a destination: an exact rule
// comes before "*", field by field.
func (o *oracle) ruleAt(dest string, version int64) (limit limitText, paused bool) {
	var exact, other ruleText
	for _, r := range o.rules {
		switch {
		case r.version > version:
		case r.dest == dest:
			exact = *r.rule
		case r.dest == "*":
			other = *r.rule
		}
	}
	switch {
	case exact.limit != nil:
		limit = *exact.limit
	case other.limit != nil:
		limit = *other.limit
	}
	switch {
	case exact.paused != nil:
		paused = *exact.paused
	case other.paused != nil:
		paused = *other.paused
	}
	return limit, paused
}

// atTheEnd: the store is empty, so everything must have come to an end.
func (o *oracle) atTheEnd() {
	for i := range o.letters {
		if m := &o.letters[i]; m.committed && m.ended == 0 {
			o.blame(ruleLoss, o.h[len(o.h)-1].at, "m%d is committed and gone without an end", m.n)
		}
	}
}

// settledFor reports whether nothing went wrong on purpose in the time d before at.
func (o *oracle) settledFor(at, d time.Duration) bool {
	n := len(o.trouble)
	return n == 0 || o.trouble[n-1]+d < at
}

// unchanged is settledFor, and reports whether the rules of a destination did not
// change in that time.
func (o *oracle) unchanged(dest string, at, d time.Duration) bool {
	for _, pattern := range [...]string{dest, "*"} {
		if t := o.changed[pattern]; t > 0 && t+d >= at {
			return false
		}
	}
	return o.settledFor(at, d)
}
