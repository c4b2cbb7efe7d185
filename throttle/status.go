package throttle

import (
	"context"
	"fmt"
	"time"

	"github.com/mvalve/mvalve/state"
)

// Status is what the limiter knows of a destination, for people.
type Status struct {
	Used    int64     // dispatches, and permits out, that count in the window that ends now
	Next    time.Time // when the next one may go at the latest; now or before: at once
	Closed  time.Time // a series keeps the destination closed until then; zero if it does not
	Version int64     // of the rules last applied
	// Why says in words where the figures come from if they are not simply
	// counted: "no state", "state lost", "other limit", "state malformed".
	Why string
}

// Status tells how far limit, the one in force, is used up at now. It changes
// nothing. Errors wrap state.ErrUnavailable.
func (l *Limiter) Status(ctx context.Context, now time.Time, destination string, limit Limit) (Status, error) {
	entries, errs := l.store(limit).Get(ctx, []string{l.key(destination)})
	if errs != nil && errs[0] != nil {
		return Status{}, fmt.Errorf("throttle: state of %.80q: %w", destination, errs[0])
	}
	t := now.UnixMicro()
	r := &ring{}
	s := Status{}
	switch {
	case entries[0].Data == nil:
		*r = ring{limit: limit}
		s.Why = "no state"
		if lost := entries[0].Lost; !lost.IsZero() && !limit.IsNone() && lost.Add(limit.Window()).After(now) {
			r.full(lost.UnixMicro()+limit.easy()+limit.longestRun(), Limit{})
			s.Why = "state lost"
		}
	case r.decode(entries[0].Data) != nil:
		*r = ring{limit: limit, high: t}
		r.full(t, Limit{})
		s.Why = "state malformed"
	case r.limit != limit:
		s.Why = "other limit"
		s.Version = r.version
		r.change(limit, r.version, t)
	default:
		s.Version = r.version
	}
	if _, closed := r.closedUntil(); closed > t {
		s.Closed = time.UnixMicro(closed).UTC()
	}
	r.prune(max(r.high, t))
	s.Used = r.total
	s.Next = time.UnixMicro(r.free(t)).UTC()
	return s, nil
}

// free returns the earliest legal stamp at or after now.
func (r *ring) free(now int64) int64 {
	_, p := r.closedUntil()
	p = max(p, now, r.high)
	if r.limit.IsNone() {
		return p
	}
	if r.forgot != 0 {
		p = max(p, r.forgot+r.limit.window())
	}
	over := r.total - (r.limit.Max - 1)
	for i := 0; over > 0 && i < len(r.entries); i++ {
		over -= r.entries[i].n
		if over <= 0 {
			p = max(p, r.entries[i].hi+r.limit.window())
		}
	}
	if t := r.limit.spacing(); t > 0 {
		p = max(p, r.tat-t)
	}
	return p
}

// Forget forgets the past dispatches of a destination, and nothing else: unlike
// after Reset, readers with older rules are still told so, and a limit that
// changed lately does not count as used up. A window may hold more than the limit
// afterwards; the caller should say so in a log.
func (l *Limiter) Forget(ctx context.Context, now time.Time, destination string) error {
	key := []string{l.key(destination)}
	life := []time.Duration{24*time.Hour + extraTTL}
	for _, store := range [...]state.Store{l.fast, l.durable} {
		errs := store.Update(ctx, now, key, life, func(_ int, old state.Entry) []byte {
			r := &ring{}
			if old.Data == nil || r.decode(old.Data) != nil {
				r = &ring{}
			}
			t := now.UnixMicro()
			empty := ring{limit: r.limit, version: r.version, era: max(t, r.era+1), high: t, moved: r.moved}
			return empty.encode()
		})
		if errs != nil && errs[0] != nil {
			return fmt.Errorf("throttle: reset %.80q: %w", destination, errs[0])
		}
	}
	return nil
}
