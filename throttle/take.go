package throttle

import (
	"context"
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/mvalve/mvalve/state"
)

const (
	// durableFrom is the window above which state must outlive caches.
	durableFrom = 60 * time.Second
	// extraTTL is how long a value outlives what it counts: permits taken
	// ahead, and stores whose clock is coarse.
	extraTTL = 4 * time.Second
	// ttlRoom is asked for at once, so that clocks that differ a little and
	// permits ahead do not take a second round.
	ttlRoom = time.Second
	// outFor is how long after its time a permit may come back, in µs.
	outFor = 2_000_000
	// freePermit is how long a permit may be used where there is no limit.
	freePermit = time.Hour
)

// Config configures a Limiter.
type Config struct {
	// Fast counts limits with a window of up to 60 s. Required.
	Fast state.Store
	// Durable counts the others, and series (Request.Hold) of destinations
	// without a limit; nil: Fast.
	Durable state.Store
	// Prefix begins every key; default "throttle/". At most 100 bytes of
	// printable ASCII.
	Prefix string
	Logger *slog.Logger // nil discards
}

// Limiter decides permits on state that all readers of a pipe share. It is safe
// for concurrent use. Flush must be called regularly.
type Limiter struct {
	fast, durable state.Store
	prefix        string
	log           *slog.Logger
	random        func() uint64

	mu      sync.Mutex
	pending map[string]*notes // by destination
	nextDue int64             // µs, not after the earliest due; 0 if none
}

var _ Taker = (*Limiter)(nil)

// NewLimiter returns a Limiter. The stores stay the caller's to close.
func NewLimiter(cfg Config) *Limiter {
	l := &Limiter{
		fast: cfg.Fast, durable: cfg.Durable, prefix: cfg.Prefix, log: cfg.Logger,
		random: rand.Uint64, pending: make(map[string]*notes),
	}
	if l.durable == nil {
		l.durable = l.fast
	}
	if l.prefix == "" {
		l.prefix = "throttle/"
	}
	if l.log == nil {
		l.log = slog.New(slog.DiscardHandler)
	}
	return l
}

// store returns where a limit is counted.
func (l *Limiter) store(limit Limit) state.Store {
	if limit.IsNone() || limit.Window() > durableFrom {
		return l.durable
	}
	return l.fast
}

// other returns the store in which a limit is not counted, nil if there is one only.
func (l *Limiter) other(limit Limit) state.Store {
	switch {
	case l.fast == l.durable:
		return nil
	case l.store(limit) == l.fast:
		return l.durable
	}
	return l.fast
}

var keyText = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// key names the state of a destination: any name is legal, so it is hashed.
func (l *Limiter) key(destination string) string {
	sum := sha256.Sum256([]byte(destination))
	return l.prefix + keyText.EncodeToString(sum[:15])
}

// ttl is how long a value must be kept. It is at least a minute, so that the
// past is still there when a short window becomes a longer one.
func ttl(limit Limit) time.Duration { return max(limit.Window(), time.Minute) + extraTTL }

// Take implements Taker.
func (l *Limiter) Take(ctx context.Context, now time.Time, reqs []Request) []Grant {
	grants := make([]Grant, len(reqs))
	jobs := make([]*job, 0, len(reqs))
	seen := make(map[string]bool, len(reqs))
	again := false
	for i := range reqs {
		req := &reqs[i]
		switch {
		case req.Want <= 0:
		case req.Limit.IsNone() && (req.Hold <= 0 || req.Charge):
			grants[i].Permits = freePermits(req, now)
		case seen[req.Destination]:
			again = true
		default:
			seen[req.Destination] = true
			jobs = append(jobs, l.newJob(req, &grants[i], now))
		}
	}
	l.update(ctx, now, jobs)
	for _, j := range jobs {
		j.release()
	}
	if again {
		l.takeAgain(ctx, now, reqs, grants)
	}
	return grants
}

// takeAgain answers the requests whose destination occurred before in reqs.
func (l *Limiter) takeAgain(ctx context.Context, now time.Time, reqs []Request, grants []Grant) {
	seen := make(map[string]bool, len(reqs))
	for i := range reqs {
		req := &reqs[i]
		if req.Want <= 0 || req.Limit.IsNone() && (req.Hold <= 0 || req.Charge) {
			continue
		}
		if seen[req.Destination] {
			l.update(ctx, now, []*job{l.newJob(req, &grants[i], now)})
		}
		seen[req.Destination] = true
	}
}

func freePermits(req *Request, now time.Time) []Permit {
	permits := make([]Permit, req.Want)
	for i := range permits {
		permits[i] = Permit{At: now, Until: now.Add(freePermit), dest: req.Destination}
	}
	return permits
}

// update runs the jobs until none asks for another round: one because the other
// store must be looked at first, one because the value must be kept longer.
func (l *Limiter) update(ctx context.Context, now time.Time, jobs []*job) {
	for range 4 {
		l.consult(ctx, now, jobs)
		for _, store := range [...]state.Store{l.fast, l.durable} {
			l.updateIn(ctx, now, store, jobs)
			if l.fast == l.durable {
				break
			}
		}
		var rest []*job
		for _, j := range jobs {
			if !j.done {
				rest = append(rest, j)
			}
		}
		if jobs = rest; len(jobs) == 0 {
			return
		}
	}
	for _, j := range jobs {
		j.finish(state.ErrConflict)
	}
}

func (l *Limiter) updateIn(ctx context.Context, now time.Time, store state.Store, all []*job) {
	keys := make([]string, 0, len(all))
	ttls := make([]time.Duration, 0, len(all))
	jobs := make([]*job, 0, len(all))
	for _, j := range all {
		if j.store == store && !j.done {
			keys, ttls, jobs = append(keys, j.key), append(ttls, j.ttl), append(jobs, j)
		}
	}
	if len(jobs) == 0 {
		return
	}
	errs := store.Update(ctx, now, keys, ttls, func(i int, old state.Entry) []byte { return jobs[i].run(old) })
	for i, j := range jobs {
		var err error
		if errs != nil {
			err = errs[i]
		}
		if err == nil && j.again() {
			continue
		}
		j.finish(err)
	}
}

// consult fences the value in the store a limit moved away from: readers with
// older rules find it newer than theirs, and the jobs get what it holds.
func (l *Limiter) consult(ctx context.Context, now time.Time, all []*job) {
	for _, j := range all {
		if !j.askOther {
			continue
		}
		j.askOther, j.asked = false, true
		errs := l.other(j.req.Limit).Update(ctx, now, []string{j.key}, []time.Duration{max(j.ttl, ttl(j.was()))},
			func(_ int, old state.Entry) []byte { return j.fence(old) })
		if errs != nil && errs[0] != nil {
			j.finish(errs[0])
		} else if j.stale {
			j.finish(nil)
		}
	}
}

// finish fills in the grant and settles the notes the job carried.
func (j *job) finish(err error) {
	j.done = true
	l, g := j.limiter, j.grant
	switch {
	case err == nil:
		l.settle(j)
		g.Stale = j.stale
		if !j.stale {
			g.Permits = j.permits()
			g.Out = j.ring.closer != 0 || j.ring.lastOpen() > j.now-outFor
			if j.next != 0 {
				g.NotBefore = time.UnixMicro(j.next).UTC()
				g.Lead = time.Duration(j.limit.runFor(j.req.Lead)/2) * time.Microsecond
			}
		}
		return
	case errors.Is(err, state.ErrUnknown):
		l.restore(j, true)
	default:
		l.restore(j, false)
	}
	// Others are at this key, or it may hold what we asked for: look again soon.
	g.NotBefore = time.UnixMicro(j.now + 1000 + int64(l.random()%4000)).UTC()
	if !errors.Is(err, state.ErrUnknown) && !errors.Is(err, state.ErrConflict) {
		g.NotBefore = time.Time{}
		g.Err = fmt.Errorf("throttle: state of %.80q: %w", j.dest, err)
	}
}
