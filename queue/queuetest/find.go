package queuetest

import (
	"fmt"
	"slices"
	"time"

	"github.com/mvalve/mvalve/queue"
)

var findCases = []testCase{
	{"scan pages by cursor", scanPages},
	{"scan passes leased rows", scanLeased},
	{"scan of timed ends at upTo", scanTimed},
	{"scan that asks for nothing", scanInvalid},
	{"heads of a destination, best first", headsBest},
	{"heads leaves out what may not go", headsLeasable},
	{"heads goes on behind a row", headsBehind},
	{"heads pages over destinations", headsPages},
	{"heads promises rows only", headsPromise},
}

func scanPages(f *fixture) {
	refs := f.put(f.messages("a", 25)...)
	var cursor queue.Cursor
	var got []queue.Ref
	for range 3 {
		page, next, err := f.store.Scan(f.ctx, f.now, queue.Incoming, cursor, time.Time{}, 10)
		if err != nil {
			f.Fatal(err)
		}
		if len(page) > 10 || len(page) > 0 && next.ID != page[len(page)-1].ID {
			f.Fatalf("page of %d rows ends at %v", len(page), next)
		}
		got, cursor = append(got, page...), next
	}
	f.equal(got, refs)
	page, next, err := f.store.Scan(f.ctx, f.now, queue.Incoming, cursor, time.Time{}, 10)
	if err != nil || len(page) != 0 || next != cursor {
		f.Fatalf("behind the end: %v, %v, %v", page, next, err)
	}
	more := f.put(f.message("b"))
	page, _, err = f.store.Scan(f.ctx, f.now, queue.Incoming, cursor, time.Time{}, 10)
	if err != nil {
		f.Fatal(err)
	}
	f.equal(page, more)
	page, _, err = f.store.Scan(f.ctx, f.now, queue.Incoming, queue.Cursor{ID: queue.MinID(f.now.Add(time.Second))}, time.Time{}, 10)
	if err != nil || len(page) != 0 {
		f.Fatalf("from a later millisecond: %v, %v", page, err)
	}
}

func scanLeased(f *fixture) {
	refs := f.put(f.messages("a", 30)...)
	f.lease(refs[:20]...)
	f.lease(refs[25:]...)
	f.equal(f.scan(queue.Incoming), refs[20:25])
	_, cursor, err := f.store.Scan(f.ctx, f.now, queue.Incoming, queue.Cursor{ID: refs[24].ID}, f.now, 10)
	if err != nil {
		f.Fatal(err)
	}
	if cursor.ID != refs[29].ID {
		f.Fatalf("cursor stays at %v; it must pass leased rows", cursor.ID)
	}
}

func scanTimed(f *fixture) {
	var msgs []*queue.Message
	for _, s := range []int{5, 1, 3, 1, -2, 4} {
		msgs = append(msgs, f.timed("a", time.Duration(s)*time.Second))
	}
	f.put(msgs...)
	scan := func(after queue.Cursor, upTo time.Duration, n int) ([]queue.ID, queue.Cursor) {
		refs, next, err := f.store.Scan(f.ctx, f.now, queue.Timed, after, f.now.Add(upTo), n)
		if err != nil {
			f.Fatal(err)
		}
		return idsOf(refs), next
	}
	first, cursor := scan(queue.Cursor{}, time.Second, 2)
	f.equal(first, []queue.ID{msgs[4].ID, msgs[1].ID})
	f.equal(cursor, queue.Cursor{ReadyAt: msgs[1].Ref().ReadyAt, ID: msgs[1].ID})
	rest, cursor := scan(cursor, time.Second, 10)
	f.equal(rest, []queue.ID{msgs[3].ID}) // same ready_at, next id; due at upTo itself counts
	none, same := scan(cursor, time.Second, 10)
	f.equal(len(none), 0)
	f.equal(same, cursor)
	later, _ := scan(cursor, time.Hour, 10)
	f.equal(later, []queue.ID{msgs[2].ID, msgs[5].ID, msgs[0].ID})
}

func scanInvalid(f *fixture) {
	for _, table := range []queue.Lane{queue.LaneUnset, 9} {
		_, _, err := f.store.Scan(f.ctx, f.now, table, queue.Cursor{}, f.now, 1)
		f.wantError(err, queue.ErrInvalid)
	}
	f.put(f.message("a"))
	for _, n := range []int{0, -1} {
		refs, next, err := f.store.Scan(f.ctx, f.now, queue.Incoming, queue.Cursor{}, f.now, n)
		if err != nil || len(refs) != 0 || next != (queue.Cursor{}) {
			f.Fatalf("scan for %d rows: %v, %v, %v", n, refs, next, err)
		}
	}
}

func headsBest(f *fixture) {
	var msgs []*queue.Message
	for i, level := range []int{4, 9, 0, 9, 4} {
		m := f.message("a")
		m.Priority = queue.Level(level)
		if i == 4 {
			m.Lane = queue.Emergency
		}
		msgs = append(msgs, m)
	}
	late, early := f.timed("a", -time.Second), f.timed("a", -time.Minute)
	urgent := f.timed("a", -time.Millisecond)
	urgent.Priority = queue.Level(5)
	other := f.message("b")
	f.put(append(msgs, late, early, urgent, other)...)

	refs, more := f.heads(queue.HeadQuery{Destination: "a", Limit: 10})
	want := []*queue.Message{msgs[4], urgent, early, late, msgs[1], msgs[3], msgs[0], msgs[2]}
	f.equal(refs, refsOf(want))
	f.equal(more, "")
	refs, _ = f.heads(queue.HeadQuery{Destination: "a", Limit: 2})
	f.equal(idsOf(refs), idsOf(refsOf([]*queue.Message{msgs[4], urgent, early, msgs[1], msgs[3]})))
	refs, _ = f.heads(queue.HeadQuery{Destination: "a", Table: queue.Timed, Limit: 2})
	f.equal(idsOf(refs), []queue.ID{urgent.ID, early.ID})
	refs, _ = f.heads(queue.HeadQuery{Destination: "nobody", Limit: 2})
	f.equal(len(refs), 0)
}

func headsLeasable(f *fixture) {
	refs := f.put(f.messages("a", 10)...)
	future := f.timed("a", time.Minute)
	due := f.timed("a", 0)
	f.put(future, due)
	f.lease(refs[:8]...)
	got, _ := f.heads(queue.HeadQuery{Destination: "a", Limit: 3})
	f.equal(idsOf(got), []queue.ID{due.ID, refs[8].ID, refs[9].ID})
	f.pass(time.Minute)
	got, _ = f.heads(queue.HeadQuery{Destination: "a", Limit: 3})
	f.equal(idsOf(got), []queue.ID{due.ID, future.ID, refs[0].ID, refs[1].ID, refs[2].ID})
}

func headsBehind(f *fixture) {
	msgs := f.messages("a", 12)
	for i, m := range msgs {
		m.Priority = queue.Level(4 - i/4*2) // 4, 2 and 0
	}
	refs := f.put(msgs...)
	f.put(f.messages("b", 3)...)
	due := f.timed("a", 0)
	f.put(due)
	f.lease(refs[5])
	got, _ := f.heads(queue.HeadQuery{Destination: "a", Limit: 5, Behind: &refs[2]})
	f.equal(idsOf(got), []queue.ID{due.ID, refs[3].ID, refs[4].ID, refs[6].ID, refs[7].ID, refs[8].ID})
	got, _ = f.heads(queue.HeadQuery{Destination: "a", Limit: 5, Behind: &refs[9]})
	f.equal(idsOf(got), []queue.ID{due.ID, refs[10].ID, refs[11].ID})
}

func headsPages(f *fixture) {
	want := make(map[queue.Lane][]string)
	for i := range 50 {
		name := fmt.Sprintf("d%02d", i)
		var msgs []*queue.Message
		for range 3 {
			msgs = append(msgs, f.message(name))
		}
		want[queue.Incoming] = append(want[queue.Incoming], name)
		if i%3 == 0 {
			msgs = append(msgs, f.timed(name, time.Hour))
			want[queue.Timed] = append(want[queue.Timed], name)
		}
		if i == 49 {
			m := f.message(name)
			m.Lane = queue.Emergency
			msgs = append(msgs, m)
			want[queue.Emergency] = append(want[queue.Emergency], name)
		}
		f.put(msgs...)
	}
	for _, limit := range []int{1, 7, 50, 1000} {
		for _, only := range []queue.Lane{queue.LaneUnset, queue.Timed} {
			got := make(map[queue.Lane][]string)
			after, pages := "", 0
			for {
				refs, more := f.heads(queue.HeadQuery{After: after, Limit: limit, Table: only})
				for _, ref := range refs {
					got[ref.Table] = append(got[ref.Table], ref.Destination)
				}
				if pages++; more == "" || pages > 200 {
					break
				}
				after = more
			}
			for table := queue.Emergency; table <= queue.Incoming; table++ {
				expect := want[table]
				if only != queue.LaneUnset && only != table {
					expect = nil
				}
				if !slices.Equal(got[table], expect) {
					f.Fatalf("limit %d, only %v: lane %v gave %v, want %v", limit, only, table, got[table], expect)
				}
			}
		}
	}
}

func headsPromise(f *fixture) {
	low, high := f.message("a"), f.message("a")
	high.Priority = queue.Level(9)
	timed := f.timed("a", time.Hour)
	f.put(low, high, timed)
	f.lease(high.Ref())
	refs, more := f.heads(queue.HeadQuery{Limit: 10})
	f.equal(more, "")
	f.equal(refs, []queue.Ref{
		{ID: timed.ID, Destination: "a", Table: queue.Timed, ReadyAt: timed.Ref().ReadyAt},
		{ID: high.ID, Destination: "a", Table: queue.Incoming, Priority: high.Priority},
	})
}
