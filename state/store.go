// Package state is the port on which limits are counted: named values changed
// by compare and swap, shared by all readers of a pipe.
//
// It knows nothing of limits. [Memory] defines the semantics and serves one
// process; the SQL drivers keep values in q_state; state/memcached keeps them in
// memcached. state/statetest is the suite that all of them pass.
package state

import (
	"context"
	"errors"
	"time"
)

// Errors of single keys.
var (
	// ErrConflict: others kept changing the value; nothing was written. Try again.
	ErrConflict = errors.New("state: too many concurrent changes")
	// ErrUnavailable: the store did not answer; nothing was written.
	ErrUnavailable = errors.New("state: store unreachable")
	// ErrUnknown: the value may have been written; read it to find out.
	ErrUnknown = errors.New("state: outcome unknown")
)

// Entry is what a store knows of a key. Data nil means absent. An absent key was
// not stored at any time after Lost: before Lost the store may have forgotten it
// (a cache that was wiped or restarted then). Zero Lost: the store never forgets
// but by TTL.
type Entry struct {
	Data []byte
	Lost time.Time
}

// Store is a compare-and-swap store. Keys are 1–200 bytes of printable ASCII
// without blanks; values at most 64 KiB. All methods are safe for concurrent use.
type Store interface {
	// Get returns an Entry per key. A store that is not reachable is an error,
	// never an absent Entry; errs is nil or has one element per key.
	Get(ctx context.Context, keys []string) (entries []Entry, errs []error)

	// Update replaces every value atomically by what fn makes of it. fn may run
	// several times for a key (only the last result counts), not concurrently,
	// and must not keep old.Data. Returning nil leaves the key alone. ttls holds
	// one lifetime per key. now is the pipe's clock. errs is nil when all went
	// well, else has one element per key (nil, ErrConflict, ErrUnavailable, ErrUnknown, wrapped).
	Update(ctx context.Context, now time.Time, keys []string, ttls []time.Duration, fn func(i int, old Entry) []byte) (errs []error)

	// Delete forgets a key.
	Delete(ctx context.Context, key string) error

	// Close releases what Open acquired. It is safe to call twice.
	Close() error
}
