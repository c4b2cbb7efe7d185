package valve

import (
	"slices"
	"testing"
	"time"

	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/throttle"
)

var t0 = time.UnixMicro(1_700_000_000_000_000).UTC()

// refID returns the n-th id.
func refID(n int) queue.ID { return queue.ID{14: byte(n >> 8), 15: byte(n)} }

// row returns the n-th row of a destination's incoming lane.
func row(destination string, n int) queue.Ref {
	return queue.Ref{ID: refID(n), Destination: destination, Table: queue.Incoming, Lane: queue.Incoming}
}

// timed returns a row of the timed lane.
func timed(destination string, n int, at time.Time) queue.Ref {
	ref := row(destination, n)
	ref.Table, ref.Lane, ref.ReadyAt = queue.Timed, queue.Timed, at.UnixMicro()
	return ref
}

// list returns the numbers of a destination's references, in their order.
func (d *destination) list() []int {
	var out []int
	for _, e := range d.ready {
		out = append(out, int(e.ref.ID[14])<<8|int(e.ref.ID[15]))
	}
	return out
}

// check fails if the index does not know exactly what its lists hold.
func (x *index) check(t *testing.T) {
	t.Helper()
	n := len(x.soon)
	for _, d := range x.dests {
		n += len(d.ready)
		for _, e := range d.ready {
			if x.known[e.ref.ID] != e || e.phase != waiting || e.dest != d {
				t.Errorf("%v is in a list and not known as waiting", e.ref.ID)
			}
		}
	}
	if x.total != n {
		t.Errorf("%d references are counted, %d are there", x.total, n)
	}
}

// Emergencies go before what was timed, that before what is new; in each the
// higher priority, then what is due first, then the older.
func TestOrderOfADestination(t *testing.T) {
	emergency := func(n int, p queue.Priority) queue.Ref {
		r := row("d", n)
		r.Table, r.Lane, r.Priority = queue.Emergency, queue.Emergency, p
		return r
	}
	retried := timed("d", 0, t0.Add(-time.Hour)) // an emergency that waited for its retry
	retried.Lane = queue.Emergency
	sooner, later, urgent := timed("d", 59, t0.Add(-2)), timed("d", 3, t0), timed("d", 58, t0)
	urgent.Priority = 1
	sooner.ReadyAt--
	plain, high := row("d", 2), row("d", 57)
	high.Priority = 9
	want := []queue.Ref{
		emergency(4, 2), emergency(56, 1), emergency(5, 0), emergency(6, 0), retried,
		urgent, sooner, later, high, row("d", 1), plain, row("d", 7),
	}
	for i := range want {
		for j := range want {
			if got := before(&want[i], &want[j]); (got < 0) != (i < j) || (got == 0) != (i == j) {
				t.Errorf("%d and %d: before is %d", i, j, got)
			}
		}
	}
	for offset := range want { // in any order they come
		x := newIndex(100)
		for i := range want {
			if x.offer(want[(5*i+offset)%len(want)], nil, t0) == nil {
				t.Fatal("not taken")
			}
		}
		var got []queue.Ref
		for _, e := range x.dests["d"].ready {
			got = append(got, e.ref)
		}
		if !slices.Equal(got, want) {
			t.Errorf("order %v, want %v", got, want)
		}
		x.check(t)
	}
}

// A list that is not used up quickly holds 256 references and wants more below
// 32; with each refill that comes within 100 ms it may be twice as long, up to
// 2,048, and wants more below its half; others make it shorter again.
func TestLengthOfAList(t *testing.T) {
	d := &destination{}
	now := t0
	full := func(n int) bool { d.ready = make([]*entry, n); return !d.low() }
	state := func(most, enough int) {
		t.Helper()
		if d.most() != most || full(enough-1) || !full(enough) {
			t.Errorf("at most %d, want %d; low with %d: %v, with %d: %v", d.most(), most, enough-1, !full(enough-1), enough, !full(enough))
		}
	}
	refill := func(after time.Duration, most, enough int) {
		t.Helper()
		now = now.Add(after)
		d.pace(now)
		state(most, enough)
	}
	state(256, 32)
	refill(0, 256, 32)
	refill(rushTime, 256, 32)
	refill(rushTime-1, 512, 256)
	refill(rushTime-1, 1024, 512)
	refill(0, 2048, 1024)
	refill(0, 2048, 1024)
	refill(rushTime, 1024, 512)
	refill(time.Hour, 512, 256)
	refill(time.Hour, 256, 32)
	refill(time.Hour, 256, 32)
	refill(0, 512, 256)
	d.shared()
	state(256, 32)
	refill(0, 256, 32)
}

// What is before the end of a full list goes into it and its last ones out, and
// what is behind it is left to the store.
func TestFullList(t *testing.T) {
	x := newIndex(10_000)
	for n := range headRefs {
		if x.offer(row("d", 10+2*n), nil, t0) == nil {
			t.Fatalf("%d is not taken", n)
		}
	}
	d := x.dests["d"]
	if d.more || d.dropped || len(d.ready) != headRefs {
		t.Fatalf("more %v, dropped %v, %d references", d.more, d.dropped, len(d.ready))
	}
	behind := row("d", 10+2*headRefs)
	if x.offer(behind, nil, t0) != nil || x.seen(behind.ID) || !d.more || !d.dropped {
		t.Error("a reference behind a full list is taken")
	}
	last := d.ready[headRefs-1]
	x.check(t)
	if x.offer(row("d", 11), nil, t0) != d || len(d.ready) != headRefs {
		t.Errorf("%d references", len(d.ready))
	}
	if got := d.list()[:3]; !slices.Equal(got, []int{10, 11, 12}) {
		t.Errorf("begins with %d", got)
	}
	if x.seen(last.ref.ID) || last.phase != gone || x.total != headRefs {
		t.Error("the last is still known")
	}
	x.check(t)
	for n := range 10 { // with room again, and rows of the store behind it
		if e := x.popReady(d); int(e.ref.ID[15]) != []int{10, 11, 12, 14, 16, 18, 20, 22, 24, 26}[n] {
			t.Errorf("first is %v", e.ref.ID)
		}
	}
	d.dropped = false
	if x.offer(behind, nil, t0) != nil || !d.dropped {
		t.Error("a reference behind a gap is taken")
	}
	if x.offer(row("d", 30), nil, t0) != nil {
		t.Error("one that is known is taken again")
	}
}

// The store is read on behind the last reference, in the incoming lane only: the
// timed one has rows that became due meanwhile at its head.
func TestEndOfAList(t *testing.T) {
	x := newIndex(100)
	d := x.dest("d")
	if d.end() != nil {
		t.Error("of a list that never held anything")
	}
	x.offer(row("d", 1), nil, t0)
	x.offer(row("d", 2), nil, t0)
	if end := d.end(); end == nil || end.ID != refID(2) {
		t.Errorf("%+v", end)
	}
	x.popReady(d)
	if d.last.ID == refID(1) {
		t.Error("the last is one before others")
	}
	x.popReady(d)
	if end := d.end(); end == nil || end.ID != refID(2) || d.ready != nil {
		t.Errorf("of a list that was used up: %+v", end)
	}
	x.offer(timed("d", 3, t0), nil, t0)
	if end := d.end(); end != nil {
		t.Errorf("in the timed lane: %+v", end)
	}
	if x.total != 1 {
		t.Errorf("%d references", x.total)
	}
}

// What comes next of a destination: what is leased already, then its list.
func TestWhatIsNext(t *testing.T) {
	urgent := row("d", 1)
	urgent.Lane, urgent.Size = queue.Emergency, 5
	plain := row("d", 2)
	plain.Size = 7
	u, p := &entry{ref: urgent}, &entry{ref: plain}
	for _, c := range []struct {
		held, ready []*entry
		urgent      bool
		size        int
	}{
		{nil, nil, false, 0},
		{nil, []*entry{u, p}, true, 5}, {nil, []*entry{p}, false, 7},
		{[]*entry{u}, []*entry{p}, true, 5}, {[]*entry{p}, []*entry{u}, false, 7},
		{[]*entry{u}, nil, true, 5}, {[]*entry{p}, nil, false, 7},
	} {
		d := destination{held: c.held, ready: c.ready, inFlight: 3}
		if d.urgent() != c.urgent || d.nextSize() != c.size {
			t.Errorf("%d held, %d ready: urgent %v, size %d", len(c.held), len(c.ready), d.urgent(), d.nextSize())
		}
		if d.backlog() != len(c.held)+len(c.ready) || d.busy() != 3-len(c.held) {
			t.Errorf("%d held, %d ready: backlog %d, busy %d", len(c.held), len(c.ready), d.backlog(), d.busy())
		}
	}
}

// What is not due waits beside the lists, in the order in which it becomes due,
// as far as the index has room.
func TestNotDueYet(t *testing.T) {
	x := newIndex(4)
	for n, after := range []int{3, 1, 2, 1, 5} {
		if x.offer(timed("d", n, t0.Add(time.Duration(after)*time.Microsecond)), nil, t0) != nil {
			t.Error("a message that is not due is ready")
		}
	}
	if len(x.soon) != 4 || x.seen(refID(4)) || len(x.dests) != 0 {
		t.Errorf("%d wait, destinations %v", len(x.soon), x.dests)
	}
	x.check(t)
	if got := x.dueSoon(t0.Add(time.Microsecond - 1)); got != nil {
		t.Errorf("early: %v", got)
	}
	touched := x.dueSoon(t0.Add(2 * time.Microsecond))
	if got := x.dests["d"].list(); len(touched) != 3 || !slices.Equal(got, []int{1, 3, 2}) || len(x.soon) != 1 {
		t.Errorf("due: %v, of %d destinations", got, len(touched))
	}
	x.check(t)
	x = newIndex(4)
	if x.offer(timed("d", 1, t0), nil, t0) == nil {
		t.Error("what is due now is not ready")
	}
}

// What ended while a scan was under way is not taken up again, until two ages
// later.
func TestEndedIsNotTakenUp(t *testing.T) {
	x := newIndex(10)
	x.offer(row("d", 1), nil, t0)
	e := x.popReady(x.dests["d"])
	x.end(e.ref.ID)
	x.forget(e)
	for age := range 3 {
		if got := x.offer(row("d", 1), nil, t0) != nil; got != (age == 2) {
			t.Errorf("age %d: taken up %v", age, got)
		}
		x.ageEnded()
		x.end(refID(7))
	}
	again := x.known[refID(1)]
	if x.forget(e); x.known[refID(1)] != again || e.phase != gone {
		t.Error("forgetting an entry forgets another one of the same message")
	}
	x.forget(again)
	if len(x.known) > 0 {
		t.Error("forgotten, and still known")
	}
}

// A full index drops a tenth: of the destinations that may go last all but eight
// references, then all but one, then what is not due, then the last ones.
func TestTrim(t *testing.T) {
	at := map[string]time.Time{"first": t0, "second": t0.Add(1), "last": t0.Add(2)}
	eligible := func(d *destination) time.Time { return at[d.name] }
	for _, c := range []struct {
		limit int
		want  [4]int // first, second, last, not due
	}{
		{34, [4]int{10, 10, 10, 4}},
		{33, [4]int{10, 8, 8, 4}},
		{35, [4]int{10, 10, 10, 4}},
		{32, [4]int{8, 8, 8, 4}},
		{30, [4]int{8, 8, 8, 3}},
		{20, [4]int{8, 8, 1, 0}},
		{12, [4]int{8, 1, 1, 0}},
		{10, [4]int{1, 1, 1, 0}},
		{2, [4]int{1, 1, 0, 0}},
		{0, [4]int{0, 0, 0, 0}},
	} {
		x := newIndex(100)
		n := 0
		for range 10 {
			for name := range at {
				n++
				x.offer(row(name, n), nil, t0)
			}
		}
		for i := range 4 {
			x.offer(timed("first", 100+i, t0.Add(time.Duration(4-i)*time.Second)), nil, t0)
		}
		x.dest("empty")
		x.limit = c.limit
		x.trim(eligible)
		got := [4]int{len(x.dests["first"].ready), len(x.dests["second"].ready), len(x.dests["last"].ready), len(x.soon)}
		if got != c.want {
			t.Errorf("at most %d: %v are left, want %v", c.limit, got, c.want)
		}
		x.check(t)
		if len(x.known) != x.total {
			t.Errorf("at most %d: %d are known, %d are there", c.limit, len(x.known), x.total)
		}
		for name := range at {
			if d := x.dests[name]; d.more != (len(d.ready) < 10) {
				t.Errorf("at most %d: %s: more is %v", c.limit, name, d.more)
			}
		}
		if len(x.soon) > 0 && x.soon[0].ref.ID != refID(103) {
			t.Errorf("at most %d: what is due first is dropped", c.limit)
		}
	}
}

// A list that is as short as it would be made is left alone: the store has nothing
// behind it.
func TestTrimLeavesShortLists(t *testing.T) {
	x := newIndex(100)
	n := 0
	for name, rows := range map[string]int{"eight": 8, "one": 1, "long": 40} {
		for range rows {
			n++
			x.offer(row(name, n), nil, t0)
		}
	}
	eligible := func(d *destination) time.Time { // the long one is looked at last
		if d.name == "long" {
			return t0
		}
		return t0.Add(1)
	}
	x.limit = 20
	x.trim(eligible)
	if x.total != 17 || !x.dests["long"].more || x.dests["eight"].more || x.dests["one"].more {
		t.Errorf("%d references are left", x.total)
	}
	x.limit = 5
	x.trim(eligible)
	if x.total > 4 || x.dests["one"].more {
		t.Errorf("%d references are left", x.total)
	}
	x.check(t)
}

// Sleepers wake in the order of their times, also when those change.
func TestSleepers(t *testing.T) {
	x := newIndex(10)
	names := []string{"a", "b", "c", "d", "e"}
	for i, name := range names {
		x.sleep(x.dest(name), t0.Add(time.Duration((i*3)%5)*time.Second)) // a c e b d
	}
	x.sleep(x.dest("a"), t0.Add(time.Minute))
	x.sleep(x.dest("c"), t0.Add(-time.Minute))
	x.awake(x.dest("b"))
	x.awake(x.dest("b"))
	x.awake(x.dest("never slept"))
	var got []string
	for len(x.sleeps) > 0 {
		d := x.sleeps[0]
		got = append(got, d.name)
		for i, s := range x.sleeps {
			if s.heapPos != i {
				t.Errorf("%s is at %d and says %d", s.name, i, s.heapPos)
			}
		}
		if x.awake(d); d.heapPos != -1 {
			t.Errorf("%s is awake at %d", d.name, d.heapPos)
		}
	}
	if want := []string{"c", "e", "d", "a"}; !slices.Equal(got, want) {
		t.Errorf("woken: %v, want %v", got, want)
	}
}

// A hold is a message's own while nothing was added to it.
func TestOwnHold(t *testing.T) {
	e := &entry{}
	if e.set(throttle.Hold{}) {
		t.Error("of a message without a duration")
	}
	e.holds, e.why = t0, "duration"
	for want, h := range map[bool]throttle.Hold{
		true: {Until: t0, Reason: "duration"}, false: {Until: t0.Add(1), Reason: "duration"},
	} {
		if e.set(h) != want {
			t.Errorf("%+v: %v", h, !want)
		}
	}
	if e.set(throttle.Hold{Until: t0, Reason: "429"}) {
		t.Error("of another reason")
	}
}

// Of four picks three go to destinations with an emergency, as long as there are
// others; without, each ring is served alone, in turn.
func TestRings(t *testing.T) {
	var q rings
	push := func(f *fifo, express bool, names ...string) {
		for _, name := range names {
			f.push(&destination{name: name, inRing: !express, inExpress: express})
		}
	}
	push(&q.normal, false, "n1", "n2")
	push(&q.express, true, "e1", "e2", "e3", "e4", "e5", "e6")
	if q.len() != 8 {
		t.Errorf("%d wait", q.len())
	}
	var got []string
	for q.len() > 0 {
		d := q.pop()
		if d.inRing || d.inExpress {
			t.Errorf("%s is still marked", d.name)
		}
		got = append(got, d.name)
	}
	if want := []string{"e1", "e2", "e3", "n1", "e4", "e5", "e6", "n2"}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	// Virtual time: 1/8 + 1/7 + ... + 1.
	if q.passed < 2.7178 || q.passed > 2.7180 {
		t.Errorf("virtual time %v", q.passed)
	}
	push(&q.express, true, "e7", "e8", "e9", "e10")
	for range 4 {
		if d := q.pop(); d == nil || d.name[0] != 'e' {
			t.Errorf("got %v", d)
		}
	}
	if q.express.peek() != nil || q.express.pop() != nil || q.normal.pop() != nil {
		t.Error("an empty ring gives something")
	}
}

func TestLeadExactly(t *testing.T) {
	var l lead
	for _, c := range []struct{ took, mean, deviation time.Duration }{
		{8 * time.Millisecond, 8 * time.Millisecond, 4 * time.Millisecond},
		{16 * time.Millisecond, 9 * time.Millisecond, 5 * time.Millisecond},
		{time.Millisecond, 8 * time.Millisecond, 5750 * time.Microsecond},
		{time.Hour, 38250 * time.Microsecond, 64812500},
	} {
		l.add(c.took)
		if l.mean != c.mean || l.deviation != c.deviation || l.estimate() != c.mean+4*c.deviation {
			t.Errorf("after %v: %v ± %v, estimate %v", c.took, l.mean, l.deviation, l.estimate())
		}
	}
}

// Emergencies pass the holds that emergencies set, others only their own; nobody
// passes while the destination rests.
func TestWhatPassesAHold(t *testing.T) {
	emergency, plain := &entry{ref: row("a", 1)}, &entry{ref: row("a", 2), holds: t0, why: "duration"}
	emergency.ref.Lane = queue.Emergency
	for _, c := range []struct {
		e      *entry
		reason string
		passes bool
	}{
		{emergency, holdEmergency, true}, {emergency, "429", false},
		{plain, holdEmergency, false}, {plain, "429", false}, {plain, "duration", true},
	} {
		rest, want := t0.Add(-time.Second), t0
		if c.passes {
			want = rest
		}
		if got := c.e.waits(throttle.Hold{Until: t0, RestUntil: rest, Reason: c.reason}); !got.Equal(want) {
			t.Errorf("%v, hold %q: waits until %v, want %v", c.e.ref.ID, c.reason, got, want)
		}
	}
}
