package sim

import (
	"context"
	"fmt"
	"hash/fnv"
	"maps"
	"os"
	"reflect"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"testing"
	"testing/synctest"
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
	late     int // readers too slow for their permit, or calls of a fifth of the window

	wants  []int // permits that each reader asks for at once; nil: one
	pauses int   // times at which it gets later by what easy permits have more slack
}

// anyLate is scope.late of a search in which readers may always be slow. With
// three of them it has no end: each can be overtaken for ever.
const anyLate = 1 << 20

func (s scope) String() string {
	late := "any"
	if s.late < anyLate {
		late = strconv.Itoa(s.late)
	}
	name := fmt.Sprintf("%s-%d-readers-%d-messages-%d-crashes-%d-losses-%d-answers-%s-late", s.limit, s.readers, s.messages, s.crashes, s.wipes, s.lost, late)
	if s.wants != nil {
		name += fmt.Sprintf("-%d-pauses", s.pauses)
	}
	return name
}

// want is how many permits a reader asks for at once.
func (s scope) want(reader int) int {
	if s.wants == nil {
		return 1
	}
	return s.wants[reader]
}

func TestExhaustLimiter(t *testing.T) {
	scopes := []scope{
		{limit: "2/100ms", readers: 2, messages: 3, crashes: 1, late: anyLate},
		{limit: "2/100ms", readers: 2, messages: 2, crashes: 1, wipes: 1, late: anyLate},
		{limit: "2/100ms", readers: 3, messages: 3, crashes: 1},
	}
	// Here some permits are easy. With six messages the search also meets what comes of
	// reports that are applied twice.
	easy := scope{limit: "4/100ms", readers: 2, messages: 4, lost: 1, wants: []int{1, 3}, pauses: 1}
	if !raceEnabled { // one step at a time: the detector would only make it slow
		scopes = append(scopes, easy, scope{limit: "2/100ms", readers: 2, messages: 3, crashes: 1, wipes: 1, late: anyLate}, scope{limit: "2/100ms", readers: 3, messages: 3, crashes: 1, late: 1}, scope{limit: "2/100ms", readers: 3, messages: 3, crashes: 1, wipes: 1})
	}
	if os.Getenv("MVALVE_SIM_LARGE") != "" {
		easy.messages = 6
		scopes = append(scopes, easy, scope{limit: "2/100ms", readers: 2, messages: 3, lost: 1, late: anyLate}, scope{limit: "3/100ms", readers: 3, messages: 3, late: 1},
			scope{limit: "1/100ms", readers: 3, messages: 3, crashes: 1, wipes: 1}, scope{limit: "2/100ms", readers: 3, messages: 3, crashes: 1, wipes: 1, late: 1}, scope{limit: "2/100ms", readers: 3, messages: 3, crashes: 1, wipes: 1, late: 2}, scope{limit: "2/100ms", readers: 3, messages: 3, crashes: 1, wipes: 1, lost: 1})
	}
	for _, s := range scopes {
		t.Run(s.String(), func(t *testing.T) {
			begin := time.Now()
			var e explorer
			var easy int
			e.explore(t, func() tree { return easyCounter{newLimiterTree(s, false), &easy} }, setting("MVALVE_SIM_NODES", 50_000_000))
			t.Logf("%s in %v, easy permits in %d orders", &e, time.Since(begin).Round(time.Millisecond), easy)
			if mustLimit(s.limit).Max >= 4 && easy == 0 {
				t.Error("no order has a permit with the larger slack")
			}
		})
	}
}

// easyCounter counts the orders in which there was an easy permit.
type easyCounter struct {
	*limiterTree
	orders *int
}

func (c easyCounter) close() {
	c.limiterTree.close()
	if c.easy {
		*c.orders++
	}
}

// The search must be able to fail: with a limiter whose state is forgotten at each
// access it finds a window that is too full.
func TestExhaustLimiterNotices(t *testing.T) {
	e := explorer{quiet: true}
	e.explore(t, func() tree {
		return newLimiterTree(scope{limit: "1/100ms", readers: 2, messages: 3, late: anyLate}, true)
	}, 10_000)
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
	virtual                     bool // each run has its own virtual time
	nodes, leaves, same, deeper int
	strayed                     int // paths that led elsewhere the second time
	wrong                       string

	seen  map[uint64]bool
	stack [][]uint8 // paths that were not tried yet
}

func (e *explorer) String() string {
	text := fmt.Sprintf("%d nodes, %d complete orders, %d cut off as seen before, %d too long", e.nodes, e.leaves, e.same, e.deeper)
	if e.strayed > 0 {
		text += fmt.Sprintf(", %d went another way the second time", e.strayed)
	}
	return text
}

// longest is the most steps of a run.
const longest = 40

func (e *explorer) explore(t *testing.T, plant func() tree, most int) {
	t.Helper()
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1)) // one step at a time anyway
	defer debug.SetGCPercent(debug.SetGCPercent(400))
	e.seen = make(map[uint64]bool)
	e.stack = [][]uint8{nil}
	for len(e.stack) > 0 && e.wrong == "" {
		path := e.stack[len(e.stack)-1]
		e.stack = e.stack[:len(e.stack)-1]
		e.alone(t, func() {
			run := plant()
			defer run.close()
			path = e.follow(run, path)
		})
		if e.wrong != "" && !e.quiet {
			e.alone(t, func() {
				run := plant()
				defer run.close()
				for _, i := range path {
					t.Log(run.name(int(i)))
					run.do(int(i))
				}
			})
			t.Errorf("after %d nodes: %s", e.nodes, e.wrong)
		}
		if e.nodes > most {
			t.Errorf("not exhausted after %d nodes", e.nodes)
			return
		}
	}
	if e.deeper > 0 {
		t.Errorf("%d orders were not followed beyond %d steps", e.deeper, longest)
	}
	if e.strayed*10 > e.nodes {
		t.Errorf("%d of %d orders went another way than before", e.strayed, e.nodes)
	}
}

// alone calls run, in a bubble of virtual time if the tree wants one.
func (e *explorer) alone(t *testing.T, run func()) {
	if e.virtual {
		synctest.Test(t, func(*testing.T) { run() })
		return
	}
	run()
}

// follow takes the steps of path, and then always the first one; what else could
// have been done goes onto the stack. It returns the whole path.
func (e *explorer) follow(run tree, path []uint8) []uint8 {
	for _, i := range path {
		if int(i) >= run.count() {
			e.strayed++
			return path
		}
		run.do(int(i))
	}
	for {
		if e.wrong = run.wrong(); e.wrong != "" {
			return path
		}
		if k := run.key(); e.seen[k] {
			e.same++
			return path
		} else {
			e.seen[k] = true
		}
		e.nodes++
		acts := run.count()
		if acts == 0 {
			e.leaves++
			e.wrong = run.end()
			return path
		}
		if len(path) >= longest {
			e.deeper++
			return path
		}
		for i := acts - 1; i > 0; i-- {
			e.stack = append(e.stack, append(path[:len(path):len(path)], uint8(i)))
		}
		run.do(0)
		path = append(path[:len(path):len(path)], 0)
	}
}

// limiterTree runs readers that share a limiter's state.
type limiterTree struct {
	scope
	parsed  throttle.Limit
	store   *state.Memory
	clock   int64 // µs
	actors  []*limiterActor
	log     []int64         // stamps
	keys    map[string]bool // in the store
	easy    bool            // a permit with the larger slack was given
	forgets bool
}

const exhaustStart = int64(1_700_000_000_000_000)

func newLimiterTree(s scope, forgets bool) *limiterTree {
	x := &limiterTree{scope: s, parsed: mustLimit(s.limit), store: state.NewMemory(), clock: exhaustStart, keys: make(map[string]bool), forgets: forgets}
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
	call  bool
	at    int64
	until int64 // it is late if this happens later; 0: never
	done  bool  // it has ended
}

type verdict uint8

const (
	goOn verdict = iota
	answerLost
	dieNow
)

// limiterActor is one reader.
type limiterActor struct {
	x      *limiterTree
	n      int
	ask    chan request
	answer chan verdict
	next   request
	seen   uint64 // hash over all that what it does next depends on
	nonces uint64
	dead   bool

	unheard bool // the answer of its last call was lost
}

// note adds to what the actor knows within one call of its limiter.
func (a *limiterActor) note(v ...any) {
	h := fnv.New64a()
	fmt.Fprintln(h, append(v, a.seen)...) // Print shows what a reflect.Value holds only if it is an argument itself
	a.seen = h.Sum64()
}

// know says between two calls what the actor knows: the limiter's state and v.
func (a *limiterActor) know(l *throttle.Limiter, v ...any) {
	a.seen = 0
	limiter := reflect.ValueOf(l).Elem()
	a.note(append(v, field(limiter, "nextDue"))...)
	for pending := field(limiter, "pending").MapRange(); pending.Next(); { // of one destination
		notes := pending.Value().Elem()
		for i := range notes.NumField() {
			f := notes.Field(i)
			if f.Kind() == reflect.Pointer && !f.IsNil() {
				f = f.Elem()
			}
			a.note(f)
		}
	}
}

func field(v reflect.Value, name string) reflect.Value {
	f := v.FieldByName(name)
	if !f.IsValid() {
		panic(v.Type().String() + " has no " + name)
	}
	return f
}

// nonce is the limiter's source of random numbers: states must not differ by
// numbers that only tell writes apart, which matters where answers are lost.
func (a *limiterActor) nonce() uint64 {
	if a.x.scope.lost == 0 {
		return 1
	}
	a.nonces++
	return a.nonces<<8 | uint64(a.n)
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
	random := field(reflect.ValueOf(l).Elem(), "random")
	*(*func() uint64)(random.Addr().UnsafePointer()) = a.nonce
	ctx := context.Background()
	for a.step(request{at: x.clock}); len(x.log) < x.messages; {
		now := x.clock
		a.know(l, now)
		g := l.Take(ctx, time.UnixMicro(now), []throttle.Request{{Destination: "d", Limit: limit, Version: 1, Want: x.want(a.n)}})[0]
		if len(g.Permits) == 0 {
			// Asking before the slot is free would only lengthen the runs.
			wake := now + limit.Window().Microseconds()/2
			if nb := g.NotBefore.UnixMicro(); g.Err == nil && nb > now+5000 {
				wake = nb + 10_000
			}
			if a.unheard && x.wants != nil {
				wake = g.NotBefore.UnixMicro() // or much later: nothing hurries it
			}
			a.unheard = false
			a.know(l, "none")
			a.step(request{at: wake})
			continue
		}
		for rest := g.Permits; len(rest) > 0; {
			rest = a.use(l, rest)
		}
		a.know(l, "flush", x.clock)
		l.Flush(ctx, time.UnixMicro(x.clock))
	}
}

// use waits for the first permit and dispatches what may go together with it: it
// returns the rest.
func (a *limiterActor) use(l *throttle.Limiter, permits []throttle.Permit) (rest []throttle.Permit) {
	x := a.x
	n := 1
	for n < len(permits) && !permits[n].At.After(permits[0].Until) {
		n++
	}
	know := []any{"permits"}
	until := permits[0].Until
	for i, p := range permits {
		know = append(know, p.At, p.Until, field(reflect.ValueOf(p), "from").Elem())
		if i < n && p.Until.Before(until) {
			until = p.Until
		}
		if p.Until.Sub(p.At) > x.slack() {
			x.easy = true
		}
	}
	a.know(l, know...)
	a.step(request{at: permits[n-1].At.UnixMicro(), until: until.UnixMicro()})
	for _, p := range permits[:n] {
		if at := time.UnixMicro(x.clock); at.After(p.Until) || len(x.log) >= x.messages {
			l.Return(p)
		} else {
			x.log = append(x.log, x.clock)
			l.Dispatched(p, at)
		}
	}
	return permits[n:]
}

// gate is the state store: each call is a step.
type gate struct{ a *limiterActor }

func (g gate) Get(ctx context.Context, keys []string) ([]state.Entry, []error) {
	return g.a.x.store.Get(ctx, keys)
}

func (g gate) Update(ctx context.Context, now time.Time, keys []string, ttls []time.Duration, fn func(int, state.Entry) []byte) []error {
	a := g.a
	v := a.step(request{call: true, at: now.UnixMicro(), until: now.Add(a.x.parsed.Window() / 5).UnixMicro()})
	errs := a.x.store.Update(ctx, now, keys, ttls, func(i int, old state.Entry) []byte {
		a.x.keys[keys[i]] = true
		a.note(old)
		if a.x.forgets {
			old = state.Entry{}
		}
		return fn(i, old)
	})
	if v == answerLost {
		a.note("lost")
		a.unheard = true
		return []error{state.ErrUnknown}
	}
	return errs
}

func (g gate) Delete(context.Context, string) error { return nil }
func (g gate) Close() error                         { return nil }

// choice is one action: what happens to which actor.
type choice struct {
	actor   int // or stateLost, or timePasses
	verdict verdict
}

const (
	stateLost  = -1
	timePasses = -2
)

// slack is that of permits which are not easy.
func (x *limiterTree) slack() time.Duration { return max(5*time.Millisecond, x.parsed.Interval/20) }

// pause is how much more slack easy permits have: what is granted so much later has
// the same latest moment.
func (x *limiterTree) pause() int64 { return (x.parsed.Interval/4 - x.slack()).Microseconds() }

func (x *limiterTree) choices() []choice {
	var all []choice
	if len(x.log) >= x.messages {
		return nil // what follows dispatches nothing
	}
	for i, a := range x.actors {
		if a.next.done {
			continue
		}
		if x.inTime(i) {
			all = append(all, choice{i, goOn})
		}
		if x.crashes > 0 {
			all = append(all, choice{i, dieNow}) // which is after the step before, too
		}
		if a.next.call && x.lost > 0 {
			all = append(all, choice{i, answerLost})
		}
	}
	if x.wipes > 0 && len(all) > 0 {
		all = append(all, choice{stateLost, goOn})
	}
	if x.pauses > 0 && len(all) > 0 && x.lateAt(-1, x.clock+x.pause()) <= max(x.late, 0) {
		all = append(all, choice{timePasses, goOn})
	}
	return all
}

// inTime reports whether reader i may be next: no more are late then than may be.
func (x *limiterTree) inTime(i int) bool {
	next := x.actors[i].next
	if next.call || next.at <= x.clock {
		return true
	}
	return x.lateAt(i, next.at) <= max(x.late, 0) // what comes with a late answer is late without a choice
}

// lateAt is how many readers but i would be late at a time.
func (x *limiterTree) lateAt(i int, at int64) int {
	late := 0
	for j, a := range x.actors {
		if j != i && !a.next.done && a.next.until > 0 && a.next.until < at {
			late++
		}
	}
	return late
}

func (x *limiterTree) count() int { return len(x.choices()) }

func (x *limiterTree) name(i int) string {
	c := x.choices()[i]
	switch c.actor {
	case stateLost:
		return "the state is lost"
	case timePasses:
		return fmt.Sprintf("%dµs pass", x.pause())
	}
	what := "wakes up"
	if x.actors[c.actor].next.call {
		what = "calls the store"
	}
	how := [...]string{"", ", answer lost", ", dies before"}[c.verdict]
	return fmt.Sprintf("%v: reader %d %s%s", time.Duration(x.clock-exhaustStart)*time.Microsecond, c.actor, what, how)
}

func (x *limiterTree) do(i int) {
	c := x.choices()[i]
	switch c.actor {
	case stateLost:
		x.wipes--
		x.store.Wipe(time.UnixMicro(x.clock))
		return
	case timePasses:
		x.pauses--
		x.clock += x.pause()
		return
	}
	a := x.actors[c.actor]
	switch c.verdict {
	case dieNow:
		x.crashes--
		a.dead = true
	case answerLost:
		x.lost--
	}
	if a.next.until > 0 && a.next.until < x.clock && c.verdict != dieNow && x.late < anyLate {
		x.late--
	}
	if !a.next.call && c.verdict == goOn {
		x.clock = max(x.clock, a.next.at)
	}
	a.answer <- c.verdict
	a.next = <-a.ask
}

func (x *limiterTree) key() uint64 {
	h := fnv.New64a()
	for _, key := range slices.Sorted(maps.Keys(x.keys)) {
		value, errs := x.store.Get(context.Background(), []string{key})
		fmt.Fprint(h, key, value, errs)
	}
	fmt.Fprint(h, x.clock, x.crashes, x.wipes, x.lost, x.late, x.pauses, len(x.log), x.log[max(0, len(x.log)-int(x.parsed.Max)):])
	// Which reader is which makes no difference, nor what one knew that died.
	readers := make([]string, len(x.actors))
	for i, a := range x.actors {
		if !a.next.done {
			readers[i] = fmt.Sprint(a.seen, a.next, x.want(i))
		}
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
