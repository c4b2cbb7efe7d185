package valve_test

import (
	"fmt"
	"runtime"
	"testing"

	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/valve"
)

// BenchmarkSubscription reports what an idle subscription costs in live heap.
func BenchmarkSubscription(b *testing.B) {
	store := queue.NewMemory()
	defer store.Close()
	r, err := valve.OpenReader(b.Context(), store, valve.ReaderConfig{Address: "-"})
	if err != nil {
		b.Fatal(err)
	}
	defer r.Close()
	names := make([]string, 100_000)
	for i := range names {
		names[i] = fmt.Sprintf("queue/%d", i)
	}
	var before, after runtime.MemStats
	for b.Loop() {
		box := r.NewInbox()
		runtime.GC()
		runtime.ReadMemStats(&before)
		for _, name := range names {
			if _, err := box.Subscribe(valve.Filter{Exact: name}, 100, nil); err != nil {
				b.Fatal(err)
			}
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/float64(len(names)), "B/subscription")
		_ = box.Close()
	}
}
