package throttle

import (
	"container/heap"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/mvalve/mvalve/state"
)

// The simulation runs readers of one destination in virtual time, with late
// dispatches, clocks that differ, crashes, lost answers and lost state, and
// judges the stamps by counting windows, without any of the limiter's code.

const simStart = int64(1_700_000_000_000_000) // µs

type event struct {
	at  int64
	seq int
	do  func()
}

type events []event

func (e events) Len() int { return len(e) }
func (e events) Less(i, j int) bool {
	return e[i].at < e[j].at || e[i].at == e[j].at && e[i].seq < e[j].seq
}
func (e events) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e *events) Push(x any)   { *e = append(*e, x.(event)) }
func (e *events) Pop() any {
	old := *e
	last := old[len(old)-1]
	*e = old[:len(old)-1]
	return last
}

// dispatched is one line of the log: when, and under which version of the rules.
type dispatched struct{ at, version int64 }

// change is a change of the rules, which readers learn of within a second.
type change struct {
	at    time.Duration
	limit Limit
}

type sim struct {
	limit   Limit
	changes []change
	readers int
	callers int // waiting at every reader
	length  time.Duration
	late    time.Duration // dispatches are up to so late, rarely ten times that
	latency time.Duration // answers of the store take up to so long
	offset  time.Duration // clocks differ by up to so much
	crash   time.Duration // one reader dies that often and comes back with another memory
	wipe    time.Duration // the fast store is wiped that often
	trouble int           // of 100 accesses so many fail, in some way
	noFlush bool          // reports only ride along
	seed    uint64

	rnd     *rand.Rand
	now     int64
	seq     int
	queue   events
	fast    *state.Memory
	durable *state.Memory
	log     []dispatched
	writes  int
	asks    int
	missed  int
}

type simReader struct {
	*sim
	limiter *Limiter
	offset  int64
	out     int // permits in hand
	dead    bool
	version int64
}

func (s *sim) after(d int64, do func()) {
	s.seq++
	heap.Push(&s.queue, event{s.now + max(d, 0), s.seq, do})
}

func (s *sim) upTo(d time.Duration) int64 {
	if d <= 0 {
		return 0
	}
	return s.rnd.Int64N(d.Microseconds() + 1)
}

func (s *sim) run(t testing.TB) {
	t.Helper()
	s.rnd = rand.New(rand.NewPCG(s.seed, 1))
	s.now = simStart
	s.fast, s.durable = s.memory(), s.memory()
	live := make([]*simReader, s.readers)
	for i := range live {
		live[i] = s.start()
	}
	if s.crash > 0 {
		var crash func()
		crash = func() {
			i := s.rnd.IntN(len(live))
			live[i].dead = true
			live[i] = s.start()
			s.after(s.crash.Microseconds(), crash)
		}
		s.after(s.crash.Microseconds(), crash)
	}
	if s.wipe > 0 {
		var wipe func()
		wipe = func() {
			s.fast.Wipe(time.UnixMicro(s.now))
			s.after(s.wipe.Microseconds(), wipe)
		}
		s.after(s.wipe.Microseconds(), wipe)
	}
	end := simStart + s.length.Microseconds()
	for len(s.queue) > 0 {
		e := heap.Pop(&s.queue).(event)
		if e.at >= end {
			break
		}
		s.now = e.at
		e.do()
	}
	slices.SortFunc(s.log, func(a, b dispatched) int { return int(a.at - b.at) })
}

func (s *sim) memory() *state.Memory {
	m := state.NewMemory()
	m.Fault = func(_ string, update bool) (bool, error) {
		s.writes++
		if s.trouble == 0 || s.rnd.IntN(100) >= s.trouble {
			return true, nil
		}
		switch s.rnd.IntN(4) {
		case 0:
			return false, state.ErrUnavailable
		case 1:
			return false, state.ErrConflict
		case 2:
			return false, state.ErrUnknown
		}
		return true, state.ErrUnknown
	}
	return m
}

func (s *sim) start() *simReader {
	r := &simReader{sim: s, limiter: NewLimiter(Config{Fast: s.fast, Durable: s.durable})}
	r.limiter.random = s.rnd.Uint64
	r.offset = s.upTo(2*s.offset) - s.offset.Microseconds()
	r.version = s.versionNow()
	s.after(s.upTo(time.Millisecond), r.ask)
	if !s.noFlush {
		s.after(1000, r.flush)
	}
	return r
}

// versionNow returns the version of the rules in force.
func (s *sim) versionNow() int64 {
	v := int64(1)
	for i, c := range s.changes {
		if s.now >= simStart+c.at.Microseconds() {
			v = int64(i + 2)
		}
	}
	return v
}

func (s *sim) limitOf(version int64) (limit Limit, was *Limit, changed time.Time) {
	limit = s.limit
	for i, c := range s.changes[:version-1] {
		if before := limit; before.IsNone() {
			was = nil
		} else {
			was = &before
		}
		limit, changed = c.limit, time.UnixMicro(simStart+s.changes[i].at.Microseconds())
	}
	return limit, was, changed
}

func (r *simReader) clock() time.Time { return time.UnixMicro(r.now + r.offset) }

func (r *simReader) flush() {
	if r.dead {
		return
	}
	next := r.limiter.Flush(context.Background(), r.clock())
	wait := max(20_000, r.length.Microseconds()/100_000)
	if !next.IsZero() {
		wait = min(wait, next.UnixMicro()-r.clock().UnixMicro())
	}
	r.after(wait, r.flush)
}

func (r *simReader) ask() {
	if r.dead {
		return
	}
	if v := r.versionNow(); v > r.version && r.rnd.IntN(10) == 0 {
		r.version = v // learns of it after a while, or at once if Stale
	}
	want := r.callers - r.out
	if want <= 0 {
		r.after(1000, r.ask)
		return
	}
	limit, was, changed := r.limitOf(r.version)
	r.asks++
	g := r.limiter.Take(context.Background(), r.clock(), []Request{{
		Destination: "d", Limit: limit, Version: r.version, Was: was, Changed: changed, Want: want,
		Lead: time.Duration(r.asks%80) * time.Millisecond,
	}})[0]
	latency := r.upTo(r.latency)
	for _, p := range g.Permits {
		r.out++
		r.use(p, latency)
	}
	wait := latency
	switch {
	case g.Stale:
		r.version = r.versionNow()
	case g.Err != nil:
		wait += 5000
	case !g.NotBefore.IsZero():
		wait = max(wait, g.NotBefore.UnixMicro()-r.clock().UnixMicro()) + r.upTo(500*time.Microsecond)
		if len(r.changes) > 0 || r.wipe > 0 {
			wait = min(wait, 500_000)
		}
	default:
		wait += 100
	}
	r.after(wait, r.ask)
}

func (r *simReader) use(p Permit, latency int64) {
	late := r.upTo(r.late)
	if r.rnd.IntN(1000) == 0 {
		late *= 10
	}
	version := r.version
	r.after(max(latency, p.At.UnixMicro()-r.clock().UnixMicro())+late, func() {
		r.out--
		if r.dead {
			return
		}
		if at := r.clock(); at.After(p.Until) {
			r.missed++
			r.limiter.Return(p)
		} else {
			r.limiter.Dispatched(p, at)
			r.log = append(r.log, dispatched{at.UnixMicro(), version})
		}
	})
}

// violations counts the dispatches that are one too many in the window that ends
// with them, by the limit of the newest version seen so far.
func (s *sim) violations() (n int, first string) {
	version := int64(1)
	log := make([]dispatched, 0, len(s.log))
	for _, d := range s.log { // without a limit nothing is counted, then or later
		if l, _, _ := s.limitOf(d.version); !l.IsNone() {
			log = append(log, d)
		}
	}
	for i, d := range log {
		version = max(version, d.version)
		limit, _, _ := s.limitOf(version)
		if limit.IsNone() {
			continue
		}
		edge := d.at - (limit.Interval + limit.Guard).Microseconds()
		j := i - int(limit.Max)
		if j >= 0 && log[j].at > edge {
			if n++; first == "" {
				first = fmt.Sprintf("dispatch %d at %v: the %dth before it was at %v (limit %v)", i,
					time.Duration(d.at-simStart)*time.Microsecond, limit.Max,
					time.Duration(log[j].at-simStart)*time.Microsecond, limit)
			}
		}
	}
	return n, first
}

// use returns dispatches per 1000 that the limit allowed in the time.
func (s *sim) use() int64 {
	if s.limit.IsNone() {
		return 0
	}
	windows := s.length.Microseconds() / s.limit.window()
	return int64(len(s.log)) * 1000 / (s.limit.Max * windows)
}

func (s *sim) check(t *testing.T, atLeast int64) {
	t.Helper()
	s.run(t)
	n, first := s.violations()
	use := s.use()
	t.Logf("%v, %d readers: %d dispatched, use %d/1000, %d missed, %d asks, %d accesses",
		s.limit, s.readers, len(s.log), use, s.missed, s.asks, s.writes)
	if n > 0 {
		t.Errorf("%d dispatches above the limit; first: %s", n, first)
	}
	if use < atLeast {
		t.Errorf("use is %d/1000, want at least %d", use, atLeast)
	}
}

func mustLimit(t testing.TB, text string) Limit {
	t.Helper()
	l, err := ParseLimit(text)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestSimulatedUse(t *testing.T) {
	for _, tc := range []struct {
		limit   string
		length  time.Duration
		atLeast int64
	}{
		{"1/1.4s", 140 * time.Second, 990},
		{"1/1.4s strict", 140 * time.Second, 990},
		{"10/100ms", 10 * time.Second, 900},
		{"10/30s", 1500 * time.Second, 990},
		{"100/1s", 60 * time.Second, 990},
		{"1000/1s", 10 * time.Second, 990},
		{"5000/1s", 5 * time.Second, 989},
		{"5/24h", 20 * 24 * time.Hour, 990},
		{"10/30s guard=50ms", 1502500 * time.Millisecond, 990},
		{"100/1s paced", 60 * time.Second, 980},
		{"3/2s paced", 120 * time.Second, 655},
	} {
		for _, readers := range []int{1, 3, 8} {
			for _, callers := range []int{8, 256} {
				if simSeeds == 1 && (readers == 3 || callers == 8) {
					continue
				}
				t.Run(fmt.Sprintf("%s/%d/%d", tc.limit, readers, callers), func(t *testing.T) {
					s := &sim{
						limit: mustLimit(t, tc.limit), readers: readers, callers: callers, length: tc.length,
						late: time.Millisecond, latency: 2 * time.Millisecond, seed: 7,
					}
					if readers == 1 && callers < 256 && s.limit.Max >= 1000 {
						s.latency = time.Millisecond / 2 // else 8 callers cannot keep up
					}
					s.check(t, tc.atLeast)
				})
			}
		}
	}
}

func TestSimulatedTrouble(t *testing.T) {
	limits := []string{
		"1/1.4s", "10/100ms", "10/30s", "100/1s", "1000/1s", "5000/1s", "7/90s", "100/1s paced", "1/1.4s strict",
		"10/10ms", "3/1ms",
	}
	if simSeeds == 1 {
		limits = []string{"1/1.4s", "10/100ms", "10/30s", "100/1s paced"}
	}
	for _, text := range limits {
		for seed := range uint64(simSeeds) {
			t.Run(fmt.Sprintf("%s/%d", text, seed), func(t *testing.T) {
				limit := mustLimit(t, text)
				base := sim{
					limit: limit, readers: 1 + int(seed)*2, callers: 1 + int(seed*seed)*30, length: 20 * limit.Window(),
					late: 2 * time.Millisecond, latency: 5 * time.Millisecond, offset: 3 * time.Millisecond, seed: seed,
				}
				base.length = min(max(base.length, 2*time.Second), 20*time.Minute)
				for name, change := range map[string]func(*sim){
					"clocks":  func(*sim) {},
					"crashes": func(s *sim) { s.crash = max(limit.Window()/3, 100*time.Millisecond) },
					"store":   func(s *sim) { s.trouble = 20 },
					"lost":    func(s *sim) { s.wipe = 3 * limit.Window() / 2 },
					"reports": func(s *sim) { s.noFlush = true },
					"all": func(s *sim) {
						least := 100 * time.Millisecond
						s.crash, s.wipe = max(limit.Window(), least), max(7*limit.Window()/2, least)
						s.trouble, s.late = 30, 40*time.Millisecond
					},
				} {
					t.Run(name, func(t *testing.T) {
						s := base
						change(&s)
						s.check(t, 0)
						if len(s.log) == 0 {
							t.Error("nothing was dispatched")
						}
					})
				}
			})
		}
	}
}

func TestSimulatedKill(t *testing.T) {
	for _, text := range []string{"1/1.4s", "10/100ms", "100/1s", "1000/1s"} {
		for _, readers := range []int{2, 8} {
			if simSeeds == 1 && (readers == 8 || text == "1000/1s") {
				continue
			}
			t.Run(fmt.Sprintf("%s/%d", text, readers), func(t *testing.T) {
				s := &sim{
					limit: mustLimit(t, text), readers: readers, callers: 8, length: 140 * time.Second,
					late: time.Millisecond / 2, latency: 2 * time.Millisecond, crash: 2 * time.Second, seed: 3,
				}
				if s.limit.Interval < time.Second {
					s.check(t, 870)
				} else {
					s.check(t, 950)
				}
			})
		}
	}
}

func TestSimulatedChange(t *testing.T) {
	for _, tc := range [][]string{
		{"10/1s", "1000/60s"},
		{"1000/60s", "10/1s"},
		{"10/1s", "100/120s"}, // moves to the durable store
		{"100/120s", "10/1s", "100/120s"},
		{"1/1.4s", "10/30s", "1000/60s"},
		{"50/1s", "60/60s", "50/1s"},
		{"5000/1s", "10/100ms", "20000/90s"},
		{"10/100ms", "600/600s"},
		{"none", "10/1s", "none", "10/30s"},
		{"20/1s paced", "20/2s", "1/1s strict"},
		{"10/1s", "10/1s guard=500ms", "10/500ms"},
	} {
		for seed := range uint64(simSeeds) {
			t.Run(fmt.Sprint(tc, "/", seed), func(t *testing.T) {
				s := &sim{
					limit: mustLimit(t, tc[0]), readers: 1 + int(seed), callers: 1 + int(seed)*20,
					late: time.Millisecond, latency: 2 * time.Millisecond, offset: time.Millisecond, seed: seed,
				}
				at := time.Duration(0)
				if simSeeds == 1 && (s.limit.Max == 5000 || s.limit.IsNone()) {
					t.Skip("too long under the race detector")
				}
				for _, text := range tc[1:] {
					at += 20*time.Second + time.Duration(s.seed)*7*time.Second
					s.changes = append(s.changes, change{at, mustLimit(t, text)})
				}
				last := s.changes[len(s.changes)-1].limit
				s.length = at + 3*last.Window() + 5*time.Second
				if s.limit.IsNone() { // bounds the work of the unlimited part
					s.callers = 1
				}
				s.run(t)
				n, first := s.violations()
				if n > 0 {
					t.Errorf("%d dispatches above the limit; first: %s", n, first)
				}
				after := int64(0)
				for _, d := range s.log {
					if d.version == int64(len(tc)) {
						after++
					}
				}
				if min := last.Max * 2 * 95 / 100; after < min {
					t.Errorf("%d dispatches after the last change, want at least %d", after, min)
				}
			})
		}
	}
}
