package mysql_test

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/state"
)

func benchMessages(ids *queue.IDSource, now time.Time, n int) []*queue.Message {
	msgs := make([]*queue.Message, n)
	body := make([]byte, 256)
	for i := range msgs {
		msgs[i] = &queue.Message{
			ID: ids.New(now), Destination: fmt.Sprintf("destination-%d", i%1000), Lane: queue.Incoming,
			EnqueuedAt: now, Body: body,
		}
	}
	return msgs
}

// BenchmarkInsert: transactions of 1,000 rows from several writers.
func BenchmarkInsert(b *testing.B) {
	for _, writers := range []int{1, 2, 4} {
		b.Run(fmt.Sprintf("writers=%d", writers), func(b *testing.B) {
			s := open(b)
			benchLoop(b, writers, func(ctx context.Context, w int) (int, error) {
				var ids queue.IDSource
				now := time.Now()
				_, err := s.Apply(ctx, now, &queue.Change{Token: ids.New(now), Put: benchMessages(&ids, now, 1000)})
				return 1000, err
			})
		})
	}
}

// BenchmarkCycle: insert, lease and ack the same batch, several callers.
func BenchmarkCycle(b *testing.B) {
	for _, callers := range []int{1, 2, 4} {
		for _, size := range []int{1, 200, 500} {
			b.Run(fmt.Sprintf("callers=%d/batch=%d", callers, size), func(b *testing.B) {
				s := open(b)
				benchLoop(b, callers, func(ctx context.Context, w int) (int, error) {
					var ids queue.IDSource
					now := time.Now()
					msgs := benchMessages(&ids, now, size)
					if _, err := s.Apply(ctx, now, &queue.Change{Token: ids.New(now), Put: msgs}); err != nil {
						return 0, err
					}
					token := ids.New(now)
					refs := make([]queue.Ref, size)
					for i, m := range msgs {
						refs[i] = m.Ref()
					}
					won, err := s.Lease(ctx, now, now.Add(time.Minute), token, refs)
					if err != nil || len(won) != size {
						return 0, fmt.Errorf("leased %d of %d: %w", len(won), size, err)
					}
					settles := make([]queue.Settle, size)
					for i := range won {
						settles[i] = queue.Settle{Ref: won[i].Ref, Verb: queue.Ack, Token: token}
					}
					out, err := s.Apply(ctx, now, &queue.Change{Settle: settles})
					if err == nil && len(out.Lost) > 0 {
						err = fmt.Errorf("lost %d", len(out.Lost))
					}
					return size, err
				})
			})
		}
	}
}

// benchLoop runs b.N batches on n goroutines and reports messages per second.
func benchLoop(b *testing.B, n int, batch func(ctx context.Context, worker int) (int, error)) {
	b.Helper()
	var next, messages atomic.Int64
	var wg sync.WaitGroup
	b.ResetTimer()
	start := time.Now()
	for w := range n {
		wg.Go(func() {
			for next.Add(1) <= int64(b.N) {
				k, err := batch(context.Background(), w)
				if err != nil {
					b.Error(err)
					return
				}
				messages.Add(int64(k))
			}
		})
	}
	wg.Wait()
	b.ReportMetric(float64(messages.Load())/time.Since(start).Seconds(), "msg/s")
}

// BenchmarkHeads: one page of the destination pass over 10,000 destinations with
// 10 messages each, and a refill.
func BenchmarkHeads(b *testing.B) {
	s := open(b)
	var ids queue.IDSource
	now := time.Now()
	for range 10 {
		for part := range 10 {
			msgs := benchMessages(&ids, now, 1000)
			for i, m := range msgs {
				m.Destination = fmt.Sprintf("destination-%d", part*1000+i)
			}
			if _, err := s.Apply(b.Context(), now, &queue.Change{Token: ids.New(now), Put: msgs}); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.Run("pass", func(b *testing.B) {
		for b.Loop() {
			after, n := "", 0
			for {
				refs, more, err := s.Heads(b.Context(), now, queue.HeadQuery{After: after, Limit: 1000})
				if err != nil {
					b.Fatal(err)
				}
				if n += len(refs); more == "" {
					break
				}
				after = more
			}
			if n != 10000 {
				b.Fatalf("%d destinations", n)
			}
		}
	})
	b.Run("refill", func(b *testing.B) {
		for b.Loop() {
			refs, _, err := s.Heads(b.Context(), now, queue.HeadQuery{Destination: "destination-77", Limit: 256})
			if err != nil || len(refs) != 10 {
				b.Fatalf("%d rows: %v", len(refs), err)
			}
		}
	})
}

// BenchmarkState: 100 keys per update, and one.
func BenchmarkState(b *testing.B) {
	s := open(b).State()
	for _, n := range []int{1, 100} {
		b.Run(fmt.Sprintf("keys=%d", n), func(b *testing.B) {
			keys, ttls := make([]string, n), make([]time.Duration, n)
			for i := range keys {
				keys[i], ttls[i] = fmt.Sprintf("key-%05d", i), time.Minute
			}
			value := make([]byte, 300)
			start := time.Now()
			k := 0
			for b.Loop() {
				if errs := s.Update(b.Context(), time.Now(), keys, ttls, func(int, state.Entry) []byte { return value }); errs != nil {
					b.Fatal(errs)
				}
				k += n
			}
			b.ReportMetric(float64(k)/time.Since(start).Seconds(), "keys/s")
		})
	}
}
