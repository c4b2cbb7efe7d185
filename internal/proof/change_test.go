package proof_test

import (
	"slices"
	"testing"
	"time"

	"github.com/mvalve/mvalve/internal/checker"
)

// effective is how long a changed limit may take to reach every reader.
const effective = time.Second

// TestLimitChanged: the limit is changed while messages flow, to one with a
// longer window and back. What was dispatched before counts after.
func TestLimitChanged(t *testing.T) {
	for _, backend := range shortOrLong([]string{onSQLite, onMemcached}, backends) {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			limitChanged(t, backend)
		})
	}
}

func limitChanged(t *testing.T, backend string) {
	small, smallText := checker.Limit{Max: 10, Window: time.Second}, "10/1s"
	large := shortOrLong(checker.Limit{Max: 60, Window: 2 * time.Second}, checker.Limit{Max: 1000, Window: time.Minute})
	largeText := shortOrLong("60/2s", "1000/60s")
	// Readers look at the rules each half second, after their other commits: a disk
	// may stall at each.
	settled := shortOrLong(10*time.Second, effective)
	p := newPipe(t, backend)
	p.limit(t, "a", smallText)
	p.write(t, backlog(shortOrLong(3000, 3*large.Max), "a"))
	readers := p.readers(t, 2)
	waitFor(t, patience, "messages flow", func() bool { return len(dispatches(t, readers...)["a"]) > 0 })
	measure(shortOrLong(2*time.Second, 20*time.Second))
	goOn(func() bool { return len(dispatches(t, readers...)["a"]) > small.Max })
	changed := time.Now()
	p.limit(t, "a", largeText)
	measure(large.Window + large.Window/2 + effective)
	wantGrown := int(shortOrLong(0.5, 0.75) * float64(large.Max))
	goOn(func() bool {
		return checker.Check("a", between(dispatches(t, readers...)["a"], changed, time.Now()), large).Worst >= wantGrown
	})
	back := time.Now()
	p.limit(t, "a", smallText)
	known := time.Now().Add(settled)
	measure(settled + large.Window/2 + 2*time.Second)
	goOn(func() bool { return len(between(dispatches(t, readers...)["a"], known, time.Now())) > small.Max })
	stopAll(t, readers...)
	log := dispatches(t, readers...)["a"]

	for _, part := range []struct {
		name     string
		from, to time.Time
		limit    checker.Limit
	}{
		{"before the change", time.Time{}, changed, small},
		// What the small limit let go before counts in the large one's window.
		{"until the change back", time.Time{}, back, large},
		{"after the change back", known, time.Now(), small},
	} {
		r := checker.Check("a", between(log, part.from, part.to), part.limit)
		t.Logf("%s: %d dispatches, worst window %d of %d/%v", part.name, r.Count, r.Worst, part.limit.Max, part.limit.Window)
		if r.Above > 0 {
			t.Errorf("%s: %d windows above %d in %v, worst %d", part.name, r.Above, part.limit.Max, part.limit.Window, r.Worst)
		}
		if r.Count <= part.limit.Max {
			t.Errorf("%s: %d dispatches prove nothing", part.name, r.Count)
		}
	}
	// The long form wants the first window full, the short one any.
	grown := checker.Check("a", between(log, changed, shortOrLong(back, changed.Add(large.Window))), large).Worst
	if grown < wantGrown {
		t.Errorf("%d dispatched in a window of the large limit: it did not take effect", grown)
	}
}

// between is the stamps from a time on and before another one.
func between(stamps []int64, from, to time.Time) []int64 {
	return slices.DeleteFunc(slices.Clone(stamps), func(at int64) bool { return at < from.UnixMicro() || at >= to.UnixMicro() })
}
