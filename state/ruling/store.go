package ruling

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

// Opener opens the store that a Ruling names.
type Opener func(context.Context, Ruling) (state.Store, error)

// Store is the state.Store that a pipe's ruling names; it follows the ruling when
// `mvalve init --state` moves the pipe. Values of an earlier epoch are not seen,
// and count as lost when the new epoch began. It is safe for concurrent use.
type Store struct {
	meta queue.Meta // nil: the ruling cannot change
	now  func(context.Context) (time.Time, error)
	open Opener

	mu      sync.Mutex
	stands  Ruling
	store   state.Store
	checked time.Time // monotonic: when the ruling was last known to stand
	settled bool      // the epoch's first settle has passed
}

var _ state.Store = (*Store)(nil)

// Open opens the store that r names and follows what pipe says from then on. The
// caller closes it before the pipe.
func Open(ctx context.Context, pipe queue.Store, r Ruling, open Opener) (*Store, error) {
	l := &Store{now: pipe.Now, open: open, stands: r, checked: time.Now()}
	l.meta, _ = pipe.(queue.Meta)
	var err error
	l.store, err = open(ctx, r)
	return l, err
}

// Default opens the store that counts the limits of pipe where that is the pipe's
// own database, kept in durable; the first to open a pipe makes it so. Where the
// limits are counted elsewhere it says how to open that. A pipe that does not
// keep a ruling is counted in durable.
func Default(ctx context.Context, pipe queue.Store, durable state.Store) (state.Store, error) {
	meta, ok := pipe.(queue.Meta)
	if !ok {
		return durable, nil
	}
	r, stored, err := Read(ctx, meta)
	if err == nil && stored == "" {
		if r, err = Next(ctx, pipe, Ruling{Scheme: Queue}, Ruling{}); err == nil {
			r, err = Set(ctx, meta, "", r)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("read which store counts the limits: %w", err)
	}
	open := func(_ context.Context, r Ruling) (state.Store, error) {
		if r.Scheme != Queue {
			return nil, fmt.Errorf("%w: the limits of this pipe are counted in %s; open that with ruling.Open and set ReaderConfig.State, "+
				"or move the pipe with mvalve init and --state queue: then", queue.ErrRefused, r)
		}
		return durable, nil
	}
	return Open(ctx, pipe, r, open)
}

// use is the store that counts now.
type use struct {
	store state.Store
	keys  func([]string) []string
	lost  time.Time // nothing is known of what was counted before
}

func (l *Store) use(ctx context.Context) (use, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if age := time.Since(l.checked); l.meta != nil && age > recheckAfter {
		if err := l.recheck(ctx); err != nil && age > trustFor {
			return use{}, fmt.Errorf("%w: which store counts the limits could not be read: %w", state.ErrUnavailable, err)
		}
	}
	if l.store == nil {
		return use{}, fmt.Errorf("%w: the pipe moved to %s, which could not be opened", state.ErrUnavailable, l.stands)
	}
	u := use{store: l.store}
	if l.stands.Epoch > 1 {
		u.lost = queue.Time(l.stands.Since).Add(settle)
	}
	if !l.settled && l.stands.Epoch > 1 {
		if now, err := l.now(ctx); err != nil || now.Before(u.lost) {
			return use{}, fmt.Errorf("%w: the pipe just moved to %s, which counts from %s on", state.ErrUnavailable, l.stands, u.lost.Format(time.RFC3339Nano))
		}
		l.settled = true
	}
	// Also in the first epoch: what this store counts in q_state must not be
	// taken for what the slow limits, which never move, count there.
	prefix := "e" + strconv.FormatInt(l.stands.Epoch, 10) + "."
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
func (l *Store) recheck(ctx context.Context) error {
	start := time.Now()
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	ruling, stored, err := Read(ctx, l.meta)
	if err != nil {
		return err
	}
	l.checked = start
	if stored == "" || ruling.Epoch == l.stands.Epoch && l.store != nil {
		return nil
	}
	if l.store != nil {
		_ = l.store.Close() // nothing can be done about a store that is left
	}
	l.stands, l.store, l.settled = ruling, nil, false
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
func (l *Store) Get(ctx context.Context, keys []string) ([]state.Entry, []error) {
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
func (l *Store) Update(ctx context.Context, now time.Time, keys []string, ttls []time.Duration, fn func(int, state.Entry) []byte) []error {
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
func (l *Store) Delete(ctx context.Context, key string) error {
	u, err := l.use(ctx)
	if err != nil {
		return err
	}
	return u.store.Delete(ctx, u.keys([]string{key})[0])
}

// Close closes the store in use.
func (l *Store) Close() error {
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
