package queuetest

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mvalve/mvalve/queue"
)

var adminCases = []testCase{
	{"registry", registry},
	{"meta is compare and swap", metaSwap},
	{"count", count},
	{"peek", peek},
	{"redrive", redrive},
	{"purge", purge},
	{"stats are summed and pruned", stats},
	{"batch tokens are pruned", pruneBatches},
	{"dirty tells of others", dirty},
	{"foreign leaves out what was told", foreign},
}

func registry(f *fixture) {
	r, ok := f.store.(queue.Registry)
	if !ok {
		f.Skip("store has no Registry")
	}
	announce := func(p queue.Presence, since time.Duration) []queue.ID {
		seen, err := r.Announce(f.ctx, f.now, f.now.Add(-since), p)
		if err != nil {
			f.Fatal(err)
		}
		var ids []queue.ID
		for _, s := range seen {
			ids = append(ids, s.ID)
			if s.ID == p.ID {
				p.SeenAt = f.now
				f.equal(s, p)
			}
		}
		return ids
	}
	a := queue.Presence{ID: f.id(), Host: "host", PID: 4711, Address: "127.0.0.1:9", Started: f.now, Held: 3}
	b := queue.Presence{ID: f.id(), Host: "höst", Started: f.now}
	f.equal(announce(a, time.Minute), []queue.ID{a.ID})
	f.pass(time.Minute)
	f.equal(announce(b, time.Minute), []queue.ID{a.ID, b.ID})
	f.pass(time.Second)
	b.Held, b.Address = 9, "127.0.0.1:10"
	f.equal(announce(b, time.Minute), []queue.ID{b.ID})
	f.equal(announce(queue.Presence{}, time.Hour), []queue.ID{a.ID, b.ID})
	if err := r.Leave(f.ctx, b.ID); err != nil {
		f.Fatal(err)
	}
	f.equal(announce(queue.Presence{}, time.Hour), []queue.ID{a.ID})
	f.pass(time.Hour)
	f.equal(len(announce(queue.Presence{}, 10*time.Hour)), 0) // removed after an hour
}

func metaSwap(f *fixture) {
	m, ok := f.store.(queue.Meta)
	if !ok {
		f.Skip("store has no Meta")
	}
	set := func(old, value, stands string) {
		f.Helper()
		got, err := m.SetMeta(f.ctx, "key", old, value)
		if err != nil {
			f.Fatal(err)
		}
		read, err := m.Meta(f.ctx, "key")
		if err != nil {
			f.Fatal(err)
		}
		f.equal([]string{got, read}, []string{stands, stands})
	}
	if v, err := m.Meta(f.ctx, "key"); v != "" || err != nil {
		f.Fatalf("absent key is %q, %v", v, err)
	}
	set("wrong", "x", "")
	set("", "one", "one")
	set("", "two", "one")
	set("one", "three", "three")
	set("THREE", "four", "three")
	set("three", "", "")
	set("", "five", "five")

	var wins atomic.Int32
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			mine := fmt.Sprint("writer ", i)
			got, err := m.SetMeta(f.ctx, "race", "", mine)
			if err != nil {
				f.Error(err)
			}
			if got == mine {
				wins.Add(1)
			}
		})
	}
	wg.Wait()
	f.equal(wins.Load(), int32(1))
}

func (f *fixture) admin() queue.Admin {
	a, ok := f.store.(queue.Admin)
	if !ok {
		f.Skip("store has no Admin")
	}
	return a
}

func count(f *fixture) {
	a := f.admin()
	refs := f.put(f.messages("b", 3)...)
	f.lease(refs[2])
	enqueued := f.now
	f.pass(time.Second)
	late, soon := f.timed("b", time.Minute), f.timed("b", time.Second)
	urgent := f.message("a")
	urgent.Lane = queue.Emergency
	f.put(late, soon, urgent)
	f.settle(queue.Settle{Ref: refs[0], Verb: queue.Kill})

	want := []queue.Count{
		{Destination: "a", Table: queue.Emergency, Waiting: 1, Oldest: f.now},
		{Destination: "b", Table: queue.Timed, Waiting: 2, Oldest: f.now, NextReady: soon.ReadyAt},
		{Destination: "b", Table: queue.Incoming, Waiting: 1, Leased: 1, Oldest: enqueued},
		{Destination: "b", Table: queue.Dead, Waiting: 1, Oldest: enqueued},
	}
	for _, c := range []struct {
		destination string
		want        []queue.Count
	}{{"", want}, {"a", want[:1]}, {"b", want[1:]}, {"c", nil}} {
		got, err := a.Count(f.ctx, f.now, c.destination)
		if err != nil {
			f.Fatal(err)
		}
		f.equal(got, c.want)
	}
}

func peek(f *fixture) {
	a := f.admin()
	msgs := append(f.messages("a", 3), f.messages("b", 2)...)
	f.put(msgs...)
	f.lease(msgs[1].Ref())
	page := func(table queue.Lane, destination string, after queue.Cursor, n int) []queue.ID {
		letters, err := a.Peek(f.ctx, table, destination, after, n)
		if err != nil {
			f.Fatal(err)
		}
		var ids []queue.ID
		for _, l := range letters {
			if l.Table != table || l.Err != nil || len(l.Message.Body) == 0 {
				f.Fatalf("letter %+v", l)
			}
			ids = append(ids, l.Message.ID)
		}
		return ids
	}
	ids := idsOf(refsOf(msgs))
	f.equal(page(queue.Incoming, "", queue.Cursor{}, 10), ids)
	f.equal(page(queue.Incoming, "", queue.Cursor{ID: ids[1]}, 2), ids[2:4])
	f.equal(page(queue.Incoming, "b", queue.Cursor{}, 1), ids[3:4])
	f.equal(len(page(queue.Dead, "", queue.Cursor{}, 1)), 0)
	early, late := f.timed("a", -time.Hour), f.timed("a", time.Hour)
	f.put(late, early)
	f.equal(page(queue.Timed, "a", queue.Cursor{}, 5), []queue.ID{early.ID, late.ID})
	f.equal(page(queue.Timed, "", queue.Cursor{ReadyAt: early.Ref().ReadyAt, ID: early.ID}, 5), []queue.ID{late.ID})
	_, err := a.Peek(f.ctx, 9, "", queue.Cursor{}, 1)
	f.wantError(err, queue.ErrInvalid)
}

func redrive(f *fixture) {
	a := f.admin()
	urgent, plain, delayed, other := f.message("a"), f.message("a"), f.timed("a", -time.Hour), f.message("b")
	urgent.Lane = queue.Emergency
	msgs := []*queue.Message{urgent, plain, delayed, other}
	for _, ref := range f.put(msgs...) {
		token, won := f.lease(ref)
		f.settle(queue.Settle{Ref: won[0].Ref, Verb: queue.Kill, Token: token, Reason: "r"})
	}
	f.pass(time.Minute)
	move := func(mv queue.Move, want int64) {
		f.Helper()
		got, err := a.Move(f.ctx, f.now, mv)
		if err != nil {
			f.Fatal(err)
		}
		f.equal(got, want)
	}
	move(queue.Move{From: queue.Dead, Destination: "c"}, 0)
	move(queue.Move{From: queue.Dead, IDs: []queue.ID{}}, 0)
	move(queue.Move{From: queue.Dead, IDs: []queue.ID{plain.ID, other.ID}, Destination: "b"}, 1)
	move(queue.Move{From: queue.Dead, Destination: "a", Limit: 2}, 2)
	f.equal(len(f.dead()), 1)
	move(queue.Move{From: queue.Dead}, 1)
	f.equal(len(f.dead()), 0)
	f.sizes(1, 1, 2)
	back := f.scan(queue.Timed)[0]
	if back.ReadyAt != queue.Micros(f.now) || back.EnqueuedAt != queue.Micros(delayed.EnqueuedAt) || back.Attempts != 0 {
		f.Fatalf("redriven as %+v", back)
	}
	_, won := f.lease(f.scan(queue.Incoming)...)
	for _, l := range won {
		if l.Message.Attempts != 1 || !l.Message.ReadyAt.IsZero() {
			f.Fatalf("redriven message %+v", l.Message)
		}
	}
	_, err := a.Move(f.ctx, f.now, queue.Move{From: queue.Incoming})
	f.wantError(err, queue.ErrInvalid)
	_, err = a.Move(f.ctx, f.now, queue.Move{From: queue.LaneUnset, Purge: true})
	f.wantError(err, queue.ErrInvalid)
}

func purge(f *fixture) {
	a := f.admin()
	refs := f.put(append(f.messages("a", 5), f.messages("b", 5)...)...)
	f.lease(refs[0])
	f.put(f.timed("a", time.Hour))
	for _, c := range []struct {
		move queue.Move
		want int64
	}{
		{queue.Move{From: queue.Incoming, Purge: true, IDs: []queue.ID{refs[1].ID, refs[9].ID}}, 2},
		{queue.Move{From: queue.Incoming, Purge: true, Destination: "a", Limit: 2}, 2},
		{queue.Move{From: queue.Incoming, Purge: true, Destination: "a"}, 1}, // one is under lease
		{queue.Move{From: queue.Timed, Purge: true, Destination: "a"}, 1},
		{queue.Move{From: queue.Incoming, Purge: true}, 4},
		{queue.Move{From: queue.Dead, Purge: true}, 0},
	} {
		got, err := a.Move(f.ctx, f.now, c.move)
		if err != nil {
			f.Fatal(err)
		}
		f.equal(got, c.want)
	}
	f.pass(time.Hour)
	f.sizes(0, 0, 1)
}

func stats(f *fixture) {
	a := f.admin()
	at := func(d time.Duration) time.Time { return f.now.Add(d) }
	f.apply(&queue.Change{Log: []queue.Stat{
		{Action: "enqueue", Destination: "a", Count: 2, At: at(0)},
		{Action: "enqueue", Destination: "a", Count: 3, At: at(time.Second)},
		{Action: "enqueue", Destination: "b", Count: 5, At: at(time.Second)},
		{Action: "dequeue", Destination: "a", Count: 7, At: at(2 * time.Second)},
	}})
	get := func(since time.Time, want ...queue.Stat) {
		f.Helper()
		got, err := a.Stats(f.ctx, since)
		if err != nil {
			f.Fatal(err)
		}
		f.equal(got, want)
	}
	dequeued := queue.Stat{Action: "dequeue", Destination: "a", Count: 7}
	b := queue.Stat{Action: "enqueue", Destination: "b", Count: 5}
	get(at(0), dequeued, queue.Stat{Action: "enqueue", Destination: "a", Count: 5}, b)
	get(at(time.Second), dequeued, queue.Stat{Action: "enqueue", Destination: "a", Count: 3}, b)
	if err := a.Prune(f.ctx, at(2*time.Second), time.Time{}); err != nil {
		f.Fatal(err)
	}
	get(at(-time.Hour), dequeued)
}

func pruneBatches(f *fixture) {
	a := f.admin()
	change := &queue.Change{Token: f.id(), Put: f.messages("a", 1)}
	f.apply(change)
	if err := a.Prune(f.ctx, time.Time{}, f.now); err != nil {
		f.Fatal(err)
	}
	f.apply(change) // still known
	f.pass(time.Hour)
	if err := a.Prune(f.ctx, time.Time{}, f.now); err != nil {
		f.Fatal(err)
	}
	_, err := f.store.Apply(f.ctx, f.now, change)
	f.wantError(err, queue.ErrDuplicate)
}

func dirty(f *fixture) {
	d, ok := f.store.(queue.DirtyChecker)
	if !ok {
		f.Skip("store has no DirtyChecker")
	}
	read := func() int64 {
		n, err := d.Dirty(f.ctx)
		if err != nil {
			f.Fatal(err)
		}
		return n
	}
	before := read()
	f.equal(read(), before)
	f.put(f.message("a"))
	if read() == before {
		f.Fatal("Dirty does not change after a commit")
	}
}

func foreign(f *fixture) {
	store, ok := f.store.(queue.ForeignChecker)
	if !ok {
		f.Skip("store has no ForeignChecker")
	}
	read := func() int64 {
		n, err := store.Foreign(f.ctx)
		if err != nil {
			f.Fatal(err)
		}
		return n
	}
	before := read()
	ref := f.message("a")
	f.apply(&queue.Change{Token: f.id(), Put: []*queue.Message{ref}, Told: true})
	token, _ := f.lease(ref.Ref())
	f.settle(queue.Settle{Ref: ref.Ref(), Verb: queue.Ack, Token: token})
	f.equal(read(), before)
	f.put(f.message("a"))
	if read() == before {
		f.Fatal("Foreign does not change after a commit that nobody was told of")
	}
}
