package throttle

import (
	"slices"
	"testing"
	"time"

	"github.com/mvalve/mvalve/state"
)

const second = time.Second

// waits returns how long after t0 the first permit is, when one is asked for at
// now after t0, and follows what the limiter says about when to ask again.
func waits(t *testing.T, l *Limiter, now time.Duration, req Request) time.Duration {
	t.Helper()
	for range 3 {
		g := take(t, l, t0.Add(now), req)
		if g.Err != nil || g.Stale {
			t.Fatalf("%+v", g)
		}
		if len(g.Permits) > 0 {
			return g.Permits[0].At.Sub(t0)
		}
		if !g.NotBefore.After(t0.Add(now)) {
			t.Fatalf("asked at %v, ask again at %v", now, g.NotBefore.Sub(t0))
		}
		now = g.NotBefore.Sub(t0)
	}
	t.Fatal("asked three times in vain")
	return 0
}

// A changed limit counts from the next request on, and the past with it.
func TestChangedLimitCounts(t *testing.T) {
	l, store := newCounted()
	for i, c := range []struct {
		limit   string
		permits int
	}{{"2/1s", 2}, {"5/1s", 3}, {"4/1s", 0}, {"4/1s paced", 0}, {"6/1s", 1}} {
		g := take(t, l, t0, Request{Limit: mustLimit(t, c.limit), Version: int64(i), Want: 9})
		if len(g.Permits) != c.permits {
			t.Errorf("%s: %d permits, want %d", c.limit, len(g.Permits), c.permits)
		}
	}
	store.writes = 0
	req := Request{Limit: mustLimit(t, "6/1s"), Version: 4}
	if g := take(t, l, t0, req); len(g.Permits) > 0 || store.writes > 0 {
		t.Errorf("%d permits; what says no has written %d times", len(g.Permits), store.writes)
	}
}

// A lost value counts as a window that is used up at the latest that a permit of
// it could have been used; with another limit lately that may be later.
func TestLossExactly(t *testing.T) {
	was := mustLimit(t, "100/1s")
	limit := mustLimit(t, "3/10s")
	for name, c := range map[string]struct {
		req  Request
		want time.Duration
	}{
		"the same limit":      {Request{}, 10*second + 150*ms},
		"the same, and known": {Request{Was: &limit, Changed: t0.Add(-time.Hour)}, 10*second + 150*ms},
		"another one before":  {Request{Was: &was, Changed: t0.Add(-time.Hour)}, 10*second + 350*ms},
		"a series":            {Request{Hold: time.Hour}, time.Hour + 150*ms},
		"a short series":      {Request{Hold: 8 * second}, 10*second + 150*ms},
	} {
		l, m := newTest(t)
		m.Wipe(t0)
		c.req.Limit = limit
		if got := waits(t, l, second, c.req); got != c.want {
			t.Errorf("%s: the first goes %v after the loss, want %v", name, got, c.want)
		}
	}
	l, m := newTest(t)
	m.Wipe(t0)
	if got := waits(t, l, 11*second, Request{Limit: limit}); got != 11*second {
		t.Errorf("a window after the loss: the first goes at %v", got)
	}
	if got := waits(t, l, 2*time.Hour, Request{Limit: limit, Destination: "series", Hold: time.Hour}); got != 2*time.Hour {
		t.Errorf("a series after the loss: goes at %v", got)
	}
}

// A window that became longer than values were kept counts what the old limit
// may have admitted before that.
func TestLongerWindowThanValuesWereKept(t *testing.T) {
	was := mustLimit(t, "100/1s")
	req := Request{Limit: mustLimit(t, "10/10m"), Was: &was, Changed: t0}
	// Values were kept for 64 s; two seconds of that are for stores with coarse clocks.
	last := -62 * second
	for _, now := range []time.Duration{0, 30 * second} {
		l, _ := newTest(t)
		if got, want := waits(t, l, now, req), now+last+10*time.Minute; got != want {
			t.Errorf("asked after %v: goes after %v, want %v", now, got, want)
		}
	}
	over := 10*time.Minute + 4*second
	for now, want := range map[time.Duration]time.Duration{
		over - time.Microsecond: over - time.Microsecond + last + 10*time.Minute,
		over:                    over,
	} {
		l, _ := newTest(t)
		if got := waits(t, l, now, req); got != want {
			t.Errorf("asked after %v: goes after %v, want %v", now, got, want)
		}
	}
	l, _ := newTest(t)
	short := req
	short.Limit = mustLimit(t, "10/30s") // values of the old limit outlive it
	if got := waits(t, l, 0, short); got != 0 {
		t.Errorf("a window shorter than values are kept: goes after %v", got)
	}
}

// The store in which a limit is not counted is asked as long as a value of the
// limit before may be there, and no longer.
func TestOtherStoreIsAskedAfterAChange(t *testing.T) {
	was, second := mustLimit(t, "3/1s"), time.Second
	for _, c := range []struct {
		limit string
		after time.Duration
		asks  int
	}{
		{"3/10s", 64*second - time.Microsecond, 1},
		{"3/10s", 64 * second, 0},
		{"3/10m", 604*second - time.Microsecond, 1},
		{"3/10m", 604 * second, 0},
	} {
		fast, durable := &counted{Store: state.NewMemory()}, &counted{Store: state.NewMemory()}
		l := NewLimiter(Config{Fast: fast, Durable: durable})
		req := Request{Limit: mustLimit(t, c.limit), Was: &was, Changed: t0}
		other := durable
		if req.Limit.Window() > durableFrom {
			other = fast
		}
		l.Take(t.Context(), t0.Add(c.after), []Request{{
			Destination: "d", Limit: req.Limit, Was: &was, Changed: t0, Want: 1,
		}})
		if got := len(other.asked()); got != c.asks {
			t.Errorf("%s, %v after the change: the other store was asked %d times, want %d", c.limit, c.after, got, c.asks)
		}
	}
	single := state.NewMemory()
	l := NewLimiter(Config{Fast: single, Durable: single})
	if got := waits(t, l, 0, Request{Limit: was, Was: &was, Changed: t0.Add(-time.Minute)}); got != 0 {
		t.Errorf("with one store only: goes after %v", got)
	}
}

// What the other store holds, or has lost, counts under the new limit.
func TestWhatTheOtherStoreHolds(t *testing.T) {
	was, limit := mustLimit(t, "3/10s"), mustLimit(t, "3/90s")
	req := Request{Limit: limit, Version: 2, Was: &was, Changed: t0.Add(second)}
	old := Request{Limit: was, Version: 1, Want: 3}
	for name, c := range map[string]struct {
		before func(l *Limiter, m *state.Memory)
		want   time.Duration
	}{
		"nothing, but for what was longer ago than values are kept": {
			func(*Limiter, *state.Memory) {}, (2 - 62 + 90) * second,
		},
		"a used-up window": {func(l *Limiter, _ *state.Memory) {
			for _, p := range take(t, l, t0, old).Permits {
				l.Dispatched(p, t0.Add(10*ms))
			}
			l.Drain(t.Context(), t0.Add(20*ms))
		}, 90*second + 10*ms},
		"permits that are out": {func(l *Limiter, _ *state.Memory) { take(t, l, t0, old) }, 90*second + 50*ms},
		"no memory":            {func(_ *Limiter, m *state.Memory) { m.Wipe(t0) }, 90*second + 350*ms},
		"something malformed": {func(l *Limiter, m *state.Memory) {
			store(t, m, l.key("d"), []byte("no state"))
		}, 92 * second},
	} {
		fast := state.NewMemory()
		l := NewLimiter(Config{Fast: fast, Durable: state.NewMemory()})
		c.before(l, fast)
		if got := waits(t, l, 2*second, req); got != c.want {
			t.Errorf("%s: the first goes after %v, want %v", name, got, c.want)
		}
		// Readers that still have the old rules are told.
		if g := take(t, l, t0.Add(2*second), old); !g.Stale {
			t.Errorf("%s: older rules: %+v", name, g)
		}
	}
}

// A loss in the store that counts does not make the window of the other one, in
// which later dispatches are, end sooner.
func TestLossBesideLaterDispatches(t *testing.T) {
	was, limit := mustLimit(t, "3/90s"), mustLimit(t, "3/10s")
	fast := state.NewMemory()
	l := NewLimiter(Config{Fast: fast, Durable: state.NewMemory()})
	g := take(t, l, t0.Add(5*second), Request{Limit: was, Version: 1, Want: 3})
	if len(g.Permits) != 3 {
		t.Fatalf("%+v", g)
	}
	fast.Wipe(t0)
	last := g.Permits[2].Until.Sub(t0)
	req := Request{Limit: limit, Version: 2, Was: &was, Changed: t0.Add(5500 * ms)}
	if got := waits(t, l, 6*second, req); got != last+10*second {
		t.Errorf("the first goes after %v, want a window after %v", got, last)
	}
}

// Whoever has rules older than the last that looked is told, also in a store from
// which the limit moved away long ago.
func TestMovedAwayStaysFenced(t *testing.T) {
	l := NewLimiter(Config{Fast: state.NewMemory(), Durable: state.NewMemory()})
	fast := mustLimit(t, "3/10s")
	for i, text := range []string{"3/10s", "3/90s", "4/90s"} {
		req := Request{Limit: mustLimit(t, text), Version: int64(1 + 4*i), Was: &fast, Changed: t0}
		if g := take(t, l, t0.Add(time.Duration(i)*ms), req); g.Stale || g.Err != nil {
			t.Fatalf("%s: %+v", text, g)
		}
	}
	for version, stale := range map[int64]bool{8: true, 9: false} {
		if g := take(t, l, t0.Add(5*ms), Request{Limit: fast, Version: version, Was: &fast, Changed: t0}); g.Stale != stale {
			t.Errorf("version %d: %+v", version, g)
		}
	}
}

// A permit of the limit before, however short ago that was, does not free a slot
// of the new one when it comes back.
func TestChangeEndsTheEra(t *testing.T) {
	l, _ := newTest(t)
	old := take(t, l, t0, Request{Limit: mustLimit(t, "1/10s"), Version: 1}).Permits[0]
	req := Request{Limit: mustLimit(t, "2/10s"), Version: 2, Want: 2}
	if g := take(t, l, t0, req); len(g.Permits) != 1 || !g.Permits[0].At.Equal(old.At) {
		t.Fatalf("%+v", g)
	}
	l.Return(old)
	if g := take(t, l, t0, req); len(g.Permits) != 0 {
		t.Errorf("a third permit: %+v", g)
	}
}

// A stored ring comes back as it was; numbers at their bounds are taken, beyond
// them they are damage.
func TestStoredRing(t *testing.T) {
	full := func() *ring {
		return &ring{
			limit: Limit{Max: 7, Interval: time.Minute, Mode: Paced, Guard: ms}, version: 3, era: 4, nonce: 1 << 63, moved: true,
			high: maxMicros - 1, tat: 5, forgot: 6, closed: 7, closer: 8, hold: 9,
			pasts:   []past{{1, 1, 0}, {MaxMax, 2, 3}, {1, 2, 3}, {1, 2, 3}},
			entries: []entry{{1, 1, true}, {1, 2, false}, {900, 1 << 40, true}, {maxMicros - 1, 1, false}},
			total:   1<<40 + 4,
		}
	}
	var got ring
	if err := got.decode(full().encode()); err != nil {
		t.Fatal(err)
	}
	want := full()
	if got.limit != want.limit || got.version != want.version || got.era != want.era || got.nonce != want.nonce ||
		got.moved != want.moved || got.high != want.high || got.tat != want.tat || got.forgot != want.forgot ||
		got.closed != want.closed || got.closer != want.closer || got.hold != want.hold || got.total != want.total ||
		!slices.Equal(got.pasts, want.pasts) || !slices.Equal(got.entries, want.entries) {
		t.Errorf("stored %+v, got %+v", want, got)
	}
	enc := full().encode()
	for n := range len(enc) - 4 {
		if got.decode(sealed(enc[:n])) == nil {
			t.Errorf("%d of %d bytes are taken", n, len(enc)-4)
		}
	}
	for name, damage := range map[string]func(*ring){
		"time":          func(r *ring) { r.high = maxMicros },
		"negative":      func(r *ring) { r.closed = -1 },
		"pasts":         func(r *ring) { r.pasts = append(r.pasts, past{1, 1, 1}) },
		"past max 0":    func(r *ring) { r.pasts[0].max = 0 },
		"past max":      func(r *ring) { r.pasts[0].max = MaxMax + 1 },
		"past window":   func(r *ring) { r.pasts[0].window = 0 },
		"interval":      func(r *ring) { r.limit.Interval = MaxInterval + time.Microsecond },
		"guard":         func(r *ring) { r.limit.Guard = MaxInterval },
		"entry of none": func(r *ring) { r.entries[0].n = 0 },
		"entry of many": func(r *ring) { r.entries[2].n++ },
		"entry time":    func(r *ring) { r.entries[3].hi++ },
		"mode":          func(r *ring) { r.limit.Mode = Paced + 1 },
		"limit":         func(r *ring) { r.limit.Mode = Strict },
	} {
		r := full()
		damage(r)
		var got ring
		if err := got.decode(r.encode()); err == nil {
			t.Errorf("%s: taken as %+v", name, got)
		}
	}
	most := full()
	most.limit = Limit{Max: MaxMax, Interval: MaxInterval}
	most.entries, most.total = nil, 0
	for i := range int64(maxRingTail) {
		most.entries = append(most.entries, entry{hi: i * (maxMicros / maxRingTail), n: 1 << 40})
	}
	enc = most.encode()
	if err := got.decode(enc); err != nil || len(got.entries) != maxRingTail || len(enc) > 64<<10 {
		t.Errorf("%d entries in %d bytes: %v", len(got.entries), len(enc), err)
	}
	most.entries = append(most.entries, entry{hi: maxMicros - 1, n: 1})
	if err := got.decode(most.encode()); err == nil {
		t.Error("more entries than a ring may have are taken")
	}
	if err := (&ring{}).decode((&ring{}).encode()); err != nil {
		t.Errorf("the empty ring: %v", err)
	}
}
