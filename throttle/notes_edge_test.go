package throttle

import (
	"bytes"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mvalve/mvalve/internal/checker"
	"github.com/mvalve/mvalve/state"
)

// flushes calls Flush at now after t0 and reports whether it wrote anything.
func flushes(t *testing.T, l *Limiter, store *counted, now time.Duration) bool {
	t.Helper()
	before := store.writes
	next := l.Flush(t.Context(), t0.Add(now))
	if !next.IsZero() && next.Before(t0.Add(now+ms)) {
		t.Errorf("flush again at %v, which is less than a millisecond after %v", next.Sub(t0), now)
	}
	return store.writes > before
}

// The time of a permit is meant with both of its ends.
func TestDispatchOutsideThePermitIsLogged(t *testing.T) {
	var text bytes.Buffer
	l := NewLimiter(Config{Fast: state.NewMemory(), Logger: slog.New(slog.NewTextHandler(&text, nil))})
	p := take(t, l, t0, Request{Limit: mustLimit(t, "9/1s")}).Permits[0]
	l.Dispatched(p, p.At)
	l.Dispatched(p, p.Until)
	if text.Len() > 0 {
		t.Errorf("logged: %s", &text)
	}
	for _, at := range []time.Time{p.At.Add(-1), p.Until.Add(1)} {
		text.Reset()
		if l.Dispatched(p, at); !strings.Contains(text.String(), "outside") {
			t.Errorf("dispatched from %v to %v at %v: logged %q", p.At, p.Until, at, &text)
		}
	}
}

// Reports are written a quarter of the interval after the dispatch, but not
// later than 250 ms, with 20 ms to share the write with others; and only where a
// slot known better would matter: with half of the window used, and a slack that
// is not tiny against it.
func TestWhenReportsAreWritten(t *testing.T) {
	const never = 0
	for _, c := range []struct {
		limit string
		take  int
		due   time.Duration
	}{
		{"2/400ms", 2, 100 * ms},
		{"2/1s", 2, 250 * ms},
		{"2/1s", 1, 250 * ms},
		{"4/1s", 1, never},
		{"2/9.999999s", 2, 250 * ms},
		{"2/10s", 2, never},
		{"2/9s guard=1s", 2, never},
		{"2/24h", 2, never},
	} {
		l, store := newCounted()
		limit := mustLimit(t, c.limit)
		permits := take(t, l, t0, Request{Limit: limit, Want: c.take}).Permits
		if len(permits) != c.take {
			t.Fatalf("%s: %d permits", c.limit, len(permits))
		}
		for _, p := range permits {
			l.Dispatched(p, t0.Add(ms))
		}
		if c.due == never {
			for now := time.Duration(0); now < 2*limit.Window(); now += limit.Window() / 20 {
				if flushes(t, l, store, now) {
					t.Errorf("%s with %d: written at %v", c.limit, c.take, now)
				}
			}
			continue
		}
		at := ms + c.due - 20*ms
		if next := l.Flush(t.Context(), t0.Add(ms)); !next.Equal(t0.Add(ms + c.due)) {
			t.Errorf("%s with %d: flush again at %v, want %v", c.limit, c.take, next.Sub(t0), ms+c.due)
		}
		// A flush looks when the first is due; another one's takes along what is due soon.
		l.nextDue = 1
		if flushes(t, l, store, at-time.Microsecond) {
			t.Errorf("%s with %d: written before %v", c.limit, c.take, at)
		}
		l.nextDue = 1
		if !flushes(t, l, store, at) {
			t.Errorf("%s with %d: not written at %v", c.limit, c.take, at)
		}
		if next := l.Flush(t.Context(), t0.Add(at)); !next.IsZero() {
			t.Errorf("%s with %d: all is written, and yet flush again at %v", c.limit, c.take, next.Sub(t0))
		}
	}
}

// Of several reports the first one decides when they are written.
func TestFirstReportDecides(t *testing.T) {
	for _, order := range [][]time.Duration{{10 * ms, 40 * ms}, {40 * ms, 10 * ms}} {
		l, store := newCounted()
		for i, p := range take(t, l, t0, Request{Limit: mustLimit(t, "2/1s"), Want: 2}).Permits {
			l.Dispatched(p, t0.Add(order[i]))
		}
		if flushes(t, l, store, 259*ms) {
			t.Errorf("%v: written before the first is due", order)
		}
		if !flushes(t, l, store, 260*ms) {
			t.Errorf("%v: not written when the first is due", order)
		}
	}
}

// A permit that came back is left to the reader's next request for 30 ms, and
// written then.
func TestWhenReturnsAreWritten(t *testing.T) {
	l, store := newCounted()
	req := Request{Limit: mustLimit(t, "2/24h"), Want: 2}
	l.Return(take(t, l, t0, req).Permits[0])
	if flushes(t, l, store, 0) {
		t.Error("written at once, beside the request that would take it along")
	}
	if next := l.Flush(t.Context(), t0); !next.Equal(t0.Add(250 * ms)) {
		t.Errorf("flush again at %v", next.Sub(t0))
	}
	l, store = newCounted()
	l.Return(take(t, l, t0, req).Permits[0])
	if flushes(t, l, store, 240*ms) || flushes(t, l, store, 269*ms) || !flushes(t, l, store, 270*ms) {
		t.Error("met late: not written 30 ms after that")
	}
	l, _ = newCounted()
	req.Limit.Max = 5
	l.Return(take(t, l, t0, req).Permits[0])
	if g := take(t, l, t0.Add(time.Hour), Request{Limit: req.Limit, Want: 9}); len(g.Permits) != 4 {
		t.Errorf("%d permits, want those that are left and the one that came back", len(g.Permits))
	}
}

// Reports are forgotten when they cannot matter any more: a window after the
// latest that their permits could be used, and the hold of a series.
func TestReportsThatMatterNoMore(t *testing.T) {
	for _, c := range []struct {
		limit string
		hold  time.Duration
		until time.Duration
	}{
		{"9/10s", 0, 10*second + 250*ms},
		{"3/10s", 0, 10*second + 50*ms},
		{"9/10s", 7 * second, 17*second + 250*ms},
	} {
		l, _ := newCounted()
		p := take(t, l, t0, Request{Limit: mustLimit(t, c.limit), Hold: c.hold}).Permits[0]
		l.Dispatched(p, t0.Add(ms))
		for _, d := range []time.Duration{time.Second, c.until + ms} {
			l.nextDue = 1
			l.Flush(t.Context(), t0.Add(d))
			if len(l.pending) != 1 {
				t.Fatalf("%s, hold %v: the report is forgotten after %v", c.limit, c.hold, d)
			}
		}
		if l.nextDue != t0.Add(c.until+ms).UnixMicro() {
			t.Errorf("%s, hold %v: looked at again after %v", c.limit, c.hold, time.UnixMicro(l.nextDue).Sub(t0))
		}
		if next := l.Flush(t.Context(), t0.Add(c.until+ms)); !next.Equal(t0.Add(c.until + 2*ms)) {
			t.Errorf("%s, hold %v: flush again at %v", c.limit, c.hold, next.Sub(t0))
		}
		l.Flush(t.Context(), t0.Add(c.until+ms+time.Microsecond))
		if len(l.pending) != 0 {
			t.Errorf("%s, hold %v: the report is still there after %v", c.limit, c.hold, c.until+ms)
		}
	}
}

// Drain writes everything there is, however much.
func TestDrainWritesAll(t *testing.T) {
	l, store := newCounted()
	const n = 2*flushBatch + 1
	limit := mustLimit(t, "4/10s")
	for i := range n {
		g := take(t, l, t0, Request{Destination: fmt.Sprint(i), Limit: limit})
		l.Dispatched(g.Permits[0], t0)
	}
	l.Return(take(t, l, t0, Request{Destination: "back", Limit: limit}).Permits[0])
	store.writes = 0
	l.Drain(t.Context(), t0)
	if store.writes != n+1 || len(l.pending) != 0 {
		t.Errorf("%d values written, want %d; %d are left", store.writes, n+1, len(l.pending))
	}
	if next := l.Flush(t.Context(), t0); !next.IsZero() {
		t.Errorf("flush again at %v", next)
	}
}

// Reports that could not be written are kept, and tried again 20 ms later, or
// when a request for the destination comes.
func TestReportsSurviveFailures(t *testing.T) {
	for _, fault := range []error{state.ErrUnavailable, state.ErrConflict, state.ErrUnknown} {
		memory := state.NewMemory()
		store := &counted{Store: memory}
		l := NewLimiter(Config{Fast: store})
		req := Request{Limit: mustLimit(t, "2/1s"), Want: 2}
		for i, p := range take(t, l, t0, req).Permits {
			l.Dispatched(p, t0.Add(time.Duration(i)*10*ms))
		}
		memory.Fault = func(string, bool) (bool, error) { return false, fault }
		l.Flush(t.Context(), t0.Add(250*ms))
		memory.Fault = nil
		if len(l.pending) != 1 {
			t.Fatalf("%v: the reports are lost", fault)
		}
		if due := l.pending["d"].due; due != t0.Add(270*ms).UnixMicro() {
			t.Errorf("%v: due again after %v", fault, time.UnixMicro(due).Sub(t0))
		}
		if !flushes(t, l, store, 270*ms) {
			t.Errorf("%v: not tried again", fault)
		}
		g := take(t, l, t0.Add(990*ms), req)
		if len(g.Permits) != 2 || !g.Permits[0].At.Equal(t0.Add(time.Second)) || !g.Permits[1].At.Equal(t0.Add(1010*ms)) {
			t.Errorf("%v: slots free by the reports: %+v", fault, g)
		}
	}
}

// Notes that come back from a failed write join those made meanwhile.
func TestFailedReportsJoinNewerOnes(t *testing.T) {
	memory := state.NewMemory()
	l := NewLimiter(Config{Fast: memory})
	req := Request{Limit: mustLimit(t, "2/1s"), Want: 2}
	permits := take(t, l, t0, req).Permits
	l.Dispatched(permits[0], t0)
	memory.Fault = func(string, bool) (bool, error) {
		if len(permits) > 1 { // while the write is under way
			l.Dispatched(permits[1], t0.Add(40*ms))
			permits = permits[:1]
		}
		return false, state.ErrUnavailable
	}
	l.Flush(t.Context(), t0.Add(250*ms))
	memory.Fault = nil
	d := l.pending["d"]
	if d == nil || len(d.list) != 2 || d.list[0].used != t0.UnixMicro() {
		t.Fatalf("notes: %+v", d)
	}
	if d.due != t0.Add(270*ms).UnixMicro() || d.until != t0.Add(40*ms+time.Second+50*ms).UnixMicro() {
		t.Errorf("due after %v, of use until %v", time.UnixMicro(d.due).Sub(t0), time.UnixMicro(d.until).Sub(t0))
	}
	if l.nextDue != d.due {
		t.Errorf("flushed again after %v", time.UnixMicro(l.nextDue).Sub(t0))
	}
}

// A permit that was granted by a write of unknown outcome is given back when it
// turns out that it was carried out, with all that it closed.
func TestUnknownOutcomeIsUndone(t *testing.T) {
	for _, limit := range []string{"3/10s", "3/10s paced"} {
		memory := state.NewMemory()
		l := NewLimiter(Config{Fast: memory})
		req := Request{Limit: mustLimit(t, limit), Want: 1, Hold: time.Hour}
		memory.Fault = func(string, bool) (bool, error) { return true, state.ErrUnknown }
		if g := take(t, l, t0, req); len(g.Permits) > 0 {
			t.Fatalf("%s: %+v", limit, g)
		}
		memory.Fault = nil
		req.Hold = 0
		if g := take(t, l, t0.Add(10*ms), req); len(g.Permits) != 1 || !g.Permits[0].At.Equal(t0.Add(10*ms)) {
			t.Errorf("%s: %+v, want a permit at once", limit, g)
		}
		s, err := l.Status(t.Context(), t0.Add(10*ms), "d", req.Limit)
		if err != nil || s.Used != 1 || !s.Closed.IsZero() {
			t.Errorf("%s: %+v, %v", limit, s, err)
		}
	}
}

// A report whose write has an unknown outcome is not written again: the latest
// moment of another permit may be that of the reported one, which it would be
// taken for.
func TestReportOfUnknownOutcome(t *testing.T) {
	memory := state.NewMemory()
	a, b := NewLimiter(Config{Fast: memory}), NewLimiter(Config{Fast: memory})
	req := Request{Limit: mustLimit(t, "100/1s"), Want: 24}
	var used []int64
	use := func(l *Limiter, permits []Permit, late time.Duration) {
		for _, p := range permits {
			l.Dispatched(p, p.At.Add(late))
			used = append(used, p.At.Add(late).UnixMicro())
		}
	}
	plenty := take(t, a, t0, req).Permits
	use(a, plenty, 0)
	use(b, take(t, b, t0.Add(10*ms), req).Permits, 0)
	memory.Fault = func(string, bool) (bool, error) { return true, state.ErrUnknown }
	a.Drain(t.Context(), t0.Add(20*ms))
	memory.Fault = nil
	crowded := take(t, b, t0.Add(200*ms), req).Permits
	if len(plenty) != 24 || len(crowded) != 24 || !plenty[0].Until.Equal(crowded[0].Until) {
		t.Fatalf("%d permits until %v, then %d until %v", len(plenty), plenty[0].Until, len(crowded), crowded[0].Until)
	}
	a.Drain(t.Context(), t0.Add(210*ms))
	use(b, crowded, crowded[0].Until.Sub(crowded[0].At)) // as late as may be
	for at := 260 * ms; at < 1400*ms; at += 10 * ms {
		req.Want = 100
		use(b, take(t, b, t0.Add(at), req).Permits, 0)
		b.Drain(t.Context(), t0.Add(at))
	}
	slices.Sort(used)
	if r := checker.Check("d", used, checker.Limit{Max: 100, Window: time.Second}); r.Above > 0 {
		t.Errorf("%d in a window", r.Worst)
	}
}

// Reports of permits of a limit that is no more change nothing.
func TestReportsOfAnotherEra(t *testing.T) {
	l, _ := newCounted()
	p := take(t, l, t0, Request{Limit: mustLimit(t, "1/10s"), Version: 1}).Permits[0]
	now := t0.Add(ms)
	req := Request{Limit: mustLimit(t, "1/20s"), Version: 2}
	if g := take(t, l, now, req); len(g.Permits) > 0 {
		t.Fatalf("%+v", g)
	}
	l.Return(p)
	if g := take(t, l, now, req); len(g.Permits) > 0 {
		t.Errorf("a permit of before came back, and one is granted: %+v", g)
	}
	if g := take(t, l, now, req); g.NotBefore.Before(t0.Add(20 * second)) {
		t.Errorf("ask again after %v", g.NotBefore.Sub(t0))
	}
}

// A report that nobody waits for gets the time of a failed one that matters.
func TestFailedReportHurriesTheNext(t *testing.T) {
	memory := state.NewMemory()
	l := NewLimiter(Config{Fast: memory})
	req := Request{Limit: mustLimit(t, "4/1s"), Want: 1}
	plenty := take(t, l, t0, req).Permits
	req.Want = 3
	crowded := take(t, l, t0, req).Permits
	l.Dispatched(crowded[0], t0)
	memory.Fault = func(string, bool) (bool, error) {
		if len(plenty) > 0 { // while the write is under way
			l.Dispatched(plenty[0], t0.Add(time.Microsecond))
			plenty = nil
		}
		return false, state.ErrUnavailable
	}
	l.Flush(t.Context(), t0.Add(250*ms))
	if d := l.pending["d"]; d == nil || len(d.list) != 2 || d.due != t0.Add(270*ms).UnixMicro() {
		t.Errorf("notes: %+v", d)
	}
}

// What was granted by a write of unknown outcome is found again for as long as
// it counts, also if other reports come in between.
func TestUnknownOutcomeIsRemembered(t *testing.T) {
	memory := state.NewMemory()
	l := NewLimiter(Config{Fast: memory})
	req := Request{Limit: mustLimit(t, "3/10s"), Want: 1}
	p := take(t, l, t0, req).Permits[0]
	memory.Fault = func(string, bool) (bool, error) {
		l.Dispatched(p, t0.Add(ms))
		return true, state.ErrUnknown
	}
	take(t, l, t0.Add(2*ms), req)
	memory.Fault = nil
	l.Flush(t.Context(), t0.Add(10*second+52*ms))
	if len(l.pending) != 1 {
		t.Fatal("forgotten while it counts")
	}
	if s, err := l.Status(t.Context(), t0.Add(3*ms), "d", req.Limit); err != nil || s.Used != 2 {
		t.Errorf("before: %+v, %v", s, err)
	}
	req.Want = 3
	if g := take(t, l, t0.Add(9*second), req); len(g.Permits) != 2 {
		t.Errorf("%d permits beside the one that was used", len(g.Permits))
	}

	l, m := newTest(t)
	m.Fault = func(string, bool) (bool, error) { return true, state.ErrUnknown }
	take(t, l, t0, req)
	m.Fault = nil
	for _, after := range []time.Duration{0, 10*second + 50*ms} {
		l.nextDue = 1
		l.Flush(t.Context(), t0.Add(after))
		if len(l.pending) != 1 {
			t.Fatalf("forgotten after %v", after)
		}
	}
	l.Flush(t.Context(), t0.Add(10*second+50*ms+time.Microsecond))
	if len(l.pending) != 0 {
		t.Error("remembered though it cannot count any more")
	}
}

// A request with rules that are too old does not lose the reports it carried.
func TestReportsSurviveOldRules(t *testing.T) {
	l, store := newCounted()
	other := NewLimiter(Config{Fast: store})
	req := Request{Limit: mustLimit(t, "1/1s"), Version: 1}
	p := take(t, l, t0, req).Permits[0]
	newer := req
	newer.Version = 2
	take(t, other, t0.Add(100*ms), Request{Limit: req.Limit, Version: 2, Charge: true})
	l.Dispatched(p, t0)
	if g := take(t, l, t0.Add(200*ms), req); !g.Stale {
		t.Fatalf("%+v", g)
	}
	if d := l.pending["d"]; d == nil || len(d.list) != 1 {
		t.Errorf("notes: %+v", d)
	}
}
