package bench

import (
	"context"
	"crypto/rand"
	"sync/atomic"
	"time"

	"github.com/mvalve/mvalve/cmd/internal/setup"
	"github.com/mvalve/mvalve/state"
)

// countedState counts the values that are written.
type countedState struct {
	state.Store
	granting atomic.Int64
}

// Update implements state.Store.
func (s *countedState) Update(ctx context.Context, now time.Time, keys []string, ttls []time.Duration, fn func(int, state.Entry) []byte) []error {
	wrote := make([]bool, len(keys)) // fn is not called concurrently for a key
	errs := s.Store.Update(ctx, now, keys, ttls, func(i int, old state.Entry) []byte {
		value := fn(i, old)
		wrote[i] = value != nil
		return value
	})
	n := int64(0)
	for i := range wrote {
		if wrote[i] && (errs == nil || errs[i] == nil) {
			n++
		}
	}
	s.granting.Add(n)
	return errs
}

// stateRuling returns what --state names, under a prefix of its own and without
// the pipe being told: a benchmark leaves no ruling behind.
func stateRuling(url string) (setup.Ruling, error) {
	ruling, err := setup.ParseState(url)
	ruling.Pipe, ruling.Epoch = "bench-"+rand.Text()[:8], 1
	return ruling, err
}
