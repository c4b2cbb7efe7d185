package throttle

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/mvalve/mvalve/state"
)

func TestStatusAndForget(t *testing.T) {
	ctx, now := t.Context(), time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, limit := range []Limit{{Max: 2, Interval: 30 * time.Second}, {Max: 2, Interval: time.Hour}} {
		l := NewLimiter(Config{Fast: state.NewMemory(), Durable: state.NewMemory()})
		req := Request{Destination: "d", Limit: limit, Version: 1, Want: 2}
		if u, err := l.Status(ctx, now, "d", limit); err != nil || u.Used != 0 || !u.Next.Equal(now) {
			t.Fatalf("%v: a destination that was never used: %+v, %v", limit, u, err)
		}
		for _, p := range l.Take(ctx, now, []Request{req})[0].Permits {
			l.Dispatched(p, p.At)
		}
		later := now.Add(time.Second)
		u, err := l.Status(ctx, later, "d", limit)
		if err != nil || u.Used != 2 {
			t.Fatalf("%v: %+v, %v", limit, u, err)
		}
		if wait := u.Next.Sub(now); wait < limit.Interval-time.Second || wait > limit.Interval+time.Second {
			t.Errorf("%v: the next goes after %v", limit, wait)
		}
		if again, _ := l.Status(ctx, later, "d", limit); again != u {
			t.Errorf("%v: looking changed something: %+v, then %+v", limit, u, again)
		}
		if err := l.Forget(ctx, later, "d"); err != nil {
			t.Fatal(err)
		}
		if u, err := l.Status(ctx, later, "d", limit); err != nil || u.Used != 0 || !u.Next.Equal(later) {
			t.Errorf("%v: after a reset: %+v, %v", limit, u, err)
		}
	}
}

// away is a store that does not answer.
type away struct{ state.Store }

func (away) Get(_ context.Context, keys []string) ([]state.Entry, []error) {
	return make([]state.Entry, len(keys)), []error{state.ErrUnavailable}
}

func (away) Update(context.Context, time.Time, []string, []time.Duration, func(int, state.Entry) []byte) []error {
	return []error{state.ErrUnavailable}
}

func TestStatusAndForgetOfAStoreThatIsAway(t *testing.T) {
	l := NewLimiter(Config{Fast: away{}})
	limit := Limit{Max: 1, Interval: time.Second}
	if _, err := l.Status(t.Context(), time.Now(), "d", limit); !errors.Is(err, state.ErrUnavailable) {
		t.Error(err)
	}
	if err := l.Forget(t.Context(), time.Now(), "d"); !errors.Is(err, state.ErrUnavailable) {
		t.Error(err)
	}
}

// What Status tells is when the next permit is for, also where the past is known
// in part only.
func TestStatusAfterChangesAndLoss(t *testing.T) {
	const ms = time.Millisecond
	c := newChanging(t)
	c.set(-time.Second, "4/300ms") // so that the other store learns of it
	c.now(0, 4)
	c.set(100*ms, "1/300ms strict")
	c.fast.Wipe(c.start.Add(150 * ms))
	c.now(160*ms, 1)
	c.set(200*ms, "100/1s")
	c.now(210*ms, 1) // the limiter learns of it
	limit := mustLimit(t, "100/1s")
	s, err := c.reader().Status(t.Context(), c.start.Add(220*ms), "d", limit)
	if err != nil {
		t.Fatal(err)
	}
	before := len(c.sent)
	for at := 220 * ms; len(c.sent) == before; at += ms {
		if c.now(at, 1); at > 5*time.Second {
			t.Fatal("nothing goes any more")
		}
	}
	if next := c.start.Add(c.sent[before]); !s.Next.Equal(next) {
		t.Errorf("next at %v, it went at %v", s.Next.Sub(c.start), next.Sub(c.start))
	}
}
