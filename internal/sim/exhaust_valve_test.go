package sim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/valve"
)

// The lease protocol of the real valve.Reader in a small scope: at every moment at
// which nothing is under way, everything that consumers, the store and time can do
// next is tried. Consumers ask for a message, or end one by any verb, or try
// another verb after an error; the call of the store behind it may go wrong in every
// way; leases run out; readers die. How often each of these happens in one run is
// bounded by the scope, where it happens is not.

func TestExhaustValve(t *testing.T) {
	for _, s := range valveScopes() {
		t.Run(s.String(), func(t *testing.T) {
			begin := time.Now()
			e := explorer{virtual: true}
			e.explore(t, func() tree { return newValveTree(s) }, setting("MVALVE_SIM_NODES", 5_000_000))
			t.Logf("%s in %v", &e, time.Since(begin).Round(time.Millisecond))
		})
	}
}

func valveScopes() []valveScope {
	scopes := []valveScope{
		{readers: 1, messages: 1, faults: 1, backs: 1},
	}
	if !raceEnabled {
		scopes = append(scopes, valveScope{readers: 1, messages: 1, faults: 1, expiries: 1, backs: 1},
			valveScope{readers: 2, messages: 1, faults: 1, expiries: 1, backs: 1})
	}
	if os.Getenv("MVALVE_SIM_LARGE") != "" {
		scopes = append(scopes, valveScope{readers: 1, messages: 1, faults: 1, expiries: 1, backs: 1, extensions: 1},
			valveScope{readers: 1, messages: 1, faults: 1, expiries: 1, backs: 2},
			valveScope{readers: 2, messages: 2, expiries: 1, backs: 1},
			valveScope{readers: 2, messages: 2, expiries: 1, backs: 1, crashes: 1})
	}
	return scopes
}

// With a store that has a defect the search finds what comes of it.
func TestExhaustValveNotices(t *testing.T) {
	for name, s := range map[string]valveScope{
		"a lease without looking":                    {readers: 2, messages: 1, faults: 1, blind: true},
		"an end that is taken for that of any lease": {readers: 2, messages: 1, faults: 1, backs: 2, fenceless: true},
	} {
		e := explorer{quiet: true, virtual: true}
		e.explore(t, func() tree { return newValveTree(s) }, 100_000)
		if e.wrong == "" {
			t.Errorf("%s: nothing was found", name)
		}
		t.Logf("%s: after %d nodes: %s", name, e.nodes, e.wrong)
	}
}

// valveScope is what one search covers: how many there are, and how often at most
// each thing happens in one run.
type valveScope struct {
	readers, messages int
	faults            int // calls of the store that go wrong
	expiries          int // times at which leases run out
	backs             int // ends by Nack and Release
	extensions        int
	crashes           int

	blind, fenceless bool // defects of the store
}

func (s valveScope) String() string {
	return fmt.Sprintf("%d-readers-%d-messages-%d-faults-%d-expiries-%d-backs-%d-extensions-%d-crashes",
		s.readers, s.messages, s.faults, s.expiries, s.backs, s.extensions, s.crashes)
}

// trouble is what happens to one call of the store.
type trouble uint8

const (
	allWell      trouble = iota
	lostAnswer           // done, and nobody hears
	doneLater            // nobody knows; it is carried out at some later moment, or never
	refused              // not done, and said so
	slowCall             // reaches the store at some later moment
	slowAnswer           // done; the answer comes at some later moment
	callerLeaves         // of Next: the lease is won when the caller has gone
)

var troubleNames = [...]string{"", ", answer lost", ", outcome unknown", ", refused", ", call is slow", ", answer is slow", ", caller leaves"}

const (
	valveLease  = 1250 * time.Millisecond
	valveExtend = 2 * valveLease
	valveGrid   = 100 * time.Millisecond // time goes on in such steps
	patience    = 3 * time.Second        // of a consumer whom nothing keeps from a message
)

// valveTree is a store and the readers on it, in virtual time.
type valveTree struct {
	valveScope
	store   *queue.Memory
	begin   time.Time
	actors  []*valveActor
	pending []*storeCall // outcome unknown, may be carried out
	stuck   []*storeCall // under way

	mu    sync.Mutex // guards what follows, and the lists and bad above and below
	ids   []queue.ID
	truth []valveTruth // by message
	bad   string

	commits int64
}

// valveTruth is what really happened to a message.
type valveTruth struct {
	gone  bool  // deleted
	by    int   // the reader whose ack deleted it
	acked bool  // an Ack returned nil
	backs []int // by reader: how often it gave the message back
}

// valveActor is a reader and its consumer.
type valveActor struct {
	x     *valveTree
	n     int
	r     *valve.Reader
	sub   *valve.Subscription
	out   []*holding
	next  context.CancelFunc // of the call of Next under way
	armed trouble            // of its next call of the store
	dead  bool
}

// holding is a delivery as its consumer sees it.
type holding struct {
	d      *valve.Delivery
	msg    int
	until  time.Time // its lease, as far as the consumer was told
	again  bool      // an end had an unknown outcome
	unsure bool      // it was one that gives the message to others
	busy   string    // the verb under way
	backs  int       // of the truth, when it was handed out
}

// goesBack reports whether the consumer is giving the message to others.
func (h *holding) goesBack() bool {
	return h.busy == valveVerbs[queue.Retry] || h.busy == valveVerbs[queue.Release]
}

// held returns what its consumer has.
func (a *valveActor) held() []*holding {
	a.x.mu.Lock()
	defer a.x.mu.Unlock()
	return slices.Clone(a.out)
}

// waits reports whether a call of Next is under way.
func (a *valveActor) waits() bool {
	a.x.mu.Lock()
	defer a.x.mu.Unlock()
	return a.next != nil
}

// trouble returns what is still to happen to its next call of the store.
func (a *valveActor) trouble() trouble {
	a.x.mu.Lock()
	defer a.x.mu.Unlock()
	return a.armed
}

// storeCall is a call whose effect or answer is still to come.
type storeCall struct {
	actor  int
	what   func(stamp func(time.Time) string) string // for people and for the key
	do     func()
	fresh  bool          // nothing has happened since
	resume chan struct{} // of a call under way
}

func newValveTree(s valveScope) *valveTree {
	x := &valveTree{valveScope: s, store: queue.NewMemory(), begin: time.Now(), truth: make([]valveTruth, s.messages)}
	for i := range s.messages {
		m := &queue.Message{ID: valveID(x.begin, i), Destination: "d", Lane: queue.Incoming, EnqueuedAt: x.begin, Body: []byte{byte(i)}}
		x.ids = append(x.ids, m.ID)
		x.truth[i].backs = make([]int, s.readers)
		if _, err := x.store.Apply(context.Background(), x.begin, &queue.Change{Token: m.ID, Put: []*queue.Message{m}}); err != nil {
			panic(err)
		}
	}
	for i := range s.readers {
		a := &valveActor{x: x, n: i}
		var err error
		if a.r, err = valve.OpenReader(context.Background(), a, valve.ReaderConfig{Lease: valveLease, MaxAttempts: 1000, Address: "-"}); err == nil {
			a.sub, err = a.r.Subscribe(valve.Filter{Exact: "d"}, 0)
		}
		if err != nil {
			panic(err)
		}
		x.actors = append(x.actors, a)
	}
	x.align()
	return x
}

func valveID(at time.Time, n int) queue.ID {
	id := queue.MinID(at)
	id[6], id[8], id[15] = 0x70, 0x80, byte(n)
	return id
}

// align lets time go on to the next point of the grid.
func (x *valveTree) align() {
	over := time.Since(x.begin) % valveGrid
	pass(valveGrid - over)
	synctest.Wait()
}

// row returns a message as it is in the store, nil if it is not.
func (x *valveTree) row(msg int) (*queue.Message, queue.Lane) {
	for _, table := range []queue.Lane{queue.Timed, queue.Incoming, queue.Dead} {
		letters, err := x.store.Peek(context.Background(), table, "", queue.Cursor{}, x.messages)
		if err != nil {
			panic(err)
		}
		for _, l := range letters {
			if l.Message.ID == x.ids[msg] {
				return l.Message, table
			}
		}
	}
	return nil, 0
}

func (x *valveTree) number(id queue.ID) int { return slices.Index(x.ids, id) }

func (x *valveTree) fail(format string, v ...any) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.bad == "" {
		x.bad = fmt.Sprintf(format, v...)
	}
}

func (x *valveTree) wrong() string {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.bad
}

// fetch is a call of Next.
func (a *valveActor) fetch(t trouble) {
	x := a.x
	ctx, cancel := context.WithCancel(context.Background())
	x.mu.Lock()
	a.next = cancel
	x.mu.Unlock()
	if t == callerLeaves {
		a.arm(slowCall)
	} else {
		a.arm(t)
	}
	go func() {
		d, err := a.sub.Next(ctx)
		x.mu.Lock()
		a.next = nil
		x.mu.Unlock()
		if err == nil {
			a.received(d)
		}
	}()
	for free := time.Now(); ; pass(valveGrid / 2) {
		synctest.Wait()
		stuck, late := x.stuckOf(a.n), time.Since(free) >= patience
		taken := t == allWell && !a.finds() // somebody else was quicker
		switch {
		case !a.waits():
		case t == callerLeaves && stuck != nil:
			cancel()
			synctest.Wait()
			x.resume(stuck)
		case stuck != nil: // goes on later
		case t != allWell && a.trouble() == allWell || taken || late: // what was armed has happened
			if late {
				x.fail("reader %d did not find what is free within %v", a.n, patience)
			}
			cancel()
			synctest.Wait()
		default:
			continue
		}
		break
	}
	x.disarm(a)
}

// arm sets what happens to the next call of the store that can go wrong.
func (a *valveActor) arm(t trouble) {
	a.x.mu.Lock()
	defer a.x.mu.Unlock()
	a.armed = t
}

// disarm makes good for trouble that did not come to pass.
func (x *valveTree) disarm(a *valveActor) {
	if a.trouble() != allWell {
		a.arm(allWell)
		x.faults++
	}
}

func (x *valveTree) stuckOf(n int) *storeCall {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, c := range x.stuck {
		if c.actor == n {
			return c
		}
	}
	return nil
}

// resume lets a call under way go on.
func (x *valveTree) resume(c *storeCall) {
	x.mu.Lock()
	x.stuck = slices.DeleteFunc(x.stuck, func(o *storeCall) bool { return o == c })
	x.mu.Unlock()
	close(c.resume)
	synctest.Wait()
}

// received checks a delivery at the moment at which it was handed out.
func (a *valveActor) received(d *valve.Delivery) {
	x := a.x
	msg, now := x.number(d.Message.ID), a.r.Now()
	row, _ := x.row(msg)
	x.mu.Lock()
	dead, truth := a.dead, x.truth[msg]
	h := &holding{d: d, msg: msg, backs: truth.backs[a.n]}
	if row != nil {
		h.until = row.LeaseUntil
	}
	var other *valveActor
	for _, b := range x.actors {
		for _, o := range b.out {
			if !b.dead && o.msg == msg && !o.unsure && !o.goesBack() && o.until.After(now) {
				other = b
			}
		}
	}
	a.out = append(a.out, h)
	x.mu.Unlock()
	switch {
	case dead:
	case truth.acked:
		x.fail("m%d is handed out by reader %d after its ack was confirmed", msg, a.n)
	case row == nil && truth.gone && truth.by == a.n:
		// Between its lease and now an ack that had no outcome was carried out after all:
		// as true of the later lease of the same reader.
	case row == nil:
		x.fail("m%d is handed out by reader %d and is not in the store", msg, a.n)
	case row.LeaseToken != a.r.ID() || !row.LeaseUntil.After(now):
		x.fail("m%d is handed out by reader %d, which has no lease on it", msg, a.n)
	case other != nil:
		x.fail("m%d is handed out by reader %d while reader %d holds it", msg, a.n, other.n)
	}
}

// end ends a delivery, or lengthens its lease, and checks what is said of it.
func (a *valveActor) end(h *holding, verb queue.Verb, t trouble) {
	x := a.x
	h.busy = valveVerbs[verb]
	a.arm(t)
	go func() {
		began := a.r.Now()
		var err error
		switch ctx := context.Background(); verb {
		case queue.Ack:
			err = h.d.Ack(ctx)
		case queue.Retry:
			err = h.d.Nack(ctx, 0, "")
		case queue.Release:
			err = h.d.Release(ctx)
		case queue.Extend:
			err = h.d.Extend(ctx, valveExtend)
		}
		x.ended(a, h, verb, began, err)
	}()
	synctest.Wait()
	x.disarm(a)
}

var valveVerbs = map[queue.Verb]string{queue.Ack: "ack", queue.Retry: "nack", queue.Release: "release", queue.Extend: "extend"}

// ended checks what a consumer was told.
func (x *valveTree) ended(a *valveActor, h *holding, verb queue.Verb, began time.Time, err error) {
	row, _ := x.row(h.msg)
	x.mu.Lock()
	h.busy = ""
	if a.dead {
		x.mu.Unlock()
		return
	}
	truth := &x.truth[h.msg]
	bad := ""
	switch {
	case err == nil && verb == queue.Ack:
		truth.acked = true
		if row != nil {
			bad = "m%d: reader %d was told that its ack was done, and the message is there"
		}
	case err == nil && verb == queue.Extend:
		h.until = later(h.until, began.Add(valveExtend).Truncate(time.Microsecond))
		if h.until.After(a.r.Now()) && !h.unsure && (row == nil || row.LeaseToken != a.r.ID() || row.LeaseUntil.Before(h.until)) {
			bad = "m%d: reader %d was told that its lease is longer, and it is not"
		}
	case err == nil:
		if truth.backs[a.n] == h.backs {
			bad = "m%d: reader %d was told that the message went back, and it did not"
		}
	case errors.Is(err, queue.ErrUnknown) && verb != queue.Extend:
		h.again, h.unsure = true, h.unsure || verb != queue.Ack
	}
	if err == nil && verb != queue.Extend || errors.Is(err, valve.ErrLeaseLost) {
		a.out = slices.DeleteFunc(a.out, func(o *holding) bool { return o == h })
	}
	x.mu.Unlock()
	if bad != "" {
		x.fail(bad, h.msg, a.n)
	}
}

// valveChoice is one thing that can happen next.
type valveChoice struct {
	name string
	do   func()
}

func (x *valveTree) count() int        { return len(x.choices()) }
func (x *valveTree) name(i int) string { return x.choices()[i].name }

func (x *valveTree) do(i int) {
	all := x.choices()
	for _, c := range slices.Concat(x.stuck, x.pending) {
		c.fresh = false
	}
	all[i].do()
}

func (x *valveTree) choices() []valveChoice {
	if x.bad != "" {
		return nil
	}
	var all []valveChoice
	add := func(do func(), format string, v ...any) {
		at := time.Since(x.begin).Round(time.Millisecond)
		all = append(all, valveChoice{fmt.Sprintf("%v: ", at) + fmt.Sprintf(format, v...), do})
	}
	for _, a := range x.actors {
		if !a.dead {
			x.choicesOf(a, add)
		}
	}
	if x.expiries > 0 {
		x.expire(add)
	}
	// What goes on before anything else happens is no trouble at all.
	quiet := len(all) == 0
	for _, c := range x.stuck {
		if !c.fresh || quiet {
			add(func() { x.resume(c) }, "goes on: reader %d, %s", c.actor, c)
		}
	}
	for i, c := range x.pending {
		if !c.fresh || quiet {
			add(func() { x.pending = slices.Delete(x.pending, i, i+1); c.do(); synctest.Wait() }, "carried out: reader %d, %s", c.actor, c)
		}
	}
	if quiet && len(x.stuck) == 0 && len(x.pending) > 0 {
		add(func() { x.pending = nil }, "nothing else is carried out")
	}
	return all
}

type addChoice func(do func(), format string, v ...any)

// choicesOf adds what a reader and its consumer can do.
func (x *valveTree) choicesOf(a *valveActor, add addChoice) {
	most, mostNext := allWell, allWell
	if x.faults > 0 {
		most, mostNext = slowAnswer, callerLeaves
	}
	if !a.waits() && a.finds() {
		for t := allWell; t <= mostNext; t++ {
			add(func() { x.spend(t); a.fetch(t); x.align() }, "reader %d: next%s", a.n, troubleNames[t])
		}
	}
	for _, h := range a.held() {
		if h.busy != "" {
			continue
		}
		for _, verb := range []queue.Verb{queue.Ack, queue.Retry, queue.Release, queue.Extend} {
			left := map[queue.Verb]*int{queue.Retry: &x.backs, queue.Release: &x.backs, queue.Extend: &x.extensions}[verb]
			if left != nil && *left == 0 {
				continue
			}
			for t := allWell; t <= most; t++ {
				add(func() {
					if left != nil {
						*left--
					}
					x.spend(t)
					a.end(h, verb, t)
				}, "reader %d: %s m%d%s", a.n, valveVerbs[verb], h.msg, troubleNames[t])
			}
		}
	}
	if x.crashes > 0 {
		add(func() { x.crashes--; x.kill(a) }, "reader %d dies", a.n)
	}
}

func (x *valveTree) spend(t trouble) {
	if t != allWell {
		x.faults--
	}
}

// finds reports whether there is something for the reader to hand out: a message
// that nobody holds, or one that it has leased already. One that it holds as far
// as it knows is found again when that lease is over.
func (a *valveActor) finds() bool {
	for m := range a.x.ids {
		row, _ := a.x.row(m)
		holds := func(h *holding) bool { return h.msg == m && h.until.After(time.Now()) }
		if row != nil && !row.LeaseUntil.After(time.Now()) && !slices.ContainsFunc(a.held(), holds) {
			return true
		}
	}
	return a.r.Stats().InFlight > len(a.held())
}

// expire adds the times to which it may get: right before the next lease ends,
// when a reader has stopped to trust it, right after, before its reader has
// noticed, and a while after.
func (x *valveTree) expire(add addChoice) {
	var first time.Time
	for m := range x.ids {
		for _, until := range x.leases(m) {
			if first.IsZero() || until.Before(first) {
				first = until
			}
		}
	}
	if first.IsZero() {
		return
	}
	wait := time.Until(first)
	step := func(d time.Duration) func() {
		return func() { x.expiries--; pass(d); x.align() }
	}
	if x.again() && wait > valveLease/8 {
		add(step(wait-valveLease/16-valveGrid), "it is right before a lease ends")
	}
	add(step(wait), "a lease has ended")
	add(step(wait+600*time.Millisecond), "a lease has ended a while ago")
}

// leases returns until when a message is leased, or somebody takes it to be.
func (x *valveTree) leases(msg int) []time.Time {
	row, _ := x.row(msg)
	if row == nil {
		return nil
	}
	all := []time.Time{row.LeaseUntil}
	for _, a := range x.actors {
		for _, h := range a.held() {
			if h.msg == msg {
				all = append(all, h.until)
			}
		}
	}
	return slices.DeleteFunc(all, func(t time.Time) bool { return !t.After(time.Now()) })
}

func (x *valveTree) again() bool {
	for _, a := range x.actors {
		for _, h := range a.held() {
			if h.again {
				return true
			}
		}
	}
	return false
}

func (c *storeCall) String() string {
	return c.what(func(t time.Time) string { return t.Format("05.000000") })
}

// kill ends a process: nothing that it does takes effect from now on.
func (x *valveTree) kill(a *valveActor) {
	x.mu.Lock()
	a.dead = true
	var stuck []*storeCall
	for _, c := range x.stuck {
		if c.actor == a.n {
			stuck = append(stuck, c)
		}
	}
	next := a.next
	x.mu.Unlock()
	if next != nil {
		next()
	}
	for _, c := range stuck {
		x.resume(c)
	}
	if err := a.r.Close(); err != nil {
		panic(err)
	}
	synctest.Wait()
	x.mu.Lock()
	defer x.mu.Unlock()
	a.out = nil
}

func (x *valveTree) close() {
	for _, a := range x.actors {
		if !a.dead {
			x.kill(a)
		}
	}
}

// end: what did not end is there, and the readers that live find all of it.
func (x *valveTree) end() string {
	for m := range x.ids {
		if row, table := x.row(m); x.truth[m].gone != (row == nil) || table == queue.Dead {
			return fmt.Sprintf("m%d: deleted %v, there %v, in %v", m, x.truth[m].gone, row != nil, table)
		}
	}
	for _, a := range x.actors {
		if !a.dead {
			return x.drain(a)
		}
	}
	return ""
}

// drain lets one reader empty the store.
func (x *valveTree) drain(a *valveActor) string {
	for range x.messages {
		last, left := time.Now(), false
		for m := range x.ids {
			row, _ := x.row(m)
			left = left || row != nil
			for _, until := range x.leases(m) {
				last = later(last, until)
			}
		}
		if !left {
			return x.wrong()
		}
		pass(time.Until(last))
		x.align()
		a.fetch(allWell)
		if out := a.held(); len(out) > 0 {
			a.end(out[0], queue.Ack, allWell)
		}
	}
	for m := range x.ids {
		if row, _ := x.row(m); row != nil && x.wrong() == "" {
			return fmt.Sprintf("m%d was not delivered at the end", m)
		}
	}
	return x.wrong()
}
