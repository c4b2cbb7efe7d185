package valve

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/throttle"
)

// message returns the n-th new message for a destination.
func message(destination string, n int) *queue.Message {
	return &queue.Message{ID: refID(n), Destination: destination, EnqueuedAt: t0, Lane: queue.Incoming, Body: []byte("body")}
}

// reserved1 reports whether a single new message would be stored leased.
func (r *Reader) reserved1(m *queue.Message) bool {
	i := &insert{messages: []*queue.Message{m}}
	r.reserve([]*insert{i})
	leased := m.LeaseToken == r.id
	r.unreserve(i.messages)
	i.caughtUp()
	return leased
}

// A new message is stored leased if a subscriber waits for it and nothing stands
// before it.
func TestWhatIsStoredLeased(t *testing.T) {
	for what, c := range map[string]struct {
		set    func(t *testing.T, r *Reader, m *queue.Message)
		leased bool
	}{
		"nothing before it":    {func(*testing.T, *Reader, *queue.Message) {}, true},
		"nobody there":         {func(_ *testing.T, r *Reader, _ *queue.Message) { r.exact, r.wild = nil, nil }, false},
		"one destination only": {func(_ *testing.T, r *Reader, _ *queue.Message) { r.wild = nil }, true},
		"others only":          {func(_ *testing.T, r *Reader, m *queue.Message) { r.wild, m.Destination = nil, "b" }, false},
		"another destination":  {func(_ *testing.T, _ *Reader, m *queue.Message) { m.Destination = "b" }, true},
		"not surveyed, and unknown": {func(_ *testing.T, r *Reader, m *queue.Message) {
			r.surveyed--
			m.Destination = "b"
		}, false},
		"not surveyed, and known": {func(_ *testing.T, r *Reader, _ *queue.Message) { r.surveyed-- }, true},
		"a backlog":               {func(_ *testing.T, r *Reader, _ *queue.Message) { r.backlogOf("a", 900, 1) }, false},
		"a held one": {func(_ *testing.T, r *Reader, _ *queue.Message) {
			r.x.dests["a"].held = []*entry{{}}
		}, false},
		"one on its way": {func(_ *testing.T, r *Reader, _ *queue.Message) { r.x.dests["a"].behind = 1 }, false},
		"more":           {func(_ *testing.T, r *Reader, _ *queue.Message) { r.x.dests["a"].more = true }, false},
		"a refill":       {func(_ *testing.T, r *Reader, _ *queue.Message) { r.x.dests["a"].refill = true }, false},
		"a job that asks": {func(_ *testing.T, r *Reader, _ *queue.Message) {
			r.x.dests["a"].asking = true
		}, false},
		"no credit":     {func(_ *testing.T, r *Reader, _ *queue.Message) { r.exact["a"].assigned, r.wild[0].assigned = 9, 9 }, false},
		"a limit":       {func(t *testing.T, r *Reader, _ *queue.Message) { r.limit(t, "a", "9/1s") }, false},
		"a cap":         {func(t *testing.T, r *Reader, _ *queue.Message) { r.share(t, "a", 1, 1) }, true},
		"a cap reached": {func(t *testing.T, r *Reader, _ *queue.Message) { r.share(t, "a", 1, 1); r.x.dests["a"].inFlight = 1 }, false},
		"a pause": {func(t *testing.T, r *Reader, _ *queue.Message) {
			_, err := throttle.Pause(t.Context(), r.ruleStore, t0, "a")
			r.changed(t, err)
		}, false},
		"a hold":                {func(_ *testing.T, r *Reader, _ *queue.Message) { r.holdUntil("a", t0.Add(1), "429") }, false},
		"a hold that ends":      {func(_ *testing.T, r *Reader, _ *queue.Message) { r.holdUntil("a", t0, "429") }, true},
		"an emergency":          {func(_ *testing.T, _ *Reader, m *queue.Message) { m.Lane = queue.Emergency }, false},
		"a duration":            {func(_ *testing.T, _ *Reader, m *queue.Message) { m.Hold = 1 }, false},
		"later":                 {func(_ *testing.T, _ *Reader, m *queue.Message) { m.ReadyAt = t0.Add(time.Second) }, false},
		"leased by another one": {func(_ *testing.T, _ *Reader, m *queue.Message) { m.LeaseToken = refID(5) }, false},
		"a reader that ends":    {func(_ *testing.T, r *Reader, _ *queue.Message) { r.closing = true }, false},
	} {
		still(t, func(t *testing.T, r *Reader) {
			r.wants(t, "a", 9)
			r.wants(t, "", 9)
			r.surveyed = r.surveys
			d := r.x.dests["a"]
			d.refill, d.more, r.refills = false, false, nil
			m := message("a", 1)
			c.set(t, r, m)
			inFlight := d.inFlight
			if got := r.reserved1(m); got != c.leased {
				t.Errorf("%s: stored leased %v", what, got)
			}
			if d.inFlight != inFlight || len(d.pipeline) > 0 || len(r.leased) > 0 || r.x.known[m.ID] != nil || r.bytes != 0 {
				t.Errorf("%s: something is left of it: %+v", what, d)
			}
			if d.behind > 1 || d.behind == 1 && what != "one on its way" {
				t.Errorf("%s: %d are behind", what, d.behind)
			}
		})
	}
}

// Messages of one commit for one subscriber leave together once all of them are
// stored, in their order; what is stored free keeps later ones back until it is
// known.
func TestStoredLeasedInOrder(t *testing.T) {
	still(t, func(t *testing.T, r *Reader) {
		s := r.wants(t, "a", 6)
		d := r.x.dests["a"]
		d.refill, d.more, r.refills = false, false, nil
		group := []*insert{{messages: []*queue.Message{message("a", 1), message("a", 2)}}, {messages: []*queue.Message{message("a", 3)}}}
		r.reserve(group)
		next := []*insert{{messages: []*queue.Message{message("a", 4), message("a", 5)}}}
		r.reserve(next)
		shape := func() string {
			var out []string
			for _, it := range d.pipeline {
				out = append(out, fmt.Sprint(len(it.entries), "/", it.pending))
			}
			return strings.Join(out, " ")
		}
		if got := shape(); got != "3/3 2/2" || d.inFlight != 5 || s.assigned != 5 || len(r.leased) != 5 {
			t.Fatalf("items %q, %d in flight, %d assigned", got, d.inFlight, s.assigned)
		}
		for e := range r.leased {
			if !e.leaseUntil.Equal(t0.Add(time.Minute)) || e.phase != chosen {
				t.Errorf("%+v", e)
			}
		}
		r.reserved(next[0].messages[0])
		r.reserved(next[0].messages[1])
		r.reserved(group[0].messages[0])
		if got := shape(); got != "3/2 2/0" || len(s.box.mailbox) != 0 {
			t.Errorf("items %q, %d may go", got, len(s.box.mailbox))
		}
		r.unreserve(group[0].messages[1:])
		if got := shape(); got != "2/1 2/0" || d.inFlight != 4 || s.assigned != 4 || len(r.leased) != 4 {
			t.Errorf("one was not stored: items %q, %d in flight, %d assigned", got, d.inFlight, s.assigned)
		}
		r.reserved(group[1].messages[0])
		var got []int
		for _, e := range s.box.mailbox {
			got = append(got, int(e.ref.ID[15]))
		}
		if !slices.Equal(got, []int{1, 3, 4, 5}) || len(d.pipeline) != 0 {
			t.Errorf("may go: %v, pipeline %q", got, shape())
		}
	})
}

// What is stored free holds back what comes after it until its insert has ended,
// urgent messages of the same commit too.
func TestStoredFreeHoldsBack(t *testing.T) {
	still(t, func(t *testing.T, r *Reader) {
		r.wants(t, "a", 9)
		d := r.x.dests["a"]
		d.refill, d.more, r.refills = false, false, nil
		urgent := message("a", 2)
		urgent.Lane = queue.Emergency
		later := message("a", 3)
		later.ReadyAt = t0.Add(time.Second)
		i := &insert{messages: []*queue.Message{message("a", 1), urgent, later}}
		r.reserve([]*insert{i})
		if d.behind != 2 || len(d.pipeline) != 0 || len(i.behind) != 2 {
			t.Errorf("%d are behind, %d on their way", d.behind, len(d.pipeline))
		}
		if r.reserved1(message("a", 4)) {
			t.Error("one passes those that are on their way to the store")
		}
		r.exact = map[string]*Subscription{}
		i.caughtUp()
		if d.behind != 0 || r.x.dests["a"] != nil || i.behind != nil {
			t.Errorf("%d are behind after the insert ended", d.behind)
		}
	})
}

// Subscribers that take turns get new messages in turn as well, each in an item of
// its own.
func TestStoredLeasedInTurn(t *testing.T) {
	still(t, func(t *testing.T, r *Reader) {
		first, second := r.wants(t, "a", 9), r.wants(t, "a", 9)
		d := r.x.dests["a"]
		d.refill, d.more, r.refills = false, false, nil
		var messages []*queue.Message
		for n := range 4 {
			messages = append(messages, message("a", n+1))
		}
		r.reserve([]*insert{{messages: messages}})
		if len(d.pipeline) != 4 || first.assigned != 2 || second.assigned != 2 {
			t.Errorf("%d items, %d and %d assigned", len(d.pipeline), first.assigned, second.assigned)
		}
	})
}
