package queuetest

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/mvalve/mvalve/queue"
)

var putCases = []testCase{
	{"whole message comes back", roundTrip},
	{"batch token is done once", batchToken},
	{"duplicate id fails the whole batch", duplicateID},
	{"invalid change touches nothing", invalidPut},
	{"order is id order", putOrder},
	{"largest body", largestBody},
	{"may carry a lease", putLeased},
	{"caller may reuse its memory", putCopies},
	{"concurrent writers", concurrentPut},
	{"cancelled context", cancelledPut},
	{"closed store", closedStore},
}

func roundTrip(f *fixture) {
	all := make([]byte, 256)
	for i := range all {
		all[i] = byte(i)
	}
	first := f.message("Ünïcode/目的地 with blanks")
	first.Body = all
	first.Headers = queue.Headers{{Name: "a", Value: "1"}, {Name: "b", Value: ""}, {Name: "a", Value: "2"},
		{Name: "", Value: "\x00\xff"}, {Name: "A", Value: "line\nbreak"}}
	first.Lane, first.Priority = queue.Emergency, queue.Level(9)
	first.ExpiresAt, first.Hold = f.now.Add(time.Hour+time.Microsecond), 1500*time.Microsecond
	second := f.timed(strings.Repeat("d", queue.MaxDestination), -time.Second)
	second.Body, second.Priority = nil, queue.Level(0)
	third := f.message("MiXeD")
	delayedEmergency := f.timed("later", 0)
	delayedEmergency.Lane = queue.Emergency

	msgs := []*queue.Message{first, second, third, delayedEmergency}
	f.put(msgs...)
	f.sizes(1, 2, 1)
	for _, m := range msgs {
		refs, _ := f.heads(queue.HeadQuery{Destination: m.Destination, Limit: 10})
		f.equal(refs, []queue.Ref{m.Ref()})
		token, won := f.lease(refs...)
		want := *m
		want.Attempts, want.LeaseToken, want.LeaseUntil = 1, token, f.now.Add(time.Minute)
		f.sameMessage(won[0].Message, &want)
		if won[0].Ref.Attempts != 1 {
			f.Fatalf("ref has attempts %d, want 1", won[0].Ref.Attempts)
		}
		if !f.settle(queue.Settle{Ref: won[0].Ref, Verb: queue.Ack, Token: token}) {
			f.Fatalf("ack of %q lost", m.Destination)
		}
	}
	f.sizes(0, 0, 0)
	if refs, _ := f.heads(queue.HeadQuery{Destination: "mixed", Limit: 10}); len(refs) != 0 {
		f.Fatal("destinations are compared without regard to case")
	}
}

func batchToken(f *fixture) {
	change := &queue.Change{Token: f.id(), Put: f.messages("a", 3)}
	f.apply(change)
	f.apply(change)
	f.sizes(0, 0, 3)
	other := &queue.Change{Token: change.Token, Put: f.messages("b", 2), Log: []queue.Stat{{Action: "x", Count: 1, At: f.now}}}
	f.apply(other)
	f.sizes(0, 0, 3)
	token, _ := f.lease(f.scan(queue.Incoming)...)
	for _, ref := range refsOf(change.Put) {
		f.settle(queue.Settle{Ref: ref, Verb: queue.Ack, Token: token})
	}
	f.apply(change) // still known after its messages are gone
	f.sizes(0, 0, 0)
}

func duplicateID(f *fixture) {
	kept := f.put(f.message("a"))
	token, _ := f.lease(kept...)
	twin := f.message("b")
	twin.ID = kept[0].ID
	change := &queue.Change{
		Token: f.id(), Put: []*queue.Message{f.message("c"), twin},
		Settle: []queue.Settle{{Ref: kept[0], Verb: queue.Ack, Token: token}},
	}
	_, err := f.store.Apply(f.ctx, f.now, change)
	f.wantError(err, queue.ErrDuplicate)
	f.sizes(0, 0, 0)
	if !f.settle(queue.Settle{Ref: kept[0], Verb: queue.Release, Token: token}) {
		f.Fatal("a failed change settled a lease")
	}
	f.equal(idsOf(f.scan(queue.Incoming)), idsOf(kept))
	change.Put = change.Put[:1] // the failed change left no token behind
	change.Settle = nil
	f.apply(change)
	f.sizes(0, 0, 2)

	same := f.message("d")
	_, err = f.store.Apply(f.ctx, f.now, &queue.Change{Token: f.id(), Put: []*queue.Message{same, same}})
	f.wantError(err, queue.ErrDuplicate)
	f.sizes(0, 0, 2)
}

func invalidPut(f *fixture) {
	broken := map[string]func(m *queue.Message){
		"no destination":    func(m *queue.Message) { m.Destination = "" },
		"long destination":  func(m *queue.Message) { m.Destination = strings.Repeat("d", 256) },
		"not UTF-8":         func(m *queue.Message) { m.Destination = "\xff" },
		"no id":             func(m *queue.Message) { m.ID = queue.ID{} },
		"id ahead":          func(m *queue.Message) { m.ID = f.ids.New(f.now.Add(2 * time.Minute)) },
		"no lane":           func(m *queue.Message) { m.Lane = queue.LaneUnset },
		"dead lane":         func(m *queue.Message) { m.Lane = queue.Dead },
		"no enqueue time":   func(m *queue.Message) { m.EnqueuedAt = time.Time{} },
		"incoming, delayed": func(m *queue.Message) { m.ReadyAt = f.now },
		"priority":          func(m *queue.Message) { m.Priority = queue.Level(10) },
		"body":              func(m *queue.Message) { m.Body = make([]byte, queue.MaxBody+1) },
	}
	for name, breakIt := range broken {
		bad := f.message("bad")
		breakIt(bad)
		_, err := f.store.Apply(f.ctx, f.now, &queue.Change{Token: queue.ID{15: 1}, Put: []*queue.Message{f.message("good"), bad}})
		if err == nil {
			f.Fatalf("%s: accepted", name)
		}
		f.wantError(err, queue.ErrInvalid)
	}
	_, err := f.store.Apply(f.ctx, f.now, &queue.Change{Put: f.messages("no token", 1)})
	f.wantError(err, queue.ErrInvalid)
	_, err = f.store.Apply(f.ctx, f.now, &queue.Change{Settle: []queue.Settle{{Ref: queue.Ref{Table: queue.Incoming}, Verb: 99}}})
	f.wantError(err, queue.ErrInvalid)
	_, err = f.store.Apply(f.ctx, f.now, &queue.Change{Settle: []queue.Settle{{Ref: queue.Ref{Table: queue.Dead}, Verb: queue.Ack}}})
	f.wantError(err, queue.ErrInvalid)
	f.sizes(0, 0, 0)
}

func putOrder(f *fixture) {
	var want []queue.ID
	for i := range 5 {
		want = append(want, idsOf(f.put(f.messages(fmt.Sprint("d", i%2), 300)...))...)
	}
	f.equal(idsOf(f.scan(queue.Incoming)), want)
}

func largestBody(f *fixture) {
	size := queue.MaxBody
	if s, ok := f.store.(queue.Sizer); ok {
		size = s.MaxBody()
	}
	m := f.message("big")
	m.Body = bytes.Repeat([]byte("0123456789abcdef"), size/16)
	f.put(m)
	_, won := f.lease(m.Ref())
	if !bytes.Equal(won[0].Message.Body, m.Body) {
		f.Fatalf("body of %d bytes came back as %d bytes, or changed", len(m.Body), len(won[0].Message.Body))
	}
}

func putLeased(f *fixture) {
	m := f.message("a")
	m.LeaseToken, m.LeaseUntil, m.Attempts = f.id(), f.now.Add(time.Minute), 1
	f.put(m)
	f.sizes(0, 0, 0)
	if won := f.leaseFor(time.Minute, f.id(), m.Ref()); len(won) != 0 {
		f.Fatal("a row put under a lease was leased again")
	}
	if !f.settle(queue.Settle{Ref: m.Ref(), Verb: queue.Ack, Token: m.LeaseToken}) {
		f.Fatal("the lease put with the row was not honoured")
	}
}

func putCopies(f *fixture) {
	m := f.message("a")
	want := bytes.Clone(m.Body)
	ref := f.put(m)[0]
	clear(m.Body)
	token, won := f.lease(ref)
	if !bytes.Equal(won[0].Message.Body, want) {
		f.Fatal("the store kept the caller's body")
	}
	clear(won[0].Message.Body)
	f.settle(queue.Settle{Ref: ref, Verb: queue.Release, Token: token})
	if _, won = f.lease(ref); !bytes.Equal(won[0].Message.Body, want) {
		f.Fatal("the store handed out its own body")
	}
}

func concurrentPut(f *fixture) {
	const writers, batches, size = 8, 10, 20
	var wg sync.WaitGroup
	errs := make(chan error, writers*batches)
	for w := range writers {
		wg.Go(func() {
			for b := range batches {
				change := &queue.Change{Token: f.id(), Put: f.messages(fmt.Sprint("w", w), size)}
				if w == 0 { // its neighbours in a shared commit must not suffer
					change.Put[b].Destination = ""
				}
				if _, err := f.store.Apply(f.ctx, f.now, change); (err != nil) != (w == 0) {
					errs <- fmt.Errorf("writer %d: %w", w, err)
				}
			}
		})
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		f.Error(err)
	}
	f.sizes(0, 0, (writers-1)*batches*size)
}

func cancelledPut(f *fixture) {
	ctx, cancel := context.WithCancel(f.ctx)
	cancel()
	_, err := f.store.Apply(ctx, f.now, &queue.Change{Token: f.id(), Put: f.messages("a", 1)})
	if err == nil {
		f.Fatal("Apply with a cancelled context succeeded")
	}
}

func closedStore(f *fixture) {
	if err := f.store.Close(); err != nil {
		f.Fatal(err)
	}
	if err := f.store.Close(); err != nil {
		f.Fatalf("second Close: %v", err)
	}
	_, err := f.store.Apply(f.ctx, f.now, &queue.Change{Token: f.id(), Put: f.messages("a", 1)})
	f.wantError(err, queue.ErrClosed)
	_, _, err = f.store.Scan(f.ctx, f.now, queue.Incoming, queue.Cursor{}, f.now, 1)
	f.wantError(err, queue.ErrClosed)
	_, err = f.store.Lease(f.ctx, f.now, f.now.Add(time.Minute), f.id(), []queue.Ref{{Table: queue.Incoming}})
	f.wantError(err, queue.ErrClosed)
}
