package throttle

import (
	"testing"
	"time"

	"github.com/mvalve/mvalve/state"
)

// A paced permit that comes back gives its place in the pace back, too.
func TestReturnedPermitOfAPace(t *testing.T) {
	l := NewLimiter(Config{Fast: state.NewMemory()})
	limit, now := mustLimit(t, "5/1s paced"), time.Unix(1000, 0)
	take := func() Grant {
		return l.Take(t.Context(), now, []Request{{Destination: "d", Limit: limit, Want: 1}})[0]
	}
	for i := range 8 {
		g := take()
		if len(g.Permits) != 1 {
			t.Fatalf("after %d returned permits: none before %v", i, g.NotBefore.Sub(now))
		}
		l.Return(g.Permits[0])
		now = now.Add(time.Millisecond)
	}
	// Used ones keep it: five in a second, never two steps at once.
	var sent []time.Time
	for end := now.Add(3 * time.Second); now.Before(end); now = now.Add(5 * time.Millisecond) {
		for _, p := range take().Permits {
			l.Dispatched(p, p.At)
			sent = append(sent, p.At)
		}
	}
	for i := 2; i < len(sent); i++ {
		if gap := sent[i].Sub(sent[i-2]); gap < 250*time.Millisecond {
			t.Errorf("dispatches %d to %d are %v apart: %v", i-2, i, gap, sent)
		}
	}
	if len(sent) < 13 {
		t.Errorf("%d dispatches in 3 s", len(sent))
	}
}
