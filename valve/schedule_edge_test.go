package valve

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/throttle"
)

// still runs test with a reader whose goroutines do not run, and whose clock
// stands at t0.
func still(t *testing.T, test func(t *testing.T, r *Reader)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		store := throttle.NewMemoryRules()
		r := &Reader{
			cfg: withDefaults(ReaderConfig{}), log: logger(nil), id: refID(999), store: queue.NewMemory(),
			ruleStore: store, rules: throttle.NewRules(store, nil), clock: &clock{anchor: time.Now(), base: t0},
			wake: make(chan struct{}, 1), rung: make(chan struct{}, 1), refill: make(chan struct{}, 1), surveyor: make(chan struct{}, 1),
			x: newIndex(10_000), leased: make(map[*entry]struct{}), exact: make(map[string]*Subscription),
			onHold: make(map[*destination]struct{}), ctx: t.Context(),
		}
		test(t, r)
	})
}

// limit sets a rule and reads it.
func (r *Reader) limit(t *testing.T, pattern, text string) {
	t.Helper()
	l, err := throttle.ParseLimit(text)
	if err == nil {
		_, err = throttle.SetLimit(t.Context(), r.ruleStore, t0, pattern, l)
	}
	r.changed(t, err)
}

// changed reads the rules after a change.
func (r *Reader) changed(t *testing.T, err error) {
	t.Helper()
	if err == nil {
		err = r.rules.Reload(t.Context(), t0)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// share sets weight and max in flight.
func (r *Reader) share(t *testing.T, pattern string, weight, inFlight int) {
	t.Helper()
	_, err := throttle.SetShare(t.Context(), r.ruleStore, t0, pattern, &weight, &inFlight)
	r.changed(t, err)
}

// hold sets a hold that is known at once.
func (r *Reader) holdUntil(destination string, until time.Time, reason string) {
	r.rules.Note(throttle.Hold{Destination: destination, Until: until, Reason: reason})
}

// backlog offers n rows, numbered from first on.
func (r *Reader) backlogOf(destination string, first, n int) *destination {
	for i := range n {
		if d := r.x.offer(row(destination, first+i), nil, t0); d != nil {
			r.added(d, t0)
		}
	}
	return r.x.dests[destination]
}

func TestClasses(t *testing.T) {
	for text, want := range map[string]class{
		"none": unlimited, "1/1s": fastState, "1/60s": fastState, "1/59s guard=2s": durableState, "1/60.000001s": durableState,
	} {
		l, err := throttle.ParseLimit(text)
		if err != nil {
			t.Fatal(err)
		}
		if got := classOf(&destination{rule: throttle.Resolved{Limit: l}}); got != want {
			t.Errorf("%s: class %d, want %d", text, got, want)
		}
	}
	for c, want := range map[class][2]int{unlimited: {1000, 3}, fastState: {128, 8}, durableState: {128, 8}} {
		if c.items() != want[0] || c.jobs() != want[1] {
			t.Errorf("class %d: %d items, %d jobs", c, c.items(), c.jobs())
		}
	}
}

// The next class is the one whose destinations had the least turns, of those
// that have a destination, a job to spare and room on the way.
func TestNextClass(t *testing.T) {
	still(t, func(t *testing.T, r *Reader) {
		var open [classes]*job
		want := func(what string, c class, ok bool) {
			t.Helper()
			if got, found := r.nextClass(&open); found != ok || got != c {
				t.Errorf("%s: class %d, %v; want %d, %v", what, got, found, c, ok)
			}
		}
		want("nothing waits", 0, false)
		for c := range classes {
			r.rings[c].normal.push(&destination{})
		}
		want("all alike", unlimited, true)
		r.rings[unlimited].passed, r.rings[fastState].passed, r.rings[durableState].passed = 3, 2, 1
		want("least turns", durableState, true)
		r.jobs[durableState] = 7
		want("one job to spare", durableState, true)
		r.jobs[durableState] = 8
		want("no job to spare", fastState, true)
		if r.rings[durableState].passed != 2 {
			t.Errorf("a class that could not go got credit: %v", r.rings[durableState].passed)
		}
		open[fastState] = &job{n: 127}
		want("a job with room", fastState, true)
		open[fastState].n = 128
		want("a full job", unlimited, true)
		open[fastState] = nil
		r.rings[unlimited].passed = 9
		r.ahead[fastState] = 8*512 - 8
		want("room for one", fastState, true)
		r.ahead[fastState] = 8*512 - 7
		want("no room", unlimited, true)
		r.ahead[unlimited] = 1 << 20
		want("unlimited ones need none", unlimited, true)
		r.jobs[unlimited] = 3
		want("nothing to spare", 0, false)
	})
}

// Every reason for which a destination waits, and until when.
func TestEligibleAt(t *testing.T) {
	still(t, func(t *testing.T, r *Reader) {
		r.limit(t, "limited", "1/1s")
		r.share(t, "capped", 1, 2)
		later := t0.Add(time.Second)
		plain, urgent := &entry{ref: row("", 1)}, &entry{ref: row("", 2)}
		urgent.ref.Lane = queue.Emergency
		for _, c := range []struct {
			what  string
			name  string
			set   func(d *destination)
			at    time.Time
			why   string
			first *entry
		}{
			{"nothing", "a", func(*destination) {}, t0, "", plain},
			{"room for another", "capped", func(d *destination) { d.inFlight = 1 }, t0, "", plain},
			{"all out", "capped", func(d *destination) { d.inFlight = 2 }, never, "max_in_flight", plain},
			{"one of them held", "capped", func(d *destination) { d.inFlight, d.held = 2, []*entry{plain} }, t0, "", plain},
			{"a hold", "b", func(*destination) { r.holdUntil("b", later, "429") }, later, whyHold, plain},
			{"a hold, and an emergency", "b", func(*destination) {}, later, whyHold, urgent},
			{"a hold that ends now", "c", func(*destination) { r.holdUntil("c", t0, "429") }, t0, "", plain},
			{"the hold of an emergency", "d", func(*destination) { r.holdUntil("d", later, holdEmergency) }, later, whyHold, plain},
			{"that hold, and another one", "d", func(*destination) {}, t0, "", urgent},
			{"the next one's own hold", "e", func(d *destination) {
				r.holdUntil("e", later, "duration")
				d.held = []*entry{{ref: plain.ref, holds: later, why: "duration"}}
			}, t0, "", plain},
			{"another one's hold", "e", func(d *destination) { d.held = []*entry{{ref: plain.ref}} }, later, whyHold, plain},
			{"the limiter", "limited", func(d *destination) { d.notBefore, d.why = later, whyLimit }, later, whyLimit, plain},
			{"the limiter, and an emergency", "limited", func(d *destination) { d.notBefore, d.why = later, whyLimit }, later, whyLimit, urgent},
			{"the limiter's answer is over", "limited", func(d *destination) { d.notBefore, d.why = t0, whyLimit }, t0, "", plain},
		} {
			d := &destination{name: c.name, heapPos: -1, ready: []*entry{c.first}}
			r.refresh(d)
			c.set(d)
			if at, why := r.eligibleAt(d, t0); !at.Equal(c.at) || why != c.why {
				t.Errorf("%s: %v, %q, want %v, %q", c.what, at, why, c.at, c.why)
			}
		}
	})
}

// An emergency with policy bypass waits for stores only; a pause stops all.
func TestEligibleEmergency(t *testing.T) {
	still(t, func(t *testing.T, r *Reader) {
		r.limit(t, "limited", "1/1s")
		later := t0.Add(time.Second)
		urgent := &entry{ref: row("", 2)}
		urgent.ref.Lane = queue.Emergency
		d := &destination{name: "limited", heapPos: -1, ready: []*entry{urgent}}
		r.refresh(d)
		d.notBefore, d.why = later, whyLimit
		r.cfg.Emergency = Bypass
		if at, _ := r.eligibleAt(d, t0); !at.Equal(t0) {
			t.Error("an emergency that bypasses limits waits for one")
		}
		d.why = "limiter unreachable"
		if at, _ := r.eligibleAt(d, t0); !at.Equal(later) {
			t.Error("an emergency does not wait for a store that is away")
		}
		_, err := throttle.Pause(t.Context(), r.ruleStore, t0, "a")
		r.changed(t, err)
		if at, why := r.eligibleAt(&destination{name: "a"}, t0); !at.Equal(never) || why != "paused" {
			t.Errorf("paused: %v, %q", at, why)
		}
	})
}

// A destination without a limit that another reader prefers waits 50 ms for it.
func TestPreferredByAnotherReader(t *testing.T) {
	still(t, func(t *testing.T, r *Reader) {
		r.limit(t, "limited*", "1/1s")
		r.peers = []queue.ID{r.id, refID(998)}
		mine := 0
		for i := range 200 {
			d := &destination{name: fmt.Sprint(i), readySince: t0.Add(-time.Millisecond)}
			at, why := r.eligibleAt(d, t0)
			switch {
			case at.Equal(t0) && why == "":
				mine++
			case !at.Equal(t0.Add(49*time.Millisecond)) || why == "":
				t.Errorf("waits until %v (%s)", at.Sub(t0), why)
			}
			d.readySince = t0.Add(-othersWait)
			if at, why := r.eligibleAt(d, t0); !at.Equal(t0) || why != "" {
				t.Errorf("after 50 ms waits until %v (%s)", at.Sub(t0), why)
			}
			if at, _ := r.eligibleAt(&destination{name: "limited" + d.name, readySince: t0}, t0); !at.Equal(t0) {
				t.Error("a limited one waits for another reader")
			}
		}
		if mine < 60 || mine > 140 {
			t.Errorf("%d of 200 destinations are this reader's", mine)
		}
	})
}

// A changed rule makes the limiter's answer void, one that is as it was does not.
func TestRefreshForgetsTheLimitersAnswer(t *testing.T) {
	still(t, func(t *testing.T, r *Reader) {
		r.limit(t, "a", "1/1s")
		d := &destination{name: "a"}
		r.refresh(d)
		d.notBefore = t0.Add(time.Hour)
		r.refresh(d)
		if d.notBefore.IsZero() {
			t.Error("forgotten without a change")
		}
		r.limit(t, "b", "2/1s") // whatever changed: what applied before it did, too
		r.refresh(d)
		if !d.notBefore.IsZero() {
			t.Error("not forgotten with new rules")
		}
		d.notBefore = t0.Add(time.Hour)
		r.limit(t, "a", "2/1s")
		r.refresh(d)
		if !d.notBefore.IsZero() || d.rule.Limit.Max != 2 {
			t.Errorf("after a change: %v, %+v", d.notBefore, d.rule)
		}
	})
}

// Touch puts a destination where it belongs.
func TestTouch(t *testing.T) {
	still(t, func(t *testing.T, r *Reader) {
		d := r.backlogOf("a", 1, 2)
		if !d.inRing || r.rings[unlimited].normal.len() != 1 || d.heapPos >= 0 {
			t.Error("what may go is not in its ring")
		}
		r.touch(d, t0)
		if r.rings[unlimited].normal.len() != 1 || len(r.onHold) > 0 {
			t.Error("it is there twice, or on hold")
		}
		r.rings[unlimited].pop()
		d.asking = true
		r.touch(d, t0)
		if d.inRing {
			t.Error("it is in the ring while a job asks for it")
		}
		d.asking = false
		r.holdUntil("a", t0.Add(time.Microsecond), "429")
		r.touch(d, t0)
		if _, ok := r.onHold[d]; !ok || d.inRing || d.heapPos < 0 || !d.wakeAt.Equal(t0.Add(time.Microsecond)) {
			t.Errorf("with a hold: on hold %v, %+v", ok, d)
		}
		r.touch(d, t0.Add(time.Microsecond))
		if !d.inRing || d.heapPos >= 0 {
			t.Error("the hold is over, and it sleeps")
		}
		r.rings[unlimited].pop()
		_, err := throttle.Pause(t.Context(), r.ruleStore, t0, "a")
		r.changed(t, err)
		r.x.sleep(d, t0)
		r.touch(d, t0.Add(time.Second))
		if d.inRing || d.heapPos >= 0 {
			t.Error("paused: it neither sleeps nor competes")
		}
		if d.more = true; len(r.refills) > 0 {
			t.Fatal("a refill too early")
		}
		r.touch(d, t0)
		if !d.refill || len(r.refills) != 1 {
			t.Error("a list that runs low is not refilled")
		}
		r.touch(d, t0)
		if len(r.refills) != 1 {
			t.Error("it is refilled twice")
		}
		d.more, d.refill = false, false
		r.x.popReady(d)
		r.x.popReady(d)
		r.x.sleep(d, t0)
		r.touch(d, t0)
		if d.heapPos >= 0 || r.x.dests["a"] != nil {
			t.Error("what has nothing left is not forgotten")
		}
	})
}

// A destination is forgotten only when nothing about it matters any more.
func TestDropOfDestinations(t *testing.T) {
	for what, set := range map[string]func(d *destination){
		"in flight":       func(d *destination) { d.inFlight = 1 },
		"behind":          func(d *destination) { d.behind = 1 },
		"more":            func(d *destination) { d.more = true },
		"refill":          func(d *destination) { d.refill = true },
		"asking":          func(d *destination) { d.asking = true },
		"ring":            func(d *destination) { d.inRing = true },
		"express ring":    func(d *destination) { d.inExpress = true },
		"parked":          func(d *destination) { d.parked = true },
		"held":            func(d *destination) { d.held = make([]*entry, 1) },
		"limiter's word":  func(d *destination) { d.notBefore = t0.Add(1) },
		"another instead": nil,
		"":                func(*destination) {},
		"word is over":    func(d *destination) { d.notBefore = t0 },
	} {
		still(t, func(t *testing.T, r *Reader) {
			d := r.x.dest("a")
			if set != nil {
				set(d)
			} else {
				r.x.dests["a"] = &destination{name: "a"}
			}
			r.maybeDrop(d)
			if dropped := r.x.dests["a"] == nil; dropped != (what == "" || what == "word is over") {
				t.Errorf("%q: dropped %v", what, dropped)
			}
		})
	}
}

// The scheduler looks again when the first sleeper wakes or the first message
// becomes due.
func TestWhenToLookAgain(t *testing.T) {
	still(t, func(t *testing.T, r *Reader) {
		want := func(after time.Duration) {
			t.Helper()
			next := r.schedule(t0)
			if after == 0 && !next.IsZero() || after > 0 && !next.Equal(t0.Add(after)) {
				t.Errorf("look again at %v, want after %v", next, after)
			}
		}
		want(0)
		r.x.offer(timed("soon", 1, t0.Add(3*time.Second)), nil, t0)
		want(3 * time.Second)
		for i, after := range []time.Duration{5 * time.Second, 2 * time.Second} {
			name := fmt.Sprint("held", i)
			r.holdUntil(name, t0.Add(after), "429")
			r.backlogOf(name, 10+i, 1)
			want(min(after, 3*time.Second))
		}
		r.x.offer(timed("soon", 2, t0.Add(time.Second)), nil, t0)
		want(time.Second)
		if next := r.schedule(t0.Add(2 * time.Second)); !next.Equal(t0.Add(3 * time.Second)) {
			t.Errorf("look again at %v", next.Sub(t0))
		}
		if d := r.x.dests["soon"]; d == nil || !d.inRing || !d.readySince.Equal(t0.Add(2*time.Second)) {
			t.Errorf("due, and %+v", d)
		}
		if d := r.x.dests["held1"]; !d.inRing || d.heapPos >= 0 {
			t.Error("its hold is over, and it sleeps")
		}
		r.closing = true
		want(0)
	})
}

// More than the index may hold makes it drop some.
func TestAddedTrims(t *testing.T) {
	still(t, func(t *testing.T, r *Reader) {
		r.x.limit = 20
		r.backlogOf("a", 1, 20)
		if r.x.total != 20 {
			t.Errorf("%d references", r.x.total)
		}
		r.backlogOf("b", 101, 1)
		if r.x.total > 18 {
			t.Errorf("%d references", r.x.total)
		}
	})
}

// When a destination began to wait is when it got its first message.
func TestReadySince(t *testing.T) {
	still(t, func(t *testing.T, r *Reader) {
		d := r.backlogOf("a", 1, 1)
		if !d.readySince.Equal(t0) {
			t.Errorf("ready since %v", d.readySince)
		}
		r.x.offer(row("a", 2), nil, t0)
		r.added(d, t0.Add(time.Second))
		if !d.readySince.Equal(t0) {
			t.Errorf("with a second one: ready since %v", d.readySince)
		}
	})
}

// Messages count little towards what is on the way if the last permit of their
// destination had a slack of 200 ms.
func TestRelaxedBySlack(t *testing.T) {
	still(t, func(t *testing.T, r *Reader) {
		d := r.backlogOf("a", 1, 9)
		s := r.wants(t, "", 9)
		for slack, want := range map[time.Duration]bool{0: false, 200*time.Millisecond - 1: false, 200 * time.Millisecond: true} {
			d.relaxed = !want
			e := &entry{ref: row("a", 10), dest: d}
			it := &item{d: d, sub: s, entries: []*entry{e}}
			r.granted(it, throttle.Grant{Permits: []throttle.Permit{{At: t0, Until: t0.Add(slack)}}}, t0)
			if d.relaxed != want || !e.permitted || len(it.entries) != 1 {
				t.Errorf("a slack of %v: relaxed %v, permitted %v", slack, d.relaxed, e.permitted)
			}
		}
	})
}
