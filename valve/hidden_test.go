package valve_test

import (
	"testing"
	"time"

	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/valve"
)

// A lease of a dead reader that runs out behind a message that is out here for
// long is found while that one is still out.
func TestExpiredLeaseBehindOneThatIsOut(t *testing.T) {
	inPipe(t, func(t *testing.T, p *pipe) {
		p.insert(text("d", "1"), text("d", "2"))
		now := p.w.Now()
		refs, _, err := p.store.Heads(t.Context(), now, queue.HeadQuery{Destination: "d", Limit: 2})
		if err != nil || len(refs) != 2 {
			t.Fatal(refs, err)
		}
		if _, err := p.store.Lease(t.Context(), now, now.Add(4*time.Second), queue.ID{1}, refs[1:]); err != nil {
			t.Fatal(err)
		}
		r := p.reader(func(cfg *valve.ReaderConfig) { cfg.Lease = 4 * time.Second })
		defer p.close(r)
		s, err := r.Subscribe(valve.Filter{}, 8)
		if err != nil {
			t.Fatal(err)
		}
		first := p.fetch(s)
		if err := first.Extend(t.Context(), 50*time.Second); err != nil {
			t.Fatal(err)
		}
		second := p.fetch(s)
		if after := second.DispatchedAt.Sub(now); after > 7*time.Second {
			t.Errorf("found after %v", after)
		}
		p.ack(second)
		p.ack(first)
	})
}
