package proof_test

import (
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
	p := newPipe(t, backend)
	p.limit(t, "a", smallText)
	p.write(t, backlog(3*large.Max, "a"))
	readers := p.readers(t, 2)
	measure(shortOrLong(2*time.Second, 20*time.Second))
	changed := time.Now()
	p.limit(t, "a", largeText)
	measure(large.Window + large.Window/2 + effective)
	back := time.Now()
	p.limit(t, "a", smallText)
	measure(large.Window/2 + 3*time.Second)
	stopAll(t, readers...)
	log := dispatches(t, readers...)

	at := func(x time.Time) int64 { return x.UnixMicro() }
	for _, part := range []struct {
		name     string
		from, to int64
		limit    checker.Limit
	}{
		{"before the change", 0, at(changed), small},
		// What the small limit let go before counts in the large one's window.
		{"until the change back", 0, at(back), large},
		{"after the change back", at(back.Add(effective)), at(time.Now()), small},
	} {
		var stamps []int64
		for _, s := range log["a"] {
			if s >= part.from && s < part.to {
				stamps = append(stamps, s)
			}
		}
		r := checker.Check("a", stamps, part.limit)
		t.Logf("%s: %d dispatches, worst window %d of %d/%v", part.name, r.Count, r.Worst, part.limit.Max, part.limit.Window)
		if r.Above > 0 {
			t.Errorf("%s: %d windows above %d in %v, worst %d", part.name, r.Above, part.limit.Max, part.limit.Window, r.Worst)
		}
	}
	grown := 0
	for _, s := range log["a"] {
		if s >= at(changed) && s < at(changed)+large.Window.Microseconds() {
			grown++
		}
	}
	if float64(grown) < shortOrLong(0.5, 0.75)*float64(large.Max) {
		t.Errorf("%d dispatched in the first window of the large limit: it did not take effect", grown)
	}
}
