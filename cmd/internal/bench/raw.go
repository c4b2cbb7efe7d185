package bench

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mvalve/mvalve/queue"
)

const (
	bodyBytes    = 256
	destinations = 1000
	warmUp       = 500 * time.Millisecond
)

// source makes messages for n destinations in turn. It is not safe for
// concurrent use.
type source struct {
	names []string
	next  int
	body  []byte
}

// newSource names the destinations with prefix, so that no benchmark meets what
// limits counted in another.
func newSource(prefix string, n int) *source {
	s := &source{names: make([]string, n), next: rand.IntN(n), body: make([]byte, bodyBytes)}
	for i := range s.names {
		s.names[i] = prefix + strconv.Itoa(i)
	}
	for i := range s.body {
		s.body[i] = byte(rand.Uint32()) // a body that no page compression makes small
	}
	return s
}

func (s *source) messages(n int) []*queue.Message {
	all := make([]queue.Message, n)
	list := make([]*queue.Message, n)
	for i := range all {
		all[i].Destination = s.names[s.next%len(s.names)]
		all[i].Body = s.body
		list[i] = &all[i]
		s.next++
	}
	return list
}

// rawCase is a way of calling the store.
type rawCase struct{ batch, callers int }

func (c rawCase) String() string {
	return fmt.Sprintf("%d per call, %d callers", c.batch, c.callers)
}

var (
	rawBatched = []rawCase{{1000, 1}, {1000, 2}, {1000, 4}, {500, 1}, {500, 2}, {500, 4}}
	rawSingle  = []rawCase{{1, 1}, {1, 2}, {1, 4}, {1, 64}}
)

// measureRaw is the life-cycle without the engine: the store's insert, lease and
// ack, each caller one after the other.
func measureRaw(ctx context.Context, store queue.Store, c rawCase, d time.Duration) (span, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var ids queue.IDSource
	var done atomic.Int64
	var wg sync.WaitGroup
	var failed atomic.Pointer[error]
	stop := make(chan struct{})
	for range c.callers {
		wg.Go(func() {
			src := newSource("raw-", destinations)
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := rawCycle(ctx, store, &ids, src.messages(c.batch), nil); err != nil {
					failed.CompareAndSwap(nil, &err)
					return
				}
				done.Add(int64(c.batch))
			}
		})
	}
	s, err := measure(ctx, d, done.Load)
	close(stop)
	wg.Wait()
	if first := failed.Load(); first != nil {
		return s, fmt.Errorf("raw %v: %w", c, *first)
	}
	return s, err
}

// rawCycle calls leased, if it is not nil, before it acks.
func rawCycle(ctx context.Context, store queue.Store, ids *queue.IDSource, messages []*queue.Message, leased func()) error {
	now := time.Now().UTC().Truncate(time.Microsecond)
	refs := make([]queue.Ref, len(messages))
	for i, m := range messages {
		m.ID, m.Lane, m.EnqueuedAt = ids.New(now), queue.Incoming, now
		refs[i] = m.Ref()
	}
	if _, err := store.Apply(ctx, now, &queue.Change{Token: ids.New(now), Put: messages}); err != nil {
		return fmt.Errorf("insert: %w", err)
	}
	token := ids.New(now)
	won, err := store.Lease(ctx, now, now.Add(time.Minute), token, refs)
	if err != nil || len(won) != len(refs) {
		return fmt.Errorf("lease: %d of %d: %w", len(won), len(refs), err)
	}
	if leased != nil {
		leased()
	}
	settles := make([]queue.Settle, len(won))
	for i := range won {
		settles[i] = queue.Settle{Ref: won[i].Ref, Verb: queue.Ack, Token: token}
	}
	out, err := store.Apply(ctx, now, &queue.Change{Settle: settles})
	if err != nil || len(out.Lost) > 0 {
		return fmt.Errorf("ack: %d lost: %w", len(out.Lost), err)
	}
	return nil
}

// span is what happened between two looks at a counter.
type span struct {
	count int64
	time  time.Duration
	cpu   time.Duration // of this process
}

func (s span) perSecond() float64 { return float64(s.count) / s.time.Seconds() }

// measure lets what runs already warm up and counts for d.
func measure(ctx context.Context, d time.Duration, count func() int64) (span, error) {
	if err := wait(ctx, warmUp); err != nil {
		return span{}, err
	}
	n, at, cpu := count(), time.Now(), cpuTime()
	for tries := 1; tries == 1 || count() == n && tries <= 20; tries++ { // a slow machine gets more time
		if err := wait(ctx, d); err != nil {
			return span{}, err
		}
	}
	return span{count: count() - n, time: time.Since(at), cpu: cpuTime() - cpu}, nil
}

func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
