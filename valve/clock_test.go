package valve

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mvalve/mvalve/queue"
)

// shifted is a store whose clock is off this machine's by a settable amount.
type shifted struct {
	*queue.Memory
	by time.Duration
}

func (s *shifted) Now(context.Context) (time.Time, error) { return time.Now().Add(s.by), nil }

func TestClockFollowsTheBackEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, by := range []time.Duration{0, 5 * time.Minute, -5 * time.Minute} {
			store := &shifted{queue.NewMemory(), by}
			c, err := newClock(t.Context(), store)
			if err != nil {
				t.Fatal(err)
			}
			if off := c.Now().Sub(time.Now().Add(by)).Abs(); off > time.Millisecond {
				t.Errorf("shifted by %v: off by %v", by, off)
			}
		}
	})
}

// late is a store whose first answers come late: a stalled connection.
type late struct {
	*queue.Memory
	calls, slow int
}

func (s *late) Now(context.Context) (time.Time, error) {
	now := time.Now()
	if s.calls++; s.calls <= s.slow {
		time.Sleep(time.Second) //nolint:forbidigo // virtual time
	}
	return now, nil
}

// TestClockMeasuredWhileAnswersAreLate: half of a long round trip is the error of
// a measurement. Better ones follow at once, or as soon as there are any.
func TestClockMeasuredWhileAnswersAreLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, err := newClock(t.Context(), &late{queue.NewMemory(), 0, 4})
		if err != nil {
			t.Fatal(err)
		}
		if off := time.Until(c.Now()).Abs(); off > time.Millisecond {
			t.Errorf("off by %v though later answers came in time", off)
		}
		store := &late{queue.NewMemory(), 0, 5}
		if c, err = newClock(t.Context(), store); err != nil {
			t.Fatal(err)
		}
		if off := time.Until(c.Now()).Abs(); off < 100*time.Millisecond {
			t.Fatalf("off by %v: the test proves nothing", off)
		}
		time.Sleep(2 * time.Second) //nolint:forbidigo // virtual time
		if !c.due() {
			t.Fatal("not measured again soon")
		}
		if err := c.measure(t.Context(), store); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Second) //nolint:forbidigo // virtual time: the excess is worked off
		if off := time.Until(c.Now()).Abs(); off > time.Millisecond {
			t.Errorf("still off by %v", off)
		}
		if c.due() {
			t.Error("a good measurement is repeated soon, too")
		}
	})
}

// stalled is a store that takes a request a second late, and has a clock of its own.
type stalled struct {
	shifted
	slow bool
}

func (s *stalled) Now(ctx context.Context) (time.Time, error) {
	if s.slow {
		time.Sleep(time.Second) //nolint:forbidigo // virtual time
	}
	return s.shifted.Now(ctx)
}

// TestClockKeepsWhatItKnows: a request that is held up and answered at once is
// wrong by half its round trip; with the little that the clock is wrong by itself
// it must not be taken for a step.
func TestClockKeepsWhatItKnows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &stalled{shifted: shifted{Memory: queue.NewMemory()}}
		c, err := newClock(t.Context(), store)
		if err != nil {
			t.Fatal(err)
		}
		store.by, store.slow = 500*time.Microsecond, true
		if err := c.measure(t.Context(), store); err != nil {
			t.Fatal(err)
		}
		if off := time.Until(c.Now()).Abs(); off > time.Millisecond {
			t.Errorf("off by %v after a late measurement", off)
		}
		store.by = 10 * time.Second // a real step is believed all the same
		if err := c.measure(t.Context(), store); err != nil {
			t.Fatal(err)
		}
		if off := time.Until(c.Now()) - store.by; off.Abs() > time.Second {
			t.Errorf("off by %v after a step", off)
		}
	})
}

func TestClockNeverGoesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &shifted{queue.NewMemory(), 0}
		c, err := newClock(t.Context(), store)
		if err != nil {
			t.Fatal(err)
		}
		store.by = -10 * time.Second
		last := c.Now()
		if err := c.measure(t.Context(), store); err != nil {
			t.Fatal(err)
		}
		for range 300 {
			time.Sleep(100 * time.Millisecond) //nolint:forbidigo // virtual time
			now := c.Now()
			if step := now.Sub(last); step < 50*time.Millisecond || step > 100*time.Millisecond {
				t.Fatalf("clock moved by %v in 100ms", step)
			}
			last = now
		}
		if off := c.Now().Sub(time.Now().Add(store.by)).Abs(); off > time.Millisecond {
			t.Errorf("20 s at half speed later still off by %v", off)
		}
		store.by = time.Hour // forward steps are followed at once
		if err := c.measure(t.Context(), store); err != nil {
			t.Fatal(err)
		}
		if off := c.Now().Sub(time.Now().Add(store.by)).Abs(); off > time.Millisecond {
			t.Errorf("after a forward step off by %v", off)
		}
	})
}
