package bench

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/state"
	"github.com/mvalve/mvalve/throttle"
)

// backEnd is what the engine uses of a store that it was given.
type backEnd interface {
	queue.Store
	queue.Registry
	queue.Meta
	queue.Admin
	throttle.RuleStore
	State() state.Store
}

// watched is a store that counts what the engine asks of it.
type watched struct {
	backEnd
	counts *calls
}

// watchedDirty is a watched store that can tell that nothing changed.
type watchedDirty struct {
	watched
	queue.DirtyChecker
}

// calls are how often a store was asked, and for how many rows.
type calls struct {
	put, lease, settle, scan, heads rows
	stat                            rows

	mark     string       // a destination
	marked   atomic.Int64 // rows of it that were leased or settled
	observed atomic.Bool  // mark may be looked at
}

type rows struct{ calls, rows atomic.Int64 }

func (r *rows) add(n int) {
	if n > 0 {
		r.calls.Add(1)
		r.rows.Add(int64(n))
	}
}

func (r *rows) String() string {
	n, k := r.calls.Load(), r.rows.Load()
	return fmt.Sprintf("%d calls of %.1f", n, float64(k)/float64(max(n, 1)))
}

func (c *calls) String() string {
	return fmt.Sprintf("put %v; lease %v; settle %v; scan %v; heads %v; log %v", &c.put, &c.lease, &c.settle, &c.scan, &c.heads, &c.stat)
}

// watch returns store with its calls counted. Package setup's stores are all
// complete back ends.
func watch(store queue.Store) (queue.Store, *calls, error) {
	full, ok := store.(backEnd)
	if !ok {
		return nil, nil, fmt.Errorf("a store of type %T is not complete", store)
	}
	w := watched{full, &calls{}}
	if d, ok := store.(queue.DirtyChecker); ok {
		return &watchedDirty{w, d}, w.counts, nil
	}
	return &w, w.counts, nil
}

// Apply implements queue.Store.
func (w *watched) Apply(ctx context.Context, now time.Time, c *queue.Change) (queue.Outcome, error) {
	w.counts.put.add(len(c.Put))
	w.counts.settle.add(len(c.Settle))
	w.counts.stat.add(len(c.Log))
	if w.counts.observed.Load() {
		for i := range c.Settle {
			w.counts.see(&c.Settle[i].Ref)
		}
	}
	return w.backEnd.Apply(ctx, now, c)
}

// Lease implements queue.Store.
func (w *watched) Lease(ctx context.Context, now, until time.Time, token queue.ID, refs []queue.Ref) ([]queue.Leased, error) {
	w.counts.lease.add(len(refs))
	if w.counts.observed.Load() {
		for i := range refs {
			w.counts.see(&refs[i])
		}
	}
	return w.backEnd.Lease(ctx, now, until, token, refs)
}

func (c *calls) see(ref *queue.Ref) {
	if ref.Destination == c.mark {
		c.marked.Add(1)
	}
}

// Scan implements queue.Store.
func (w *watched) Scan(ctx context.Context, now time.Time, table queue.Lane, after queue.Cursor, upTo time.Time, n int) ([]queue.Ref, queue.Cursor, error) {
	refs, next, err := w.backEnd.Scan(ctx, now, table, after, upTo, n)
	w.counts.scan.add(len(refs))
	return refs, next, err
}

// Heads implements queue.Store.
func (w *watched) Heads(ctx context.Context, now time.Time, q queue.HeadQuery) ([]queue.Ref, string, error) {
	refs, more, err := w.backEnd.Heads(ctx, now, q)
	w.counts.heads.add(len(refs))
	return refs, more, err
}
