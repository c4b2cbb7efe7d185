package valve

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"sync"
	"time"

	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/state"
	"github.com/mvalve/mvalve/state/ruling"
	"github.com/mvalve/mvalve/throttle"
)

// Reader takes messages out of a pipe. It is safe for concurrent use; any number
// of readers, in any processes, may read one pipe. Open one with OpenReader.
type Reader struct {
	cfg       ReaderConfig
	store     queue.Store
	log       *slog.Logger
	clock     *clock
	id        queue.ID // names the reader and is its lease token
	rules     *throttle.Rules
	limiter   *throttle.Limiter
	ruleStore throttle.RuleStore
	statlog   statlog
	settles   batcher[*ending]
	bell      *bell

	ctx      context.Context // of the background work; ends with Close
	cancel   context.CancelFunc
	wg       sync.WaitGroup
	wake     chan struct{} // capacity 1: the scheduler should look
	rung     chan struct{} // capacity 1: the scanner should look
	refill   chan struct{} // capacity 1: a refill is wanted
	surveyor chan struct{} // capacity 1: a pass at full speed is wanted

	mu        sync.Mutex
	x         *index
	rings     [classes]rings
	ahead     [classes]int // shares of messages on the way to their dispatch; see ahead.go
	bytes     int          // of bodies on the way to their dispatch
	turn      int          // matches so far
	wildTurn  int          // those of subscriptions with many destinations
	jobs      [classes]int
	leads     [classes]lead
	refills   []*destination
	leased    map[*entry]struct{}
	reach     map[queue.ID]time.Time   // up to when extensions longer than a lease may make leases last
	exact     map[string]*Subscription // the one served last of a ring of those with one destination
	wild      []*Subscription
	freed     []*Subscription // may take what they have parked
	main      *Subscription   // of Next, registered by its first call
	mainOnce  sync.Once
	applied   int64                     // version of the rules by which destinations were last woken
	onHold    map[*destination]struct{} // asleep because of a hold
	peers     []queue.ID                // live readers
	warned    time.Time                 // when the limiter was last complained about
	slowSince time.Time                 // since when jobs need too long for permits
	surveys   int                       // destination passes asked for at full speed
	surveyed  int                       // those that have ended
	stats     Stats
	closing   bool
	closed    bool
}

// OpenReader opens a Reader on store. The caller keeps the store and the states
// and closes them after the Reader.
func OpenReader(ctx context.Context, store queue.Store, cfg ReaderConfig) (*Reader, error) {
	r := &Reader{
		cfg: withDefaults(cfg), store: store, log: logger(cfg.Logger),
		wake: make(chan struct{}, 1), rung: make(chan struct{}, 1), refill: make(chan struct{}, 1), surveyor: make(chan struct{}, 1),
		leased: make(map[*entry]struct{}), reach: make(map[queue.ID]time.Time), exact: make(map[string]*Subscription), onHold: make(map[*destination]struct{}),
	}
	for _, g := range cfg.Destinations {
		if err := throttle.CheckPattern(g); err != nil {
			return nil, fmt.Errorf("valve: destination filter: %w", err)
		}
	}
	r.x = newIndex(r.cfg.IndexCap)
	var err error
	if r.clock, err = newClock(ctx, store); err != nil {
		return nil, fmt.Errorf("valve: measure the back end's clock: %w", err)
	}
	var ids queue.IDSource
	r.id = ids.New(r.clock.Now())
	if err := r.openRules(ctx); err != nil {
		return nil, err
	}
	r.statlog = statlog{now: r.clock.Now, write: func(lines []queue.Stat) { writeStats(store, r.clock, r.log, lines) }}
	r.settles = batcher[*ending]{workers: 2, maxItems: settleItems, flush: r.settleBatch}
	r.main = newSubscription(&Inbox{r: r}, Filter{Globs: cfg.Destinations}, 0, nil)
	r.start(ctx)
	return r, nil
}

func withDefaults(cfg ReaderConfig) ReaderConfig {
	def := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	def(&cfg.Lease, 60*time.Second)
	def(&cfg.RetryMin, time.Second)
	def(&cfg.RetryMax, time.Hour)
	if cfg.MaxAttempts <= 0 {
		cfg.MaxAttempts = 20
	}
	if cfg.IndexCap <= 0 {
		cfg.IndexCap = 100_000
	}
	if cfg.Address == "" {
		cfg.Address = "127.0.0.1"
	}
	return cfg
}

// openRules connects rules and limiter to what the store offers.
func (r *Reader) openRules(ctx context.Context) error {
	source := r.cfg.Rules
	if source == nil {
		if s, ok := r.store.(throttle.RuleStore); ok {
			source = s
		} else {
			source = throttle.NewMemoryRules()
		}
	}
	r.rules = throttle.NewRules(source, r.log)
	r.ruleStore = source
	if err := r.rules.Reload(ctx, r.clock.Now()); err != nil {
		return fmt.Errorf("valve: load limits: %w", err)
	}
	if r.cfg.Durable == nil {
		if s, ok := r.store.(interface{ State() state.Store }); ok {
			r.cfg.Durable = s.State()
		} else {
			r.cfg.Durable = state.NewMemory()
		}
	}
	if r.cfg.State == nil {
		var err error
		if r.cfg.State, err = ruling.Default(ctx, r.store, r.cfg.Durable); err != nil {
			return fmt.Errorf("valve: %w", err)
		}
	}
	r.limiter = throttle.NewLimiter(throttle.Config{Fast: r.cfg.State, Durable: r.cfg.Durable, Logger: r.log})
	return nil
}

// start begins the background work.
func (r *Reader) start(ctx context.Context) {
	r.ctx, r.cancel = context.WithCancel(context.WithoutCancel(ctx))
	if r.cfg.Address != "-" {
		b, err := openBell(r.cfg.Address, func() { signal(r.rung) })
		if err != nil {
			r.log.Warn("no doorbell; new messages of other processes are found by polling", "err", err)
		}
		r.bell = b
	}
	r.announce()
	if r.cfg.Writer != nil {
		r.cfg.Writer.attach(r)
	}
	r.wg.Go(r.loop)
	r.wg.Go(r.tailLoop)
	r.wg.Go(r.passLoop)
	r.wg.Go(r.refillLoop)
	r.wg.Go(r.tickLoop)
	r.wg.Go(r.flushLoop)
}

func signal(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

func (r *Reader) wakeUp() { signal(r.wake) }

// Now returns the pipe's clock: the back end's as this process measured it.
func (r *Reader) Now() time.Time { return r.clock.Now() }

// ID returns the id under which the reader is present and leases.
func (r *Reader) ID() queue.ID { return r.id }

// Next blocks until a message of the reader's destinations may go and hands it
// out. See Subscription.Next.
func (r *Reader) Next(ctx context.Context) (*Delivery, error) {
	r.mainOnce.Do(func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.closing {
			r.main.closed = true
			return
		}
		r.register(r.main)
		signal(r.rung)
	})
	return r.main.Next(ctx)
}

// All iterates over the deliveries of Next until ctx ends or the reader closes;
// then it ends without an error. Any other error is yielded and ends it.
func (r *Reader) All(ctx context.Context) iter.Seq2[*Delivery, error] {
	return func(yield func(*Delivery, error) bool) {
		for {
			d, err := r.Next(ctx)
			if errors.Is(err, ErrClosed) || (err != nil && ctx.Err() != nil) {
				return
			}
			if !yield(d, err) || err != nil {
				return
			}
		}
	}
}

// emptyError says what the reader's next message waits for.
func (r *Reader) emptyError(s *Subscription) *EmptyError {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.clock.Now()
	best := &EmptyError{}
	consider := func(at time.Time, name, why string) {
		if why != "" && (best.Why == "" || at.Before(best.Next)) && s.match(name) {
			best.Next, best.Destination, best.Why = at, name, why
		}
	}
	for _, d := range r.x.dests {
		if d.backlog() > 0 {
			at, why := r.eligibleAt(d, now)
			consider(at, d.name, why)
		}
	}
	if len(r.x.soon) > 0 {
		ref := &r.x.soon[0].ref
		consider(queue.Time(ref.ReadyAt), ref.Destination, "not due")
	}
	if best.Next.Equal(never) {
		best.Next = time.Time{}
	}
	return best
}

// Error implements error.
func (e *EmptyError) Error() string {
	switch {
	case e.Why == "":
		return ErrEmpty.Error() + ": nothing waits"
	case e.Next.IsZero():
		return fmt.Sprintf("%v: destination %q waits (%s)", ErrEmpty, e.Destination, e.Why)
	}
	return fmt.Sprintf("%v: destination %q waits until %s (%s)", ErrEmpty, e.Destination, e.Next.Format(time.RFC3339Nano), e.Why)
}

// Is makes errors.Is(err, ErrEmpty) true.
func (e *EmptyError) Is(target error) bool { return target == ErrEmpty }

// Stats returns the reader's counters.
func (r *Reader) Stats() Stats {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.stats
	s.Indexed, s.Destinations, s.InFlight = r.x.total, len(r.x.dests), len(r.leased)
	return s
}
