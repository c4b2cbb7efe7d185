package sim

import (
	"context"
	"fmt"
	"hash/fnv"
	"os"
	"testing"
	"time"

	"github.com/mvalve/mvalve/queue"
)

// The lease protocol in a small scope, exhaustively: readers that lease, hand out and
// ack, in every order of their steps, with a crash anywhere, an answer lost anywhere,
// and leases that run out at any moment.

func TestExhaustLease(t *testing.T) {
	scopes := []leaseScope{
		{readers: 2, messages: 3, crashes: 1, expiries: 1},
		{readers: 2, messages: 2, crashes: 1, expiries: 2, lost: 1},
	}
	if os.Getenv("MVALVE_SIM_LARGE") != "" {
		scopes = append(scopes, leaseScope{readers: 3, messages: 3, expiries: 1}, leaseScope{readers: 3, messages: 3, crashes: 1, expiries: 1}, leaseScope{readers: 2, messages: 3, crashes: 1, expiries: 2, lost: 1})
	}
	for _, s := range scopes {
		t.Run(fmt.Sprintf("%d-readers-%d-messages-%d-crashes-%d-expiries-%d-answers", s.readers, s.messages, s.crashes, s.expiries, s.lost), func(t *testing.T) {
			begin := time.Now()
			var e explorer
			e.explore(t, func() tree { return newLeaseTree(s) }, 2_000_000)
			t.Logf("%s in %v", &e, time.Since(begin).Round(time.Millisecond))
		})
	}
}

// Without the token as a fence the search finds a message that is acked by one and
// delivered to another afterwards.
func TestExhaustLeaseNotices(t *testing.T) {
	for name, s := range map[string]leaseScope{
		"a lease without looking": {readers: 2, messages: 1, blind: true},
		"an ack without token":    {readers: 2, messages: 1, expiries: 1, fenceless: true},
	} {
		e := explorer{quiet: true}
		e.explore(t, func() tree { return newLeaseTree(s) }, 100_000)
		if e.wrong == "" {
			t.Errorf("%s: nothing was found", name)
		}
	}
}

type leaseScope struct {
	readers, messages, crashes, expiries, lost int
	blind, fenceless                           bool // defects
}

// leaseTree is the store and its readers. Reader i wants the messages in turn,
// beginning with the ith.
type leaseTree struct {
	leaseScope
	store  *queue.Memory
	clock  time.Time
	actors []leaseActor
	out    []int  // reader that has the message now, from 1; 0: nobody
	acked  []bool // confirmed
	gone   []bool // deleted
	bad    string
}

// leaseActor is a reader: at leases the message it is at, hands it out, acks it.
type leaseActor struct {
	token  queue.ID
	at     int // message
	stage  int // 0 to lease, 1 to hand out, 2 to ack
	until  time.Time
	done   int // messages looked at since the last lease
	dead   bool
	unsure bool // the answer to an ack was lost
}

const leaseTime = 10 * time.Second

func newLeaseTree(s leaseScope) *leaseTree {
	x := &leaseTree{leaseScope: s, store: queue.NewMemory(), clock: time.UnixMicro(exhaustStart).UTC(), out: make([]int, s.messages), acked: make([]bool, s.messages), gone: make([]bool, s.messages)}
	for i := range s.readers {
		x.actors = append(x.actors, leaseActor{token: leaseID(100 + i), at: i % s.messages})
	}
	for i := range s.messages {
		m := &queue.Message{ID: leaseID(i), Destination: "d", Lane: queue.Incoming, EnqueuedAt: x.clock, Body: []byte{byte(i)}}
		if _, err := x.store.Apply(context.Background(), x.clock, &queue.Change{Token: m.ID, Put: []*queue.Message{m}}); err != nil {
			panic(err)
		}
	}
	return x
}

func leaseID(n int) queue.ID {
	id := queue.MinID(time.UnixMicro(exhaustStart))
	id[6], id[8], id[15] = 0x70, 0x80, byte(n+1)
	return id
}

func (x *leaseTree) ref(i int) queue.Ref {
	return queue.Ref{ID: leaseID(i), Destination: "d", Table: queue.Incoming, Lane: queue.Incoming}
}

type leaseChoice struct {
	actor   int // -1: time passes, all leases run out
	verdict verdict
}

func (x *leaseTree) choices() []leaseChoice {
	var all []leaseChoice
	for i := range x.actors {
		a := &x.actors[i]
		if a.dead || a.done >= x.messages {
			continue
		}
		all = append(all, leaseChoice{i, goOn})
		if x.crashes > 0 {
			all = append(all, leaseChoice{i, dieNow}) // which is after the step before, too
		}
		if x.lost > 0 && a.stage != 1 {
			all = append(all, leaseChoice{i, answerLost})
		}
	}
	if x.expiries > 0 {
		all = append(all, leaseChoice{-1, goOn})
	}
	return all
}

func (x *leaseTree) count() int { return len(x.choices()) }

func (x *leaseTree) name(i int) string {
	c := x.choices()[i]
	if c.actor < 0 {
		return "all leases run out"
	}
	a := &x.actors[c.actor]
	return fmt.Sprintf("reader %d: %s m%d%s", c.actor, [...]string{"lease", "hand out", "ack"}[a.stage], a.at,
		[...]string{"", ", answer lost", ", dies before"}[c.verdict])
}

func (x *leaseTree) do(i int) {
	c := x.choices()[i]
	if c.actor < 0 {
		x.expiries--
		x.clock = x.clock.Add(leaseTime)
		for i := range x.actors {
			x.actors[i].done = 0
		}
		return
	}
	a := &x.actors[c.actor]
	switch c.verdict {
	case dieNow:
		x.crashes--
		*a = leaseActor{token: a.token, until: a.until, dead: true} // nobody knows the rest
		return
	case answerLost:
		x.lost--
	}
	x.step(c.actor, a, c.verdict)
}

func (x *leaseTree) step(n int, a *leaseActor, v verdict) {
	ctx, next := context.Background(), func() { a.at, a.stage, a.unsure = (a.at+1)%x.messages, 0, false }
	switch a.stage {
	case 0:
		now := x.clock
		if x.blind {
			now = now.Add(time.Hour)
		}
		won, err := x.store.Lease(ctx, now, x.clock.Add(leaseTime), a.token, []queue.Ref{x.ref(a.at)})
		if err != nil {
			panic(err)
		}
		if len(won) == 0 || v != goOn {
			a.done++
			next()
			return
		}
		a.stage, a.until, a.done = 1, x.clock.Add(leaseTime), 0
	case 1:
		if !x.clock.Add(leaseTime / 2).Before(a.until) {
			next() // less than half of the lease is left
			return
		}
		if x.acked[a.at] {
			x.bad = fmt.Sprintf("m%d is handed out after its ack was confirmed", a.at)
		}
		if o := x.out[a.at]; o != 0 && o != n+1 && x.actors[o-1].until.After(x.clock) {
			x.bad = fmt.Sprintf("m%d is handed out by reader %d while reader %d holds it", a.at, n, o-1)
		}
		x.out[a.at], a.stage = n+1, 2
	case 2:
		token := a.token
		if x.fenceless {
			x.clock = x.clock.Add(leaseTime) // settle as nobody's
			token = queue.ID{}
		}
		out, err := x.store.Apply(ctx, x.clock, &queue.Change{Settle: []queue.Settle{{Ref: x.ref(a.at), Verb: queue.Ack, Token: token}}})
		if err != nil {
			panic(err)
		}
		if len(out.Lost) == 0 {
			x.gone[a.at] = true
			if o := x.out[a.at]; o != n+1 {
				x.bad = fmt.Sprintf("reader %d acks m%d, which reader %d has", n, a.at, o-1)
			}
		}
		switch {
		case v == answerLost:
			a.unsure = true // asks again
			return
		case v == goOn && (len(out.Lost) == 0 || a.unsure && x.gone[a.at]):
			x.acked[a.at] = true
		}
		if x.out[a.at] == n+1 {
			x.out[a.at] = 0
		}
		next()
	}
}

func (x *leaseTree) key() uint64 {
	h := fnv.New64a()
	fmt.Fprint(h, x.clock.Unix(), x.crashes, x.expiries, x.lost, x.out, x.acked, x.gone)
	for _, a := range x.actors {
		fmt.Fprint(h, a.at, a.stage, a.until.Unix(), a.done, a.dead, a.unsure)
	}
	for i := range x.messages {
		letters, _ := x.store.Peek(context.Background(), queue.Incoming, "", queue.Cursor{ID: queue.ID{}}, x.messages)
		for _, l := range letters {
			if l.Message.ID == leaseID(i) {
				fmt.Fprint(h, i, l.Message.LeaseToken, l.Message.LeaseUntil.Unix())
			}
		}
	}
	return h.Sum64()
}

func (x *leaseTree) wrong() string { return x.bad }

// end: what nobody acked is still there.
func (x *leaseTree) end() string {
	letters, _ := x.store.Peek(context.Background(), queue.Incoming, "", queue.Cursor{}, x.messages)
	there := make(map[queue.ID]bool)
	for _, l := range letters {
		there[l.Message.ID] = true
	}
	for i := range x.messages {
		if there[leaseID(i)] == x.gone[i] {
			return fmt.Sprintf("m%d: there %v, deleted %v", i, there[leaseID(i)], x.gone[i])
		}
	}
	return ""
}

func (x *leaseTree) close() {}
