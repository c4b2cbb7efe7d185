package queue

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"
)

// Memory is a Store that keeps everything in the process and loses it with it.
// It defines the semantics of Store, Registry, Meta and Admin and serves tests.
// Make one with NewMemory; it is safe for concurrent use.
type Memory struct {
	mu      sync.Mutex
	closed  bool
	tables  [Dead + 1]*memTable
	batches map[ID]time.Time
	stats   []Stat
	readers map[ID]Presence
	meta    map[string]string
}

var (
	_ Store    = (*Memory)(nil)
	_ Registry = (*Memory)(nil)
	_ Meta     = (*Memory)(nil)
	_ Admin    = (*Memory)(nil)
)

// NewMemory returns an empty Memory.
func NewMemory() *Memory {
	m := &Memory{
		batches: make(map[ID]time.Time),
		readers: make(map[ID]Presence),
		meta:    make(map[string]string),
	}
	for lane := Emergency; lane <= Dead; lane++ {
		m.tables[lane] = newMemTable(lane)
	}
	return m
}

// enter locks m; the caller unlocks it when err is nil.
func (m *Memory) enter(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return ErrClosed
	}
	return nil
}

// Apply implements Store.
func (m *Memory) Apply(ctx context.Context, now time.Time, c *Change) (Outcome, error) {
	if err := c.Check(now, 0); err != nil {
		return Outcome{}, err
	}
	if err := m.enter(ctx); err != nil {
		return Outcome{}, err
	}
	defer m.mu.Unlock()
	if len(c.Put) > 0 || c.Strict {
		if _, done := m.batches[c.Token]; done {
			return Outcome{}, nil
		}
		if lost := m.lost(now, c); c.Strict && len(lost) > 0 {
			return Outcome{Lost: lost}, nil
		}
		if err := m.put(c.Put); err != nil {
			return Outcome{}, err
		}
		m.batches[c.Token] = now
	}
	var out Outcome
	for i := range c.Settle {
		if !m.settle(now, &c.Settle[i]) {
			out.Lost = append(out.Lost, i)
		}
	}
	m.stats = append(m.stats, c.Log...)
	return out, nil
}

// lost returns which settles of c could not be carried out. A lease that is
// settled twice stands only once.
func (m *Memory) lost(now time.Time, c *Change) []int {
	type key struct {
		table Lane
		at    Cursor
	}
	var lost []int
	ended := make(map[key]bool)
	for i := range c.Settle {
		s := &c.Settle[i]
		k := key{s.Ref.Table, Cursor{s.Ref.ReadyAt, s.Ref.ID}}
		if !m.stands(now, s) || ended[k] {
			lost = append(lost, i)
		}
		ended[k] = ended[k] || s.Verb != Extend
	}
	return lost
}

// stands reports whether the lease that s names can be settled.
func (m *Memory) stands(now time.Time, s *Settle) bool {
	r := m.tables[s.Ref.Table].get(Cursor{s.Ref.ReadyAt, s.Ref.ID})
	switch {
	case r == nil:
		return false
	case s.Token.IsZero():
		return r.free(Micros(now))
	}
	return r.msg.LeaseToken == s.Token && (s.Until.IsZero() || Micros(r.msg.LeaseUntil) <= Micros(s.Until))
}

// put stores all messages or none.
func (m *Memory) put(msgs []*Message) error {
	for i, msg := range msgs {
		t := m.tables[msg.Table()]
		r := newRow(msg)
		if t.get(r.key()) != nil {
			for _, done := range msgs[:i] {
				td := m.tables[done.Table()]
				td.remove(td.get(Cursor{Micros(done.ReadyAt), done.ID}))
			}
			return fmt.Errorf("%w: %v in lane %v", ErrDuplicate, msg.ID, t.lane)
		}
		t.put(r)
	}
	return nil
}

func newRow(msg *Message) *row {
	r := &row{msg: *msg, headers: AppendHeaders(nil, msg.Headers)}
	for _, t := range []*time.Time{&r.msg.ReadyAt, &r.msg.ExpiresAt, &r.msg.EnqueuedAt, &r.msg.LeaseUntil} {
		*t = Time(Micros(*t))
	}
	r.msg.Hold = r.msg.Hold.Truncate(time.Microsecond)
	r.msg.Headers = nil
	r.msg.Body = slices.Clone(msg.Body)
	r.sum = Checksum(&r.msg, r.headers)
	return r
}

// message returns a copy for a caller, and ErrCorrupt if the row was damaged.
func (r *row) message() (*Message, error) {
	msg := r.msg
	msg.Body = slices.Clone(r.msg.Body)
	if sum := Checksum(&r.msg, r.headers); sum != r.sum {
		return &msg, fmt.Errorf("%w: message %v has checksum %08x, stored is %08x", ErrCorrupt, msg.ID, sum, r.sum)
	}
	var err error
	msg.Headers, err = ParseHeaders(r.headers)
	return &msg, err
}

// settle carries out s and reports whether its lease still stood.
func (m *Memory) settle(now time.Time, s *Settle) bool {
	if !m.stands(now, s) {
		return false
	}
	t := m.tables[s.Ref.Table]
	r := t.get(Cursor{s.Ref.ReadyAt, s.Ref.ID})
	if s.Verb == Extend {
		if at := Time(Micros(s.At)); at.After(r.msg.LeaseUntil) {
			r.msg.LeaseUntil = at
		}
		return true
	}
	if s.Verb != Release {
		t.remove(r)
	}
	r.msg.LeaseUntil, r.msg.LeaseToken = time.Time{}, ID{}
	switch s.Verb {
	case Retry:
		r.msg.ReadyAt = Time(Micros(s.At))
		if s.At.IsZero() {
			r.msg.ReadyAt = Time(Micros(now))
		}
		m.tables[Timed].put(r)
	case Release:
		r.msg.Attempts = max(r.msg.Attempts-1, 0)
	case Kill:
		r.deadAt, r.reason = Time(Micros(now)), CutReason(s.Reason)
		m.tables[Dead].put(r)
	}
	return true
}

// Lease implements Store.
func (m *Memory) Lease(ctx context.Context, now, until time.Time, token ID, refs []Ref) ([]Leased, error) {
	if token.IsZero() {
		return nil, fmt.Errorf("%w: a lease needs a token", ErrInvalid)
	}
	if err := m.enter(ctx); err != nil {
		return nil, err
	}
	defer m.mu.Unlock()
	var won []Leased
	for _, ref := range refs {
		if ref.Table < Emergency || ref.Table > Incoming {
			return won, fmt.Errorf("%w: lease in table %v", ErrInvalid, ref.Table)
		}
		r := m.tables[ref.Table].get(Cursor{ref.ReadyAt, ref.ID})
		if r == nil || !r.free(Micros(now)) {
			continue
		}
		r.msg.LeaseToken, r.msg.LeaseUntil = token, Time(Micros(until))
		r.msg.Attempts++
		ref.Attempts = r.msg.Attempts
		msg, err := r.message()
		won = append(won, Leased{Ref: ref, Message: msg, Err: err})
	}
	return won, nil
}

// Scan implements Store. It looks at no more than n rows.
func (m *Memory) Scan(ctx context.Context, now time.Time, table Lane, after Cursor, upTo time.Time, n int) ([]Ref, Cursor, error) {
	if table < Emergency || table > Incoming {
		return nil, after, fmt.Errorf("%w: scan of table %v", ErrInvalid, table)
	}
	if err := m.enter(ctx); err != nil {
		return nil, after, err
	}
	defer m.mu.Unlock()
	t := m.tables[table]
	var refs []Ref
	rows := t.byKey.items[t.after(after, true):]
	for _, r := range rows[:min(max(n, 0), len(rows))] {
		if table == Timed && Micros(r.msg.ReadyAt) > Micros(upTo) {
			break
		}
		ref := t.ref(r)
		after = Cursor{ref.ReadyAt, ref.ID}
		if r.free(Micros(now)) {
			refs = append(refs, ref)
		}
	}
	return refs, after, nil
}

// Heads implements Store.
func (m *Memory) Heads(ctx context.Context, now time.Time, q HeadQuery) ([]Ref, string, error) {
	if err := m.enter(ctx); err != nil {
		return nil, "", err
	}
	defer m.mu.Unlock()
	q.Limit = max(q.Limit, 1)
	var pages []HeadPage
	var refs []Ref
	for table := Emergency; table <= Incoming; table++ {
		if q.Table != LaneUnset && q.Table != table {
			continue
		}
		if q.Destination != "" {
			refs = append(refs, m.tables[table].heads(Micros(now), q)...)
			continue
		}
		pages = append(pages, m.tables[table].page(q))
	}
	if q.Destination != "" {
		return refs, "", nil
	}
	refs, more := JoinHeads(pages)
	return refs, more, nil
}

// heads returns what of one destination may be leased now, best first.
func (t *memTable) heads(now int64, q HeadQuery) []Ref {
	var refs []Ref
	d := t.dests[q.Destination]
	if d == nil {
		return nil
	}
	for _, r := range d.items {
		if len(refs) == q.Limit {
			break
		}
		if q.Behind != nil && t.lane == Incoming && !r.behind(q.Behind) {
			continue
		}
		if r.free(now) && Micros(r.msg.ReadyAt) <= now {
			refs = append(refs, t.ref(r))
		}
	}
	return refs
}

// behind reports whether r comes after ref in its destination.
func (r *row) behind(ref *Ref) bool {
	if c := cmp.Compare(ref.Priority, r.msg.Priority); c != 0 { // a higher one comes first
		return c > 0
	}
	return r.msg.ID.Compare(ref.ID) > 0
}

// page returns the best row of each of the next destinations.
func (t *memTable) page(q HeadQuery) HeadPage {
	i, found := t.names.find(q.After)
	if found {
		i++
	}
	names := t.names.items[i:]
	page := HeadPage{Full: len(names) > q.Limit}
	for _, name := range names[:min(q.Limit, len(names))] {
		best := &t.dests[name].items[0].msg
		ref := Ref{ID: best.ID, Destination: name, Table: t.lane, Priority: best.Priority}
		if t.lane == Timed {
			ref.ReadyAt = Micros(best.ReadyAt)
		}
		page.Refs = append(page.Refs, ref)
	}
	return page
}

// HeadPage is what one table contributes to Heads without Destination: its
// refs in order of destination, and whether it was cut off by the limit.
type HeadPage struct {
	Refs []Ref
	Full bool
}

// JoinHeads merges the pages of the tables for the drivers of Heads: the next
// page starts behind the first destination at which a table was cut off, and
// what lies behind that is left to it. Refs are ordered by destination, then table.
func JoinHeads(pages []HeadPage) (refs []Ref, more string) {
	for _, p := range pages {
		if !p.Full || len(p.Refs) == 0 {
			continue
		}
		if last := p.Refs[len(p.Refs)-1].Destination; more == "" || last < more {
			more = last
		}
	}
	for _, p := range pages {
		for _, ref := range p.Refs {
			if more == "" || ref.Destination <= more {
				refs = append(refs, ref)
			}
		}
	}
	slices.SortStableFunc(refs, func(a, b Ref) int {
		return cmp.Or(cmp.Compare(a.Destination, b.Destination), cmp.Compare(a.Table, b.Table))
	})
	return refs, more
}

// Now implements Store with the clock of the process.
func (m *Memory) Now(ctx context.Context) (time.Time, error) {
	if err := ctx.Err(); err != nil {
		return time.Time{}, err
	}
	return time.Now(), nil
}

// Close implements Store.
func (m *Memory) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	return nil
}
