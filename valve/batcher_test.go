package valve

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestBatcherWaitsForLazyItems(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		type flush struct {
			At    time.Duration
			Items []int
		}
		var got []flush
		b := &batcher[int]{workers: 1, maxItems: 10, flush: func(items []int) {
			got = append(got, flush{time.Since(began), items})
		}}
		b.addLater(5*time.Millisecond, 1)
		b.addLater(5*time.Millisecond, 2)
		synctest.Wait()
		time.Sleep(6 * time.Millisecond) //nolint:forbidigo // virtual time
		b.addLater(5*time.Millisecond, 3)
		b.add(4)
		synctest.Wait()
		b.addLater(5*time.Millisecond, 5)
		b.kick()
		synctest.Wait()
		b.addLater(time.Hour, 6)
		b.close()
		want := []flush{
			{5 * time.Millisecond, []int{1, 2}}, {6 * time.Millisecond, []int{3, 4}},
			{6 * time.Millisecond, []int{5}}, {6 * time.Millisecond, []int{6}},
		}
		if !cmp.Equal(got, want) {
			t.Error(cmp.Diff(want, got))
		}
	})
}

func TestBatcherFinishesInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got []int
		b := &batcher[int]{workers: 2, maxItems: 1,
			flush:  func(items []int) { time.Sleep(time.Duration(10-items[0]) * time.Second) }, //nolint:forbidigo // virtual time
			finish: func(items []int) { got = append(got, items...) },
		}
		b.add(1, 2, 3, 4, 5)
		b.close()
		if want := []int{1, 2, 3, 4, 5}; !cmp.Equal(got, want) {
			t.Error(cmp.Diff(want, got))
		}
	})
}
