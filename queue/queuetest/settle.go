package queuetest

import (
	"strings"
	"time"

	"github.com/mvalve/mvalve/queue"
)

var settleCases = []testCase{
	{"token is the fence", fence},
	{"the end tells leases of one token apart", nextLease},
	{"late but not stolen", lateAck},
	{"release gives the attempt back", release},
	{"retry goes to timed and keeps its lane", retry},
	{"kill keeps the whole message", kill},
	{"extend", extend},
	{"zero token settles free rows only", zeroToken},
	{"lost settles are named", lostIndices},
	{"thousands of settles in one change", manySettles},
	{"put and settle in one change", putAndSettle},
	{"strict: all or nothing", strict},
}

var allVerbs = []queue.Verb{queue.Ack, queue.Retry, queue.Release, queue.Extend, queue.Kill}

func fence(f *fixture) {
	for _, m := range []*queue.Message{f.message("a"), f.timed("a", -time.Second)} {
		ref := f.put(m)[0]
		first := f.id()
		f.leaseFor(time.Second, first, ref)
		f.pass(time.Second) // the lease ends at its until
		second, _ := f.lease(ref)
		for _, verb := range allVerbs {
			if f.settle(queue.Settle{Ref: ref, Verb: verb, Token: first, At: f.now.Add(time.Hour)}) {
				f.Fatalf("verb %d with a lost lease took effect", verb)
			}
		}
		if !f.settle(queue.Settle{Ref: ref, Verb: queue.Ack, Token: second}) {
			f.Fatal("the holder's ack was refused")
		}
		if f.settle(queue.Settle{Ref: ref, Verb: queue.Ack, Token: second}) {
			f.Fatal("a second ack of the same row succeeded")
		}
	}
}

func nextLease(f *fixture) {
	for _, m := range []*queue.Message{f.message("a"), f.timed("a", -time.Second)} {
		ref := f.put(m)[0]
		token, first := f.id(), f.now.Add(time.Second)
		f.leaseFor(time.Second, token, ref)
		f.pass(time.Second)
		f.leaseFor(time.Second, token, ref)
		second := f.now.Add(time.Second)
		for _, verb := range allVerbs {
			if f.settle(queue.Settle{Ref: ref, Verb: verb, Token: token, Until: first, At: f.now.Add(time.Hour)}) {
				f.Fatalf("verb %d of an earlier lease took effect", verb)
			}
		}
		if !f.settle(queue.Settle{Ref: ref, Verb: queue.Release, Token: token, Until: second}) {
			f.Fatal("a release within the lease was refused")
		}
		f.leaseFor(time.Second, token, ref)
		if !f.settle(queue.Settle{Ref: ref, Verb: queue.Retry, Token: token, Until: second.Add(time.Microsecond), At: f.now}) {
			f.Fatal("a retry within the lease was refused")
		}
	}
}

func lateAck(f *fixture) {
	refs := f.put(f.messages("a", 2)...)
	token := f.id()
	f.leaseFor(time.Second, token, refs...)
	f.pass(time.Hour)
	if !f.settle(queue.Settle{Ref: refs[0], Verb: queue.Ack, Token: token}) {
		f.Fatal("an expired lease that nobody took was refused")
	}
	f.equal(idsOf(f.scan(queue.Incoming)), idsOf(refs[1:]))
}

func release(f *fixture) {
	refs := f.put(f.message("a"), f.timed("a", -time.Second))
	for range 2 {
		token, won := f.lease(refs...)
		f.sizes(0, 0, 0)
		for _, l := range won {
			if l.Message.Attempts != 1 {
				f.Fatalf("attempts %d after a release, want 1", l.Message.Attempts)
			}
			if !f.settle(queue.Settle{Ref: l.Ref, Verb: queue.Release, Token: token}) {
				f.Fatal("release lost")
			}
		}
	}
	f.sizes(0, 1, 1)
	f.equal(f.scan(queue.Timed), refs[1:])
}

func retry(f *fixture) {
	urgent := f.message("a")
	urgent.Lane, urgent.Priority, urgent.Headers = queue.Emergency, queue.Level(7), queue.Headers{{Name: "k", Value: "v"}}
	ref := f.put(urgent)[0]
	due := f.now
	for attempt := 1; attempt <= 3; attempt++ {
		token, won := f.lease(ref)
		if won[0].Message.Attempts != attempt {
			f.Fatalf("attempts %d, want %d", won[0].Message.Attempts, attempt)
		}
		due = due.Add(time.Duration(attempt) * time.Second)
		if !f.settle(queue.Settle{Ref: won[0].Ref, Verb: queue.Retry, Token: token, At: due}) {
			f.Fatal("retry lost")
		}
		f.sizes(0, 0, 0)
		f.now = due
		refs := f.scan(queue.Timed)
		want := urgent.Ref()
		want.Table, want.ReadyAt, want.Attempts = queue.Timed, queue.Micros(due), attempt
		f.equal(refs, []queue.Ref{want})
		ref = refs[0]
	}
	_, won := f.lease(ref)
	if m := won[0].Message; m.Lane != queue.Emergency || string(m.Body) != string(urgent.Body) || len(m.Headers) != 1 {
		f.Fatalf("retried message came back as %+v", m)
	}
}

func kill(f *fixture) {
	m := f.timed("a", -time.Minute)
	m.Lane, m.Headers, m.Hold = queue.Emergency, queue.Headers{{Name: "k", Value: "v"}}, time.Second
	m.ExpiresAt = f.now.Add(-time.Second)
	ref := f.put(m)[0]
	token, _ := f.lease(ref)
	reason := strings.Repeat("é", queue.MaxReason)
	if !f.settle(queue.Settle{Ref: ref, Verb: queue.Kill, Token: token, Reason: reason}) {
		f.Fatal("kill lost")
	}
	f.pass(time.Hour)
	f.sizes(0, 0, 0)
	letters := f.dead()
	if len(letters) != 1 || letters[0].Err != nil {
		f.Fatalf("dead letters %+v, want one", letters)
	}
	got := letters[0]
	f.equal(got.Reason, reason[:queue.MaxReason])
	f.equal(got.DeadAt, f.now.Add(-time.Hour))
	want := *m
	want.Attempts = 1
	f.sameMessage(got.Message, &want)
}

func extend(f *fixture) {
	ref := f.put(f.message("a"))[0]
	token := f.id()
	f.leaseFor(time.Second, token, ref)
	if !f.settle(queue.Settle{Ref: ref, Verb: queue.Extend, Token: token, At: f.now.Add(time.Minute)}) {
		f.Fatal("extend lost")
	}
	// One that was held up must not shorten what was leased or extended since.
	if !f.settle(queue.Settle{Ref: ref, Verb: queue.Extend, Token: token, At: f.now.Add(time.Second)}) {
		f.Fatal("extend lost")
	}
	f.pass(time.Minute - time.Microsecond)
	if won := f.leaseFor(time.Second, f.id(), ref); len(won) != 0 {
		f.Fatal("an extended lease was taken")
	}
	f.pass(time.Microsecond)
	if won := f.leaseFor(time.Second, f.id(), ref); len(won) != 1 || won[0].Message.Attempts != 2 {
		f.Fatalf("after its end: %+v", won)
	}
	_, err := f.store.Apply(f.ctx, f.now, &queue.Change{Settle: []queue.Settle{{Ref: ref, Verb: queue.Extend, At: f.now}}})
	f.wantError(err, queue.ErrInvalid)
}

func zeroToken(f *fixture) {
	refs := f.put(f.messages("a", 3)...)
	token, _ := f.lease(refs[0])
	f.leaseFor(time.Millisecond, f.id(), refs[1])
	f.pass(time.Millisecond)
	out := f.apply(&queue.Change{Settle: []queue.Settle{
		{Ref: refs[0], Verb: queue.Ack},
		{Ref: refs[1], Verb: queue.Kill, Reason: "expired"},
		{Ref: refs[2], Verb: queue.Ack},
	}})
	f.equal(out.Lost, []int{0})
	if !f.settle(queue.Settle{Ref: refs[0], Verb: queue.Ack, Token: token}) {
		f.Fatal("the holder's ack was refused")
	}
	f.sizes(0, 0, 0)
	f.equal(len(f.dead()), 1)
}

func lostIndices(f *fixture) {
	refs := f.put(f.messages("a", 10)...)
	mine, _ := f.lease(refs[:8]...)
	theirs, _ := f.lease(refs[8:]...)
	settles := make([]queue.Settle, 0, 12)
	for i, ref := range refs {
		settles = append(settles, queue.Settle{Ref: ref, Verb: allVerbs[i%5], Token: mine, At: f.now.Add(time.Hour)})
	}
	settles = append(settles,
		queue.Settle{Ref: refs[0], Verb: queue.Ack, Token: mine}, // acked above
		queue.Settle{Ref: f.message("never put").Ref(), Verb: queue.Ack, Token: mine})
	out := f.apply(&queue.Change{Settle: settles})
	f.equal(out.Lost, []int{8, 9, 10, 11})
	out = f.apply(&queue.Change{Settle: []queue.Settle{
		{Ref: refs[8], Verb: queue.Ack, Token: theirs}, {Ref: refs[9], Verb: queue.Ack, Token: theirs},
	}})
	f.equal(len(out.Lost), 0)
	f.sizes(0, 0, 2) // released: the others are acked, retried, extended or dead
	f.equal(len(f.dead()), 1)
}

func manySettles(f *fixture) {
	const n = 3333
	refs := f.put(f.messages("a", n)...)
	token, _ := f.lease(refs...)
	thief := refs[n/2]
	f.settle(queue.Settle{Ref: thief, Verb: queue.Ack, Token: token})
	settles := make([]queue.Settle, n)
	for i := range settles {
		settles[i] = queue.Settle{Ref: refs[n-1-i], Verb: queue.Ack, Token: token}
	}
	out := f.apply(&queue.Change{Settle: settles})
	f.equal(out.Lost, []int{n - 1 - n/2})
	f.pass(time.Hour)
	f.sizes(0, 0, 0)
}

func putAndSettle(f *fixture) {
	ref := f.put(f.message("a"))[0]
	token, _ := f.lease(ref)
	change := &queue.Change{
		Token: f.id(), Put: f.messages("b", 1),
		Settle: []queue.Settle{{Ref: ref, Verb: queue.Ack, Token: token}},
		Log:    []queue.Stat{{Action: "dequeue", Destination: "a", Count: 1, At: f.now}},
	}
	f.equal(len(f.apply(change).Lost), 0)
	f.equal(len(f.apply(change).Lost), 0) // done before: does nothing, loses nothing
	f.equal(destinations(f.scan(queue.Incoming)), []string{"b"})
}

// strict changes happen as a whole or not at all.
func strict(f *fixture) {
	refs := f.put(f.messages("a", 3)...)
	mine, _ := f.lease(refs[:2]...)
	theirs, _ := f.lease(refs[2])
	change := &queue.Change{
		Token: f.id(), Put: f.messages("b", 1), Strict: true,
		Settle: []queue.Settle{
			{Ref: refs[0], Verb: queue.Ack, Token: mine},
			{Ref: refs[2], Verb: queue.Ack, Token: mine}, // held by somebody else
			{Ref: refs[1], Verb: queue.Kill, Token: mine, Reason: "no"},
		},
		Log: []queue.Stat{{Action: "dequeue", Destination: "a", Count: 1, At: f.now}},
	}
	f.equal(f.apply(change).Lost, []int{1})
	f.equal(len(f.dead()), 0)
	f.equal(len(f.scan(queue.Incoming)), 0) // b was not put

	change.Settle[1].Token = theirs // the token of a change taken back may come again
	f.equal(len(f.apply(change).Lost), 0)
	f.equal(len(f.apply(change).Lost), 0) // done before
	f.equal(len(f.dead()), 1)
	f.equal(destinations(f.scan(queue.Incoming)), []string{"b"})

	_, err := f.store.Apply(f.ctx, f.now, &queue.Change{Strict: true, Settle: change.Settle[:1]})
	f.wantError(err, queue.ErrInvalid) // no token
}
