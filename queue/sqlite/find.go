package sqlite

import (
	"context"
	"database/sql/driver"
	"fmt"
	"time"

	"github.com/mvalve/mvalve/internal/sqlstore"
	"github.com/mvalve/mvalve/queue"
)

// refColumns are the columns of a reference and the end of its lease.
const refColumns = sqlstore.RefColumns + ", lease_until"

var scanTexts = [...]string{
	queue.Emergency: "SELECT " + refColumns + " FROM q_emerg WHERE id > ? ORDER BY id LIMIT ?",
	queue.Timed:     "SELECT " + refColumns + " FROM q_timed WHERE (ready_at, id) > (?, ?) AND ready_at <= ? ORDER BY ready_at, id LIMIT ?",
	queue.Incoming:  "SELECT " + refColumns + " FROM q_incoming WHERE id > ? ORDER BY id LIMIT ?",
}

// Scan implements queue.Store. It looks at no more than n rows.
func (s *Store) Scan(ctx context.Context, now time.Time, table queue.Lane, after queue.Cursor, upTo time.Time, n int) ([]queue.Ref, queue.Cursor, error) {
	if table < queue.Emergency || table > queue.Incoming {
		return nil, after, fmt.Errorf("%w: scan of table %v", queue.ErrInvalid, table)
	}
	n = max(n, 0) // negative is no limit in SQLite
	args := []any{after.ID[:], int64(n)}
	if table == queue.Timed {
		args = []any{after.ReadyAt, after.ID[:], queue.Micros(upTo), int64(n)}
	}
	var refs []queue.Ref
	next := after
	err := s.read(ctx, func(c *conn) error {
		return eachRef(c, scanTexts[table], args, table, func(ref queue.Ref, leaseUntil int64) {
			next = queue.Cursor{ReadyAt: ref.ReadyAt, ID: ref.ID}
			if leaseUntil <= queue.Micros(now) {
				refs = append(refs, ref)
			}
		})
	})
	if err != nil {
		return nil, after, err
	}
	return refs, next, nil
}

// eachRef calls each for the rows of text, which selects refColumns of table. A
// row whose key is damaged cannot be leased and must not hide the others: only
// Peek shows it.
func eachRef(c *conn, text string, args []any, table queue.Lane, each func(ref queue.Ref, leaseUntil int64)) error {
	var row sqlstore.RefRow
	var leaseUntil int64
	dest := append(row.Dest(), &leaseUntil)
	return c.query(context.Background(), text, args, func(values []driver.Value) error {
		assign(dest, values)
		ref, err := row.Ref(table)
		if err == nil {
			each(ref, leaseUntil)
		}
		return nil
	})
}

// Heads implements queue.Store.
func (s *Store) Heads(ctx context.Context, now time.Time, q queue.HeadQuery) (refs []queue.Ref, more string, err error) {
	q.Limit = max(q.Limit, 1)
	var pages []queue.HeadPage
	err = s.read(ctx, func(c *conn) error {
		for table := queue.Emergency; table <= queue.Incoming; table++ {
			if q.Table != queue.LaneUnset && q.Table != table {
				continue
			}
			if q.Destination == "" {
				page, err := headPage(c, table, q)
				if err != nil {
					return err
				}
				pages = append(pages, page)
				continue
			}
			best := bestOf
			if table == queue.Timed {
				best = bestTimed
			}
			found, err := best(c, now, table, q)
			if err != nil {
				return err
			}
			refs = append(refs, found...)
		}
		return nil
	})
	if err != nil {
		return nil, "", err
	}
	if q.Destination == "" {
		refs, more = queue.JoinHeads(pages)
	}
	return refs, more, nil
}

var bestTexts = [...]string{
	queue.Emergency: "SELECT " + refColumns + " FROM q_emerg INDEXED BY q_emerg_by_destination" +
		" WHERE destination = ? AND lease_until <= ? ORDER BY priority, id LIMIT ?",
	queue.Incoming: "SELECT " + refColumns + " FROM q_incoming INDEXED BY q_incoming_by_destination" +
		" WHERE destination = ? AND lease_until <= ? ORDER BY priority, id LIMIT ?",
}

const bestBehind = "SELECT " + refColumns + " FROM q_incoming INDEXED BY q_incoming_by_destination" +
	" WHERE destination = ? AND (priority, id) > (?, ?) AND lease_until <= ? ORDER BY priority, id LIMIT ?"

// bestOf returns the free rows of one destination in the order of its index.
func bestOf(c *conn, now time.Time, table queue.Lane, q queue.HeadQuery) (refs []queue.Ref, err error) {
	text, args := bestTexts[table], []any{q.Destination, queue.Micros(now), int64(q.Limit)}
	if q.Behind != nil && table == queue.Incoming {
		text = bestBehind
		args = []any{q.Destination, sqlstore.StoredPriority(q.Behind.Priority), q.Behind.ID[:], queue.Micros(now), int64(q.Limit)}
	}
	err = eachRef(c, text, args, table, func(ref queue.Ref, _ int64) { refs = append(refs, ref) })
	return refs, err
}

const (
	bestTimedNext = "SELECT priority FROM q_timed INDEXED BY q_timed_by_destination" +
		" WHERE destination = ? AND priority >= ? ORDER BY priority LIMIT 1"
	bestTimedRows = "SELECT " + refColumns + " FROM q_timed INDEXED BY q_timed_by_destination" +
		" WHERE destination = ? AND priority = ? AND ready_at <= ? AND lease_until <= ? ORDER BY ready_at, id LIMIT ?"
)

// bestTimed is bestOf for q_timed. It goes from one priority in use to the next,
// so that a million rows not yet due cost one step of the index.
func bestTimed(c *conn, now time.Time, table queue.Lane, q queue.HeadQuery) (refs []queue.Ref, err error) {
	for priority := int64(0); len(refs) < q.Limit; priority++ {
		found := false
		err := c.query(context.Background(), bestTimedNext, []any{q.Destination, priority}, func(row []driver.Value) error {
			priority, found = row[0].(int64)
			return nil
		})
		if err != nil || !found {
			return refs, err
		}
		args := []any{q.Destination, priority, queue.Micros(now), queue.Micros(now), int64(q.Limit - len(refs))}
		err = eachRef(c, bestTimedRows, args, table, func(ref queue.Ref, _ int64) { refs = append(refs, ref) })
		if err != nil {
			return nil, err
		}
	}
	return refs, nil
}

// headPageText visits the destinations of a table by one seek each, however many
// rows they have (a loose index scan), and the first row of each by another.
func headPageText(table queue.Lane) string {
	name, key := sqlstore.Table(table), "id"
	if table == queue.Timed {
		key = "ready_at, id"
	}
	first := func(columns, than string) string {
		return "SELECT " + columns + " FROM " + name + " WHERE destination " + than + " ORDER BY destination, priority, " + key + " LIMIT 1"
	}
	ready := "0"
	if table == queue.Timed {
		ready = "(" + first("ready_at", "= d.name") + ")"
	}
	return "WITH RECURSIVE d(name) AS (SELECT (" + first("destination", "> ?") + ")" +
		" UNION ALL SELECT (" + first("destination", "> d.name") + ") FROM d WHERE d.name IS NOT NULL LIMIT ?)" +
		" SELECT d.name, (" + first("priority", "= d.name") + "), (" + first("id", "= d.name") + "), " + ready +
		" FROM d WHERE d.name IS NOT NULL"
}

var headPageTexts = [...]string{
	queue.Emergency: headPageText(queue.Emergency),
	queue.Timed:     headPageText(queue.Timed),
	queue.Incoming:  headPageText(queue.Incoming),
}

// headPage returns the best row of each of the next destinations of a table.
func headPage(c *conn, table queue.Lane, q queue.HeadQuery) (page queue.HeadPage, err error) {
	args := []any{q.After, int64(q.Limit) + 1}
	err = c.query(context.Background(), headPageTexts[table], args, func(row []driver.Value) error {
		if len(page.Refs) == q.Limit {
			page.Full = true
			return nil
		}
		ref := queue.Ref{Destination: textOf(row[0]), Table: table}
		priority, _ := row[1].(int64)
		ref.Priority = sqlstore.PriorityOf(priority)
		copy(ref.ID[:], bytesOf(row[2]))
		ref.ReadyAt, _ = row[3].(int64)
		page.Refs = append(page.Refs, ref)
		return nil
	})
	return page, err
}
