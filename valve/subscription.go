package valve

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/throttle"
)

// Filter selects destinations. The zero Filter selects all.
type Filter struct {
	// Exact, when not empty, selects this one destination; Globs are not looked at.
	Exact string
	// Globs: a destination is selected if one of them matches (`*` any bytes,
	// `?` one byte, `\` escapes); none means all.
	Globs []string
}

// Match reports whether the filter selects destination.
func (f Filter) Match(destination string) bool {
	if f.Exact != "" {
		return destination == f.Exact
	}
	private := strings.HasPrefix(destination, PrivatePrefix)
	if len(f.Globs) == 0 {
		return !private
	}
	for _, g := range f.Globs {
		if throttle.MatchGlob(g, destination) && (!private || strings.HasPrefix(g, PrivatePrefix)) {
			return true
		}
	}
	return false
}

// PrivatePrefix begins the names of destinations that belong to somebody, such as
// one connection's temporary queues: only filters that begin with it select them.
const PrivatePrefix = "mvalve.temp."

// check reports what is wrong with the filter's patterns.
func (f Filter) check() error {
	if f.Exact != "" {
		return queue.CheckDestination(f.Exact)
	}
	for _, g := range f.Globs {
		if err := throttle.CheckPattern(g); err != nil {
			return err
		}
	}
	return nil
}

// exact returns the only destination the filter selects, "" if it may select several.
func (f Filter) exact() string {
	if f.Exact != "" {
		return f.Exact
	}
	if len(f.Globs) != 1 {
		return ""
	}
	name := make([]byte, 0, len(f.Globs[0]))
	for i := 0; i < len(f.Globs[0]); i++ {
		switch c := f.Globs[0][i]; c {
		case '*', '?':
			return ""
		case '\\':
			if i++; i == len(f.Globs[0]) {
				return ""
			}
			name = append(name, f.Globs[0][i])
		default:
			name = append(name, c)
		}
	}
	return string(name)
}

// Subscription is a share of a reader: the destinations of its filter, up to a
// number of deliveries out at once. It is safe for concurrent use.
type Subscription struct {
	box    *Inbox
	only   string  // the one destination of an exact filter
	filter *Filter // any other filter
	tag    any
	next   *Subscription // ring of those with the same exact destination
	mate   *Subscription // list of those of the same inbox

	// Guarded by r.mu.
	credit   int32 // most deliveries out; 0: as many as callers wait
	out      int32 // handed out, not ended
	assigned int32 // on the way to this subscription
	ahead    int   // bytes of bodies on the way to this subscription
	closed   bool
	listed   bool // in Reader.freed
	parked   *parking
}

// parking holds destinations that a subscription wants and cannot take now.
type parking struct {
	noCredit map[*destination]struct{} // until there is demand
	reserved map[*destination]struct{} // by the slow-consumer rule
}

func (p *parking) len() int { return len(p.noCredit) + len(p.reserved) }

// Tag returns what Inbox.Subscribe was given.
func (s *Subscription) Tag() any { return s.tag }

// match reports whether the subscription selects destination.
func (s *Subscription) match(destination string) bool {
	if s.filter == nil {
		return s.only == destination
	}
	return s.filter.Match(destination)
}

// demand is how many more messages the subscription can take.
func (s *Subscription) demand() int {
	switch {
	case s.closed:
		return 0
	case s.credit > 0:
		return int(s.credit - s.out - s.assigned)
	}
	return len(s.box.waiters) - int(s.assigned)
}

// spare is how much of the demand is kept for destinations with nothing in
// flight, so that one that hangs never takes all workers: a quarter of them.
func (s *Subscription) spare() int {
	switch {
	case s.only != "":
		return 0
	case s.credit > 0:
		return int(s.credit) / 4
	}
	return (int(s.out) + len(s.box.waiters)) / 4
}

// park keeps d until the subscription has room for it. The mutex is held.
func (s *Subscription) park(d *destination) {
	if s.parked == nil {
		s.parked = &parking{}
	}
	set := &s.parked.noCredit
	if s.demand() > 0 {
		set = &s.parked.reserved
	}
	if *set == nil {
		*set = make(map[*destination]struct{})
	}
	(*set)[d] = struct{}{}
}

// returned notes that a delivery ended or went back. The mutex is held.
func (s *Subscription) returned() {
	s.out--
	s.freed()
}

// unassign notes that something on the way will not come. The mutex is held.
func (s *Subscription) unassign() {
	s.assigned--
	s.freed()
}

// freed makes the scheduler look at what is parked, if anything is. The mutex is held.
func (s *Subscription) freed() {
	if s.parked != nil && !s.listed {
		s.listed = true
		s.box.r.freed = append(s.box.r.freed, s)
	}
}

// Subscribe opens a subscription with a filter. credit is the most deliveries
// out at once, which the reader also prepares ahead; 0 prepares as many as
// callers wait in Next.
func (r *Reader) Subscribe(filter Filter, credit int) (*Subscription, error) {
	return r.subscribe(&Inbox{r: r}, filter, credit, nil)
}

func (r *Reader) subscribe(box *Inbox, filter Filter, credit int, tag any) (*Subscription, error) {
	if err := filter.check(); err != nil {
		return nil, fmt.Errorf("valve: destination filter: %w", err)
	}
	if credit < 0 || credit > 1<<30 {
		return nil, fmt.Errorf("valve: credit %d is not between 0 and %d", credit, 1<<30)
	}
	s := newSubscription(box, filter, credit, tag)
	r.mu.Lock()
	if r.closing || box.closed {
		r.mu.Unlock()
		return nil, ErrClosed
	}
	r.register(s)
	r.mu.Unlock()
	signal(r.rung)
	r.wakeUp()
	return s, nil
}

func newSubscription(box *Inbox, filter Filter, credit int, tag any) *Subscription {
	s := &Subscription{box: box, only: filter.exact(), credit: int32(credit), tag: tag}
	if s.only == "" {
		s.filter = &filter
	}
	return s
}

// manyRefills is how many destinations wait for a look into the store at most
// before a pass over all of them is the better way to serve new subscriptions.
const manyRefills = 256

// register makes s known. The mutex is held.
func (r *Reader) register(s *Subscription) {
	s.mate, s.box.subs = s.box.subs, s
	if s.only == "" {
		r.wild = append(r.wild, s)
		for _, d := range r.x.dests {
			if d.parked && s.match(d.name) {
				r.unparkOne(d)
			}
		}
		r.survey()
		return
	}
	if d := r.x.dests[s.only]; d != nil {
		r.unparkOne(d) // the others that want it may have no credit
	}
	if last := r.exact[s.only]; last != nil {
		s.next, last.next = last.next, s
		return // what the store has for it is known already
	}
	s.next = s
	r.exact[s.only] = s
	if len(r.refills) >= manyRefills {
		r.survey()
		return
	}
	d := r.x.dest(s.only)
	d.more = true // the store may have rows that nobody wanted so far
	r.wantRefill(d)
}

// dropSubscription unregisters s. The mutex is held.
func (r *Reader) dropSubscription(s *Subscription) {
	for at := &s.box.subs; *at != nil; at = &(*at).mate {
		if *at == s {
			*at, s.mate = s.mate, nil
			break
		}
	}
	if s.only == "" {
		if i := slices.Index(r.wild, s); i >= 0 {
			r.wild = slices.Delete(r.wild, i, i+1)
		}
		return
	}
	if s.next == nil {
		return // never registered
	}
	prev := s
	for prev.next != s {
		prev = prev.next
	}
	switch {
	case prev == s:
		delete(r.exact, s.only)
	case r.exact[s.only] == s:
		r.exact[s.only] = prev
	}
	prev.next = s.next
	s.next = nil
}

// subscriptions returns all that are registered. The mutex is held.
func (r *Reader) subscriptions() []*Subscription {
	all := slices.Clone(r.wild)
	for _, last := range r.exact {
		for s := last.next; ; s = s.next {
			all = append(all, s)
			if s == last {
				break
			}
		}
	}
	return all
}

// wanted reports whether any subscription selects destination. The mutex is held.
func (r *Reader) wanted(destination string) bool {
	if r.exact[destination] != nil {
		return true
	}
	for _, s := range r.wild {
		if s.match(destination) {
			return true
		}
	}
	return false
}

// Next blocks until a message may be dispatched and hands it out; that moment
// is Delivery.DispatchedAt. It returns *EmptyError after ReaderConfig.Wait,
// ErrClosed, or the context's error. The messages of an Inbox's subscriptions
// come out of Inbox.Next, whoever calls.
func (s *Subscription) Next(ctx context.Context) (*Delivery, error) { return s.box.nextOne(ctx, s) }

// Close ends the subscription: blocked calls of Next return ErrClosed, and what
// was prepared for it is given back. Deliveries that are out can still be ended.
func (s *Subscription) Close() error {
	r := s.box.r
	r.mu.Lock()
	if s.closed {
		r.mu.Unlock()
		return nil
	}
	s.closed = true
	mail := s.box.remove(s)
	if !s.box.shared {
		s.box.close()
	}
	r.dropSubscription(s)
	if p := s.parked; p != nil {
		s.parked = nil
		r.unparkSome(p.noCredit, len(p.noCredit))
		r.unparkSome(p.reserved, len(p.reserved))
	}
	r.mu.Unlock()
	for _, e := range mail {
		r.takeBack(e)
	}
	r.wakeUp()
	return nil
}
