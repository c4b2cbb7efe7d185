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
