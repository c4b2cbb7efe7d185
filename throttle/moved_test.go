package throttle

import (
	"testing"
	"time"

	"github.com/mvalve/mvalve/state"
)

// A limit that was in force for a moment only must not hide what the one before it
// counted in the other store.
func TestTwoChangesAtOnce(t *testing.T) {
	ctx, start := t.Context(), time.Unix(1e9, 0)
	store, fast, durable := NewMemoryRules(), state.NewMemory(), state.NewMemory()
	set := func(after time.Duration, limit string) {
		t.Helper()
		if _, err := SetLimit(ctx, store, start.Add(after), "d", mustLimit(t, limit)); err != nil {
			t.Fatal(err)
		}
	}
	rules := func() *Rules {
		t.Helper()
		r := NewRules(store, nil)
		if err := r.Reload(ctx, start); err != nil {
			t.Fatal(err)
		}
		return r
	}
	take := func(l *Limiter, r *Rules, after time.Duration) []Permit {
		t.Helper()
		res, now := r.Resolve("d"), start.Add(after)
		g := l.Take(ctx, now, []Request{{
			Destination: "d", Limit: res.Limit, Version: res.Version, Was: res.Was, Changed: res.Changed, Want: 2,
		}})[0]
		if g.Err != nil || g.Stale {
			t.Fatalf("Take: %+v", g)
		}
		for _, p := range g.Permits {
			l.Dispatched(p, p.At)
		}
		return g.Permits
	}

	set(-time.Hour, "2/90s")
	old, slow := rules(), NewLimiter(Config{Fast: fast, Durable: durable})
	set(300*time.Millisecond, "10/100ms")
	set(500*time.Millisecond, "2/1s")
	if got := take(slow, old, 600*time.Millisecond); len(got) != 2 {
		t.Fatalf("%d permits by the rules of before", len(got))
	}
	for _, p := range take(NewLimiter(Config{Fast: fast, Durable: durable}), rules(), 700*time.Millisecond) {
		t.Errorf("a third dispatch within a second, at %v", p.At.Sub(start))
	}
}
