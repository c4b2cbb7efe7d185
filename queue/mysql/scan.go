package mysql

import (
	"context"
	"database/sql"
	"fmt"
	"hash/fnv"
	"time"

	"github.com/mvalve/mvalve/internal/sqlstore"
	"github.com/mvalve/mvalve/queue"
)

const scanColumns = sqlstore.RefColumns + ", lease_until"

// refScan receives scanColumns.
type refScan struct {
	row   sqlstore.RefRow
	until int64
	dest  []any
}

func newRefScan() *refScan {
	s := &refScan{}
	s.dest = append(s.row.Dest(), &s.until)
	return s
}

// Scan implements queue.Store: a range of the primary key from the cursor on, a
// plain consistent read. Held rows are filtered here, so that the cursor passes
// them.
func (s *Store) Scan(ctx context.Context, now time.Time, table queue.Lane, after queue.Cursor, upTo time.Time, n int) ([]queue.Ref, queue.Cursor, error) {
	if table < queue.Emergency || table > queue.Incoming {
		return nil, after, fmt.Errorf("%w: scan of table %v", queue.ErrInvalid, table)
	}
	until := queue.Micros(upTo)
	if n <= 0 || table == queue.Timed && after.ReadyAt > until {
		return nil, after, nil
	}
	text := cached.get("scan", table, 0, func() string { return scanText(table) })
	args := []any{after.ID[:], n}
	if table == queue.Timed {
		args = []any{after.ReadyAt, after.ID[:], after.ReadyAt, until, n}
	}
	var refs []queue.Ref
	var end queue.Cursor
	err := s.retry(ctx, "scan", func(*attempt) error {
		refs, end = nil, after
		row := newRefScan()
		return s.auto().query(ctx, text, args, func(rows *sql.Rows) error {
			if err := rows.Scan(row.dest...); err != nil {
				return err
			}
			ref, err := row.row.Ref(table)
			if err != nil {
				return err
			}
			end = queue.Cursor{ID: ref.ID}
			if table == queue.Timed {
				end.ReadyAt = ref.ReadyAt
			}
			if row.until <= queue.Micros(now) {
				refs = append(refs, ref)
			}
			return nil
		})
	})
	if err != nil {
		return nil, after, err
	}
	return refs, end, nil
}

// scanText: a row comparison (ready_at, id) > (?, ?) would scan the table; the
// two ranges do not.
func scanText(table queue.Lane) string {
	if table == queue.Timed {
		return "SELECT " + scanColumns + " FROM q_timed FORCE INDEX (PRIMARY) WHERE (ready_at = ? AND id > ?) " +
			"OR (ready_at > ? AND ready_at <= ?) ORDER BY ready_at, id LIMIT ?"
	}
	return "SELECT " + scanColumns + " FROM " + sqlstore.Table(table) + " FORCE INDEX (PRIMARY) WHERE id > ? ORDER BY id LIMIT ?"
}

// Heads implements queue.Store.
func (s *Store) Heads(ctx context.Context, now time.Time, q queue.HeadQuery) ([]queue.Ref, string, error) {
	if q.Limit <= 0 {
		return nil, "", nil
	}
	var pages []queue.HeadPage
	var refs []queue.Ref
	for table := queue.Emergency; table <= queue.Incoming; table++ {
		if q.Table != queue.LaneUnset && q.Table != table {
			continue
		}
		if q.Destination != "" {
			rows, err := s.refill(ctx, now, table, q)
			if err != nil {
				return nil, "", err
			}
			refs = append(refs, rows...)
			continue
		}
		page, err := s.destinations(ctx, table, q)
		if err != nil {
			return nil, "", err
		}
		pages = append(pages, page)
	}
	if q.Destination != "" {
		return refs, "", nil
	}
	refs, more := queue.JoinHeads(pages)
	return refs, more, nil
}

// refill reads what of one destination may be leased now, best first. In q_timed
// the ten priorities are named, so that each contributes the range that is due
// instead of all that waits.
func (s *Store) refill(ctx context.Context, now time.Time, table queue.Lane, q queue.HeadQuery) ([]queue.Ref, error) {
	text := cached.get("refill", table, 0, func() string { return refillText(table) })
	micros := queue.Micros(now)
	args := []any{q.Destination, micros, q.Limit}
	switch {
	case table == queue.Timed:
		args = []any{q.Destination, micros, micros, q.Limit}
	case table == queue.Incoming && q.Behind != nil:
		p := sqlstore.StoredPriority(q.Behind.Priority)
		text, args = refillBehind, []any{q.Destination, p, q.Behind.ID[:], p, micros, q.Limit}
	}
	var refs []queue.Ref
	err := s.retry(ctx, "heads", func(*attempt) error {
		refs = nil
		row := newRefScan()
		return s.auto().query(ctx, text, args, func(rows *sql.Rows) error {
			if err := rows.Scan(row.dest...); err != nil {
				return err
			}
			ref, err := row.row.Ref(table)
			if err == nil {
				refs = append(refs, ref)
			}
			return err
		})
	})
	return refs, err
}

func refillText(table queue.Lane) string {
	from := "SELECT " + scanColumns + " FROM " + sqlstore.Table(table) + " FORCE INDEX (by_destination) WHERE destination = ?"
	if table == queue.Timed {
		return from + " AND priority IN (0, 1, 2, 3, 4, 5, 6, 7, 8, 9) AND ready_at <= ? AND lease_until <= ? " +
			"ORDER BY priority, ready_at, id LIMIT ?"
	}
	return from + " AND lease_until <= ? ORDER BY priority, id LIMIT ?"
}

const refillBehind = "SELECT " + scanColumns + " FROM q_incoming FORCE INDEX (by_destination) WHERE destination = ? " +
	"AND (priority = ? AND id > ? OR priority > ?) AND lease_until <= ? ORDER BY priority, id LIMIT ?"

// destinations reads the next (destination, priority) groups by a loose index
// scan: one probe per group, however many rows it has.
func (s *Store) destinations(ctx context.Context, table queue.Lane, q queue.HeadQuery) (queue.HeadPage, error) {
	text := cached.get("destinations", table, 0, func() string { return destinationsText(table) })
	var page queue.HeadPage
	err := s.retry(ctx, "heads", func(*attempt) error {
		page = queue.HeadPage{}
		groups := 0
		var destination string
		var id []byte
		var priority, ready int64
		err := s.auto().query(ctx, text, []any{q.After, q.Limit}, func(rows *sql.Rows) error {
			if err := rows.Scan(&destination, &priority, &ready, &id); err != nil {
				return err
			}
			groups++
			if n := len(page.Refs); n > 0 && page.Refs[n-1].Destination == destination {
				return nil
			}
			ref := queue.Ref{Destination: destination, Table: table, Priority: sqlstore.PriorityOf(priority), ReadyAt: ready}
			copy(ref.ID[:], id) // NULL when the row went away meanwhile
			page.Refs = append(page.Refs, ref)
			return nil
		})
		page.Full = groups == q.Limit
		return err
	})
	return page, err
}

func destinationsText(table queue.Lane) string {
	if table == queue.Timed {
		return "SELECT g.destination, g.priority, g.ready, " +
			"(SELECT t.id FROM q_timed t FORCE INDEX (by_destination) WHERE t.destination = g.destination AND t.priority = g.priority " +
			"AND t.ready_at = g.ready ORDER BY t.id LIMIT 1) FROM (SELECT destination, priority, MIN(ready_at) AS ready FROM q_timed FORCE INDEX (by_destination) " +
			"WHERE destination > ? GROUP BY destination, priority ORDER BY destination, priority LIMIT ?) g ORDER BY g.destination, g.priority"
	}
	return "SELECT destination, priority, 0, MIN(id) FROM " + sqlstore.Table(table) + " FORCE INDEX (by_destination) " +
		"WHERE destination > ? GROUP BY destination, priority ORDER BY destination, priority LIMIT ?"
}

// newestIDs looks at the right edge of the lanes that grow there: two index
// look-ups in one round trip. What is due in q_timed moves with the clock, so
// readers look ahead there anyway.
const newestIDs = "SELECT COALESCE((SELECT MAX(id) FROM q_emerg), ''), COALESCE((SELECT MAX(id) FROM q_incoming), '')"

// Dirty implements queue.DirtyChecker: a number that changes with the newest
// message of the lanes. A commit that comes out of id order does not change it.
func (s *Store) Dirty(ctx context.Context) (int64, error) {
	var emergency, incoming []byte
	err := s.retry(ctx, "look for new messages", func(*attempt) error {
		return s.auto().query(ctx, newestIDs, nil, func(rows *sql.Rows) error {
			return rows.Scan(&emergency, &incoming)
		})
	})
	if err != nil {
		return 0, err
	}
	h := fnv.New64a()
	_, _ = h.Write(emergency)
	_, _ = h.Write([]byte{0})
	_, _ = h.Write(incoming)
	return int64(h.Sum64()), nil
}
