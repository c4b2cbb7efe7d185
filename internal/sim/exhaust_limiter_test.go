package sim

import (
	"context"
	"fmt"
	"hash/fnv"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/mvalve/mvalve/state"
	"github.com/mvalve/mvalve/throttle"
)

// The limiter in a small scope, exhaustively: every order in which the steps of
// the readers can happen, with a crash before and after each, with an answer lost
// at each, and with the state lost at each. A step is a call of the state store, or
// the end of a wait: one that is chosen late is a reader that was slow.

// scope is what one exhaustive search covers.
type scope struct {
	limit    string
	readers  int
	messages int
	crashes  int
	wipes    int
	lost     int // answers
}

func TestExhaustLimiter(t *testing.T) {
	scopes := []scope{
		{"2/100ms", 2, 3, 1, 0, 0},
		{"2/100ms", 2, 2, 1, 1, 0},
	}
	if !raceEnabled { // one step at a time: the detector would only make it slow
		scopes = append(scopes, scope{"2/100ms", 2, 3, 1, 1, 0})
	}
	if os.Getenv("MVALVE_SIM_LARGE") != "" {
		scopes = append(scopes, scope{"2/100ms", 2, 3, 0, 0, 1}, scope{"3/100ms", 3, 3, 0, 0, 0},
			scope{"2/100ms", 3, 3, 1, 0, 0}, scope{"2/100ms", 3, 3, 0, 1, 0}, scope{"2/100ms", 3, 3, 1, 1, 0})
	}
	for _, s := range scopes {
		t.Run(fmt.Sprintf("%s-%d-readers-%d-messages-%d-crashes-%d-losses-%d-answers", s.limit, s.readers, s.messages, s.crashes, s.wipes, s.lost), func(t *testing.T) {
			begin := time.Now()
			var e explorer
			e.explore(t, func() tree { return newLimiterTree(s, false) }, setting("MVALVE_SIM_NODES", 50_000_000))
			t.Logf("%s in %v", &e, time.Since(begin).Round(time.Millisecond))
		})
	}
}

// The search must be able to fail: with a limiter whose state is forgotten at each
// access it finds a window that is too full.
func TestExhaustLimiterNotices(t *testing.T) {
	e := explorer{quiet: true}
	e.explore(t, func() tree { return newLimiterTree(scope{"1/100ms", 2, 3, 0, 0, 0}, true) }, 10_000)
	if e.wrong == "" {
		t.Error("nothing was found")
	}
}

// tree is one run whose order of steps is chosen from outside.
type tree interface {
	count() int        // how many things can happen next; 0 at the end
	name(i int) string // what the ith is, for people
	do(i int)
	key() uint64   // the same for runs that can only go on in the same way
	wrong() string // what must not be, so far
	end() string   // the same at the end
	close()
}

// explorer visits every node of a tree, each once.
type explorer struct {
	quiet                       bool
	nodes, leaves, same, deeper int
	wrong                       string
}

func (e *explorer) String() string {
	return fmt.Sprintf("%d nodes, %d complete orders, %d cut off as seen before, %d too long", e.nodes, e.leaves, e.same, e.deeper)
}

// longest is the most steps of a run.
const longest = 40

func (e *explorer) explore(t *testing.T, plant func() tree, most int) {
	t.Helper()
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1)) // one step at a time anyway
	seen := make(map[uint64]bool)
	stack := [][]uint8{nil}
	for len(stack) > 0 && e.wrong == "" {
		path := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		run := plant()
		for _, i := range path {
			run.do(int(i))
		}
		for {
			if e.wrong = run.wrong(); e.wrong != "" {
				break
			}
			if k := run.key(); seen[k] {
				e.same++
				break
			} else {
				seen[k] = true
			}
			e.nodes++
			acts := run.count()
			if acts == 0 {
				e.leaves++
				e.wrong = run.end()
				break
			}
			if len(path) >= longest {
				e.deeper++
				break
			}
			for i := acts - 1; i > 0; i-- {
				stack = append(stack, append(path[:len(path):len(path)], uint8(i)))
			}
			run.do(0)
			path = append(path[:len(path):len(path)], 0)
		}
		run.close()
		if e.wrong != "" && !e.quiet {
			run := plant()
			for _, i := range path {
				t.Log(run.name(int(i)))
				run.do(int(i))
			}
			run.close()
			t.Errorf("after %d nodes: %s", e.nodes, e.wrong)
		}
		if e.nodes > most {
			t.Errorf("not exhausted after %d nodes", e.nodes)
			return
		}
	}
}

// limiterTree runs readers that share a limiter's state.
type limiterTree struct {
	scope
	parsed  throttle.Limit
	store   *state.Memory
	clock   int64 // µs
	actors  []*limiterActor
	log     []int64 // stamps
	history uint64  // of what took effect in the store
	forgets bool
}

const exhaustStart = int64(1_700_000_000_000_000)

func newLimiterTree(s scope, forgets bool) *limiterTree {
	x := &limiterTree{scope: s, parsed: mustLimit(s.limit), store: state.NewMemory(), clock: exhaustStart, forgets: forgets}
	for i := range s.readers {
		a := &limiterActor{x: x, n: i, ask: make(chan request), answer: make(chan verdict)}
		x.actors = append(x.actors, a)
		go a.run()
		a.next = <-a.ask
	}
	return x
}

// request is what an actor wants to do next: call the store, or wake up at a time.
type request struct {
	call bool
	at   int64
	done bool // it has ended
}

type verdict uint8

const (
	goOn verdict = iota
	answerLost
	dieNow
	dieAfter
)

// limiterActor is one reader.
type limiterActor struct {
	x      *limiterTree
	n      int
	ask    chan request
	answer chan verdict
	next   request
	seen   uint64 // hash over all it found out
	dead   bool
}

func (a *limiterActor) note(v ...any) {
	h := fnv.New64a()
	fmt.Fprint(h, a.seen, v)
	a.seen = h.Sum64()
}

// step waits until the explorer lets the actor go on.
func (a *limiterActor) step(r request) verdict {
	a.ask <- r
	v := <-a.answer
	if v == dieNow {
		runtime.Goexit()
	}
	return v
}

// run takes permits and dispatches, as long as there are messages.
func (a *limiterActor) run() {
	defer func() { a.ask <- request{done: true} }()
	x := a.x
	limit := x.parsed
	l := throttle.NewLimiter(throttle.Config{Fast: gate{a}})
	ctx := context.Background()
	for a.step(request{at: x.clock}); len(x.log) < x.messages; {
		now := x.clock
		g := l.Take(ctx, time.UnixMicro(now), []throttle.Request{{Destination: "d", Limit: limit, Version: 1, Want: 1}})[0]
		if len(g.Permits) == 0 {
			// Asking before the slot is free would only lengthen the runs.
			wake := now + limit.Window().Microseconds()/2
			if nb := g.NotBefore.UnixMicro(); g.Err == nil && nb > now+5000 {
				wake = nb + 10_000
			}
			a.note("none", wake)
			a.step(request{at: wake})
			continue
		}
		p := g.Permits[0]
		a.note("permit", p.At, p.Until)
		a.step(request{at: p.At.UnixMicro()})
		if at := time.UnixMicro(x.clock); at.After(p.Until) || len(x.log) >= x.messages {
			a.note("return")
			l.Return(p)
		} else {
			a.note("dispatch", x.clock)
			x.log = append(x.log, x.clock)
			l.Dispatched(p, at)
		}
		l.Flush(ctx, time.UnixMicro(x.clock))
	}
}

// gate is the state store: each call is a step.
type gate struct{ a *limiterActor }

func (g gate) Get(ctx context.Context, keys []string) ([]state.Entry, []error) {
	return g.a.x.store.Get(ctx, keys)
}

func (g gate) Update(ctx context.Context, now time.Time, keys []string, ttls []time.Duration, fn func(int, state.Entry) []byte) []error {
	a := g.a
	v := a.step(request{call: true, at: now.UnixMicro()})
	errs := a.x.store.Update(ctx, now, keys, ttls, func(i int, old state.Entry) []byte {
		if a.x.forgets {
			old = state.Entry{}
		}
		return fn(i, old)
	})
	h := fnv.New64a()
	fmt.Fprint(h, a.x.history, a.seen, now)
	a.x.history = h.Sum64()
	switch v {
	case dieAfter:
		runtime.Goexit()
	case answerLost:
		a.note("lost")
		return []error{state.ErrUnknown}
	}
	return errs
}

func (g gate) Delete(context.Context, string) error { return nil }
func (g gate) Close() error                         { return nil }

// choice is one action: what happens to which actor.
type choice struct {
	actor   int // -1: the state is lost
	verdict verdict
}

func (x *limiterTree) choices() []choice {
	var all []choice
	for i, a := range x.actors {
		if a.next.done {
			continue
		}
		all = append(all, choice{i, goOn})
		if x.crashes > 0 {
			all = append(all, choice{i, dieNow})
		}
		if a.next.call && x.crashes > 0 {
			all = append(all, choice{i, dieAfter})
		}
		if a.next.call && x.lost > 0 {
			all = append(all, choice{i, answerLost})
		}
	}
	if x.wipes > 0 && len(all) > 0 {
		all = append(all, choice{-1, goOn})
	}
	return all
}

func (x *limiterTree) count() int { return len(x.choices()) }

func (x *limiterTree) name(i int) string {
	c := x.choices()[i]
	if c.actor < 0 {
		return "the state is lost"
	}
	what := "wakes up"
	if x.actors[c.actor].next.call {
		what = "calls the store"
	}
	how := [...]string{"", ", answer lost", ", dies before", ", dies after"}[c.verdict]
	return fmt.Sprintf("%v: reader %d %s%s", time.Duration(x.clock-exhaustStart)*time.Microsecond, c.actor, what, how)
}

func (x *limiterTree) do(i int) {
	c := x.choices()[i]
	if c.actor < 0 {
		x.wipes--
		x.store.Wipe(time.UnixMicro(x.clock))
		x.history = x.history*31 + uint64(x.clock)
		return
	}
	a := x.actors[c.actor]
	switch c.verdict {
	case dieNow, dieAfter:
		x.crashes--
		a.dead = true
	case answerLost:
		x.lost--
	}
	if !a.next.call && c.verdict == goOn {
		x.clock = max(x.clock, a.next.at)
	}
	a.answer <- c.verdict
	a.next = <-a.ask
}

func (x *limiterTree) key() uint64 {
	h := fnv.New64a()
	fmt.Fprint(h, x.clock, x.history, x.crashes, x.wipes, x.lost, x.log)
	// Which reader is which makes no difference.
	readers := make([]string, len(x.actors))
	for i, a := range x.actors {
		readers[i] = fmt.Sprint(a.seen, a.next, a.dead)
	}
	slices.Sort(readers)
	fmt.Fprint(h, readers)
	return h.Sum64()
}

// wrong counts the last window.
func (x *limiterTree) wrong() string {
	limit := x.parsed
	if n := len(x.log) - 1 - int(limit.Max); n >= 0 && x.log[len(x.log)-1]-x.log[n] < limit.Window().Microseconds() {
		return fmt.Sprintf("%d dispatches within %v: %v", limit.Max+1, limit.Window(), x.log)
	}
	return ""
}

func (x *limiterTree) end() string {
	alive := false
	for _, a := range x.actors {
		alive = alive || !a.dead
	}
	if alive && len(x.log) < x.messages {
		return fmt.Sprintf("only %d of %d were dispatched", len(x.log), x.messages)
	}
	return ""
}

func (x *limiterTree) close() {
	for _, a := range x.actors {
		for !a.next.done {
			a.answer <- dieNow
			a.next = <-a.ask
		}
	}
}
