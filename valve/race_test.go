package valve_test

import (
	"context"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/state"
	"github.com/mvalve/mvalve/valve"
)

// contested is a store in which another reader is quicker with one message.
type contested struct {
	*queue.Memory
	body   string
	lease  time.Duration // how long calls of Lease take
	heads  time.Duration // and of Heads
	stolen atomic.Bool
}

func (c *contested) Lease(ctx context.Context, now, until time.Time, token queue.ID, refs []queue.Ref) ([]queue.Leased, error) {
	pass(c.lease)
	won, err := c.Memory.Lease(ctx, now, until, token, refs)
	return slices.DeleteFunc(won, func(l queue.Leased) bool {
		return string(l.Message.Body) == c.body && c.stolen.CompareAndSwap(false, true)
	}), err
}

func (c *contested) Heads(ctx context.Context, now time.Time, q queue.HeadQuery) ([]queue.Ref, string, error) {
	pass(c.heads)
	return c.Memory.Heads(ctx, now, q)
}

// slowState answers all but the first update late.
type slowState struct {
	state.Store
	late time.Duration
	uses atomic.Int32
}

func (s *slowState) Update(ctx context.Context, now time.Time, keys []string, ttls []time.Duration, fn func(int, state.Entry) []byte) []error {
	errs := s.Store.Update(ctx, now, keys, ttls, fn)
	if s.uses.Add(1) > 1 {
		pass(s.late)
	}
	return errs
}

// race opens a reader that is going to lose the race for the message "taken", and
// subscribes with credit.
func (p *pipe) race(store *contested, late time.Duration, credit int) (*valve.Reader, *valve.Subscription) {
	p.t.Helper()
	store.Memory, store.body = p.store, "taken"
	slow := &slowState{Store: p.state, late: late}
	r, err := valve.OpenReader(p.t.Context(), store, valve.ReaderConfig{Writer: p.w, Rules: p.rules, State: slow, Durable: slow, Address: "-"})
	if err != nil {
		p.t.Fatal(err)
	}
	s, err := r.Subscribe(valve.Filter{}, credit)
	if err != nil {
		p.t.Fatal(err)
	}
	pass(time.Second)
	return r, s
}

func (p *pipe) fetch(s *valve.Subscription) *valve.Delivery {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), time.Minute)
	defer cancel()
	d, err := s.Next(ctx)
	if err != nil {
		p.t.Fatal(err)
	}
	return d
}

// A permit whose message another reader took goes to the destination's next
// message: none that another job chose meanwhile is passed over.
func TestLostRaceKeepsTheOrder(t *testing.T) {
	inPipe(t, func(t *testing.T, p *pipe) {
		p.limit("d", "1/1s")
		r, s := p.race(&contested{heads: 12 * time.Millisecond}, 30*time.Millisecond, 1)
		defer p.close(r)
		p.insert(text("d", "taken"), text("d", "1"), text("d", "2"))
		pass(5 * time.Millisecond)
		p.insert(text("d", "3")) // wakes the scheduler
		var got []string
		for range 3 {
			d := p.fetch(s)
			got = append(got, string(d.Message.Body))
			p.ack(d)
		}
		if diff := cmp.Diff([]string{"1", "2", "3"}, got); diff != "" {
			t.Errorf("order (-want +got):\n%s", diff)
		}
	})
}

// A permit that comes back while the limiter is asked for the destination's next
// message is used for that one at once.
func TestReturnedPermitIsUsedAtOnce(t *testing.T) {
	inPipe(t, func(t *testing.T, p *pipe) {
		p.limit("d", "1/10s")
		r, s := p.race(&contested{lease: 10 * time.Millisecond}, 20*time.Millisecond, 8)
		defer p.close(r)
		p.insert(text("d", "taken"))
		pass(2 * time.Millisecond)
		p.insert(text("d", "1"))
		at := p.w.Now()
		d := p.fetch(s)
		if waited := d.DispatchedAt.Sub(at); waited > 500*time.Millisecond {
			t.Errorf("waited %v for a permit that was there", waited)
		}
		p.ack(d)
	})
}

// A subscription gets no more messages than its credit allows in place of those
// that another reader took.
func TestLostRaceKeepsTheCredit(t *testing.T) {
	inPipe(t, func(t *testing.T, p *pipe) {
		p.limit("d", "10/1s")
		r, s := p.race(&contested{heads: 5 * time.Millisecond}, 0, 1)
		defer p.close(r)
		p.insert(text("d", "taken"), text("d", "1"))
		pass(time.Millisecond)
		p.insert(text("other", "2"))
		d := p.fetch(s)
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		if x, err := s.Next(ctx); err == nil {
			t.Errorf("got %s with a credit of 1 and %s out", x.Message.Body, d.Message.Body)
		}
		p.ack(d)
		p.ack(p.fetch(s))
	})
}
