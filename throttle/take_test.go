package throttle

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"strings"
	"testing"
	"time"

	"github.com/mvalve/mvalve/state"
)

var t0 = time.UnixMicro(simStart).UTC()

func newTest(t *testing.T) (*Limiter, *state.Memory) {
	t.Helper()
	m := state.NewMemory()
	return NewLimiter(Config{Fast: m}), m
}

func take(t *testing.T, l *Limiter, now time.Time, req Request) Grant {
	t.Helper()
	if req.Destination == "" {
		req.Destination = "d"
	}
	if req.Want == 0 {
		req.Want = 1
	}
	return l.Take(t.Context(), now, []Request{req})[0]
}

func TestTakeBatchWithOddNames(t *testing.T) {
	l, _ := newTest(t)
	limit := mustLimit(t, "2/1s")
	names := []string{"a b", strings.Repeat("x", 255), "a b", "é\n\x00", "free"}
	reqs := make([]Request, len(names))
	for i, n := range names {
		reqs[i] = Request{Destination: n, Limit: limit, Want: 2}
	}
	reqs[4].Limit = Limit{}
	grants := l.Take(t.Context(), t0, reqs)
	for i, want := range []int{2, 2, 0, 2, 2} {
		if g := grants[i]; len(g.Permits) != want || g.Err != nil {
			t.Errorf("%q: %d permits, %v; want %d", names[i], len(g.Permits), g.Err, want)
		}
	}
	if nb := grants[2].NotBefore; nb.Before(t0.Add(900*time.Millisecond)) || nb.After(t0.Add(time.Second)) {
		t.Errorf("NotBefore = %v after %v", nb.Sub(t0), t0)
	}
}

func TestSeries(t *testing.T) {
	for _, limit := range []string{"none", "100/1s"} {
		l, _ := newTest(t)
		req := Request{Limit: mustLimit(t, limit), Hold: 3 * time.Second}
		now := t0
		var last time.Time
		for i := range 4 {
			g := take(t, l, now, req)
			for rounds := 0; len(g.Permits) == 0; rounds++ {
				if rounds > 5 || !g.NotBefore.After(now) {
					t.Fatalf("%s: not granted, NotBefore %v at %v", limit, g.NotBefore, now)
				}
				now = g.NotBefore
				g = take(t, l, now, req)
			}
			at := g.Permits[0].At.Add(time.Millisecond)
			if gap := at.Sub(last); i > 0 && (gap < 3*time.Second || gap > 3*time.Second+10*time.Millisecond) {
				t.Errorf("%s: gap %d is %v", limit, i, gap)
			}
			l.Dispatched(g.Permits[0], at)
			now, last = at, at
		}
		g := take(t, l, now, Request{Limit: mustLimit(t, "50/1s")})
		if len(g.Permits) != 0 {
			t.Errorf("%s: a plain message goes while the series keeps it closed", limit)
		}
	}
}

func TestCharge(t *testing.T) {
	l, _ := newTest(t)
	limit := mustLimit(t, "5/1s")
	g := take(t, l, t0, Request{Limit: limit, Want: 5000, Charge: true})
	if len(g.Permits) != 5000 || g.Permits[0].At.After(t0) {
		t.Fatalf("%d permits", len(g.Permits))
	}
	if g := take(t, l, t0.Add(950*time.Millisecond), Request{Limit: limit}); len(g.Permits) != 0 {
		t.Error("charged dispatches do not count")
	}
	if g := take(t, l, t0.Add(1100*time.Millisecond), Request{Limit: limit, Want: 9}); len(g.Permits) != 5 {
		t.Errorf("%d permits a window later, want 5", len(g.Permits))
	}
}

func TestReturnFreesTheSlot(t *testing.T) {
	l, _ := newTest(t)
	req := Request{Limit: mustLimit(t, "1/24h")}
	g := take(t, l, t0, req)
	l.Return(g.Permits[0])
	other := NewLimiter(Config{Fast: l.fast})
	if g := take(t, other, t0, req); len(g.Permits) != 0 {
		t.Fatal("two permits are out")
	}
	if next := l.Flush(t.Context(), t0); next.IsZero() || next.After(t0.Add(300*time.Millisecond)) {
		t.Fatalf("next flush at %v", next)
	}
	l.Flush(t.Context(), t0.Add(300*time.Millisecond))
	if g := take(t, other, t0.Add(300*time.Millisecond), req); len(g.Permits) != 1 {
		t.Error("a returned slot is not free for another reader")
	}
}

func TestStale(t *testing.T) {
	l, _ := newTest(t)
	take(t, l, t0, Request{Limit: mustLimit(t, "5/1s"), Version: 7})
	if g := take(t, l, t0, Request{Limit: mustLimit(t, "500/1s"), Version: 6}); !g.Stale || len(g.Permits) != 0 {
		t.Errorf("older rules: %+v", g)
	}
}

func TestUnavailableAndUnknown(t *testing.T) {
	l, m := newTest(t)
	req := Request{Limit: mustLimit(t, "1/24h")}
	m.Fault = func(string, bool) (bool, error) { return false, fmt.Errorf("%w: refused", state.ErrUnavailable) }
	if g := take(t, l, t0, req); !errors.Is(g.Err, state.ErrUnavailable) || len(g.Permits) != 0 {
		t.Errorf("unreachable: %+v", g)
	}
	m.Fault = func(string, bool) (bool, error) { return true, state.ErrUnknown }
	if g := take(t, l, t0, req); len(g.Permits) != 0 || g.NotBefore.IsZero() {
		t.Errorf("unknown: %+v", g)
	}
	m.Fault = nil
	if g := take(t, l, t0, req); len(g.Permits) != 1 {
		t.Error("the permit whose outcome was unknown, and which was written, is not found again")
	}
	if g := take(t, l, t0, req); len(g.Permits) != 0 {
		t.Error("it is granted twice")
	}
}

func TestClockBackwards(t *testing.T) {
	l, _ := newTest(t)
	req := Request{Limit: mustLimit(t, "3/10s"), Want: 3}
	for _, p := range take(t, l, t0, req).Permits {
		l.Dispatched(p, p.At)
	}
	for _, d := range []time.Duration{-time.Hour, -10 * time.Second, -time.Microsecond, 9 * time.Second} {
		if g := take(t, l, t0.Add(d), req); len(g.Permits) != 0 {
			t.Errorf("granted at %v", d)
		}
	}
}

func TestLost(t *testing.T) {
	l, m := newTest(t)
	req := Request{Limit: mustLimit(t, "3/10s"), Want: 3}
	take(t, l, t0, req)
	m.Wipe(t0.Add(time.Second))
	if g := take(t, l, t0.Add(10900*time.Millisecond), req); len(g.Permits) != 0 {
		t.Error("granted within a window of the loss")
	}
	if g := take(t, l, t0.Add(11200*time.Millisecond), req); len(g.Permits) != 3 {
		t.Errorf("%d permits a window after the loss", len(g.Permits))
	}
	if g := take(t, l, t0.Add(11200*time.Millisecond), Request{Destination: "new", Limit: req.Limit}); len(g.Permits) != 1 {
		t.Error("an unused destination waits for an old loss")
	}
}

// A loss counts also while the store that a limit once came from is asked.
func TestLostAfterAChange(t *testing.T) {
	fast, durable := state.NewMemory(), state.NewMemory()
	l := NewLimiter(Config{Fast: fast, Durable: durable})
	req := Request{Limit: mustLimit(t, "3/10s"), Want: 3, Version: 1, Changed: t0}
	if g := take(t, l, t0, req); len(g.Permits) != 3 {
		t.Fatalf("%d permits at first", len(g.Permits))
	}
	fast.Wipe(t0.Add(time.Second))
	if g := take(t, l, t0.Add(10900*time.Millisecond), req); len(g.Permits) != 0 {
		t.Error("granted within a window of the loss")
	}
	if g := take(t, l, t0.Add(11200*time.Millisecond), req); len(g.Permits) != 3 {
		t.Errorf("%d permits a window after the loss", len(g.Permits))
	}
}

func TestMalformedState(t *testing.T) {
	l, m := newTest(t)
	for _, bad := range []string{"", "x", strings.Repeat("\xff", 100), strings.Repeat("\x01", 64<<10)} {
		errs := m.Update(t.Context(), t0, []string{l.key("d")}, []time.Duration{time.Hour},
			func(int, state.Entry) []byte { return []byte(bad) })
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
		req := Request{Limit: mustLimit(t, "3/10s"), Want: 3}
		for _, d := range []time.Duration{0, 5 * time.Second, 9900 * time.Millisecond} {
			if g := take(t, l, t0.Add(d), req); len(g.Permits) != 0 || g.Err != nil {
				t.Errorf("%.10q at %v: %+v", bad, d, g)
			}
		}
		if g := take(t, l, t0.Add(10200*time.Millisecond), req); len(g.Permits) != 3 {
			t.Errorf("%.10q: %d permits a window later: the block must not move along", bad, len(g.Permits))
		}
	}
}

// Who says that it needs long gets its permits early, but not earlier than that.
func TestLead(t *testing.T) {
	l, _ := newTest(t)
	limit := mustLimit(t, "10/1s")
	for _, p := range take(t, l, t0, Request{Limit: limit, Want: 10}).Permits {
		l.Dispatched(p, p.At)
	}
	free := t0.Add(time.Second)
	for _, c := range []struct{ lead, ask time.Duration }{
		{0, 12500 * time.Microsecond},
		{time.Millisecond, 12500 * time.Microsecond},
		{40 * time.Millisecond, 40 * time.Millisecond},
		{time.Minute, 50 * time.Millisecond},
	} {
		req := Request{Limit: limit, Want: 10, Lead: c.lead}
		g := take(t, l, free.Add(-500*time.Millisecond), req)
		if late := g.NotBefore.Sub(free.Add(-c.ask)).Abs(); len(g.Permits) > 0 || late > time.Millisecond {
			t.Errorf("lead %v: %d permits, ask again %v before the window is free", c.lead, len(g.Permits), free.Sub(g.NotBefore))
		}
		g = take(t, l, free.Add(-c.ask), req)
		if len(g.Permits) != 10 || g.Permits[0].At.Before(free) {
			t.Errorf("lead %v: %d permits %v before the window is free", c.lead, len(g.Permits), c.ask)
		}
		for _, p := range g.Permits {
			l.Return(p)
		}
	}
}

func TestForget(t *testing.T) {
	l, _ := newTest(t)
	was := mustLimit(t, "1000/1s")
	req := Request{Limit: mustLimit(t, "3/24h"), Want: 3, Version: 2, Was: &was, Changed: t0}
	if g := take(t, l, t0, req); len(g.Permits) != 0 {
		t.Error("what the old limit allowed does not count")
	}
	if err := l.Forget(t.Context(), t0, "d"); err != nil {
		t.Fatal(err)
	}
	s, err := l.Status(t.Context(), t0, "d", req.Limit)
	if err != nil || s.Used != 0 || s.Next.After(t0) {
		t.Errorf("status after Forget: %+v, %v", s, err)
	}
	g := take(t, l, t0, req)
	if len(g.Permits) != 3 {
		t.Errorf("%d permits after Forget", len(g.Permits))
	}
	s, err = l.Status(t.Context(), t0, "d", req.Limit)
	if err != nil || s.Used != 3 || s.Next.Before(t0.Add(24*time.Hour)) {
		t.Errorf("status: %+v, %v", s, err)
	}
}

func FuzzDecode(f *testing.F) {
	r := ring{limit: Limit{Max: 3, Interval: time.Second}, era: 1, high: simStart}
	r.take(nil, simStart, r.limit.run(), 3, 0)
	r.pasts = []past{{1, 1000, simStart}}
	f.Add(r.encode())
	f.Add([]byte{})
	f.Add([]byte{1, 2, 1, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, data := range [][]byte{b, sealed(b)} {
			var r ring
			if r.decode(data) != nil {
				continue
			}
			var again ring
			if err := again.decode(r.encode()); err != nil {
				t.Fatalf("what was accepted and written again is refused")
			}
			r.prune(r.high)
			r.change(Limit{Max: 1000, Interval: time.Minute}, r.version+1, simStart)
			r.take(nil, simStart, r.limit.run(), 10, 0)
			if enc := r.encode(); len(enc) > 64<<10 {
				t.Fatalf("%d bytes", len(enc))
			}
		}
	})
}

// sealed gives bytes the checksum of a value, so that the rest of decode is met.
func sealed(b []byte) []byte {
	return binary.LittleEndian.AppendUint32(bytes.Clone(b), crc32.Checksum(b, castagnoli))
}

func benchmarkTake(b *testing.B, dests, want int, text string) {
	l := NewLimiter(Config{Fast: state.NewMemory()})
	limit := mustLimit(b, text)
	reqs := make([]Request, dests)
	for i := range reqs {
		reqs[i] = Request{Destination: fmt.Sprint("dest-", i), Limit: limit, Want: want}
	}
	now := t0
	b.ReportAllocs()
	permits := 0
	for b.Loop() {
		now = now.Add(time.Millisecond)
		for _, g := range l.Take(context.Background(), now, reqs) {
			permits += len(g.Permits)
			for _, p := range g.Permits {
				l.Dispatched(p, p.At)
			}
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*dests), "ns/request")
	b.ReportMetric(float64(permits)/float64(b.N*dests), "permits/request")
}

func BenchmarkTake(b *testing.B) {
	b.Run("one of 1000 per s", func(b *testing.B) { benchmarkTake(b, 1, 1, "1000/1s") })
	b.Run("100 destinations 1 of 1000 per s", func(b *testing.B) { benchmarkTake(b, 100, 1, "1000/1s") })
	b.Run("100 destinations 4 of 10000 per s", func(b *testing.B) { benchmarkTake(b, 100, 4, "10000/1s") })
	b.Run("100 throttled 10 per 30 s", func(b *testing.B) { benchmarkTake(b, 100, 1, "10/30s") })
}

// BenchmarkLifecycle is what a reader asks of the limiter at 40,000 messages per
// second over 1,000 destinations, none of which is throttled.
func BenchmarkLifecycle(b *testing.B) {
	l := NewLimiter(Config{Fast: state.NewMemory()})
	limit := mustLimit(b, "1000/1s")
	names := make([]string, 1000)
	for i := range names {
		names[i] = fmt.Sprint("dest-", i)
	}
	for _, want := range []int{1, 4} {
		b.Run(fmt.Sprintf("%d per write", want), func(b *testing.B) {
			now, next := t0, 0
			reqs := make([]Request, 100)
			permits := 0
			b.ReportAllocs()
			for b.Loop() {
				for i := range reqs {
					reqs[i] = Request{Destination: names[next], Limit: limit, Version: 1, Want: want}
					next = (next + 1) % len(names)
				}
				now = now.Add(time.Duration(want) * 2500 * time.Microsecond) // 100 of 40,000 per s
				for _, g := range l.Take(context.Background(), now, reqs) {
					permits += len(g.Permits)
					for _, p := range g.Permits {
						l.Dispatched(p, p.At)
					}
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(permits), "ns/permit")
		})
	}
}
