// Package ruling settles which one store counts the limits of a pipe, for all
// programs that read it: two readers that count in two stores would let twice the
// limit through. The pipe itself keeps the answer, in q_meta.
package ruling

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/mvalve/mvalve/queue"
)

// The schemes.
const (
	Queue     = "queue"  // the pipe's own database
	Memory    = "memory" // of one reader
	Memcached = "memcached"
)

// Key is where q_meta says which store counts a pipe's limits.
const Key = "limiter"

// Ruling names the one store that counts a pipe's limits. It holds no secrets.
type Ruling struct {
	Scheme  string   `json:"scheme"`
	Servers []string `json:"servers,omitempty"` // host:port, of memcached
	Pipe    string   `json:"pipe"`              // keeps pipes apart that share servers
	Epoch   int64    `json:"epoch"`             // raised by every change; 1 is the first
	Since   int64    `json:"since"`             // microseconds UTC on the back end's clock
}

// String returns the ruling in the form of --state.
func (r Ruling) String() string {
	if r.Scheme == Memcached {
		return "memcached://" + strings.Join(r.Servers, ",")
	}
	return r.Scheme + ":"
}

// Same reports whether two rulings name the same store; the order of servers
// does not matter, since keys find their server by rendezvous hashing.
func (r Ruling) Same(other Ruling) bool {
	return r.Scheme == other.Scheme && slices.Equal(slices.Sorted(slices.Values(r.Servers)), slices.Sorted(slices.Values(other.Servers)))
}

// Read returns what q_meta says and its stored form, "" if nothing yet. The error
// of a damaged one wraps queue.ErrSchema.
func Read(ctx context.Context, meta queue.Meta) (r Ruling, stored string, err error) {
	stored, err = meta.Meta(ctx, Key)
	if err != nil || stored == "" {
		return Ruling{}, stored, err
	}
	r, err = parse(stored)
	return r, stored, err
}

func parse(stored string) (Ruling, error) {
	var r Ruling
	if err := json.Unmarshal([]byte(stored), &r); err != nil {
		return Ruling{}, fmt.Errorf("%w: q_meta %s is damaged: %w", queue.ErrSchema, Key, err)
	}
	return r, nil
}

// Next returns want as the ruling after before: of the same pipe, one epoch on,
// from now on.
func Next(ctx context.Context, pipe queue.Store, want, before Ruling) (Ruling, error) {
	now, err := pipe.Now(ctx)
	if err != nil {
		return Ruling{}, err
	}
	want.Pipe, want.Epoch, want.Since = before.Pipe, before.Epoch+1, queue.Micros(now)
	if want.Pipe == "" {
		want.Pipe = rand.Text()[:12]
	}
	return want, nil
}

// Set replaces the ruling stored as old by next, which Next made, and returns
// what then stands: somebody else may have been quicker.
func Set(ctx context.Context, meta queue.Meta, old string, next Ruling) (Ruling, error) {
	value, err := json.Marshal(next)
	if err != nil {
		return Ruling{}, err
	}
	stands, err := meta.SetMeta(ctx, Key, old, string(value))
	if err != nil {
		return Ruling{}, fmt.Errorf("store which store counts the limits: %w", err)
	}
	return parse(stands)
}
