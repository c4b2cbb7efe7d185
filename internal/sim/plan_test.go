package sim

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/throttle"
)

// plan is everything about a run that its seed decides beforehand. Shrinking a
// failure means to leave parts of a plan out.
type plan struct {
	seed    uint64
	calm    bool // no faults at all: what is promised without them is judged too
	load    time.Duration
	lease   time.Duration
	latency time.Duration // usual calls take up to so long
	dirty   int           // how stores tell of commits: 0 not, 1 Dirty, 2 Foreign
	offset  time.Duration // of the back end's clock to that of the processes
	lone    bool          // fast and durable state are one store
	cap     int           // ReaderConfig.IndexCap, 0: default
	bypass  bool          // emergency policy
	keep    bool          // limits stay until everything is out, unless that takes too long
	grid    time.Duration // producers, consumers and faults act at multiples of it, and all calls take the same; 0: not
	full    string        // the limit of the only destination, which has a backlog all the time
	fair    bool          // destinations without limits, with a backlog all the time

	rules  []rulePlan // before anything starts
	procs  []procPlan
	msgs   []msgPlan
	faults []fault
}

type rulePlan struct{ pattern, limit string }

// procPlan is a slot: one process at a time runs in it.
type procPlan struct {
	writer    bool
	reader    bool
	consumers int
	style     int // how consumers take: 0 Next, 1 subscriptions, 2 an inbox
	dests     []string
}

// msgPlan is one message and its fate at each attempt.
type msgPlan struct {
	at      time.Duration
	proc    int
	group   int // messages with the same group are inserted by one call
	dest    string
	lane    queue.Lane
	level   int
	delay   time.Duration
	expires time.Duration // 0: never
	hold    time.Duration
	fates   []fate // by attempt; then ack
}

// fate is what a consumer does with a delivery.
type fate struct {
	verb   int  // see proc.work
	change bool // ends otherwise where the outcome is unknown
	work   time.Duration
	delay  time.Duration
}

const (
	doAck = iota
	doNack
	doThrottled
	doReject
	doRelease
	doHang // never ends it: the lease runs out
	doLate // ends it after its lease
	doExtend
)

type faultKind uint8

const (
	fCrash    faultKind = iota // the process dies at its next call of method, before or after it takes effect, or at once
	fBefore                    // the call fails, nothing done
	fAfter                     // the call is carried out, its answer lost
	fNever                     // not carried out, but nobody knows
	fLater                     // the caller gives up; carried out a while later
	fTwice                     // the driver retries after a lost answer
	fSlow                      // the call takes long
	fStall                     // all calls of the process take until the end of dur
	fDown                      // the database is unreachable for dur
	fFastDown                  // the fast state store is unreachable for dur
	fWipe                      // and forgets everything
	fStep                      // the back end's clock steps by dur
	fSkew                      // the process measures the clock wrong by up to dur
	fLimit                     // a limit changes
	fPause                     // a destination is paused for dur
	fStop                      // the process shuts down in order and starts again
	faultKinds
)

var faultNames = [...]string{"crash", "fails before", "answer lost", "outcome unknown, not done", "done later", "retried by the driver",
	"slow call", "stall", "database down", "cache down", "cache wiped", "clock step", "clock measured wrong", "limit", "pause", "restart"}

// method names a call of a port.
type method uint8

const (
	mAny method = iota
	mApply
	mLease
	mScan
	mHeads
	mNow
	mAnnounce
	mState
	mRules
	mPutHold
	methods
)

var methodNames = [...]string{"any", "Apply", "Lease", "Scan", "Heads", "Now", "Announce", "state", "rules", "PutHold"}

type fault struct {
	at     time.Duration
	kind   faultKind
	proc   int // slot
	method method
	phase  int // of a crash: 0 before the effect, 1 after it, 2 at once
	dur    time.Duration
	dest   string
	limit  string
}

func (f fault) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%.3fs %s", f.at.Seconds(), faultNames[f.kind])
	if f.kind <= fStall || f.kind == fSkew || f.kind == fStop {
		fmt.Fprintf(&b, " slot %d %s phase %d", f.proc, methodNames[f.method], f.phase)
	}
	if f.dur != 0 {
		fmt.Fprintf(&b, " %v", f.dur)
	}
	if f.dest != "" {
		fmt.Fprintf(&b, " %s %s", f.dest, f.limit)
	}
	return b.String()
}

// dice draws the values of a plan.
type dice struct{ *rand.Rand }

func newDice(seed, stream uint64) dice { return dice{rand.New(rand.NewPCG(seed, stream))} }

func (d dice) upTo(most time.Duration) time.Duration {
	if most <= 0 {
		return 0
	}
	return time.Duration(d.Int64N(int64(most/time.Microsecond)+1)) * time.Microsecond
}

func (d dice) between(least, most time.Duration) time.Duration { return least + d.upTo(most-least) }

func (d dice) oneIn(n int) bool { return d.IntN(n) == 0 }

func pickOne[T any](d dice, of ...T) T { return of[d.IntN(len(of))] }

var limitTexts = []string{
	"1/200ms", "1/1.4s", "2/500ms", "3/1s", "5/1s", "10/1s", "20/2s", "10/100ms", "100/1s", "4/300ms",
	"1/300ms strict", "5/1s paced", "2/400ms paced", "5/1s guard=50ms", "3/90s", "none",
}

// newPlan draws the plan of a seed.
func newPlan(seed uint64) *plan {
	d := newDice(seed, 1)
	p := &plan{
		seed: seed, calm: d.oneIn(8), lone: d.oneIn(4), bypass: d.oneIn(8),
		load: d.between(500*time.Millisecond, 3*time.Second), lease: d.between(time.Second, 4*time.Second),
		latency: pickOne(d, 200*time.Microsecond, time.Millisecond, 3*time.Millisecond, 10*time.Millisecond),
		dirty:   d.IntN(3), offset: d.between(-5*time.Minute, 5*time.Minute),
	}
	if d.oneIn(6) {
		p.cap = 4 + d.IntN(20)
	}
	if p.calm {
		p.latency = min(p.latency, time.Millisecond)
		p.lease = 10 * time.Second
	}
	if p.calm && d.oneIn(3) {
		p.drawBacklog(d)
		return p
	}
	dests := p.drawRules(d)
	p.drawProcs(d, dests)
	p.drawMessages(d, dests)
	if !p.calm {
		p.drawFaults(d, dests)
	}
	p.drawMore(newDice(seed, 2))
	return p
}

func (p *plan) drawRules(d dice) []string {
	dests := make([]string, 1+d.IntN(4))
	for i := range dests {
		dests[i] = fmt.Sprintf("d%d", i)
		if d.IntN(3) > 0 {
			p.rules = append(p.rules, rulePlan{dests[i], pickOne(d, limitTexts...)})
		}
	}
	if d.oneIn(3) {
		p.rules = append(p.rules, rulePlan{"*", pickOne(d, limitTexts...)})
	}
	return dests
}

var backlogLimits = []string{
	"1/200ms", "1/1s", "5/1s", "10/1s", "60/1s", "3/1.5s", "10/100ms", "4/300ms", "20/500ms", "1/300ms strict", "10/1s paced", "5/1s guard=50ms",
}

// drawBacklog draws a run in which a limit, or all the time of the consumers, is
// used up from beginning to end.
func (p *plan) drawBacklog(d dice) {
	p.latency, p.cap, p.bypass = 200*time.Microsecond, 0, false
	dests, each, readers := 3, 60, 1
	f := fate{work: 3 * time.Millisecond}
	p.rules = []rulePlan{{"*", "none"}}
	if p.fair = d.oneIn(3); !p.fair {
		p.full = pickOne(d, backlogLimits...)
		l := mustLimit(p.full)
		windows := max(3, int(3*time.Second/l.Window()))
		dests, each, readers, f = 1, int(l.Max)*windows, 1+d.IntN(3), fate{}
		p.load = time.Duration(windows+1) * l.Window()
		p.rules = []rulePlan{{"d0", p.full}}
	}
	for range readers {
		p.procs = append(p.procs, procPlan{reader: true, consumers: 8})
	}
	p.procs = append(p.procs, procPlan{writer: true})
	for i := range each * dests {
		p.msgs = append(p.msgs, msgPlan{
			group: 1, proc: readers, at: 100 * time.Millisecond, dest: fmt.Sprintf("d%d", i/each), lane: queue.Incoming, level: queue.NormalLevel, fates: []fate{f},
		})
	}
}

func (p *plan) drawProcs(d dice, dests []string) {
	n := 1 + d.IntN(3)
	for i := range n {
		pp := procPlan{reader: true, writer: d.oneIn(2) || i == 0, consumers: 1 + d.IntN(4), style: d.IntN(3)}
		if i > 0 && d.oneIn(3) {
			pp.dests = dests[:1+d.IntN(len(dests))]
		}
		p.procs = append(p.procs, pp)
	}
	if d.oneIn(2) {
		p.procs = append(p.procs, procPlan{writer: true})
	}
}

func (p *plan) drawMessages(d dice, dests []string) {
	var writers []int
	for i := range p.procs {
		if p.procs[i].writer {
			writers = append(writers, i)
		}
	}
	odd := 1 + d.IntN(8) // of so many messages one ends otherwise than by an ack at once
	n := 5 + d.IntN(40)
	group := 0
	for len(p.msgs) < n {
		group++
		at, proc := d.upTo(p.load), pickOne(d, writers...)
		for range 1 + d.IntN(4)*d.IntN(3) {
			m := msgPlan{at: at, proc: proc, group: group, dest: pickOne(d, dests...), lane: queue.Incoming, level: queue.NormalLevel}
			switch d.IntN(10) {
			case 0:
				m.lane = queue.Emergency
			case 1, 2:
				m.lane, m.delay = queue.Timed, d.upTo(2*time.Second)
			case 3:
				m.level = d.IntN(10)
			}
			if d.oneIn(15) {
				m.expires = d.between(50*time.Millisecond, 3*time.Second)
			}
			if d.oneIn(40) {
				m.hold = d.upTo(time.Second)
			}
			m.fates = p.drawFates(d, odd)
			p.msgs = append(p.msgs, m)
		}
	}
}

func (p *plan) drawFates(d dice, odd int) []fate {
	fates := make([]fate, 1+d.IntN(3))
	for i := range fates {
		f := fate{work: d.upTo(pickOne(d, 0, 2*time.Millisecond, 40*time.Millisecond))}
		if !p.calm && d.oneIn(odd) {
			f.verb = d.IntN(doExtend + 1)
			f.delay = d.upTo(800 * time.Millisecond)
		}
		fates[i] = f
	}
	return fates
}

func (p *plan) drawFaults(d dice, dests []string) {
	n := 8 + d.IntN(24)
	weights := []faultKind{
		fCrash, fCrash, fCrash, fBefore, fBefore, fAfter, fAfter, fNever, fLater, fTwice, fTwice, fSlow, fSlow, fSlow, fStall,
		fDown, fFastDown, fWipe, fWipe, fSkew, fLimit, fLimit, fPause, fStop,
	}
	for range n {
		f := fault{
			at: d.upTo(p.load + p.load/2), kind: pickOne(d, weights...), proc: d.IntN(len(p.procs)),
			method: method(1 + d.IntN(int(methods)-1)), phase: d.IntN(3),
		}
		switch f.kind {
		case fSlow, fStall:
			f.dur = d.upTo(pickOne(d, 20*time.Millisecond, 200*time.Millisecond, 2*time.Second))
		case fDown, fFastDown:
			f.dur = d.upTo(pickOne(d, 50*time.Millisecond, time.Second))
		case fLater:
			f.dur = d.upTo(p.lease / 3)
		case fPause:
			f.dest, f.dur = pickOne(d, dests...), d.upTo(time.Second)
		case fLimit:
			f.dest, f.limit = pickOne(d, dests...), pickOne(d, limitTexts...)
			if d.oneIn(5) {
				f.limit = "" // removed
			}
		case fSkew:
			f.dur = d.upTo(30 * time.Millisecond)
		case fCrash:
			f.dur = d.upTo(time.Second) // until the next one starts
		}
		p.faults = append(p.faults, f)
	}
	switch d.IntN(64) {
	case 0:
		p.faults = append(p.faults, fault{at: d.upTo(p.load), kind: fStep, dur: d.between(-5*time.Minute, 5*time.Minute)})
	case 1, 2:
		p.faults = append(p.faults, fault{at: d.upTo(p.load), kind: fStep, dur: d.between(-2*time.Second, 2*time.Second)})
	case 3, 4, 5:
		p.faults = append(p.faults, fault{at: d.upTo(p.load), kind: fStep, dur: d.between(-50*time.Millisecond, 50*time.Millisecond)})
	}
}

func mustLimit(text string) throttle.Limit {
	l, err := throttle.ParseLimit(text)
	if err != nil {
		panic(err)
	}
	return l
}

func textOf(l throttle.Limit) limitText {
	t := limitText{max: l.Max, window: l.Window().Microseconds()}
	if l.Mode == throttle.Paced && l.Max > 1 {
		t.pace = t.window / (l.Max - 1)
	}
	return t
}
