package valve_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/valve"
)

// lostAnswers is a store whose next settle has an unknown outcome.
type lostAnswers struct {
	*queue.Memory
	lose, do bool
}

func (s *lostAnswers) Apply(ctx context.Context, now time.Time, c *queue.Change) (queue.Outcome, error) {
	if !s.lose || len(c.Settle) == 0 {
		return s.Memory.Apply(ctx, now, c)
	}
	s.lose = false
	if s.do {
		if _, err := s.Memory.Apply(ctx, now, c); err != nil {
			return queue.Outcome{}, err
		}
	}
	return queue.Outcome{}, queue.ErrUnknown
}

// An ack whose answer was lost is asked for again. If the row is gone while the
// lease lasts, the first one did it; afterwards somebody else may have the message.
func TestAckAgainAfterLostAnswer(t *testing.T) {
	for _, tt := range []struct {
		name string
		do   bool
		late time.Duration
		want error
	}{
		{"done", true, 0, nil},
		{"not done", false, 0, nil},
		{"not done, and leased by another reader", false, 30*time.Second + 100*time.Millisecond, valve.ErrLeaseLost},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inPipe(t, func(t *testing.T, p *pipe) {
				store := &lostAnswers{Memory: p.store, do: tt.do}
				r := p.readerOn(store, 30*time.Second)
				pass(200 * time.Millisecond) // leases run out between two looks at them
				p.insert(text("d", "m"))
				d := p.next(r)
				pass(tt.late)
				if tt.late > 0 { // the reader has not noticed yet
					now := p.w.Now()
					refs, _, err := p.store.Heads(t.Context(), now, queue.HeadQuery{Destination: "d", Limit: 1})
					if err != nil || len(refs) != 1 {
						t.Fatal(refs, err)
					}
					if won, err := p.store.Lease(t.Context(), now, now.Add(time.Hour), queue.ID{9}, refs); err != nil || len(won) != 1 {
						t.Fatal(won, err)
					}
				}
				store.lose = true
				err := d.Ack(t.Context())
				if errors.Is(err, queue.ErrUnknown) {
					err = d.Ack(t.Context())
				}
				if !errors.Is(err, tt.want) {
					t.Errorf("got %v, want %v", err, tt.want)
				}
				p.close(r)
				if n := p.left(queue.Incoming); (n == 0) != (tt.want == nil) {
					t.Errorf("%d left", n)
				}
			})
		})
	}
}

// What was lost is not the answer to an ack: the message may be anywhere.
func TestAckAfterLostAnswerToAnotherEnding(t *testing.T) {
	for name, end := range map[string]func(context.Context, *valve.Delivery) error{
		"nack":    func(ctx context.Context, d *valve.Delivery) error { return d.Nack(ctx, time.Hour, "") },
		"release": func(ctx context.Context, d *valve.Delivery) error { return d.Release(ctx) },
	} {
		t.Run(name, func(t *testing.T) {
			inPipe(t, func(t *testing.T, p *pipe) {
				store := &lostAnswers{Memory: p.store, do: true}
				r := p.readerOn(store, 30*time.Second)
				p.insert(text("d", "m"))
				d := p.next(r)
				store.lose = true
				if err := end(t.Context(), d); !errors.Is(err, queue.ErrUnknown) {
					t.Fatal(err)
				}
				if err := d.Ack(t.Context()); !errors.Is(err, valve.ErrLeaseLost) {
					t.Errorf("got %v, want %v", err, valve.ErrLeaseLost)
				}
				p.close(r)
			})
		})
	}
}

// vanishing is a store that repeats acks until they may have been carried out.
type vanishing struct {
	*queue.Memory
	late time.Duration // how long that takes
}

func (s *vanishing) Apply(ctx context.Context, now time.Time, c *queue.Change) (queue.Outcome, error) {
	if len(c.Settle) == 0 {
		return s.Memory.Apply(ctx, now, c)
	}
	pass(s.late)
	out, err := s.Memory.Apply(ctx, now, c)
	return queue.Outcome{Vanished: append(out.Lost, 0)}, err
}

// A store that found no row to ack, after an attempt whose answer was lost, is
// believed while the lease lasts only.
func TestVanishedAck(t *testing.T) {
	for late, want := range map[time.Duration]error{0: nil, 11 * time.Second: valve.ErrLeaseLost} {
		inPipe(t, func(t *testing.T, p *pipe) {
			r := p.readerOn(&vanishing{p.store, late}, 10*time.Second)
			p.insert(text("d", "m"))
			if err := p.next(r).Ack(t.Context()); !errors.Is(err, want) {
				t.Errorf("after %v: got %v, want %v", late, err, want)
			}
			p.close(r)
		})
	}
}
