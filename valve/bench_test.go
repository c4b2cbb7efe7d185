package valve_test

import (
	"fmt"
	"path/filepath"
	"strconv"
	"sync"
	"testing"

	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/queue/sqlite"
	"github.com/mvalve/mvalve/valve"
)

// BenchmarkLifecycle is Insert, Next and Ack per message: over queue.Memory what
// the engine itself costs, over SQLite with fsync what it makes the store do.
// `mvalve bench` measures more, beside the store alone.
func BenchmarkLifecycle(b *testing.B) {
	for _, kind := range []string{"memory", "sqlite"} {
		for _, destinations := range []int{1, 50, 1000} {
			b.Run(fmt.Sprintf("%s/destinations=%d", kind, destinations), func(b *testing.B) {
				lifecycle(b, benchStore(b, kind), destinations)
			})
		}
	}
}

func benchStore(b *testing.B, kind string) queue.Store {
	b.Helper()
	var store queue.Store = queue.NewMemory()
	if kind == "sqlite" {
		s, err := sqlite.Open(b.Context(), sqlite.Config{Path: filepath.Join(b.TempDir(), "bench.db")})
		if err != nil {
			b.Fatal(err)
		}
		store = s
	}
	b.Cleanup(func() { _ = store.Close() })
	return store
}

// lifecycle lets b.N messages through, inserted and acked 100 at a time, with at
// most 4,000 under way.
func lifecycle(b *testing.B, store queue.Store, destinations int) {
	w, err := valve.NewWriter(b.Context(), store, valve.WriterConfig{})
	if err != nil {
		b.Fatal(err)
	}
	defer w.Close()
	r, err := valve.OpenReader(b.Context(), store, valve.ReaderConfig{Writer: w, Address: "-"})
	if err != nil {
		b.Fatal(err)
	}
	defer r.Close()
	sub, err := r.Subscribe(valve.Filter{}, 2000)
	if err != nil {
		b.Fatal(err)
	}
	const batch, ahead = 100, 40
	body := make([]byte, 256)
	room := make(chan struct{}, ahead)
	b.ReportAllocs()
	b.ResetTimer()
	var work sync.WaitGroup
	work.Go(func() {
		for first := 0; first < b.N; first += batch {
			msgs := make([]*queue.Message, min(batch, b.N-first))
			for i := range msgs {
				msgs[i] = &queue.Message{Destination: strconv.Itoa((first + i) % destinations), Body: body}
			}
			room <- struct{}{}
			work.Go(func() {
				if err := w.Insert(b.Context(), msgs...); err != nil {
					b.Error(err)
				}
			})
		}
	})
	for left := b.N; left > 0; {
		ds := make([]*valve.Delivery, min(batch, left))
		for i := range ds {
			if ds[i], err = sub.Next(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
		left -= len(ds)
		work.Go(func() {
			if err := r.Ack(b.Context(), ds...); err != nil {
				b.Error(err)
			}
			<-room
		})
	}
	work.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msgs/s")
}
