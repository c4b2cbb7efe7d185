package throttle

import (
	"slices"
	"testing"
	"time"
)

// ringOf returns an empty ring under a limit, as of simStart.
func ringOf(t *testing.T, text string) *ring {
	t.Helper()
	return &ring{limit: mustLimit(t, text), era: 1, high: simStart}
}

// used adds dispatches that happened at the given times after simStart.
func (r *ring) used(times ...time.Duration) {
	for _, d := range times {
		r.add(simStart+d.Microseconds(), 1, false)
	}
}

// after returns the stamps as times after simStart.
func after(stamps []stamp) []time.Duration {
	out := make([]time.Duration, len(stamps))
	for i, s := range stamps {
		out[i] = time.Duration(s.p-simStart) * time.Microsecond
	}
	return out
}

const ms = time.Millisecond

// The times that follow from a limit, in ms: between their bounds they grow with
// the interval, a guard widens the window and nothing else.
func TestTimesOfALimit(t *testing.T) {
	for text, want := range map[string]struct{ window, slack, easy, run, longest int64 }{
		"none":             {0, 50, 50, 25, 25},
		"10/1ms":           {1, 5, 5, 5, 5},
		"10/40ms":          {40, 5, 10, 10, 40},
		"3/400ms":          {400, 20, 20, 25, 100},
		"4/400ms":          {400, 20, 100, 25, 100},
		"10/1s":            {1000, 50, 250, 25, 100},
		"10/30s guard=50s": {80_000, 50, 250, 25, 100},
	} {
		l := mustLimit(t, text)
		if l.window() != 1000*want.window || l.slack() != 1000*want.slack || l.easy() != 1000*want.easy ||
			l.run() != 1000*want.run || l.longestRun() != 1000*want.longest {
			t.Errorf("%s: window %d, slack %d, easy %d, run %d, longest run %d µs, want %+v ms",
				text, l.window(), l.slack(), l.easy(), l.run(), l.longestRun(), want)
		}
		if l.Window() != time.Duration(want.window)*ms {
			t.Errorf("%s: Window is %v", text, l.Window())
		}
	}
	for lead, want := range map[time.Duration]int64{0: 25, 12 * ms: 25, 20 * ms: 40, time.Second: 100} {
		if got := mustLimit(t, "10/1s").runFor(lead); got != 1000*want {
			t.Errorf("a lead of %v: a run of %d µs, want %d ms", lead, got, want)
		}
	}
}

// Up to 1024 dispatches are counted to the microsecond; more share buckets, of
// which 1024 make at least a window.
func TestBuckets(t *testing.T) {
	for text, want := range map[string]int64{
		"none": 1, "1024/1s": 1, "1025/1s": 977, "5000/1024ms": 1000, "5000/1025ms": 1001, "5000/1ms": 1,
		"5000/1s guard=24ms": 1000,
	} {
		if got := mustLimit(t, text).bucket(); got != want {
			t.Errorf("%s: buckets of %d µs, want %d", text, got, want)
		}
	}
	r := ringOf(t, "5000/1024ms")
	for from, want := range map[int64]int64{1000: 1000, 1001: 2000, 1999: 2000, 2000: 2000} {
		if got := r.roundUp(from); got != want {
			t.Errorf("%d µs is counted at %d, want %d", from, got, want)
		}
	}
}

func TestSpacing(t *testing.T) {
	for text, want := range map[string]int64{
		"10/1s": 0, "1/1s strict": 0, "1/1s paced": 0, "2/1s paced": 1_000_000, "3/1s paced": 500_000,
		"4/1s paced": 333_334, "3/1s paced guard=1s": 1_000_000,
	} {
		if got := mustLimit(t, text).spacing(); got != want {
			t.Errorf("%s: %d µs between two, want %d", text, got, want)
		}
	}
}

// Every slot of a used-up window is free again exactly one window after its
// dispatch, not a microsecond earlier.
func TestSlotsFreeOneByOne(t *testing.T) {
	r := ringOf(t, "3/1s")
	r.used(1*ms, 5*ms, 9*ms)
	now := simStart + (980 * ms).Microseconds()
	run := r.limit.run() // to 1005 ms
	stamps, next := r.take(nil, now, run, 3, 0)
	if got, want := after(stamps), []time.Duration{1001 * ms, 1005 * ms}; !slices.Equal(got, want) {
		t.Errorf("permits at %v, want %v", got, want)
	}
	if want := simStart + (1009 * ms).Microseconds() - run/2; next != want {
		t.Errorf("ask again %d µs after what makes sense", next-want)
	}
	if r.total != 5 {
		t.Errorf("%d count, want 3 dispatches and 2 permits", r.total)
	}
}

// The horizon itself is within reach, what is behind it is not.
func TestHorizon(t *testing.T) {
	for late, want := range map[int64]int{0: 1, 1: 0} {
		r := ringOf(t, "1/1s")
		r.used(0)
		now := simStart + 1_000_000 - r.limit.run() - late
		stamps, next := r.take(nil, now, r.limit.run(), 1, 0)
		if len(stamps) != want {
			t.Errorf("%d µs before the horizon: %d permits", late, len(stamps))
		}
		if len(stamps) > 0 && next != 0 {
			t.Errorf("all is granted, and yet: ask again at %d", next)
		}
	}
}

// What a permit that is out may still take is not known: its slot may be free
// from the earliest dispatch on, and is from the latest on. Asking makes sense
// half a run before the one, and then half a run before the other.
func TestAskAgainForAPermitThatIsOut(t *testing.T) {
	r := ringOf(t, "1/1s")
	if got := after(must(r.take(nil, simStart, r.limit.run(), 1, 0))); !slices.Equal(got, []time.Duration{0}) {
		t.Fatalf("permits at %v", got)
	}
	lead := r.limit.run() / 2
	for _, c := range []struct{ now, want int64 }{
		{500_000, 1_000_000 - lead},
		{1_000_000 - lead - 1, 1_000_000 - lead},
		{1_000_000 - lead, 1_050_000 - lead},
		{1_010_000, 1_050_000 - lead},
	} {
		stamps, next := r.take(nil, simStart+c.now, r.limit.run(), 1, 0)
		if len(stamps) > 0 || next != simStart+c.want {
			t.Errorf("at %d µs: %d permits, ask again at %d, want %d", c.now, len(stamps), next-simStart, c.want)
		}
	}
	if got := after(must(r.take(nil, simStart+1_025_000, r.limit.run(), 1, 0))); !slices.Equal(got, []time.Duration{1050 * ms}) {
		t.Errorf("permits at %v", got)
	}
}

func must(stamps []stamp, _ int64) []stamp { return stamps }

// A dispatch counts until exactly a window has passed.
func TestPruneAtTheEdge(t *testing.T) {
	for text, window := range map[string]time.Duration{"3/1s": time.Second, "3/1s guard=1s": 2 * time.Second} {
		r := ringOf(t, text)
		r.used(0, 1*time.Microsecond, time.Second)
		r.prune(simStart + window.Microseconds() - 1)
		if r.total != 3 {
			t.Errorf("%s: within the window %d count, want 3", text, r.total)
		}
		r.prune(simStart + window.Microseconds())
		if r.total != 2 || len(r.entries) != 2 {
			t.Errorf("%s: a window after the first %d count, want 2", text, r.total)
		}
	}
}

// What is dropped for want of room keeps the destination closed as long as it
// would have counted.
func TestForgottenEntriesCloseTheWindow(t *testing.T) {
	r := ringOf(t, "1000000/1s")
	for i := range int64(ringEntries) {
		r.add(simStart+10*i, 2, false)
	}
	r.prune(simStart)
	if r.forgot != 0 || len(r.entries) != ringEntries {
		t.Fatalf("with %d entries: forgot %d, kept %d", ringEntries, r.forgot, len(r.entries))
	}
	r.add(simStart+10*ringEntries, 2, false)
	r.add(simStart+10*ringEntries+10, 2, false)
	r.prune(simStart)
	if len(r.entries) != ringEntries || r.total != 2*ringEntries || r.forgot != simStart+10 {
		t.Fatalf("with two more: %d entries, %d count, forgot %d", len(r.entries), r.total, r.forgot-simStart)
	}
	late := *r
	late.entries = slices.Clone(r.entries)
	stamps := must(late.take(nil, simStart+999_990, r.limit.run(), 1, 0))
	if len(stamps) != 1 || stamps[0].p != simStart+1_000_010 {
		t.Errorf("%d permits %+v, want one when the latest that is forgotten is out of the window", len(stamps), stamps)
	}
	r.prune(simStart + 1_000_009)
	if r.forgot == 0 {
		t.Error("forgot too early")
	}
	r.prune(simStart + 1_000_010)
	if r.forgot != 0 {
		t.Error("what counts no more is still remembered")
	}
}

// Reports free the slot from the real stamp on, but only for stamps within the
// time of the permit: what is outside counts at its latest.
func TestReport(t *testing.T) {
	for late, want := range map[int64]int64{0: 0, 20_000: 20_000, 50_000: 50_000, 50_001: 50_001, 70_000: 70_000, -1: 50_000} {
		r := ringOf(t, "1/1s")
		s := must(r.take(nil, simStart, r.limit.run(), 1, 0))[0]
		r.report(s, s.p+late)
		if len(r.entries) != 1 || r.total != 1 || r.entries[0] != (entry{simStart + want, 1, false}) {
			t.Errorf("dispatched %d µs after the stamp: %+v, total %d; want it counted at %d", late, r.entries, r.total, want)
		}
		r.report(s, s.p)
		if len(r.entries) != 1 || r.entries[0].hi != simStart+want {
			t.Errorf("a second report changes it: %+v", r.entries)
		}
	}
}

// Entries stay in order of their times, open ones apart from closed ones, and
// those of one time are counted together.
func TestEntriesInOrder(t *testing.T) {
	r := ringOf(t, "10/1s")
	for _, e := range []entry{{30, 1, false}, {10, 1, true}, {20, 2, false}, {10, 1, false}, {10, 1, true}, {30, 1, false}, {40, 1, true}} {
		r.add(e.hi, e.n, e.open)
	}
	his, n := []int64{}, int64(0)
	for _, e := range r.entries {
		his, n = append(his, e.hi), n+e.n
	}
	if !slices.Equal(his, []int64{10, 10, 20, 30, 40}) || n != 8 || r.total != 8 {
		t.Fatalf("%+v, total %d", r.entries, r.total)
	}
	if got := r.lastOpen(); got != 41 {
		t.Errorf("the last that is out may go before %d, want 41", got)
	}
	for _, hi := range []int64{10, 10, 40} {
		i := r.findOpen(hi)
		if i < 0 || r.entries[i].hi != hi || !r.entries[i].open {
			t.Fatalf("open at %d: found %d in %+v", hi, i, r.entries)
		}
		r.remove(i)
	}
	for _, hi := range []int64{0, 10, 20, 30, 40, 50} {
		if i := r.findOpen(hi); i >= 0 {
			t.Errorf("open at %d: found %d in %+v", hi, i, r.entries)
		}
	}
	if r.total != 5 || len(r.entries) != 3 || r.lastOpen() != 0 {
		t.Errorf("left: %+v, total %d, the last out %d", r.entries, r.total, r.lastOpen())
	}
}

// Permits have much slack while less than a quarter of the window is used, and
// the usual one from then on.
func TestEasyPermits(t *testing.T) {
	r := ringOf(t, "8/1s")
	var slacks []int64
	for _, s := range must(r.take(nil, simStart, r.limit.run(), 8, 0)) {
		slacks = append(slacks, s.slack)
	}
	if want := []int64{250_000, 250_000, 50_000, 50_000, 50_000, 50_000, 50_000, 50_000}; !slices.Equal(slacks, want) {
		t.Errorf("slacks %v, want %v", slacks, want)
	}
	r = ringOf(t, "8/1s")
	if s := must(r.take(nil, simStart, r.limit.run(), 8, 1000)); len(s) != 1 || s[0].slack != 50_000 {
		t.Errorf("of a series: %+v, want one permit with the usual slack", s)
	}
}

// Permits of one moment have stamps of their own where each is counted alone,
// so that a report says which it means.
func TestStampsAreUnique(t *testing.T) {
	r := ringOf(t, "100/1s")
	s := must(r.take(nil, simStart, r.limit.run(), 30, 0))
	his := map[int64]bool{}
	for _, s := range s {
		his[r.latest(s)] = true
	}
	if len(s) != 30 || len(his) != 30 || len(r.entries) != 30 {
		t.Errorf("%d permits, %d latest times, %d entries", len(s), len(his), len(r.entries))
	}
	if last := s[29].p - simStart; last > 29 {
		t.Errorf("the last stamp is %d µs late", last)
	}
	r = ringOf(t, "5000/1024ms") // buckets: all at once
	if s = must(r.take(nil, simStart, r.limit.run(), 30, 0)); s[29].p != simStart || r.total != 30 {
		t.Errorf("in buckets: last at %d, total %d", s[29].p-simStart, r.total)
	}
}

// A series: its permit is later than all that is out, and its dispatch closes the
// destination from the real stamp on.
func TestSeriesCloses(t *testing.T) {
	const hold = 3_000_000
	r := ringOf(t, "10/1s")
	out := must(r.take(nil, simStart, r.limit.run(), 1, 0))[0] // may go until 250 ms
	stamps, next := r.take(nil, simStart, r.limit.run(), 2, hold)
	if lead := r.limit.run() / 2; len(stamps) != 0 || next != simStart+250_001-lead {
		t.Fatalf("with a permit out: %d permits, ask again at %d", len(stamps), next-simStart)
	}
	r.report(out, out.p)
	now := simStart + 1000
	stamps, next = r.take(nil, now, r.limit.run(), 2, hold)
	if len(stamps) != 1 || stamps[0].p != now || next != now+hold-r.limit.run()/2 {
		t.Fatalf("%+v, ask again at %d, want one now and the next a hold later", stamps, next-now)
	}
	if lo, hi := r.closedUntil(); lo != now+hold || hi != now+hold+50_000 {
		t.Errorf("closed until %d to %d", lo-now, hi-now)
	}
	r.report(stamps[0], now+30_000)
	if lo, hi := r.closedUntil(); lo != now+30_000+hold || hi != lo || r.closer != 0 {
		t.Errorf("after the report closed until %d to %d", lo-now, hi-now)
	}
	if s, next := r.take(nil, now+100_000, r.limit.run(), 1, 0); len(s) > 0 || next != now+30_000+hold-r.limit.run()/2 {
		t.Errorf("%d permits while it is closed, ask again at %d", len(s), next-now)
	}
	r = ringOf(t, "10/1s")
	stamps, next = r.take(nil, simStart, r.limit.run(), 1, hold)
	if len(stamps) != 1 || next != 0 {
		t.Errorf("one of one: %+v, ask again at %d", stamps, next)
	}
	r.giveBack(stamps[0])
	if lo, hi := r.closedUntil(); lo != 0 || hi != 0 || r.total != 0 {
		t.Errorf("given back: closed until %d to %d, %d count", lo, hi, r.total)
	}
}

// Paced permits are a spacing apart; one may be early by a spacing after a pause.
func TestPacedStamps(t *testing.T) {
	r := ringOf(t, "5/1s paced") // 250 ms
	var got []time.Duration
	for now := simStart; now < simStart+1_300_000; now += 5000 {
		stamps, next := r.take(nil, now, r.limit.run(), 1, 0)
		if len(stamps) == 0 && next < now {
			t.Fatalf("ask again %d µs ago", now-next)
		}
		for _, s := range stamps {
			r.report(s, s.p)
		}
		got = append(got, after(stamps)...)
	}
	if len(got) < 6 || got[0] != 0 {
		t.Fatalf("permits at %v", got)
	}
	for i := 2; i < len(got); i++ {
		if gap := got[i] - got[i-1]; gap < 245*ms || gap > 255*ms {
			t.Errorf("permits at %v, want every 250 ms", got)
			break
		}
	}
}

// The pace tells when to ask again: half a run before the next stamp.
func TestPacedAsksInTime(t *testing.T) {
	r := ringOf(t, "5/1s paced")
	for i, want := range []time.Duration{250 * ms, 500 * ms, 750 * ms} {
		now := simStart + (time.Duration(i) * 250 * ms).Microseconds()
		stamps, next := r.take(nil, now, r.limit.run(), 3, 0)
		if n := len(stamps); n != 1 && (i > 0 || n != 2) {
			t.Fatalf("%d permits at once", n)
		}
		if lead := r.limit.run() / 2; next != simStart+want.Microseconds()-lead {
			t.Errorf("ask again after %d µs, want %v less half a run", next-simStart, want)
		}
	}
}

// Charged dispatches go now, whatever the limit says, and count all the same.
func TestChargeCounts(t *testing.T) {
	r := ringOf(t, "3/1s paced")
	stamps := r.charge(nil, simStart, 3, 0)
	if len(stamps) != 3 || stamps[0].p != simStart || stamps[2].p != simStart+2 || stamps[0].slack != 50_000 {
		t.Errorf("charged: %+v", stamps)
	}
	if r.total != 3 || r.tat != simStart+2+3*500_000 {
		t.Errorf("%d count, the next pace at %d", r.total, r.tat-simStart)
	}
	r = ringOf(t, "3/1s")
	r.charge(nil, simStart, 0, 1000)
	if r.closer != 0 {
		t.Error("nothing charged, and it closes")
	}
	r.charge(nil, simStart, 1, 0)
	if lo, hi := r.closedUntil(); lo != 0 || hi != 0 {
		t.Errorf("a charged dispatch closes until %d to %d", lo, hi)
	}
	r = ringOf(t, "3/1s")
	r.charge(nil, simStart, 1, 2_000_000)
	if lo, hi := r.closedUntil(); lo != simStart+2_000_000 || hi != lo+50_000 {
		t.Errorf("a charged series closes until %d to %d", lo-simStart, hi-simStart)
	}
	r.charge(nil, simStart-500_000, 1, 0)
	if r.high != simStart {
		t.Error("a clock that is behind moved the ring back")
	}
}

// From half of the limit on reports matter.
func TestCrowded(t *testing.T) {
	r := ringOf(t, "4/1s")
	r.used(0)
	if r.crowded() {
		t.Error("one of four is no crowd")
	}
	r.used(1 * ms)
	if !r.crowded() {
		t.Error("two of four are one")
	}
}
