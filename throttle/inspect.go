package throttle

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/mvalve/mvalve/state"
)

// Usage is what the shared state says about a destination.
type Usage struct {
	Counted int64     // dispatches and permits out that the window holds now
	Next    time.Time // when the next permit is free, at the latest; not before now
}

// Peek looks at a destination without taking anything. Of req it uses
// Destination, Limit and Version. Errors are those of the store.
func (l *Limiter) Peek(ctx context.Context, now time.Time, req Request) (Usage, error) {
	entries, errs := l.store(req.Limit).Get(ctx, []string{l.key(req.Destination)})
	if errs != nil && errs[0] != nil {
		return Usage{}, fmt.Errorf("throttle: %w", errs[0])
	}
	r := ring{limit: req.Limit}
	switch old := entries[0]; {
	case old.Data != nil:
		if err := r.decode(old.Data); err != nil {
			return Usage{}, fmt.Errorf("throttle: state of %.60q: %w", req.Destination, err)
		}
		if r.limit != req.Limit {
			r.change(req.Limit, req.Version, now.UnixMicro())
		}
	case !old.Lost.IsZero() && !req.Limit.IsNone():
		if at := old.Lost.UnixMicro() + req.Limit.easy() + req.Limit.run(); at+req.Limit.window() > now.UnixMicro() {
			r.full(at)
		}
	}
	r.prune(max(now.UnixMicro(), r.high))
	usage := Usage{Counted: r.total, Next: now}
	if stamps, next := r.take(nil, now.UnixMicro(), 1, 0); len(stamps) > 0 {
		usage.Next = time.UnixMicro(stamps[0].p).UTC()
	} else if next > 0 {
		usage.Next = time.UnixMicro(next + r.limit.run()/2).UTC()
	}
	return usage, nil
}

// Reset forgets what was dispatched to a destination: the one verb after which a
// window may hold more than the limit allows. Readers that already know when
// they may go on learn of it with the next change of the rules.
func (l *Limiter) Reset(ctx context.Context, destination string) error {
	var errs []error
	for _, store := range []state.Store{l.fast, l.durable} {
		if err := store.Delete(ctx, l.key(destination)); err != nil {
			errs = append(errs, fmt.Errorf("throttle: reset %.60q: %w", destination, err))
		}
		if l.fast == l.durable {
			break
		}
	}
	return errors.Join(errs...)
}
