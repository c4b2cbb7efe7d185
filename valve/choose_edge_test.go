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

// wants opens a subscription; an empty name wants all.
func (r *Reader) wants(t *testing.T, name string, credit int) *Subscription {
	t.Helper()
	s, err := r.NewInbox().Subscribe(Filter{Exact: name}, credit, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range r.x.dests {
		d.more = false // the store is empty
	}
	return s
}

// picked says what jobs took: destination and numbers, item by item.
func picked(jobs []*job) []string {
	var out []string
	for _, j := range jobs {
		for _, it := range j.items {
			n := make([]int, len(it.entries))
			for i, e := range it.entries {
				n[i] = int(e.ref.ID[14])<<8 | int(e.ref.ID[15])
			}
			out = append(out, fmt.Sprint(it.d.name, n))
		}
	}
	return out
}

func (r *Reader) wantPick(t *testing.T, what string, want ...string) []*job {
	t.Helper()
	jobs := r.pick(t0)
	if got := picked(jobs); !slices.Equal(got, want) {
		t.Errorf("%s: picked %q, want %q", what, got, want)
	}
	return jobs
}

// Destinations have one message each in turn; of a consumer's credit a quarter is
// kept for those with nothing out.
func TestPickInTurn(t *testing.T) {
	still(t, func(t *testing.T, r *Reader) {
		s := r.wants(t, "", 8)
		for i, name := range []string{"a", "b", "c"} {
			r.backlogOf(name, 10*i+1, 9)
		}
		jobs := r.wantPick(t, "credit of 8", "a[1 2]", "b[11 12]", "c[21 22]")
		if len(jobs) != 1 || jobs[0].class != unlimited || jobs[0].n != 6 || s.assigned != 6 {
			t.Errorf("%d jobs, %d assigned", len(jobs), s.assigned)
		}
		r.backlogOf("d", 31, 9)
		r.backlogOf("e", 41, 9)
		r.backlogOf("f", 51, 9)
		r.wantPick(t, "two are kept for others", "d[31]", "e[41]")
		if d := r.x.dests["f"]; d.parked || !d.inRing || len(s.parked.noCredit) != 0 || len(s.parked.reserved) != 3 {
			t.Errorf("parked: %+v", s.parked)
		}
		s.unassign()
		r.wantPick(t, "one came back", "f[51]")
	})
}

// Where permits are asked for, destinations share an update: each has a part of
// what the consumers want, and at most 64.
func TestPickLimitedInParts(t *testing.T) {
	still(t, func(t *testing.T, r *Reader) {
		r.limit(t, "*", "1000/1s")
		s := r.wants(t, "", 40)
		for i, name := range []string{"a", "b", "c", "d"} {
			r.backlogOf(name, 100*i+1, 80)
		}
		jobs := r.pick(t0)
		if got := picked(jobs); len(jobs) != 1 || jobs[0].class != fastState || len(got) != 4 {
			t.Fatalf("picked %q", got)
		}
		for i, it := range jobs[0].items {
			if want := []int{10, 10, 10, 1}[i]; len(it.entries) != want || !it.asking || !it.d.asking || !it.limited || it.charge {
				t.Errorf("%s: %d messages, want %d: %+v", it.d.name, len(it.entries), want, it)
			}
			for _, e := range it.entries {
				if !e.limited || e.phase != chosen || e.sub != s {
					t.Errorf("%+v", e)
				}
			}
		}
		if r.wantPick(t, "while they ask"); r.rings[fastState].len() != 0 {
			t.Error("destinations that ask are in the ring")
		}
	})
	still(t, func(t *testing.T, r *Reader) {
		r.limit(t, "*", "1000/1s")
		r.wants(t, "", 1000)
		r.backlogOf("a", 1, 200)
		r.backlogOf("b", 301, 200)
		r.backlogOf("c", 601, 200)
		n := 0
		for _, j := range r.pick(t0) {
			for _, it := range j.items {
				n += len(it.entries)
				if len(it.entries) != 64 {
					t.Errorf("%s: %d messages, want 64", it.d.name, len(it.entries))
				}
			}
			if j.n != 128 {
				t.Errorf("a job of %d", j.n)
			}
		}
		if n != 128 {
			t.Errorf("%d messages, want one full job", n)
		}
	})
}

// A weight is a multiple of the turn, and what is full or held ends it.
func TestPickByWeight(t *testing.T) {
	still(t, func(t *testing.T, r *Reader) {
		r.share(t, "a", 3, 0)
		r.share(t, "c", 1, 2)
		r.wants(t, "", 16)
		for i, name := range []string{"a", "b", "c"} {
			r.backlogOf(name, 10*i+1, 9)
		}
		r.wantPick(t, "weight 3, 1, and at most 2 out", "a[1 2 3 4 5 6 7 8]", "b[11 12]", "c[21 22]")
	})
}

// Subscribers of one destination take turns, one message each; one alone gets
// what it has credit for.
func TestPickForOneDestination(t *testing.T) {
	still(t, func(t *testing.T, r *Reader) {
		first, second := r.wants(t, "a", 3), r.wants(t, "a", 9)
		r.backlogOf("a", 1, 9)
		r.wantPick(t, "two subscribers", "a[1]", "a[2]", "a[3]", "a[4]", "a[5]", "a[6]", "a[7 8 9]")
		if first.assigned != 3 || second.assigned != 6 {
			t.Errorf("%d and %d assigned", first.assigned, second.assigned)
		}
		r.wants(t, "b", 70)
		r.backlogOf("b", 101, 90)
		jobs := r.pick(t0)
		if n := len(jobs[0].items[0].entries); len(jobs) != 1 || n != 70 {
			t.Errorf("%d messages for one with a credit of 70", n)
		}
	})
}

// Subscribers of everything and those of one destination take turns.
func TestWildAndExactTakeTurns(t *testing.T) {
	still(t, func(t *testing.T, r *Reader) {
		exact, wild, other := r.wants(t, "a", 8), r.wants(t, "", 8), r.wants(t, "", 8)
		d := r.x.dest("a")
		var got []*Subscription
		for range 6 {
			s, room := r.find(d, 10)
			if room != 8 && s == exact || room != 6 && s != exact {
				t.Errorf("room for %d", room)
			}
			got = append(got, s)
		}
		if want := []*Subscription{exact, wild, exact, other, exact, wild}; !slices.Equal(got, want) {
			t.Errorf("turns: %v", got)
		}
		exact.assigned = 8
		wild.assigned, other.assigned = 6, 7
		if s, room := r.find(d, 10); s == nil || room != 1 && room != 2 {
			t.Errorf("nothing out, and room for %d", room)
		}
		d.inFlight = 1
		if s, _ := r.find(d, 10); s != nil {
			t.Error("what is kept for others is given to a destination that has something out")
		}
		d.inFlight = 0
		wild.assigned, other.assigned = 8, 8
		if s, _ := r.find(d, 10); s != nil {
			t.Error("it goes to one without demand")
		}
		d.inFlight, other.assigned = 1, 7
		wild.assigned = 5
		wild.ahead = subBytes - 10
		if s, room := r.find(d, 10); s != wild || room != 1 {
			t.Errorf("room for %d", room)
		}
		if s, _ := r.find(d, 11); s != nil {
			t.Error("a message that is too large for what is on the way")
		}
		exact.assigned, wild.assigned, other.assigned = 8, 8, 8
		if s, _ := r.match(d); s != nil || !d.parked || exact.parked.len() != 1 || wild.parked.len() != 1 || other.parked.len() != 1 {
			t.Error("it is not parked with all who want it")
		}
	})
}

// Bytes on the way are bounded, for a subscription and in all; one message may
// always go.
func TestFits(t *testing.T) {
	still(t, func(t *testing.T, r *Reader) {
		for _, c := range []struct {
			all, ahead, size int
			fits             bool
		}{
			{0, 0, 1 << 30, true},
			{0, 1, subBytes - 1, true}, {0, 1, subBytes, false},
			{aheadBytes - 1, 1, subBytes - 1, true},
			{aheadBytes, 1, lastBytes - 1, true}, {aheadBytes, 1, lastBytes, false}, {aheadBytes, 0, 1 << 30, true},
		} {
			if r.bytes = c.all; r.fits(c.ahead, c.size) != c.fits {
				t.Errorf("%+v", c)
			}
		}
		if aheadBytes != 32<<20 || subBytes != 4<<20 || lastBytes != 64<<10 {
			t.Error("other bounds than documented")
		}
	})
}

// 512 messages of limited destinations are between permit and dispatch, or eight
// times as many where their permits have much slack.
func TestRoomOnTheWay(t *testing.T) {
	still(t, func(t *testing.T, r *Reader) {
		tight, relaxed := r.x.dest("a"), r.x.dest("b")
		relaxed.relaxed = true
		s := r.wants(t, "", 9)
		for i, d := range []*destination{tight, relaxed} {
			if got, want := r.room(fastState, d.weight()), []int{512, 4096}[i]; got != want {
				t.Errorf("room for %d, want %d", got, want)
			}
		}
		a, b := &entry{dest: tight, sub: s, ref: queue.Ref{Size: 100}}, &entry{dest: relaxed, sub: s, ref: queue.Ref{Size: 11}}
		r.goAhead(a, fastState)
		r.goAhead(b, fastState)
		if r.ahead[fastState] != 9 || r.bytes != 111 || s.ahead != 111 {
			t.Errorf("%d shares, %d and %d bytes", r.ahead[fastState], r.bytes, s.ahead)
		}
		if r.room(fastState, 8) != 510 || r.room(fastState, 1) != 4087 || r.room(durableState, 8) != 512 || r.room(unlimited, 8) != jobItems {
			t.Errorf("room for %d or %d", r.room(fastState, 8), r.room(fastState, 1))
		}
		s.parked = &parking{}
		for range 2 {
			r.stopAhead(a)
			if r.ahead[fastState] != 1 || r.bytes != 11 || s.ahead != 11 || !s.listed {
				t.Errorf("%d shares, %d and %d bytes", r.ahead[fastState], r.bytes, s.ahead)
			}
		}
		r.stopAhead(b)
		if r.ahead[fastState] != 0 || r.bytes != 0 || s.ahead != 0 {
			t.Errorf("%d shares, %d and %d bytes are left", r.ahead[fastState], r.bytes, s.ahead)
		}
	})
}

// What must not be dispatched any more is ended from the head of its list, and no
// permit is asked for it.
func TestDiscardHead(t *testing.T) {
	superseded := throttle.Hold{SupersededBefore: t0}
	for _, c := range []struct {
		what   string
		set    func(ref *queue.Ref)
		hold   throttle.Hold
		drop   bool
		verb   queue.Verb
		reason string
	}{
		{"sound", func(*queue.Ref) {}, throttle.Hold{}, false, 0, ""},
		{"expires later", func(r *queue.Ref) { r.ExpiresAt = t0.UnixMicro() + 1 }, throttle.Hold{}, false, 0, ""},
		{"expires now", func(r *queue.Ref) { r.ExpiresAt = t0.UnixMicro() }, throttle.Hold{}, false, queue.Kill, "expired"},
		{"expires now", func(r *queue.Ref) { r.ExpiresAt = t0.UnixMicro() }, throttle.Hold{}, true, queue.Ack, "expired"},
		{"before the emergency", func(r *queue.Ref) { r.EnqueuedAt = t0.UnixMicro() - 1 }, superseded, true, queue.Kill, "superseded"},
		{"after the emergency", func(r *queue.Ref) { r.EnqueuedAt = t0.UnixMicro() }, superseded, false, 0, ""},
		{"an emergency itself", func(r *queue.Ref) { r.Lane = queue.Emergency }, superseded, false, 0, ""},
		{"leased often", func(r *queue.Ref) { r.Attempts = 39 }, throttle.Hold{}, false, 0, ""},
		{"leased too often", func(r *queue.Ref) { r.Attempts = 40 }, throttle.Hold{}, false, queue.Kill, "lease expired too often"},
	} {
		still(t, func(t *testing.T, r *Reader) {
			r.cfg.DropExpired = c.drop
			ref := row("d", 1)
			c.set(&ref)
			d := r.x.offer(ref, nil, t0)
			ended := r.discardHead(d, c.hold, t0)
			if ended != (c.reason != "") || len(r.settles.pending) != d.inFlight || (d.inFlight == 1) != ended {
				t.Fatalf("%s: ended %v, %d in flight, %d to be settled", c.what, ended, d.inFlight, len(r.settles.pending))
			}
			if ended {
				if got := r.settles.pending[0].settle; got.Verb != c.verb || got.Reason != c.reason || !got.At.Equal(t0) || len(d.ready) != 0 {
					t.Errorf("%s: %+v", c.what, got)
				}
			}
		})
	}
}

// What a job takes of one destination: spaced messages go alone, emergencies that
// bypass limits apart from what asks, and after one with a hold nothing.
func TestChooseApart(t *testing.T) {
	emergency := func(n int) queue.Ref {
		r := row("d", n)
		r.Table, r.Lane = queue.Emergency, queue.Emergency
		return r
	}
	spaced := func(n int) queue.Ref { r := row("d", n); r.Hold = time.Second; return r }
	holding := emergency(2)
	holding.Hold = time.Second
	for _, c := range []struct {
		what   string
		rows   []queue.Ref
		bypass bool
		limit  string
		want   string
		hold   time.Duration
		charge bool
		asking bool
	}{
		{"plain", []queue.Ref{row("d", 1), row("d", 2)}, false, "none", "d[1 2]", 0, false, false},
		{"limited", []queue.Ref{row("d", 1), row("d", 2)}, false, "9/1s", "d[1 2]", 0, false, true},
		{"a spaced one first", []queue.Ref{spaced(1), row("d", 2)}, false, "none", "d[1]", time.Second, false, true},
		{"a spaced one later", []queue.Ref{row("d", 1), spaced(2)}, false, "none", "d[1]", 0, false, false},
		{"bypass", []queue.Ref{emergency(1), row("d", 2)}, true, "9/1s", "d[1]", 0, true, true},
		{"no bypass", []queue.Ref{emergency(1), row("d", 2)}, false, "9/1s", "d[1 2]", 0, false, true},
		{"bypass without a limit", []queue.Ref{emergency(1), row("d", 2)}, true, "none", "d[1 2]", 0, false, false},
		{"an emergency that holds", []queue.Ref{emergency(1), holding, row("d", 3)}, false, "none", "d[1 2]", 0, false, true},
	} {
		still(t, func(t *testing.T, r *Reader) {
			r.limit(t, "*", c.limit)
			if c.bypass {
				r.cfg.Emergency = Bypass
			}
			s := r.wants(t, "", 100)
			for _, ref := range c.rows {
				r.x.offer(ref, nil, t0)
			}
			d := r.x.dests["d"]
			r.refresh(d)
			j := &job{}
			n := r.choose(j, d, s, 10, t0)
			if got := strings.Join(picked([]*job{j}), " "); got != c.want || n != len(j.items[0].entries) || j.n != n || d.inFlight != n {
				t.Errorf("%s: %d, %q, want %q", c.what, n, got, c.want)
			}
			it := j.items[0]
			if it.hold != c.hold || it.charge != c.charge || it.asking != c.asking || d.asking != c.asking || d.open != it {
				t.Errorf("%s: %+v", c.what, it)
			}
		})
	}
}

// Messages that are leased already go first; a spaced one of them alone.
func TestChooseHeldFirst(t *testing.T) {
	for _, c := range []struct {
		what    string
		holds   []time.Duration
		most    int
		cap     int
		want    string
		spaced  bool
		waiting int
	}{
		{"all", []time.Duration{0, 0}, 10, 0, "d[1 2 11 12]", false, 0},
		{"as many as wanted", []time.Duration{0, 0}, 1, 0, "d[1]", false, 1},
		{"one more", []time.Duration{0, 0}, 3, 0, "d[1 2 11]", false, 0},
		{"a cap, and one is out", []time.Duration{0, 0}, 10, 4, "d[1 2 11]", false, 0},
		{"a spaced one first", []time.Duration{1, 0}, 10, 0, "d[1]", true, 1},
		{"a spaced one later, which no other passes", []time.Duration{0, 1}, 10, 0, "d[1]", false, 1},
	} {
		still(t, func(t *testing.T, r *Reader) {
			if c.cap > 0 {
				r.share(t, "d", 1, c.cap)
			}
			s := r.wants(t, "", 100)
			d := r.backlogOf("d", 11, 2)
			for i, hold := range c.holds {
				e := &entry{ref: row("d", i+1), dest: d, phase: prepared, leaseUntil: t0.Add(time.Minute)}
				e.ref.Hold = hold
				d.held = append(d.held, e)
			}
			d.inFlight = len(d.held) + 1
			r.refresh(d)
			j := &job{}
			r.choose(j, d, s, c.most, t0)
			if got := strings.Join(picked([]*job{j}), " "); got != c.want || len(d.held) != c.waiting {
				t.Errorf("%s: %q, want %q; %d are held", c.what, got, c.want, len(d.held))
			}
			if it := j.items[0]; (it.hold > 0) != c.spaced || it.limited != c.spaced {
				t.Errorf("%s: %+v", c.what, it)
			}
		})
	}
}

// What is parked competes again when those who want it have demand: as many as
// they have, and what is kept for others apart.
func TestUnpark(t *testing.T) {
	still(t, func(t *testing.T, r *Reader) {
		s := r.wants(t, "", 8)
		s.assigned = 8
		for i := range 6 {
			d := r.backlogOf(fmt.Sprint("none", i), 10*i+1, 2)
			d.parked, d.inRing = true, false
			s.park(d)
		}
		s.assigned = 6 // two are kept
		for i := range 3 {
			d := r.backlogOf(fmt.Sprint("kept", i), 100+10*i, 2)
			d.parked, d.inRing = true, false
			s.park(d)
		}
		r.rings[unlimited] = rings{}
		if p := s.parked; len(p.noCredit) != 6 || len(p.reserved) != 3 || p.len() != 9 {
			t.Fatalf("%+v", p)
		}
		count := func(what string, noCredit, reserved, waiting int) {
			t.Helper()
			s.freed()
			r.unpark()
			if p := s.parked; len(p.noCredit) != noCredit || len(p.reserved) != reserved || r.rings[unlimited].len() != waiting {
				t.Errorf("%s: %d and %d are parked, %d compete", what, len(p.noCredit), len(p.reserved), r.rings[unlimited].len())
			}
		}
		s.assigned = 8
		count("no demand", 6, 3, 0)
		if s.listed || len(r.freed) > 0 {
			t.Error("without demand it is looked at again")
		}
		s.assigned = 6
		count("what is kept", 4, 3, 2)
		s.assigned = 5
		count("more than that", 1, 0, 8)
		if !s.listed {
			t.Error("it is not looked at again")
		}
		s.listed = false
		s.freed()
		r.freed = r.freed[:1]
		s.assigned = 0
		r.unpark()
		if s.parked != nil || r.rings[unlimited].len() != 9 || s.listed {
			t.Errorf("all: %+v, %d compete", s.parked, r.rings[unlimited].len())
		}
	})
}

// A message that is leased already and too large for what is on the way is not
// passed by smaller ones behind it.
func TestLargeOneIsNotPassed(t *testing.T) {
	still(t, func(t *testing.T, r *Reader) {
		s := r.wants(t, "", 100)
		d := r.backlogOf("d", 11, 2)
		for i, size := range []int{5, subBytes} {
			e := &entry{ref: row("d", i+1), dest: d, phase: prepared, leaseUntil: t0.Add(time.Minute)}
			e.ref.Size = size
			d.held = append(d.held, e)
		}
		d.inFlight = 2
		j := &job{}
		r.refresh(d)
		r.choose(j, d, s, 10, t0)
		if got := picked([]*job{j}); !slices.Equal(got, []string{"d[1]"}) {
			t.Errorf("picked %q", got)
		}
	})
}

// Where all that was there must not go any more, nothing of it stays behind that
// the destination would wait for.
func TestNothingToChoose(t *testing.T) {
	for _, limit := range []string{"none", "9/1s"} {
		still(t, func(t *testing.T, r *Reader) {
			r.limit(t, "*", limit)
			s := r.wants(t, "", 100)
			ref := row("d", 1)
			ref.ExpiresAt = 1
			d := r.x.offer(ref, nil, t0)
			r.refresh(d)
			j := &job{}
			if n := r.choose(j, d, s, 10, t0); n != 0 || j.n != 0 || len(j.items) != 0 || len(d.pipeline) != 0 || d.asking || d.open != nil {
				t.Errorf("%s: took %d: %+v", limit, n, d)
			}
			ref.ID = refID(2)
			r.added(r.x.offer(ref, nil, t0), t0)
			if jobs := r.wantPick(t, limit); len(jobs) > 0 {
				t.Errorf("%s: %d jobs", limit, len(jobs))
			}
		})
	}
}
