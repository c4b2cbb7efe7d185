package sqlite

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/state"
)

func benchMessages(ids *queue.IDSource, n, destinations int) []*queue.Message {
	now := time.Now()
	body := make([]byte, 256)
	msgs := make([]*queue.Message, n)
	for i := range msgs {
		msgs[i] = &queue.Message{
			ID: ids.New(now), Destination: fmt.Sprintf("destination-%d", i%destinations),
			Lane: queue.Incoming, EnqueuedAt: now, Body: body,
		}
	}
	return msgs
}

func cycle(ctx context.Context, s *Store, ids *queue.IDSource, msgs []*queue.Message) error {
	now := time.Now()
	if _, err := s.Apply(ctx, now, &queue.Change{Token: ids.New(now), Put: msgs}); err != nil {
		return err
	}
	refs := make([]queue.Ref, len(msgs))
	for i, m := range msgs {
		refs[i] = m.Ref()
	}
	token := ids.New(now)
	won, err := s.Lease(ctx, now, now.Add(time.Minute), token, refs)
	if err != nil || len(won) != len(refs) {
		return fmt.Errorf("leased %d of %d: %w", len(won), len(refs), err)
	}
	settles := make([]queue.Settle, len(won))
	for i := range won {
		settles[i] = queue.Settle{Ref: won[i].Ref, Verb: queue.Ack, Token: token}
	}
	out, err := s.Apply(ctx, now, &queue.Change{Settle: settles})
	if err != nil || len(out.Lost) > 0 {
		return fmt.Errorf("lost %d: %w", len(out.Lost), err)
	}
	return nil
}

// BenchmarkLifecycle is insert, lease and ack of 256-byte bodies with fsync:
// batch is the messages of one call, callers how many call at once.
func BenchmarkLifecycle(b *testing.B) {
	for _, c := range []struct{ batch, callers int }{{1000, 1}, {1000, 2}, {100, 1}, {100, 16}, {1, 1}, {1, 64}} {
		b.Run(fmt.Sprintf("batch=%d/callers=%d", c.batch, c.callers), func(b *testing.B) {
			s := open(b, filepath.Join(b.TempDir(), "bench.db"))
			var ids queue.IDSource
			b.ReportAllocs()
			for b.Loop() {
				var wg sync.WaitGroup
				for range c.callers {
					wg.Go(func() {
						if err := cycle(b.Context(), s, &ids, benchMessages(&ids, c.batch, 1000)); err != nil {
							b.Error(err)
						}
					})
				}
				wg.Wait()
			}
			b.ReportMetric(float64(b.N*c.batch*c.callers)/b.Elapsed().Seconds(), "msgs/s")
		})
	}
}

// BenchmarkHeads reads beside a backlog: 1,000,000 rows of one destination and
// 10,000 destinations with one.
func BenchmarkHeads(b *testing.B) {
	s := open(b, filepath.Join(b.TempDir(), "bench.db"))
	var ids queue.IDSource
	put := func(msgs []*queue.Message) {
		now := time.Now()
		if _, err := s.Apply(b.Context(), now, &queue.Change{Token: ids.New(now), Put: msgs}); err != nil {
			b.Fatal(err)
		}
	}
	for range 1000 {
		put(benchMessages(&ids, 1000, 1))
	}
	put(benchMessages(&ids, 10000, 10000))
	later := benchMessages(&ids, 100000, 1)
	for _, m := range later {
		m.Lane, m.ReadyAt = queue.Timed, m.EnqueuedAt.Add(time.Hour)
	}
	put(later)
	now := time.Now()
	b.Run("refill=256", func(b *testing.B) {
		for b.Loop() {
			refs, _, err := s.Heads(b.Context(), now, queue.HeadQuery{Destination: "destination-0", Limit: 256})
			if err != nil || len(refs) != 256 {
				b.Fatal(len(refs), err)
			}
		}
	})
	b.Run("pass=10000", func(b *testing.B) {
		for b.Loop() {
			n, after := 0, ""
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
			if n != 10001 {
				b.Fatal(n)
			}
		}
	})
	b.Run("scan-nothing-new", func(b *testing.B) {
		cursor := queue.Cursor{ID: queue.MinID(now.Add(time.Hour))}
		for b.Loop() {
			if _, _, err := s.Scan(b.Context(), now, queue.Incoming, cursor, now, 1000); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("scan=1000", func(b *testing.B) {
		for b.Loop() {
			if refs, _, err := s.Scan(b.Context(), now, queue.Incoming, queue.Cursor{}, now, 1000); err != nil || len(refs) != 1000 {
				b.Fatal(len(refs), err)
			}
		}
	})
	b.Run("dirty", func(b *testing.B) {
		for b.Loop() {
			if _, err := s.Dirty(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkState updates limiter state in batches of keys, one commit each.
func BenchmarkState(b *testing.B) {
	for _, n := range []int{1, 100} {
		b.Run(fmt.Sprintf("keys=%d", n), func(b *testing.B) {
			st := open(b, filepath.Join(b.TempDir(), "bench.db")).State()
			keys, ttls := make([]string, n), make([]time.Duration, n)
			for i := range keys {
				keys[i], ttls[i] = fmt.Sprintf("key-%06d", i), time.Minute
			}
			value := make([]byte, 200)
			b.ReportAllocs()
			for b.Loop() {
				if errs := st.Update(b.Context(), time.Now(), keys, ttls, func(int, state.Entry) []byte { return value }); errs != nil {
					b.Fatal(errs)
				}
			}
			b.ReportMetric(float64(b.N*n)/b.Elapsed().Seconds(), "keys/s")
		})
	}
}
