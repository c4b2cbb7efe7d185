package stomp

import (
	"hash/maphash"
	"iter"
)

// subTable finds the subscriptions of a connection by their key. It is a hash
// table with linear probing that holds nothing but pointers: a map takes three
// times the memory, which counts with a million subscriptions. The zero value is
// empty.
type subTable struct {
	slots []*subscription // a power of two, at most three quarters full
	n     int
}

var subSeed = maphash.MakeSeed()

// slot returns where key is, or the empty slot where it belongs. There is one.
func (t *subTable) slot(key string) int {
	mask := len(t.slots) - 1
	i := int(maphash.String(subSeed, key)) & mask
	for t.slots[i] != nil && t.slots[i].key() != key {
		i = (i + 1) & mask
	}
	return i
}

// get returns the subscription with a key, nil if there is none.
func (t *subTable) get(key string) *subscription {
	if t.n == 0 {
		return nil
	}
	return t.slots[t.slot(key)]
}

// put adds s, whose key must not be there.
func (t *subTable) put(s *subscription) {
	if 4*(t.n+1) > 3*len(t.slots) {
		old := t.slots
		t.slots = make([]*subscription, max(2*len(old), 4))
		for _, o := range old {
			if o != nil {
				t.slots[t.slot(o.key())] = o
			}
		}
	}
	t.slots[t.slot(s.key())] = s
	t.n++
}

// remove takes the subscription with a key out and moves those up that had to
// give way to it.
func (t *subTable) remove(key string) {
	if t.get(key) == nil {
		return
	}
	mask := len(t.slots) - 1
	i := t.slot(key)
	t.slots[i] = nil
	if t.n--; t.n == 0 {
		t.slots = nil
		return
	}
	for i = (i + 1) & mask; t.slots[i] != nil; i = (i + 1) & mask {
		s := t.slots[i]
		t.slots[i] = nil
		t.slots[t.slot(s.key())] = s
	}
}

// all iterates over the subscriptions; the table must not change meanwhile.
func (t *subTable) all() iter.Seq[*subscription] {
	return func(yield func(*subscription) bool) {
		for _, s := range t.slots {
			if s != nil && !yield(s) {
				return
			}
		}
	}
}
