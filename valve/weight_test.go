package valve_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/throttle"
)

// A destination of weight 3 gets three times the share of each of the others,
// whether or not there are limits that do not matter. Of many workers a quarter is
// kept for destinations with nothing in flight, which takes some of it.
func TestWeights(t *testing.T) {
	for _, limit := range []string{"none", "100000/1s"} {
		for _, workers := range []int{1, 4, 16} {
			t.Run(fmt.Sprintf("limit %s, %d workers", strings.Replace(limit, "/", " per ", 1), workers), func(t *testing.T) {
				inPipe(t, func(t *testing.T, p *pipe) { checkWeights(t, p, limit, workers) })
			})
		}
	}
}

func checkWeights(t *testing.T, p *pipe, limit string, workers int) {
	const light, enough = 27, 1500
	weight := 3
	p.limit("*", limit)
	if _, err := throttle.SetShare(t.Context(), p.rules, p.w.Now(), "heavy", &weight, nil); err != nil {
		t.Fatal(err)
	}
	var all []*queue.Message
	for i := range 300 {
		all = append(all, text("heavy", "h"))
		for j := range light {
			if i < 150 {
				all = append(all, text(fmt.Sprint("light", j), "l"))
			}
		}
	}
	p.insert(all...)
	r := p.reader(nil)
	defer p.close(r)
	pass(time.Second)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var mu sync.Mutex
	var wg sync.WaitGroup
	got, n := make(map[string]int), 0
	for range workers {
		wg.Go(func() {
			for {
				d, err := r.Next(ctx)
				if err != nil {
					return
				}
				mu.Lock()
				if n < enough {
					got[d.Message.Destination]++
				}
				if n++; n == enough {
					cancel()
				}
				mu.Unlock()
				pass(2 * time.Millisecond)
				_ = d.Ack(context.WithoutCancel(ctx))
			}
		})
	}
	wg.Wait()
	const share = enough / (light + 3)
	least, most := enough, 0
	for j := range light {
		n := got[fmt.Sprint("light", j)]
		least, most = min(least, n), max(most, n)
	}
	if h := got["heavy"]; h < 3*share*8/10 || h > 3*share*11/10 || least < share*7/10 || most > share*3/2 {
		t.Errorf("of %d messages %d are heavy, %d to %d of each other; want %d and %d", enough, h, least, most, 3*share, share)
	}
}
