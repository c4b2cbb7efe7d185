package queue

import (
	"cmp"
	"slices"
	"strings"
	"time"
)

// row is a stored message. The message is never shared with a caller.
type row struct {
	msg     Message
	headers []byte // stored form, as the checksum was taken over it
	sum     uint32
	deadAt  time.Time
	reason  string
}

func (r *row) free(now int64) bool { return Micros(r.msg.LeaseUntil) <= now }

func (r *row) key() Cursor { return Cursor{Micros(r.msg.ReadyAt), r.msg.ID} }

// sorted is an ordered slice that is cheap to change near both of its ends,
// where queues change.
type sorted[T any] struct {
	items   []T
	compare func(a, b T) int
}

func (s *sorted[T]) find(x T) (int, bool) { return slices.BinarySearchFunc(s.items, x, s.compare) }

func (s *sorted[T]) insert(x T) {
	if n := len(s.items); n == 0 || s.compare(s.items[n-1], x) < 0 {
		s.items = append(s.items, x)
		return
	}
	i, _ := s.find(x)
	s.items = slices.Insert(s.items, i, x)
}

func (s *sorted[T]) remove(x T) {
	i, ok := s.find(x)
	if !ok {
		return
	}
	if i > len(s.items)/2 {
		s.items = slices.Delete(s.items, i, i+1)
		return
	}
	copy(s.items[1:i+1], s.items[:i])
	var none T
	s.items[0] = none
	s.items = s.items[1:]
}

// memTable is one lane: rows by primary key, and by destination in the order in
// which a reader wants them.
type memTable struct {
	lane  Lane
	byKey sorted[*row]
	dests map[string]*sorted[*row]
	names sorted[string]
}

func newMemTable(lane Lane) *memTable {
	t := &memTable{lane: lane, dests: make(map[string]*sorted[*row])}
	t.byKey.compare = func(a, b *row) int { return t.compareKeys(a.key(), b.key()) }
	t.names.compare = strings.Compare
	return t
}

// compareKeys orders primary keys: ready_at counts in the timed lane only.
func (t *memTable) compareKeys(a, b Cursor) int {
	if t.lane == Timed {
		if c := cmp.Compare(a.ReadyAt, b.ReadyAt); c != 0 {
			return c
		}
	}
	return a.ID.Compare(b.ID)
}

func (t *memTable) compareBest(a, b *row) int {
	if c := cmp.Compare(b.msg.Priority, a.msg.Priority); c != 0 {
		return c
	}
	return t.compareKeys(a.key(), b.key())
}

// get returns the row with the key, nil if there is none.
func (t *memTable) get(key Cursor) *row {
	i := t.after(key, false)
	if i < len(t.byKey.items) && t.compareKeys(t.byKey.items[i].key(), key) == 0 {
		return t.byKey.items[i]
	}
	return nil
}

// after returns the index of the first row whose key is greater than key, or
// not less if strict is false.
func (t *memTable) after(key Cursor, strict bool) int {
	i, _ := slices.BinarySearchFunc(t.byKey.items, key, func(r *row, key Cursor) int {
		if c := t.compareKeys(r.key(), key); c != 0 || !strict {
			return c
		}
		return -1
	})
	return i
}

// put stores r; a row with the same key is replaced.
func (t *memTable) put(r *row) {
	if old := t.get(r.key()); old != nil {
		t.remove(old)
	}
	t.byKey.insert(r)
	d := t.dests[r.msg.Destination]
	if d == nil {
		d = &sorted[*row]{compare: t.compareBest}
		t.dests[r.msg.Destination] = d
		t.names.insert(r.msg.Destination)
	}
	d.insert(r)
}

func (t *memTable) remove(r *row) {
	t.byKey.remove(r)
	d := t.dests[r.msg.Destination]
	d.remove(r)
	if len(d.items) == 0 {
		delete(t.dests, r.msg.Destination)
		t.names.remove(r.msg.Destination)
	}
}

// ref returns the reference to r as it lies in t.
func (t *memTable) ref(r *row) Ref {
	ref := r.msg.Ref()
	ref.Table, ref.Size = t.lane, len(r.headers)+len(r.msg.Body)
	return ref
}
