package valve_test

import (
	"context"
	"testing"
	"time"

	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/throttle"
	"github.com/mvalve/mvalve/valve"
)

// holdHook calls before once, while the hold of a duration is being stored.
type holdHook struct {
	throttle.RuleStore
	before func()
}

func (h *holdHook) PutHold(ctx context.Context, now time.Time, hold throttle.Hold) error {
	if f := h.before; f != nil && hold.Reason == "duration" {
		h.before = nil
		f()
	}
	return h.RuleStore.PutHold(ctx, now, hold)
}

// A destination that asks for rest while the next message's own hold is being
// stored gets it: the own hold, which ends later, must not hide that.
func TestRestAskedForWhileAHoldIsStored(t *testing.T) {
	inPipe(t, func(t *testing.T, p *pipe) {
		hook := &holdHook{RuleStore: p.rules}
		r := p.reader(func(cfg *valve.ReaderConfig) { cfg.Rules = hook })
		defer p.close(r)
		p.insert(text("d", "first"))
		first := p.next(r)
		asked := time.Now()
		hook.before = func() {
			pass(5 * time.Millisecond)
			asked = time.Now()
			if err := first.Throttled(t.Context(), 3*time.Second); err != nil {
				t.Error(err)
			}
		}
		p.insert(&queue.Message{Destination: "d", Body: []byte("series"), Hold: 4 * time.Second})
		for range 2 {
			d := p.next(r)
			if waited := time.Since(asked); waited < 3*time.Second {
				t.Errorf("%s leaves %v after 3 s of rest were asked for", d.Message.Body, waited)
			}
			p.ack(d)
		}
		if hook.before != nil {
			t.Error("no hold was stored")
		}
	})
}

// An emergency that holds the others for a while does not hide that the
// destination asks for rest, whichever comes first.
func TestRestBesideTheHoldOfAnEmergency(t *testing.T) {
	inPipe(t, func(t *testing.T, p *pipe) {
		r := p.reader(nil)
		defer p.close(r)
		p.insert(&queue.Message{Destination: "d", Lane: queue.Emergency, Body: []byte("alarm"), Hold: time.Minute})
		p.ack(p.next(r))
		p.insert(&queue.Message{Destination: "d", Lane: queue.Emergency, Body: []byte("second")})
		p.insert(text("d", "other"))
		asked := time.Now()
		if err := p.next(r).Throttled(t.Context(), 3*time.Second); err != nil {
			t.Fatal(err)
		}
		for _, want := range []struct {
			body   string
			waited time.Duration
		}{{"second", 3 * time.Second}, {"other", time.Minute}} {
			d := p.next(r)
			waited := time.Since(asked)
			if string(d.Message.Body) != want.body || waited < want.waited-time.Second/2 || waited > want.waited+time.Second/2 {
				t.Errorf("%q after %v, want %q after %v", d.Message.Body, waited, want.body, want.waited)
			}
			p.ack(d)
		}
	})
}
