package valve_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/valve"
)

// delayedStore carries out its first change with settles only when the test says so.
type delayedStore struct {
	*queue.Memory
	late *queue.Change
}

func (s *delayedStore) Apply(ctx context.Context, now time.Time, c *queue.Change) (queue.Outcome, error) {
	if s.late == nil && len(c.Settle) > 0 {
		s.late = c
		return queue.Outcome{}, queue.ErrUnknown
	}
	return s.Memory.Apply(ctx, now, c)
}

// All leases of a reader carry one token: what ended an earlier one and is
// carried out late must leave the present one alone.
func TestLateEndOfAnEarlierLease(t *testing.T) {
	for name, end := range map[string]func(context.Context, *valve.Delivery) error{
		"release": func(ctx context.Context, d *valve.Delivery) error { return d.Release(ctx) },
		"nack":    func(ctx context.Context, d *valve.Delivery) error { return d.Nack(ctx, 0, "") },
	} {
		t.Run(name, func(t *testing.T) {
			inPipe(t, func(t *testing.T, p *pipe) {
				store := &delayedStore{Memory: p.store}
				r := p.readerOn(store, 30*time.Second)
				p.insert(text("d", "m"))
				d := p.next(r)
				if err := end(t.Context(), d); err == nil {
					t.Fatal("the first end had an outcome")
				}
				pass(time.Second)
				if err := d.Release(t.Context()); err != nil {
					t.Fatal(err)
				}
				d = p.next(r)
				out, err := p.store.Apply(t.Context(), p.w.Now(), store.late)
				if err != nil || len(out.Lost) != 1 {
					t.Errorf("the late end: %v, %v; want it lost", out.Lost, err)
				}
				if err := d.Ack(t.Context()); err != nil {
					t.Errorf("ack: %v", err)
				}
				p.close(r)
			})
		})
	}
}

// An extension that is carried out late makes the next lease of the same reader
// longer than that reader knows: it can be ended all the same.
func TestLateExtensionOfAnEarlierLease(t *testing.T) {
	inPipe(t, func(t *testing.T, p *pipe) {
		store := &delayedStore{Memory: p.store}
		r := p.readerOn(store, 30*time.Second)
		p.insert(text("d", "m"))
		d := p.next(r)
		if err := d.Extend(t.Context(), 10*time.Minute); err == nil {
			t.Fatal("the extension had an outcome")
		}
		if err := d.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
		d = p.next(r)
		if out, err := p.store.Apply(t.Context(), p.w.Now(), store.late); err != nil || len(out.Lost) != 0 {
			t.Errorf("the late extension: %v, %v", out.Lost, err)
		}
		if err := d.Nack(t.Context(), time.Second, ""); err != nil {
			t.Errorf("nack: %v", err)
		}
		p.ack(p.next(r))
		p.close(r)
	})
}

// slowStore carries extensions out after a while.
type slowStore struct {
	*queue.Memory
	late time.Duration
}

func (s *slowStore) Apply(ctx context.Context, now time.Time, c *queue.Change) (queue.Outcome, error) {
	if len(c.Settle) > 0 && c.Settle[0].Verb == queue.Extend {
		pass(s.late)
	}
	return s.Memory.Apply(ctx, now, c)
}

// An extension that is answered when its lease has ended, and the reader has
// handed the message out again, is none.
func TestExtensionOfAnEndedLease(t *testing.T) {
	inPipe(t, func(t *testing.T, p *pipe) {
		r := p.readerOn(&slowStore{p.store, 15 * time.Second}, 10*time.Second)
		p.insert(text("d", "m"))
		first := p.next(r)
		extended := make(chan error)
		go func() { extended <- first.Extend(t.Context(), time.Minute) }()
		pass(11 * time.Second)
		second := p.next(r)
		if err := <-extended; !errors.Is(err, valve.ErrLeaseLost) {
			t.Errorf("got %v, want %v", err, valve.ErrLeaseLost)
		}
		if err := second.Ack(t.Context()); err != nil {
			t.Error(err)
		}
		p.close(r)
	})
}
