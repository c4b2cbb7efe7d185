package valve_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mvalve/mvalve/queue"
)

// dirtyStore tells whether anything was committed. Its next scan fails on demand.
type dirtyStore struct {
	*queue.Memory
	commits atomic.Int64
	fail    atomic.Bool
}

func (s *dirtyStore) Dirty(context.Context) (int64, error) { return s.commits.Load(), nil }

func (s *dirtyStore) Scan(ctx context.Context, now time.Time, lane queue.Lane, from queue.Cursor, until time.Time, limit int) ([]queue.Ref, queue.Cursor, error) {
	if s.fail.Swap(false) {
		return nil, from, queue.ErrUnavailable
	}
	return s.Memory.Scan(ctx, now, lane, from, until, limit)
}

// News that a scan did not get to see are news still: nobody waits for the pass
// over all destinations.
func TestScanThatFails(t *testing.T) {
	inPipe(t, func(t *testing.T, p *pipe) {
		store := &dirtyStore{Memory: p.store}
		r := p.readerOn(store, 30*time.Second)
		failed := 0
		for i := range 12 {
			pass(1130 * time.Millisecond) // at any time of the pass
			store.fail.Store(true)
			p.insert(text(fmt.Sprintf("d%d", i), "m"))
			store.commits.Add(1)
			start := time.Now()
			if err := p.next(r).Ack(t.Context()); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(start); took > 300*time.Millisecond {
				t.Errorf("%d: found after %v", i, took)
			}
			if !store.fail.Swap(false) { // else the pass found it first
				failed++
			}
		}
		if failed < 6 {
			t.Errorf("only %d scans failed", failed)
		}
		p.close(r)
	})
}
