package throttle

import (
	"testing"
	"time"

	"github.com/mvalve/mvalve/state"
)

// changing is one destination whose limit changes often.
type changing struct {
	t             *testing.T
	start         time.Time
	rules         *MemoryRules
	fast, durable *state.Memory
	sent          []time.Duration // dispatches, from start on
}

func newChanging(t *testing.T) *changing {
	return &changing{t: t, start: time.Unix(1e9, 0), rules: NewMemoryRules(), fast: state.NewMemory(), durable: state.NewMemory()}
}

// set changes the limit; "" takes it away.
func (c *changing) set(after time.Duration, limit string) {
	c.t.Helper()
	var err error
	if now := c.start.Add(after); limit == "" {
		_, err = RemoveLimit(c.t.Context(), c.rules, now, "d")
	} else {
		_, err = SetLimit(c.t.Context(), c.rules, now, "d", mustLimit(c.t, limit))
	}
	if err != nil {
		c.t.Fatal(err)
	}
}

func (c *changing) reader() *Limiter { return NewLimiter(Config{Fast: c.fast, Durable: c.durable}) }

// known returns the rules as they are now.
func (c *changing) known() *Rules {
	c.t.Helper()
	r := NewRules(c.rules, nil)
	if err := r.Reload(c.t.Context(), c.start); err != nil {
		c.t.Fatal(err)
	}
	return r
}

// take dispatches what the limiter permits by the rules, up to want.
func (c *changing) take(l *Limiter, r *Rules, after time.Duration, want int) int {
	c.t.Helper()
	res, now := r.Resolve("d"), c.start.Add(after)
	g := l.Take(c.t.Context(), now, []Request{{
		Destination: "d", Limit: res.Limit, Version: res.Version, Was: res.Was, Changed: res.Changed, Want: want,
	}})[0]
	if g.Err != nil || g.Stale {
		c.t.Fatalf("Take: %+v", g)
	}
	for _, p := range g.Permits {
		l.Dispatched(p, p.At)
		c.sent = append(c.sent, p.At.Sub(c.start))
	}
	return len(g.Permits)
}

// now is take by a new reader that knows the latest rules.
func (c *changing) now(after time.Duration, want int) int {
	c.t.Helper()
	l := c.reader()
	n := c.take(l, c.known(), after, want)
	l.Drain(c.t.Context(), c.start.Add(after))
	return n
}

// within fails the test if a window that ends after since holds more than most
// dispatches.
func (c *changing) within(window time.Duration, most int, since time.Duration) {
	c.t.Helper()
	for i, last := range c.sent {
		n := 0
		if last < since {
			continue
		}
		for _, at := range c.sent[:i+1] {
			if at > last-window {
				n++
			}
		}
		if n > most {
			c.t.Errorf("%d dispatches within %v, at most %d are allowed: %v", n, window, most, c.sent)
			return
		}
	}
}

// A limit that was in force for a moment only must not hide what the one before it
// counted in the other store.
func TestTwoChangesAtOnce(t *testing.T) {
	c := newChanging(t)
	c.set(-time.Hour, "2/90s")
	old, slow := c.known(), c.reader()
	c.set(300*time.Millisecond, "10/100ms")
	c.set(500*time.Millisecond, "2/1s")
	if n := c.take(slow, old, 600*time.Millisecond, 2); n != 2 {
		t.Fatalf("%d permits by the rules of before", n)
	}
	c.now(700*time.Millisecond, 2)
	c.within(time.Second, 2, 0)
}

// A small limit in between needs only a part of the past to wait; a larger one that
// follows must not take the rest for empty.
func TestSmallLimitBetween(t *testing.T) {
	c := newChanging(t)
	c.set(-time.Hour, "4/300ms")
	for _, at := range []int{0, 310, 320, 330} {
		c.now(time.Duration(at)*time.Millisecond, 4)
	}
	l := c.reader() // what it writes forgets what its limit does not count
	c.take(l, c.known(), 720*time.Millisecond, 1)
	c.set(725*time.Millisecond, "3/90s")
	c.now(730*time.Millisecond, 3)
	c.set(800*time.Millisecond, "10/1s")
	for at := 810 * time.Millisecond; at < 1700*time.Millisecond; at += 10 * time.Millisecond {
		c.now(at, 10)
	}
	c.within(time.Second, 10, 0)
	for at := 1700 * time.Millisecond; at < 3*time.Second; at += 10 * time.Millisecond {
		c.now(at, 10)
	}
	c.within(time.Second, 10, 0)
	if n := len(c.sent); n < 19 {
		t.Errorf("only %d dispatches in 3 s: %v", n, c.sent)
	}
}

// While there is no limit nothing is counted, but what the limit before it let
// through is not forgotten.
func TestNoLimitBetween(t *testing.T) {
	for _, seriesBetween := range []bool{false, true} {
		c := newChanging(t)
		c.set(-time.Hour, "3/1s")
		c.now(0, 3)
		c.set(100*time.Millisecond, "")
		if seriesBetween { // is counted even without a limit
			l, res := c.reader(), c.known().Resolve("d")
			g := l.Take(t.Context(), c.start.Add(150*time.Millisecond), []Request{{
				Destination: "d", Version: res.Version, Was: res.Was, Changed: res.Changed, Want: 1, Hold: 10 * time.Millisecond,
			}})
			if len(g[0].Permits) != 1 {
				t.Fatalf("series: %+v", g[0])
			}
			l.Dispatched(g[0].Permits[0], g[0].Permits[0].At)
			l.Drain(t.Context(), c.start.Add(151*time.Millisecond))
		}
		c.set(200*time.Millisecond, "3/90s")
		for at := 210 * time.Millisecond; at < 2*time.Second; at += 50 * time.Millisecond {
			c.now(at, 3)
		}
		c.within(90*time.Second, 3, 0)
	}
}

// After a loss of the cache the window counts as used up under the limit of the
// moment; the limit before it allowed more, which a third one must not forget.
func TestLossBetweenChanges(t *testing.T) {
	const ms = time.Millisecond
	for _, lost := range []time.Duration{345 * ms, 400 * ms, 500 * ms} {
		for _, again := range []time.Duration{20 * ms, 250 * ms, 310 * ms, 900 * ms, 1300 * ms} { // soon, and when the ring was pruned
			for _, window := range []time.Duration{time.Second, 2 * time.Second} {
				lossBetween(t, lost, lost+again, window, false)
				lossBetween(t, lost, lost+again, window, true)
			}
		}
	}
}

func lossBetween(t *testing.T, lost, again, window time.Duration, oneStore bool) {
	const ms = time.Millisecond
	c := newChanging(t)
	if oneStore {
		c.durable = c.fast
	}
	c.set(-time.Hour, "4/300ms")
	c.now(0, 4)
	c.now(310*ms, 4)
	c.set(340*ms, "1/300ms strict")
	c.fast.Wipe(c.start.Add(lost))
	l := c.reader()
	for at := lost + 5*ms; at < again; at += 10 * ms {
		c.take(l, c.known(), at, 1)
	}
	c.set(again, "8/"+window.String())
	for at := again + 5*ms; at < 5*time.Second; at += 10 * ms {
		c.now(at, 8)
	}
	c.within(window, 8, again)
	if n := len(c.sent); n < 16 {
		t.Errorf("only %d dispatches in 5 s: %v", n, c.sent)
	}
}

// breakOff takes a permit by the latest rules with a reader that dies when it has
// told the other store that its state went on in this one.
func (c *changing) breakOff(store *state.Memory, at time.Duration) {
	c.t.Helper()
	looks := 0
	store.Fault = func(string, bool) (bool, error) {
		if looks++; looks == 1 {
			return true, nil // it looks, and asks the other store
		}
		return false, state.ErrUnavailable
	}
	res := c.known().Resolve("d")
	g := c.reader().Take(c.t.Context(), c.start.Add(at), []Request{{
		Destination: "d", Limit: res.Limit, Version: res.Version, Was: res.Was, Changed: res.Changed, Want: 1,
	}})[0]
	if g.Err == nil || looks != 2 {
		c.t.Fatalf("granted without its store: %+v", g)
	}
	store.Fault = nil
}

// A move from one store to the other takes two writes. Where a process dies between
// them both say that the other one has the state.
func TestMoveBrokenOff(t *testing.T) {
	const ms = time.Millisecond
	for _, tt := range []struct {
		name, last string
		again      bool // the way back is broken off, too
	}{
		{"back", "1/1400ms strict", false}, {"back, twice", "1/1400ms strict", true}, {"on", "3/91s", false}, {"on, after all", "3/91s", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := newChanging(t)
			c.set(-time.Second, "100/1s")
			c.now(0, 1) // the other store learns of it
			c.now(900*ms, 2)
			c.set(1000*ms, "3/90s")
			c.breakOff(c.durable, 1100*ms)
			if tt.again {
				c.set(1150*ms, "1/1300ms strict")
				c.breakOff(c.fast, 1160*ms)
			}
			c.set(1200*ms, tt.last)
			before := len(c.sent)
			for at := 1210 * ms; at < 2200*ms; at += 10 * ms {
				c.now(at, 1)
			}
			if n := len(c.sent) - before; n > 0 {
				t.Errorf("%d dispatches too soon: %v", n, c.sent)
			}
			if tt.last == "3/91s" {
				return
			}
			for at := 2200 * ms; at < 3900*ms; at += 10 * ms {
				c.now(at, 1)
			}
			c.within(1400*ms, 1, 1200*ms)
			if len(c.sent) == before {
				t.Errorf("nothing goes any more: %v", c.sent)
			}
		})
	}
}

// Permits that are out when the limit changes may be used a little later: the
// past of the old limit ends only then.
func TestPermitsOutAtAChange(t *testing.T) {
	for _, last := range []string{"4/1s", "5/1s", "6/1s", "7/1s", "5/1s paced"} {
		for changed := 1010 * time.Millisecond; changed < 1900*time.Millisecond; changed += 70 * time.Millisecond {
			c := newChanging(t)
			c.set(-time.Hour, "3/1s")
			c.now(0, 3)
			l, res := c.reader(), c.known().Resolve("d")
			g := l.Take(t.Context(), c.start.Add(990*time.Millisecond), []Request{{
				Destination: "d", Limit: res.Limit, Version: res.Version, Want: 3, Lead: 50 * time.Millisecond,
			}})[0]
			if len(g.Permits) != 3 {
				t.Fatalf("%d permits ahead: %+v", len(g.Permits), g)
			}
			c.set(991*time.Millisecond, "1/50ms")
			c.now(992*time.Millisecond, 1)
			for _, p := range g.Permits {
				c.sent = append(c.sent, p.Until.Sub(c.start)) // as late as may be
			}
			c.now(changed-5*time.Millisecond, 1)
			c.set(changed, last)
			for at := changed; at < 2500*time.Millisecond; at += 2 * time.Millisecond {
				c.now(at, 7)
			}
			c.within(time.Second, int(mustLimit(t, last).Max), 1500*time.Millisecond)
		}
	}
}
