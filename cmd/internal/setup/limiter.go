package setup

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/state"
)

// How a change of the ruling store stays exact: nobody uses a ruling read longer
// than trustFor ago, and a changed ruling counts only from settle after the
// change on. The rest of the second covers permits already given.
const (
	recheckAfter = 500 * time.Millisecond
	trustFor     = 1500 * time.Millisecond
	settle       = 2500 * time.Millisecond
)

// Limiter is the state.Store that the pipe's ruling names; it follows the ruling
// when `mvalve init --state` moves the pipe. Values of an earlier epoch are not
// seen, and count as lost when the new epoch began.
type Limiter struct {
	meta queue.Meta // nil: the ruling cannot change
	now  func(context.Context) (time.Time, error)
	open func(context.Context, Ruling) (state.Store, error)

	mu      sync.Mutex
	ruling  Ruling
	store   state.Store
	checked time.Time // monotonic: when the ruling was last known to stand
	settled bool      // the epoch's first settle has passed
}

var _ state.Store = (*Limiter)(nil)

// OpenLimiter opens the store that ruling names. The caller closes it before the pipe.
func (p *Pipe) OpenLimiter(ctx context.Context, ruling Ruling) (*Limiter, error) {
	l := &Limiter{now: p.Store.Now, open: p.openState, ruling: ruling, checked: time.Now()}
	l.meta, _ = p.Store.(queue.Meta)
	var err error
	l.store, err = p.openState(ctx, ruling)
	return l, err
}

// use is the store that counts now.
type use struct {
	store state.Store
	keys  func([]string) []string
	lost  time.Time // nothing is known of what was counted before
}

func (l *Limiter) use(ctx context.Context) (use, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if age := time.Since(l.checked); l.meta != nil && age > recheckAfter {
		if err := l.recheck(ctx); err != nil && age > trustFor {
			return use{}, fmt.Errorf("%w: which store counts the limits could not be read: %w", state.ErrUnavailable, err)
		}
	}
	if l.store == nil {
		return use{}, fmt.Errorf("%w: the pipe moved to %s, which could not be opened", state.ErrUnavailable, l.ruling)
	}
	u := use{store: l.store}
	if l.ruling.Epoch > 1 {
		u.lost = queue.Time(l.ruling.Since).Add(settle)
	}
	if !l.settled && l.ruling.Epoch > 1 {
		if now, err := l.now(ctx); err != nil || now.Before(u.lost) {
			return use{}, fmt.Errorf("%w: the pipe just moved to %s, which counts from %s on", state.ErrUnavailable, l.ruling, u.lost.Format(time.RFC3339Nano))
		}
		l.settled = true
	}
	// Also in the first epoch: what this store counts in q_state must not be
	// taken for what the slow limits, which never move, count there.
	prefix := "e" + strconv.FormatInt(l.ruling.Epoch, 10) + "."
	u.keys = func(keys []string) []string {
		out := make([]string, len(keys))
		for i, key := range keys {
			out[i] = prefix + key
		}
		return out
	}
	return u, nil
}

// recheck reads the ruling again and opens another store if it changed.
func (l *Limiter) recheck(ctx context.Context) error {
	start := time.Now()
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	ruling, stored, err := readRuling(ctx, l.meta)
	if err != nil {
		return err
	}
	l.checked = start
	if stored == "" || ruling.Epoch == l.ruling.Epoch && l.store != nil {
		return nil
	}
	if l.store != nil {
		_ = l.store.Close() // nothing can be done about a store that is left
	}
	l.ruling, l.store, l.settled = ruling, nil, false
	if ruling.Scheme == "memory" {
		return fmt.Errorf("%w: limits are now counted in the memory of one reader; start it again", state.ErrUnavailable)
	}
	store, err := l.open(ctx, ruling)
	if err != nil {
		return err
	}
	l.store = store
	return nil
}

// Get implements state.Store.
func (l *Limiter) Get(ctx context.Context, keys []string) ([]state.Entry, []error) {
	u, err := l.use(ctx)
	if err != nil {
		return make([]state.Entry, len(keys)), repeat(err, len(keys))
	}
	entries, errs := u.store.Get(ctx, u.keys(keys))
	for i := range entries {
		entries[i].Lost = later(entries[i].Lost, u.lost)
	}
	return entries, errs
}

// Update implements state.Store.
func (l *Limiter) Update(ctx context.Context, now time.Time, keys []string, ttls []time.Duration, fn func(int, state.Entry) []byte) []error {
	u, err := l.use(ctx)
	if err != nil {
		return repeat(err, len(keys))
	}
	return u.store.Update(ctx, now, u.keys(keys), ttls, func(i int, old state.Entry) []byte {
		old.Lost = later(old.Lost, u.lost)
		return fn(i, old)
	})
}

// Delete implements state.Store.
func (l *Limiter) Delete(ctx context.Context, key string) error {
	u, err := l.use(ctx)
	if err != nil {
		return err
	}
	return u.store.Delete(ctx, u.keys([]string{key})[0])
}

// Close closes the store in use.
func (l *Limiter) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.store == nil {
		return nil
	}
	return l.store.Close()
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func repeat(err error, n int) []error {
	errs := make([]error, n)
	for i := range errs {
		errs[i] = err
	}
	return errs
}
