package throttle

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mvalve/mvalve/state"
)

// counted notes the lifetimes that a store's values were asked to have, and how
// many of the changes wrote something.
type counted struct {
	state.Store
	ttls   []time.Duration
	writes int
}

func (c *counted) Update(ctx context.Context, now time.Time, keys []string, ttls []time.Duration, fn func(int, state.Entry) []byte) []error {
	c.ttls = append(c.ttls, ttls...)
	return c.Store.Update(ctx, now, keys, ttls, func(i int, old state.Entry) []byte {
		data := fn(i, old)
		if data != nil {
			c.writes++
		}
		return data
	})
}

// asked returns the lifetimes since the last call.
func (c *counted) asked() []time.Duration {
	ttls := c.ttls
	c.ttls = nil
	return ttls
}

func newCounted() (*Limiter, *counted) {
	c := &counted{Store: state.NewMemory()}
	return NewLimiter(Config{Fast: c}), c
}

// Windows of a minute are counted in the fast store, longer ones and series
// without a limit in the durable one.
func TestWhereLimitsAreCounted(t *testing.T) {
	for text, durable := range map[string]bool{
		"1/60s": false, "1/60.000001s": true, "1/59s guard=1s": false, "1/59s guard=2s": true, "1/1ms": false, "none": true,
	} {
		a, b := &counted{Store: state.NewMemory()}, &counted{Store: state.NewMemory()}
		l := NewLimiter(Config{Fast: a, Durable: b})
		g := take(t, l, t0, Request{Limit: mustLimit(t, text), Hold: time.Second})
		if len(g.Permits) != 1 || g.Err != nil {
			t.Fatalf("%s: %+v", text, g)
		}
		if used := b.writes == 1; used != durable || a.writes+b.writes != 1 {
			t.Errorf("%s: %d writes to the fast store and %d to the durable one", text, a.writes, b.writes)
		}
	}
}

// Values are kept as long as they count, at least a minute, and four seconds
// more; one second more is asked for at once.
func TestHowLongValuesAreKept(t *testing.T) {
	for _, c := range []struct {
		limit string
		hold  time.Duration
		want  time.Duration
	}{
		{"1/1s", 0, 65 * time.Second},
		{"1/60s", 0, 65 * time.Second},
		{"1/24h guard=1h", 0, 25*time.Hour + 5*time.Second},
		{"1/1s", time.Minute, 65 * time.Second},
		{"1/1s", time.Hour, time.Hour + 5*time.Second},
		{"none", time.Hour, time.Hour + 5*time.Second},
	} {
		l, store := newCounted()
		g := take(t, l, t0, Request{Limit: mustLimit(t, c.limit), Hold: c.hold})
		if got := store.asked(); len(g.Permits) != 1 || !slices.Equal(got, []time.Duration{c.want}) {
			t.Errorf("%s, hold %v: %d permits, kept for %v, want %v", c.limit, c.hold, len(g.Permits), got, c.want)
		}
	}
}

// A value that somebody whose clock is ahead has written must live by that
// clock; if that is longer than was asked for, it is asked again, but never for
// more than two years.
func TestValuesLiveByTheLatestClock(t *testing.T) {
	const most = 2 * MaxInterval
	for _, c := range []struct {
		ahead time.Duration
		want  []time.Duration
	}{
		{0, []time.Duration{65 * time.Second}},
		{time.Second, []time.Duration{65 * time.Second}},
		{time.Second + time.Microsecond, []time.Duration{65 * time.Second, 65*time.Second + time.Microsecond}},
		{10 * time.Second, []time.Duration{65 * time.Second, 74 * time.Second}},
		{2 * most, []time.Duration{65 * time.Second, most}},
	} {
		l, store := newCounted()
		req := Request{Limit: mustLimit(t, "5/1s"), Charge: true}
		take(t, l, t0.Add(c.ahead), req)
		store.asked()
		store.writes = 0
		g := take(t, l, t0, req)
		if store.writes != 1 {
			t.Errorf("%v ahead: written %d times", c.ahead, store.writes)
		}
		if got := store.asked(); !slices.Equal(got, c.want) || g.Err != nil || len(g.Permits) != 1 {
			t.Errorf("%v ahead: %d permits, %v, asked for %v, want %v", c.ahead, len(g.Permits), g.Err, got, c.want)
		}
	}
}

// While a series keeps a destination closed, its value is kept until after that.
func TestValuesOutliveSeries(t *testing.T) {
	l, store := newCounted()
	limit := mustLimit(t, "5/1s")
	take(t, l, t0, Request{Limit: limit, Hold: 3 * time.Hour}) // up to 50 ms later
	store.asked()
	take(t, l, t0.Add(time.Hour), Request{Limit: limit, Charge: true})
	want := []time.Duration{65 * time.Second, 2*time.Hour + 50*ms + 4*time.Second}
	if got := store.asked(); !slices.Equal(got, want) {
		t.Errorf("asked for %v, want %v", got, want)
	}
}

// Who wants nothing, and who has no limit, asks no store.
func TestWhatNeedsNoStore(t *testing.T) {
	l, store := newCounted()
	limit := mustLimit(t, "5/1s")
	reqs := []Request{
		{Destination: "a", Limit: limit, Want: 0},
		{Destination: "b", Limit: limit, Want: -1},
		{Destination: "c", Want: 3},
		{Destination: "c", Want: 2},
		{Destination: "d", Want: 1, Hold: time.Second, Charge: true},
		{Destination: "a", Limit: limit, Want: 0},
	}
	grants := l.Take(t.Context(), t0, reqs)
	for i, want := range []int{0, 0, 3, 2, 1, 0} {
		if len(grants[i].Permits) != want {
			t.Errorf("request %d: %d permits, want %d", i, len(grants[i].Permits), want)
		}
	}
	for _, p := range grants[2].Permits {
		if !p.At.Equal(t0) || !p.Until.Equal(t0.Add(time.Hour)) {
			t.Errorf("without a limit: from %v to %v", p.At, p.Until)
		}
		l.Dispatched(p, t0)
		l.Return(p)
	}
	l.Drain(t.Context(), t0)
	if len(store.ttls) != 0 {
		t.Errorf("%d values were asked for", len(store.ttls))
	}
}

// A destination that occurs several times in one call gets what each asks for,
// as far as there is.
func TestTakeTwiceInOneCall(t *testing.T) {
	l, store := newCounted()
	req := Request{Destination: "d", Limit: mustLimit(t, "5/1s"), Want: 2}
	none := req
	none.Want = 0
	grants := l.Take(t.Context(), t0, []Request{req, none, req, {Destination: "d", Want: 4}, req, req})
	var got []int
	for _, g := range grants {
		got = append(got, len(g.Permits))
	}
	if want := []int{2, 0, 2, 4, 1, 0}; !slices.Equal(got, want) {
		t.Errorf("permits: %v, want %v", got, want)
	}
	if n := len(store.ttls); n != 4 {
		t.Errorf("the store was asked %d times", n)
	}
}

// Every key begins with the prefix, which has a default.
func TestPrefixOfKeys(t *testing.T) {
	for prefix, want := range map[string]string{"": "throttle/", "other/": "other/"} {
		l := NewLimiter(Config{Fast: state.NewMemory(), Prefix: prefix})
		if key := l.key("d"); !strings.HasPrefix(key, want) || key == l.key("e") || len(key) != len(want)+24 {
			t.Errorf("prefix %q: key %q", prefix, key)
		}
	}
}

// While the store that a limit came from is away, nothing goes.
func TestOtherStoreIsAway(t *testing.T) {
	durable := state.NewMemory()
	l := NewLimiter(Config{Fast: state.NewMemory(), Durable: durable})
	durable.Fault = func(string, bool) (bool, error) { return false, state.ErrUnavailable }
	req := Request{Limit: mustLimit(t, "3/10s"), Changed: t0}
	if g := take(t, l, t0, req); len(g.Permits) > 0 || !errors.Is(g.Err, state.ErrUnavailable) {
		t.Errorf("%+v", g)
	}
	durable.Fault = nil
	if g := take(t, l, t0, req); len(g.Permits) != 1 || g.Err != nil {
		t.Errorf("back again: %+v", g)
	}
}

// Out says that permits which may come back unused are out: until two seconds
// after their time.
func TestOut(t *testing.T) {
	l, _ := newCounted()
	req := Request{Limit: mustLimit(t, "1/10s")}
	g := take(t, l, t0, req)
	if !g.Out {
		t.Error("the permit that was just given is not out")
	}
	last := g.Permits[0].Until.Add(2 * time.Second)
	for d, want := range map[time.Duration]bool{0: true, time.Microsecond: false, time.Second: false} {
		if g := take(t, l, last.Add(d), req); g.Out != want || len(g.Permits) > 0 {
			t.Errorf("%v after its time: out is %v", d, g.Out)
		}
	}
	l.Dispatched(g.Permits[0], g.Permits[0].At)
	if g := take(t, l, t0.Add(time.Second), req); g.Out {
		t.Error("a permit that was used is out")
	}
	series := take(t, l, t0, Request{Destination: "series", Limit: req.Limit, Hold: time.Second})
	if g := take(t, l, series.Permits[0].Until.Add(time.Minute), Request{Destination: "series", Limit: req.Limit, Want: 1}); !g.Out {
		t.Error("a series whose report is missing is not out")
	}
}

// Lead is how long before its slots are free the limiter wants to be asked.
func TestLeadOfAGrant(t *testing.T) {
	for lead, want := range map[time.Duration]time.Duration{0: 12500 * time.Microsecond, 40 * ms: 40 * ms, time.Minute: 50 * ms} {
		l, _ := newCounted()
		req := Request{Limit: mustLimit(t, "1/1s"), Lead: lead, Want: 2}
		if g := take(t, l, t0, req); g.Lead != want || g.NotBefore.IsZero() {
			t.Errorf("a lead of %v: %v before %v", lead, g.Lead, g.NotBefore)
		}
		req.Want = 1
		if g := take(t, l, t0.Add(2*time.Second), req); g.Lead != 0 || !g.NotBefore.IsZero() || len(g.Permits) != 1 {
			t.Errorf("all is granted: %+v", g)
		}
	}
}

// After a conflict, and where the outcome is unknown, the limiter is asked again
// in 1 to 5 ms; an error of the store is told.
func TestAskAgainAfterErrors(t *testing.T) {
	for _, c := range []struct {
		err    error
		random uint64
		want   time.Duration
		told   bool
	}{
		{state.ErrConflict, 4000, 1 * ms, false},
		{state.ErrConflict, 3999, 4999 * time.Microsecond, false},
		{state.ErrUnknown, 1, 1001 * time.Microsecond, false},
		{state.ErrUnavailable, 1, 0, true},
	} {
		m := state.NewMemory()
		m.Fault = func(string, bool) (bool, error) { return false, fmt.Errorf("test: %w", c.err) }
		l := NewLimiter(Config{Fast: m})
		l.random = func() uint64 { return c.random }
		g := take(t, l, t0, Request{Limit: mustLimit(t, "1/1s")})
		if c.told != (g.Err != nil) || c.told && !errors.Is(g.Err, c.err) {
			t.Errorf("%v is told as %v", c.err, g.Err)
		}
		if wait := g.NotBefore.Sub(t0); !c.told && wait != c.want || c.told && !g.NotBefore.IsZero() {
			t.Errorf("%v: again after %v, want %v", c.err, wait, c.want)
		}
	}
}

// A malformed value keeps the destination closed for a window after the latest
// that a permit of it could have been used, and a series for its hold.
func TestMalformedStateExactly(t *testing.T) {
	for hold, want := range map[time.Duration]time.Duration{
		0:             10*time.Second + 50*ms + 100*ms,
		8 * time.Hour: 8 * time.Hour,
	} {
		l, m := newTest(t)
		store(t, m, l.key("d"), []byte("no state"))
		req := Request{Limit: mustLimit(t, "3/10s"), Hold: hold, Want: 1}
		g := take(t, l, t0, req)
		lead := 12500 * time.Microsecond
		if wait := g.NotBefore.Sub(t0); len(g.Permits) > 0 || wait != want-lead {
			t.Errorf("hold %v: %d permits, ask again after %v, want %v", hold, len(g.Permits), wait, want-lead)
		}
		if g = take(t, l, t0.Add(want-lead), req); len(g.Permits) != 1 || !g.Permits[0].At.Equal(t0.Add(want)) {
			t.Errorf("hold %v: at the end: %+v", hold, g)
		}
	}
}
