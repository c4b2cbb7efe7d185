package throttle

import (
	"context"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mvalve/mvalve/state"
)

// TestGoroutines lets many goroutines share limiters, for the race detector, and
// counts what they dispatched on the bubble's clock.
func TestGoroutines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := state.NewMemory()
		limiters := []*Limiter{NewLimiter(Config{Fast: store}), NewLimiter(Config{Fast: store})}
		limit := mustLimit(t, "20/1s")
		var mu sync.Mutex
		var stamps []time.Time
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		var wg sync.WaitGroup
		for i := range 8 {
			l := limiters[i%len(limiters)]
			wg.Go(func() {
				for ctx.Err() == nil {
					g := l.Take(ctx, time.Now(), []Request{{Destination: "d", Limit: limit, Want: 2}})[0]
					for _, p := range g.Permits {
						<-time.After(time.Until(p.At))
						now := time.Now()
						if now.After(p.Until) {
							l.Return(p)
							continue
						}
						l.Dispatched(p, now)
						mu.Lock()
						stamps = append(stamps, now)
						mu.Unlock()
					}
					l.Flush(ctx, time.Now())
					<-time.After(max(time.Until(g.NotBefore), time.Millisecond))
				}
			})
		}
		wg.Wait()
		slices.SortFunc(stamps, time.Time.Compare)
		for i := int(limit.Max); i < len(stamps); i++ {
			if gap := stamps[i].Sub(stamps[i-int(limit.Max)]); gap < limit.Interval {
				t.Fatalf("dispatches %d and %d are %v apart", i-int(limit.Max), i, gap)
			}
		}
		if len(stamps) < 195 {
			t.Errorf("%d dispatches in 10 s, want about 200", len(stamps))
		}
	})
}
