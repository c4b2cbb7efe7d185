package mysql

import (
	"strings"
	"sync"

	"github.com/mvalve/mvalve/internal/sqlstore"
	"github.com/mvalve/mvalve/queue"
)

// insertSizes are the row counts for which inserts are prepared.
var insertSizes = []int{512, 256, 128, 64, 32, 16, 8, 4, 2, 1}

// keySizes are the key counts for which statements that name rows by key are
// prepared; a shorter list repeats its last key.
var keySizes = []int{1, 4, 16, 32, 64, 128, maxKeys}

const (
	maxKeys  = 256     // keys in one statement
	maxBytes = 4 << 20 // bytes of bodies in one statement or one Lease chunk
)

// paddedSize returns the smallest prepared size that holds n keys.
func paddedSize(n int) int {
	for _, size := range keySizes {
		if n <= size {
			return size
		}
	}
	return maxKeys
}

// texts remembers statement texts, so that a hot path builds none.
type texts struct{ by sync.Map }

type textKey struct {
	kind  string
	table queue.Lane
	size  int
}

func (t *texts) get(kind string, table queue.Lane, size int, build func() string) string {
	key := textKey{kind, table, size}
	if text, ok := t.by.Load(key); ok {
		return text.(string)
	}
	text := build()
	t.by.Store(key, text)
	return text
}

var cached texts

// insertText returns the insert of size rows with all of sqlstore.Columns.
func insertText(table queue.Lane, size int) string {
	return cached.get("insert", table, size, func() string {
		return "INSERT INTO " + sqlstore.Table(table) + " (" + sqlstore.Columns + ") VALUES " +
			repeat("("+repeat("?", sqlstore.ColumnCount)+")", size)
	})
}

// plainText is insertText for rows with zeros in the other columns.
func plainText(table queue.Lane, size int) string {
	return cached.get("plain", table, size, func() string {
		return "INSERT INTO " + sqlstore.Table(table) + " (" + sqlstore.Columns + ") VALUES " +
			repeat("(?, ?, ?, ?, 0, 0, ?, 0, ?, 0, 0, '', ?, ?, ?)", size)
	})
}

// repeat returns s n times with commas between.
func repeat(s string, n int) string {
	return strings.TrimSuffix(strings.Repeat(s+", ", n), ", ")
}

// keyWhere is the condition that names size rows of a table by primary key.
// Naming the whole key matters: on q_timed ids alone would scan the table.
func keyWhere(table queue.Lane, size int) string {
	if table == queue.Timed {
		return "(ready_at, id) IN (" + repeat("(?, ?)", size) + ")"
	}
	return "id IN (" + repeat("?", size) + ")"
}

// byKey makes the server look keys up. Left to itself it scans a near-empty
// table from its head instead, over all that was just deleted and into the locks
// of others: a third of the speed, and deadlocks.
const byKey = " FORCE INDEX (PRIMARY)"

// deleteFrom starts a DELETE that looks keys up; only the form for several
// tables takes the hint.
func deleteFrom(table queue.Lane) string {
	return "DELETE q FROM " + sqlstore.Table(table) + " AS q" + byKey
}

// keyOrder is the primary key of a table.
func keyOrder(table queue.Lane) string {
	if table == queue.Timed {
		return "ready_at, id"
	}
	return "id"
}

// keyArgs appends the keys of refs, the last one repeated up to size.
func keyArgs(dst []any, table queue.Lane, refs []queue.Ref, index []int, size int) []any {
	for i := range size {
		ref := &refs[index[min(i, len(index)-1)]]
		if table == queue.Timed {
			dst = append(dst, ref.ReadyAt)
		}
		dst = append(dst, ref.ID[:])
	}
	return dst
}

// chunks yields index in pieces of at most n.
func chunks(index []int, n int) func(yield func([]int) bool) {
	return func(yield func([]int) bool) {
		for len(index) > 0 {
			k := min(n, len(index))
			if !yield(index[:k]) {
				return
			}
			index = index[k:]
		}
	}
}
