package setup

import (
	"context"
	"fmt"
	"time"

	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/state"
	"github.com/mvalve/mvalve/state/memcached"
	"github.com/mvalve/mvalve/state/ruling"
)

// OpenLimiter opens the store that r names and follows the pipe's ruling. The
// caller closes it before the pipe.
func (p *Pipe) OpenLimiter(ctx context.Context, r Ruling) (*ruling.Store, error) {
	return ruling.Open(ctx, p.Store, r, p.openState)
}

// openState opens the store that a ruling names.
func (p *Pipe) openState(ctx context.Context, r Ruling) (state.Store, error) {
	switch r.Scheme {
	case ruling.Memory:
		return state.NewMemory(), nil
	case ruling.Queue:
		return p.Durable(), nil
	case ruling.Memcached:
		return memcached.Open(ctx, memcached.Config{
			Servers: r.Servers, Prefix: fmt.Sprintf("mvalve:%s:%d:", r.Pipe, r.Epoch),
			Logger: p.Log, MarkerTime: p.lastUse,
		})
	}
	return nil, Failf(ExitMismatch, "the limits of this pipe are counted in %q, which this version does not know", r.Scheme)
}

// Durable returns the state in the queue's own database; of a queue in memory
// one in memory.
func (p *Pipe) Durable() state.Store {
	if s, ok := p.Store.(interface{ State() state.Store }); ok {
		return s.State()
	}
	return state.NewMemory()
}

const (
	// lastWord is how long after a reader was last seen it may still have dispatched.
	lastWord = 10 * time.Second
	// orderly is how far back a reader that left in order may have dispatched
	// what still counts: the longest interval a cache is asked to keep, and a margin.
	orderly = 2 * time.Minute
	// noise is more than two processes read the database's clock apart.
	noise = 100 * time.Millisecond
)

// lastUse returns the time until which the limits may have been in use, for a
// cache that lost them: now while a reader lives, its last sign of life if all
// are dead, later than now if the database's clock went back, zero if nobody read
// for so long that it does not matter.
func (p *Pipe) lastUse(ctx context.Context) (time.Time, error) {
	readers, now, err := p.readers(ctx, time.Hour)
	if err != nil {
		return time.Time{}, err
	}
	if now.IsZero() {
		return time.Now(), nil // the queue does not know who reads
	}
	var last time.Time
	for _, r := range readers {
		if r.SeenAt.After(last) {
			last = r.SeenAt
		}
	}
	switch {
	case last.After(now.Add(noise)):
		// The database's clock went back: a reader that has not noticed yet goes
		// by the time before.
		return last.Add(lastWord), nil
	case now.Sub(last) < lastWord:
		return now, nil
	case !last.IsZero():
		return last.Add(lastWord), nil
	}
	admin, ok := p.Store.(queue.Admin)
	if !ok {
		return now, nil
	}
	// A reader that leaves in order writes its statistics before it goes.
	stats, err := admin.Stats(ctx, now.Add(-orderly))
	if err != nil {
		return time.Time{}, fmt.Errorf("look for recent dispatches: %w", err)
	}
	for _, s := range stats {
		if s.Action == "dequeue" {
			return now, nil
		}
	}
	return time.Time{}, nil
}
