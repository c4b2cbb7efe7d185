package sqlstore

import (
	"cmp"
	"math"
	"slices"

	"github.com/mvalve/mvalve/queue"
)

// Group is a set of settles that one statement can carry out: rows of one table,
// ended in the same way under the same token.
type Group struct {
	Table queue.Lane
	Verb  queue.Verb
	Token queue.ID
	Until int64 // of the leases, in microseconds: the latest Settle.Until
	At    int64 // new lease end in microseconds; set for Extend only
	Index []int // into the settles, ordered by primary key
}

// GroupSettles splits settles into groups, in order of first appearance. Retry
// and Kill carry values per row (Settle.At, Settle.Reason), which the group does
// not hold. Keys are sorted so that two transactions lock them in one order.
func GroupSettles(settles []queue.Settle) []Group {
	type key struct {
		table queue.Lane
		verb  queue.Verb
		token queue.ID
		at    int64
	}
	var groups []Group
	last := -1
	var lastKey key
	at := make(map[key]int)
	for i := range settles {
		s := &settles[i]
		k := key{table: s.Ref.Table, verb: s.Verb, token: s.Token}
		if s.Verb == queue.Extend {
			k.at = queue.Micros(s.At)
		}
		if last < 0 || k != lastKey { // settles come in runs: spare the map
			n, ok := at[k]
			if !ok {
				n = len(groups)
				at[k] = n
				groups = append(groups, Group{Table: k.table, Verb: k.verb, Token: k.token, At: k.at})
			}
			last, lastKey = n, k
		}
		g := &groups[last]
		g.Until = max(g.Until, Until(s))
		g.Index = append(g.Index, i)
	}
	for _, g := range groups {
		slices.SortFunc(g.Index, func(a, b int) int { return CompareKeys(settles[a].Ref, settles[b].Ref) })
	}
	return groups
}

// Until returns up to which end, in microseconds, the lease that s settles counts.
func Until(s *queue.Settle) int64 {
	if s.Until.IsZero() {
		return math.MaxInt64
	}
	return queue.Micros(s.Until)
}

// CompareKeys orders references of one table by primary key: (ready_at, id) in
// q_timed, id elsewhere.
func CompareKeys(a, b queue.Ref) int {
	if a.Table == queue.Timed {
		if c := cmp.Compare(a.ReadyAt, b.ReadyAt); c != 0 {
			return c
		}
	}
	return a.ID.Compare(b.ID)
}

// SplitRefs returns the indices of refs per table, ordered by primary key. Of
// refs with the same key only the first is named.
func SplitRefs(refs []queue.Ref) map[queue.Lane][]int {
	split := make(map[queue.Lane][]int, 3)
	for i := range refs {
		split[refs[i].Table] = append(split[refs[i].Table], i)
	}
	for table, index := range split {
		slices.SortFunc(index, func(a, b int) int {
			return cmp.Or(CompareKeys(refs[a], refs[b]), cmp.Compare(a, b))
		})
		split[table] = slices.CompactFunc(index, func(a, b int) bool { return CompareKeys(refs[a], refs[b]) == 0 })
	}
	return split
}

// Batches yields n split into sizes taken from sizes, which must descend and end
// with 1: the statements prepared for those sizes then cover any n.
func Batches(n int, sizes []int) func(yield func(start, size int) bool) {
	return func(yield func(int, int) bool) {
		start := 0
		for _, size := range sizes {
			for n-start >= size {
				if !yield(start, size) {
					return
				}
				start += size
			}
		}
	}
}
