package valve_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/mvalve/mvalve/queue"
)

// dirtyStore tells whether anything was committed. Its next scan fails on demand.
type dirtyStore struct {
	*queue.Memory
	commits int64
	fail    bool
}

func (s *dirtyStore) Dirty(context.Context) (int64, error) { return s.commits, nil }

func (s *dirtyStore) Scan(ctx context.Context, now time.Time, lane queue.Lane, from queue.Cursor, until time.Time, limit int) ([]queue.Ref, queue.Cursor, error) {
	if s.fail {
		s.fail = false
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
		for i := range 12 {
			pass(1130 * time.Millisecond) // at any time of the pass
			p.insert(text(fmt.Sprintf("d%d", i), "m"))
			store.commits++
			store.fail = true
			start := time.Now()
			if err := p.next(r).Ack(t.Context()); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(start); took > 300*time.Millisecond || store.fail {
				t.Errorf("%d: found after %v; a scan failed: %v", i, took, !store.fail)
			}
		}
		p.close(r)
	})
}
