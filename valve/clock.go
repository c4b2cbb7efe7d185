package valve

import (
	"context"
	"sync"
	"time"

	"github.com/mvalve/mvalve/queue"
)

// remeasure is how often a clock asks the back end for its time again. In
// between this machine's monotonic clock counts.
const remeasure = 10 * time.Second

// A round trip longer than poorTrip says too little about the back end's time: a
// connection stalled. A clock that knows no better is measured again after
// remeasurePoor.
const (
	poorTrip      = 20 * time.Millisecond
	remeasurePoor = time.Second
	fewProbes     = 3
	probeFor      = 5 * time.Second // more probes than that only as long as this
)

// clock is the back end's clock as this process measured it. It never goes
// back: when the back end's clock did, it runs at half speed until they meet,
// so that no window is opened twice.
type clock struct {
	mu     sync.Mutex
	anchor time.Time     // local time of the last measurement, with its monotonic reading
	base   time.Time     // the back end's time at anchor
	excess time.Duration // how far Now was ahead of base at anchor
	trip   time.Duration // round trip of the last measurement that was believed
	probed time.Time     // local time of the last probe
}

// newClock measures the back end's clock a few times, more often while answers
// come late, and keeps the measurement with the shortest round trip.
func newClock(ctx context.Context, store queue.Store) (*clock, error) {
	c := &clock{trip: 1<<63 - 1}
	// Probes that are slow but not stalled, of a server far away, end at ten.
	for n, began := 0, time.Now(); n < fewProbes || n < 10 && c.trip > poorTrip && time.Since(began) < probeFor; n++ {
		at, base, trip, err := probe(ctx, store)
		if err != nil {
			return nil, err
		}
		if trip < c.trip {
			c.trip, c.anchor, c.base, c.probed = trip, at, base, at
		}
	}
	return c, nil
}

// probe returns a local instant, the back end's time at it, and the round trip,
// half of which bounds the error.
func probe(ctx context.Context, store queue.Store) (at, base time.Time, trip time.Duration, err error) {
	sent := time.Now()
	remote, err := store.Now(ctx)
	at = time.Now()
	trip = at.Sub(sent)
	return at, remote.Add(trip / 2), trip, err
}

// Now returns the back end's time.
func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at(time.Now())
}

func (c *clock) at(local time.Time) time.Time {
	elapsed := local.Sub(c.anchor)
	return c.base.Add(elapsed + max(0, c.excess-elapsed/2)).UTC().Round(0)
}

// due reports whether the clock should be measured again and, if so, makes sure
// that only one caller does it.
func (c *clock) due() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	every := remeasure
	if c.trip > poorTrip {
		every = remeasurePoor
	}
	if time.Since(c.probed) < every {
		return false
	}
	c.probed = time.Now()
	return true
}

// measure asks the back end again and follows it where the difference is larger
// than what the round trip could explain.
func (c *clock) measure(ctx context.Context, store queue.Store) error {
	at, base, trip, err := probe(ctx, store)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.at(at)
	ahead := now.Sub(base)
	explained := trip/2 + 100*time.Microsecond
	if trip > c.trip {
		// What is known is better than this. An answer that was held up all on one
		// side is wrong by half the round trip, and the clock by a little, too.
		explained += c.trip + time.Millisecond
	}
	if ahead.Abs() <= explained {
		if trip <= max(c.trip, poorTrip) {
			c.trip = trip
		}
		return nil
	}
	c.anchor, c.base, c.excess, c.trip = at, base, max(0, ahead), trip
	return nil
}
