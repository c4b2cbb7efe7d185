package valve

import (
	"cmp"
	"container/heap"
	"slices"
	"time"

	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/throttle"
)

const (
	// headRefs is the most references kept per destination, but for those whose
	// list is used up faster than it is refilled: they get up to rushRefs.
	headRefs = 256
	rushRefs = 2048
	// rushTime is how fast a list is used up then.
	rushTime = 100 * time.Millisecond
)

// phase is where an entry is on its way through the reader.
type phase uint8

const (
	waiting  phase = iota // in the ready index (or not due yet)
	chosen                // a job takes its permit and lease
	prepared              // leased; waits for a permit or a caller
	out                   // handed to the consumer
	settling              // its end is being committed
	gone                  // ended, lost or forgotten
)

// entry is one known message: first a reference, later a lease and a delivery.
// The reader's mutex guards it.
type entry struct {
	ref   queue.Ref
	dest  *destination
	phase phase

	message    *queue.Message // nil until leased, unless handed over
	leaseUntil time.Time
	asked      time.Time // up to when its lease was asked for, whatever came of it
	permit     throttle.Permit
	permitted  bool      // permit is valid and unused
	limited    bool      // leaves only with a permit
	holds      time.Time // its own duration holds the destination until then
	why        string    // the reason of that hold
	weight     int8      // counted in Reader.ahead of class, 0: not
	class      class
	heldSince  time.Time // while in destination.held
	unknown    bool      // the outcome of an earlier ack was lost
	unsure     bool      // that of another ending
	sub        *Subscription
	item       *item // being inserted for a subscription
}

// set reports whether h is the hold that e's own duration set, and nothing was
// added to it since.
func (e *entry) set(h throttle.Hold) bool {
	return !e.holds.IsZero() && !h.Until.After(e.holds) && h.Reason == e.why
}

// waits returns until when e waits for h. It passes its own, and an emergency
// that of another one, but not while the destination was asked to rest.
func (e *entry) waits(h throttle.Hold) time.Time {
	return heldUntil(h, rank(&e.ref) == 0, e.set(h))
}

// heldUntil returns until when h keeps an emergency or another message back, and
// one that set h itself.
func heldUntil(h throttle.Hold, urgent, own bool) time.Time {
	if own || urgent && h.Reason == holdEmergency {
		return h.RestUntil
	}
	return h.Until
}

// rank is the lane order within a destination.
func rank(r *queue.Ref) int {
	switch {
	case r.Lane == queue.Emergency:
		return 0
	case r.Table == queue.Timed:
		return 1
	}
	return 2
}

// before is the order in which a destination's messages are dispatched.
func before(a, b *queue.Ref) int {
	if c := cmp.Compare(rank(a), rank(b)); c != 0 {
		return c
	}
	if c := cmp.Compare(b.Priority, a.Priority); c != 0 {
		return c
	}
	if a.Table == queue.Timed || b.Table == queue.Timed {
		if c := cmp.Compare(a.ReadyAt, b.ReadyAt); c != 0 {
			return c
		}
	}
	return a.ID.Compare(b.ID)
}

// destination is what the reader knows of one destination: the first references
// of its backlog in dispatch order and whether more are in the store.
type destination struct {
	name    string
	ready   []*entry // sorted by before, at most headRefs
	held    []*entry // prepared entries without a valid permit, in dispatch order
	more    bool     // the store has rows behind the last of ready
	dropped bool     // a row was passed over since the refill under way began
	refill  bool     // a refill is queued or under way

	last   queue.Ref // what left ready last
	headAt time.Time // when a refill last began at the head
	fillAt time.Time // when the last refill began
	rush   uint8     // its list is 1<<rush times headRefs

	behind   int     // messages on their way to the store that are not reserved
	inFlight int     // entries chosen, prepared or out
	asking   bool    // a job must come further before another one starts
	pipeline []*item // of jobs under way, in order of dispatch
	open     *item   // of the job that is being put together

	relaxed    bool // its last permits had much slack
	rule       throttle.Resolved
	ruled      bool      // rule is set
	notBefore  time.Time // the limiter's answer: asking earlier is useless
	why        string    // what notBefore waits for
	returned   uint32    // permits given back so far
	readySince time.Time // when it last became eligible

	deficit   int  // messages left of its turn, of deficit round robin
	inRing    bool // queued in the normal ring
	inExpress bool // queued in the ring of destinations with an emergency
	parked    bool // eligible, but nobody who wants it has credit
	wakeAt    time.Time
	heapPos   int // position among the sleepers, -1 while awake
}

// most is how many references d may have in its list.
func (d *destination) most() int { return headRefs << d.rush }

// low reports whether it is time for a refill.
func (d *destination) low() bool {
	if d.rush > 0 {
		return len(d.ready) < d.most()/2
	}
	return len(d.ready) < headRefs/8
}

// pace fits the length of the list to how fast it is used up, at the start of a
// refill.
func (d *destination) pace(now time.Time) {
	switch fast := now.Sub(d.fillAt) < rushTime; {
	case fast && d.most() < rushRefs:
		d.rush++
	case !fast && d.rush > 0:
		d.rush--
	}
	d.fillAt = now
}

// shared notes that other readers take from d too: what the list holds may be
// gone, so that it is kept short and read from the head.
func (d *destination) shared() { d.rush, d.headAt, d.fillAt = 0, time.Time{}, time.Time{} }

// nextSize returns the bytes of the message that is next.
func (d *destination) nextSize() int {
	switch {
	case len(d.held) > 0:
		return d.held[0].ref.Size
	case len(d.ready) > 0:
		return d.ready[0].ref.Size
	}
	return 0
}

func (d *destination) backlog() int { return len(d.ready) + len(d.held) }

// busy is how many of its messages are on their way or with consumers.
func (d *destination) busy() int { return d.inFlight - len(d.held) }

// urgent reports whether an emergency is next.
func (d *destination) urgent() bool {
	if len(d.held) > 0 {
		return rank(&d.held[0].ref) == 0
	}
	return len(d.ready) > 0 && rank(&d.ready[0].ref) == 0
}

// index is the ready index of a reader: bounded memory of what could be
// dispatched next. The reader's mutex guards it.
type index struct {
	limit  int // most references
	total  int // references in ready lists and in soon
	known  map[queue.ID]*entry
	ended  [2]map[queue.ID]struct{} // acked lately, by age: a scan may still show them
	dests  map[string]*destination
	soon   soonHeap // timed references not yet due
	sleeps sleepHeap
}

func newIndex(limit int) *index {
	return &index{limit: limit, known: make(map[queue.ID]*entry), dests: make(map[string]*destination)}
}

func (x *index) dest(name string) *destination {
	d := x.dests[name]
	if d == nil {
		d = &destination{name: name, heapPos: -1}
		x.dests[name] = d
	}
	return d
}

// seen reports whether the message needs no offer: it is known, or was ended
// while a scan that still shows it was under way.
func (x *index) seen(id queue.ID) bool {
	if x.known[id] != nil {
		return true
	}
	for _, set := range x.ended {
		if _, ok := set[id]; ok {
			return true
		}
	}
	return false
}

// end remembers for a while that the message is no more.
func (x *index) end(id queue.ID) {
	if x.ended[0] == nil {
		x.ended[0] = make(map[queue.ID]struct{})
	}
	x.ended[0][id] = struct{}{}
}

// ageEnded forgets what ended before the last call but one.
func (x *index) ageEnded() { x.ended = [2]map[queue.ID]struct{}{nil, x.ended[0]} }

// offer adds a reference unless it is known or lies behind a gap. message may
// carry the body already. It returns the destination if something was added to
// its ready list.
func (x *index) offer(ref queue.Ref, message *queue.Message, now time.Time) *destination {
	if x.seen(ref.ID) {
		return nil
	}
	if ref.Table == queue.Timed && ref.ReadyAt > now.UnixMicro() {
		x.offerSoon(ref, message)
		return nil
	}
	d := x.dest(ref.Destination)
	ref.Destination = d.name // one string per destination
	if x.insert(d, &entry{ref: ref, dest: d, message: message}) {
		return d
	}
	return nil
}

func (x *index) offerSoon(ref queue.Ref, message *queue.Message) {
	if x.total >= x.limit {
		return // found again by the next look-ahead
	}
	e := &entry{ref: ref, message: message}
	x.known[ref.ID] = e
	x.total++
	heap.Push(&x.soon, e)
}

// insert places e, which is waiting, in its destination's list.
func (x *index) insert(d *destination, e *entry) bool {
	n := len(d.ready)
	at := n
	if n > 0 && before(&e.ref, &d.ready[n-1].ref) < 0 {
		at, _ = slices.BinarySearchFunc(d.ready, e, func(a, b *entry) int { return before(&a.ref, &b.ref) })
	}
	if at == n && (d.more || n >= d.most()) {
		d.more, d.dropped = true, true
		return false
	}
	e.phase, e.dest = waiting, d
	d.ready = slices.Insert(d.ready, at, e)
	x.known[e.ref.ID] = e
	x.total++
	if len(d.ready) > d.most() {
		x.dropTail(d, d.most())
	}
	return true
}

// dropTail forgets all but the first n references of d; the store still has them.
func (x *index) dropTail(d *destination, n int) {
	for _, e := range d.ready[n:] {
		delete(x.known, e.ref.ID)
		e.phase = gone
		x.total--
	}
	clear(d.ready[n:])
	d.ready = d.ready[:n]
	d.more, d.dropped = true, true
}

// end returns the reference behind which the store has what d's list has not,
// nil if it must be read from the head.
func (d *destination) end() *queue.Ref {
	last := d.last
	if n := len(d.ready); n > 0 {
		last = d.ready[n-1].ref
	}
	if last.Table != queue.Incoming {
		return nil
	}
	return &last
}

// popReady takes the first reference of d.
func (x *index) popReady(d *destination) *entry {
	e := d.ready[0]
	d.ready[0] = nil
	d.ready = d.ready[1:]
	if len(d.ready) == 0 {
		d.ready, d.last = nil, e.ref
	}
	x.total--
	return e
}

// forget removes an entry that is in no list any more.
func (x *index) forget(e *entry) {
	if x.known[e.ref.ID] == e {
		delete(x.known, e.ref.ID)
	}
	e.phase = gone
	e.message = nil
}

// dueSoon moves references whose time has come to their destinations.
func (x *index) dueSoon(now time.Time) []*destination {
	var touched []*destination
	micros := now.UnixMicro()
	for len(x.soon) > 0 && x.soon[0].ref.ReadyAt <= micros {
		e := heap.Pop(&x.soon).(*entry)
		x.total--
		delete(x.known, e.ref.ID)
		d := x.dest(e.ref.Destination)
		e.ref.Destination = d.name
		if x.insert(d, e) {
			touched = append(touched, d)
		}
	}
	return touched
}

// trim makes room when the index is over its limit: long lists become short, then
// references that are not due are forgotten, then the destinations that may go
// last keep their best reference only, and lose that too if it is not enough.
// eligible tells when a destination may go.
func (x *index) trim(eligible func(*destination) time.Time) {
	if x.total <= x.limit {
		return
	}
	type candidate struct {
		d  *destination
		at time.Time
	}
	candidates := make([]candidate, 0, len(x.dests))
	for _, d := range x.dests {
		if len(d.ready) > 0 {
			candidates = append(candidates, candidate{d, eligible(d)})
		}
	}
	slices.SortFunc(candidates, func(a, b candidate) int { return b.at.Compare(a.at) })
	goal := x.limit - x.limit/10
	for _, keep := range []int{8, 1, 0} {
		for _, c := range candidates {
			if x.total <= goal {
				return
			}
			if len(c.d.ready) > keep {
				x.dropTail(c.d, keep)
			}
		}
		x.dropSoon(goal)
	}
}

// dropSoon forgets references that are not due, those due last first, until the
// index has no more than goal. The look-ahead finds them again.
func (x *index) dropSoon(goal int) {
	n := max(0, len(x.soon)-max(0, x.total-goal))
	if n == len(x.soon) {
		return
	}
	slices.SortFunc(x.soon, func(a, b *entry) int { return cmp.Compare(a.ref.ReadyAt, b.ref.ReadyAt) }) // a heap, too
	for _, e := range x.soon[n:] {
		x.forget(e)
		x.total--
	}
	clear(x.soon[n:])
	x.soon = x.soon[:n]
}

// sleep puts d to sleep until at, or moves its wake-up.
func (x *index) sleep(d *destination, at time.Time) {
	d.wakeAt = at
	if d.heapPos >= 0 {
		heap.Fix(&x.sleeps, d.heapPos)
		return
	}
	heap.Push(&x.sleeps, d)
}

// awake takes d out of the heap.
func (x *index) awake(d *destination) {
	if d.heapPos >= 0 {
		heap.Remove(&x.sleeps, d.heapPos)
	}
}

// soonHeap orders timed references by when they are due.
type soonHeap []*entry

func (h soonHeap) Len() int           { return len(h) }
func (h soonHeap) Less(i, j int) bool { return h[i].ref.ReadyAt < h[j].ref.ReadyAt }
func (h soonHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *soonHeap) Push(x any)        { *h = append(*h, x.(*entry)) }
func (h *soonHeap) Pop() any {
	old := *h
	e := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	return e
}

// sleepHeap orders destinations by when they may be looked at again.
type sleepHeap []*destination

func (h sleepHeap) Len() int           { return len(h) }
func (h sleepHeap) Less(i, j int) bool { return h[i].wakeAt.Before(h[j].wakeAt) }
func (h sleepHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].heapPos, h[j].heapPos = i, j
}
func (h *sleepHeap) Push(x any) {
	d := x.(*destination)
	d.heapPos = len(*h)
	*h = append(*h, d)
}
func (h *sleepHeap) Pop() any {
	old := *h
	d := old[len(old)-1]
	old[len(old)-1] = nil
	d.heapPos = -1
	*h = old[:len(old)-1]
	return d
}
