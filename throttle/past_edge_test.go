package throttle

import (
	"slices"
	"testing"
	"time"

	"github.com/mvalve/mvalve/state"
)

// A longer window counts the past that was forgotten as the densest that the old
// limit allowed: never more often than that, and never later than a window of it
// before now, because what was later is known.
func TestDensestPast(t *testing.T) {
	const now = 100 * second
	for _, c := range []struct {
		name, old, limit string
		known            []int         // dispatches, ms before now
		want             []int         // what counts, ms before now, latest first
		free             time.Duration // the first permit, from now on
	}{
		{"nothing known", "2/1s", "6/60s", nil, []int{1000, 1000, 2000, 2000, 3000, 3000}, 57 * second},
		{
			"all known", "2/1s", "6/60s",
			[]int{500, 300},
			[]int{300, 500, 1300, 1500, 2300, 2500}, 57500 * ms,
		},
		{
			"half known", "2/1s", "6/60s",
			[]int{500},
			[]int{500, 1000, 1500, 2000, 2500, 3000}, 57 * second,
		},
		{
			"more known than allowed", "2/1s", "6/60s",
			[]int{800, 500, 200},
			[]int{200, 500, 800, 1500, 1800, 2500}, 57500 * ms,
		},
		{
			"twice as many", "1/1s", "6/60s",
			[]int{800, 800, 500},
			[]int{500, 800, 800, 1800, 2800, 3800}, 56200 * ms,
		},
		{"not full", "2/1s", "20/3s", nil, []int{1000, 1000, 2000, 2000}, 0},
		{"just longer", "2/1s", "3/1001ms", nil, []int{1000, 1000}, 0},
		{"nothing was limited", "none", "2/60s", nil, nil, 0},
		{"guards count", "2/500ms guard=500ms", "6/59s guard=1s", nil, []int{1000, 1000, 2000, 2000, 3000, 3000}, 57 * second},
	} {
		r := ringOf(t, c.old)
		for _, d := range c.known {
			r.used(now - time.Duration(d)*ms)
		}
		at := simStart + now.Microseconds()
		r.change(mustLimit(t, c.limit), 2, at)
		var got []int
		for _, e := range slices.Backward(r.entries) {
			for range e.n {
				got = append(got, int(at-e.hi)/1000)
			}
		}
		if !slices.Equal(got, c.want) || r.total != int64(len(c.want)) {
			t.Errorf("%s: counts %v ms before now (total %d), want %v", c.name, got, r.total, c.want)
		}
		if free := time.Duration(r.free(at)-at) * time.Microsecond; free != c.free {
			t.Errorf("%s: free after %v, want %v", c.name, free, c.free)
		}
		if r.version != 2 || r.era < at || r.high != at {
			t.Errorf("%s: version %d, era %d, high %d", c.name, r.version, r.era-at, r.high-at)
		}
	}
}

// Where a window holds very many of the old ones, several are taken together: not
// fewer dispatches than were possible, and not many more.
func TestManyOldWindows(t *testing.T) {
	for _, c := range []struct {
		old, limit string
		entries    int
		first      time.Duration // counted, before now
	}{
		{"1/1ms", "511/511ms", 510, 510 * ms},    // one window is known: it is empty
		{"1/1ms", "513/513ms", 256, 511 * ms},    // the first number of windows that is in twos
		{"1/1ms", "1023/1023ms", 511, 1021 * ms}, // and the last
		{"1/1ms", "600/600ms", 300, 599 * ms},    // in twos
		{"1/1ms", "1000/1s", 500, 999 * ms},
		{"3/1ms", "999999/2s", 500, 1997 * ms}, // in fours, 12 each
	} {
		r := ringOf(t, c.old)
		at := simStart + second.Microseconds()
		r.change(mustLimit(t, c.limit), 2, at)
		if len(r.entries) != c.entries {
			t.Errorf("%s, then %s: %d entries, want %d", c.old, c.limit, len(r.entries), c.entries)
		}
		if got := time.Duration(at-r.entries[0].hi) * time.Microsecond; got > c.first || got < c.first-2*ms { // buckets
			t.Errorf("%s, then %s: the first counts %v before now, want %v", c.old, c.limit, got, c.first)
		}
		possible := int64((mustLimit(t, c.limit).Window() - 1) / ms)
		if most := mustLimit(t, c.old).Max * possible; r.total < min(most, r.limit.Max) || r.total > most+2000 {
			t.Errorf("%s, then %s: %d count, possible are %d", c.old, c.limit, r.total, most)
		}
	}
}

// Every earlier limit counts for the time in which it was in force.
func TestLimitsBeforeTheLast(t *testing.T) {
	r := ringOf(t, "1/1s")
	step := func(at time.Duration, limit string) {
		r.change(mustLimit(t, limit), r.version+1, simStart+at.Microseconds())
	}
	step(10*second, "5/1s")
	step(12*second, "20/60s")
	// Of 5/1s: 5 at 11 s, none at 10 s, which was before it. Of 1/1s: at 10, 9, ..., -4 s.
	if r.total != 20 || r.entries[0].hi != simStart-4_000_000 {
		t.Errorf("%d count, the first at %d", r.total, r.entries[0].hi-simStart)
	}
	if n := len(r.entries); r.entries[n-1] != (entry{simStart + 11_000_000, 5, false}) || r.entries[n-2].hi != simStart+10_000_000 {
		t.Errorf("the last: %+v", r.entries[n-2:])
	}
	short := ringOf(t, "1/1s")
	short.change(mustLimit(t, "5/1s"), 1, simStart+10_000_000)
	short.change(mustLimit(t, "20/60s"), 2, simStart+10_500_000) // the last second is known
	if n := len(short.entries); short.total != 20 || short.entries[0].hi != simStart-9_500_000 || short.entries[n-1].hi != simStart+9_500_000 {
		t.Errorf("after half a second: %+v", short.entries)
	}
	if want := []past{{5, 1_000_000, simStart + 12_000_000}, {1, 1_000_000, simStart + 10_000_000}}; !slices.Equal(r.pasts, want) {
		t.Errorf("remembered: %+v", r.pasts)
	}
}

// With several earlier limits each counts down to where the one before it ended.
func TestEachEarlierLimitInItsTime(t *testing.T) {
	r := ringOf(t, "1/1s")
	for i, text := range []string{"5/1s", "2/1s", "100/60s"} {
		r.change(mustLimit(t, text), int64(i), simStart+(time.Duration(10+2*i)*second).Microseconds())
	}
	// Of 2/1s: 2 at 13 s. Of 5/1s: 5 at 12 s and at 11 s. Of 1/1s: at 10, 9, ..., -45 s.
	var got []entry
	for _, e := range r.entries[len(r.entries)-5:] {
		got = append(got, entry{(e.hi - simStart) / 1_000_000, e.n, e.open})
	}
	if want := []entry{{9, 1, false}, {10, 1, false}, {11, 5, false}, {12, 5, false}, {13, 2, false}}; !slices.Equal(got, want) {
		t.Errorf("the last: %v, want %v", got, want)
	}
	if r.total != 68 || r.entries[0].hi != simStart-45_000_000 {
		t.Errorf("%d count, the first at %d", r.total, r.entries[0].hi-simStart)
	}
}

// Where the past was followed only until a limit was used up, another limit must
// not take what is before for empty.
func TestPastThatWasCutOff(t *testing.T) {
	r := ringOf(t, "2/1s")
	r.change(mustLimit(t, "6/60s"), 2, simStart) // up to 3 s ago, that is enough
	r.change(mustLimit(t, "100/60s"), 3, simStart)
	stamps, next := r.take(nil, simStart, r.limit.run(), 1, 0)
	if want := simStart + 57_000_000 - r.limit.run()/2; len(stamps) > 0 || next != want {
		t.Errorf("%d permits, ask again after %d µs, want %d", len(stamps), next-simStart, want-simStart)
	}
}

// Of more than four earlier limits the oldest are remembered as one that allows
// what both did.
func TestTooManyEarlierLimits(t *testing.T) {
	var r ring
	for i, p := range []past{{10, 100, 1}, {3, 50, 2}, {1, 70, 3}, {1, 80, 4}, {1, 90, 5}} {
		r.pushPast(p)
		if want := min(i+1, maxPasts); len(r.pasts) != want {
			t.Errorf("after %d: %d are remembered", i+1, len(r.pasts))
		}
	}
	if want := []past{{1, 90, 5}, {1, 80, 4}, {1, 70, 3}, {10, 50, 2}}; !slices.Equal(r.pasts, want) {
		t.Errorf("remembered: %+v, want %+v", r.pasts, want)
	}
}

// A ring made anew is in order, in buckets, and all closed.
func TestChangeToBuckets(t *testing.T) {
	r := ringOf(t, "10/1s")
	r.add(simStart+500, 1, true)
	r.add(simStart+700, 2, false)
	r.add(simStart+1200, 1, true)
	r.change(mustLimit(t, "5000/1s"), 1, simStart)
	for i, e := range r.entries {
		if e.open || e.hi%977 != 0 || i > 0 && e.hi <= r.entries[i-1].hi {
			t.Errorf("%+v", r.entries)
		}
	}
	if r.total != 4 || r.entries[len(r.entries)-1].hi != r.roundUp(simStart+1200) {
		t.Errorf("total %d, %+v", r.total, r.entries)
	}
}

// Those of one bucket are counted together.
func TestChangeToOneBucket(t *testing.T) {
	r := ringOf(t, "10/1s")
	r.used(500*time.Microsecond, 700*time.Microsecond)
	r.change(mustLimit(t, "5000/1s"), 1, simStart)
	if len(r.entries) != 1 || r.entries[0].n != 2 {
		t.Errorf("%+v", r.entries)
	}
}

// What Status says of a value that is lost or malformed, of another limit, of a
// series and of the paced mode is what Take does then.
func TestStatusSaysWhatTakeDoes(t *testing.T) {
	limit := mustLimit(t, "3/10s")
	for name, c := range map[string]struct {
		before func(l *Limiter, m *state.Memory)
		at     time.Duration
		limit  string
		want   Status
	}{
		"nothing": {func(*Limiter, *state.Memory) {}, second, "3/10s", Status{Next: t0.Add(second), Why: "no state"}},
		"no limit": {
			func(_ *Limiter, m *state.Memory) { m.Wipe(t0) }, second, "none",
			Status{Next: t0.Add(second), Why: "no state"},
		},
		"lost": {
			func(_ *Limiter, m *state.Memory) { m.Wipe(t0) }, 10*second - 1, "3/10s",
			Status{Used: 3, Next: t0.Add(10*second + 150*ms), Why: "state lost"},
		},
		"lost a window ago": {
			func(_ *Limiter, m *state.Memory) { m.Wipe(t0) }, 10 * second, "3/10s",
			Status{Next: t0.Add(10 * second), Why: "no state"},
		},
		"malformed": {
			func(l *Limiter, m *state.Memory) { store(t, m, l.key("d"), []byte("x")) }, second, "3/10s",
			Status{Used: 3, Next: t0.Add(11 * second), Why: "state malformed"},
		},
		"used up": {
			func(l *Limiter, _ *state.Memory) { take(t, l, t0, Request{Limit: limit, Version: 4, Want: 3}) }, second, "3/10s",
			Status{Used: 3, Next: t0.Add(10*second + 50*ms), Version: 4},
		},
		"not used up": {
			func(l *Limiter, _ *state.Memory) { take(t, l, t0, Request{Limit: limit, Version: 4, Want: 2}) }, second, "3/10s",
			Status{Used: 2, Next: t0.Add(second), Version: 4},
		},
		"of another limit": {
			func(l *Limiter, _ *state.Memory) { take(t, l, t0, Request{Limit: limit, Version: 4, Want: 3}) }, second, "2/10s",
			Status{Used: 3, Next: t0.Add(10*second + 50*ms + time.Microsecond), Version: 4, Why: "other limit"},
		},
		"paced": {
			func(l *Limiter, _ *state.Memory) {
				for range 2 {
					take(t, l, t0, Request{Limit: mustLimit(t, "3/10s paced")})
				}
			}, second, "3/10s paced",
			Status{Used: 2, Next: t0.Add(5 * second)},
		},
		"a series": {
			func(l *Limiter, _ *state.Memory) { take(t, l, t0, Request{Limit: limit, Hold: time.Hour}) }, time.Hour, "3/10s",
			Status{Next: t0.Add(time.Hour + 50*ms), Closed: t0.Add(time.Hour + 50*ms)},
		},
		"a series that is over": {
			func(l *Limiter, _ *state.Memory) { take(t, l, t0, Request{Limit: limit, Hold: time.Hour}) }, time.Hour + 50*ms, "3/10s",
			Status{Next: t0.Add(time.Hour + 50*ms)},
		},
	} {
		l, m := newTest(t)
		c.before(l, m)
		got, err := l.Status(t.Context(), t0.Add(c.at), "d", mustLimit(t, c.limit))
		if err != nil || got != c.want {
			t.Errorf("%s: %+v, %v, want %+v", name, got, err, c.want)
		}
	}
}

// What is forgotten on purpose stays forgotten: reports and returns of permits
// from before do not count, and readers with older rules are still told.
func TestForgetEndsTheEra(t *testing.T) {
	l, store := newCounted()
	req := Request{Limit: mustLimit(t, "1/10s"), Version: 3}
	old := take(t, l, t0, req).Permits[0]
	store.asked()
	if err := l.Forget(t.Context(), t0, "d"); err != nil {
		t.Fatal(err)
	}
	if got := store.asked(); got[0] != 24*time.Hour+4*second {
		t.Errorf("kept for %v", got)
	}
	older := req
	older.Version = 2
	if g := take(t, l, t0, older); !g.Stale {
		t.Errorf("older rules: %+v", g)
	}
	if g := take(t, l, t0, req); len(g.Permits) != 1 || g.Permits[0].At != old.At {
		t.Fatalf("after Forget: %+v", g)
	}
	l.Return(old)
	if g := take(t, l, t0, req); len(g.Permits) != 0 {
		t.Error("a permit of before came back and freed a slot that is used")
	}
}
