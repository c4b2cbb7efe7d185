package sqlite

import (
	"context"
	"database/sql/driver"
	"fmt"
	"time"

	"github.com/mvalve/mvalve/internal/sqlstore"
	"github.com/mvalve/mvalve/queue"
)

// Lease implements queue.Store.
func (s *Store) Lease(ctx context.Context, now, until time.Time, token queue.ID, refs []queue.Ref) ([]queue.Leased, error) {
	if token.IsZero() {
		return nil, fmt.Errorf("%w: a lease needs a token", queue.ErrInvalid)
	}
	for i := range refs {
		if refs[i].Table < queue.Emergency || refs[i].Table > queue.Incoming {
			return nil, fmt.Errorf("%w: lease in table %v", queue.ErrInvalid, refs[i].Table)
		}
	}
	if len(refs) == 0 {
		return nil, nil
	}
	split := sqlstore.SplitRefs(refs)
	rows := make([]*sqlstore.Row, len(refs)) // by index into refs; nil: not won
	err := s.write(ctx, len(refs), func(c *conn, _ bool) error {
		clear(rows)
		for table, index := range split {
			for start := 0; start < len(index); start += maxKeys {
				part := index[start:min(start+maxKeys, len(index))]
				if err := leaseKeys(c, now, until, token, table, refs, part, rows); err != nil {
					return fmt.Errorf("lease: %w", err)
				}
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	won := make([]queue.Leased, 0, len(refs))
	for i, row := range rows { // decoded here: the writer has others to serve
		if row == nil {
			continue
		}
		m, err := row.Message()
		m.Attempts++
		m.LeaseToken, m.LeaseUntil = token, queue.Time(queue.Micros(until))
		ref := refs[i]
		ref.Attempts = m.Attempts
		if err == nil {
			err = sqlstore.Fits(m, ref)
		}
		won = append(won, queue.Leased{Ref: ref, Message: m, Err: err})
	}
	return won, nil
}

// leaseKeys reads the free rows among part, which is in key order, and marks them.
func leaseKeys(c *conn, now, until time.Time, token queue.ID, table queue.Lane, refs []queue.Ref, part []int, rows []*sqlstore.Row) error {
	size := keySize(len(part))
	args := make([]any, 0, 2*size+3)
	args = append(args, token[:], queue.Micros(until))
	for i := range size {
		args = appendKey(args, refs[part[min(i, len(part)-1)]])
	}
	args = append(args, queue.Micros(now))
	var found int64
	var dest []any
	at := 0
	err := c.query(context.Background(), c.text(opRead, table, size), args[2:], func(values []driver.Value) error {
		row := new(sqlstore.Row)
		dest = row.AppendDest(dest[:0])
		assign(dest, values)
		i := find(refs, part, at, row.Key(table))
		if i < 0 {
			return fmt.Errorf("%w: row %v was not asked for", errDamaged, row.Key(table).ID)
		}
		rows[part[i]] = row
		at = i + 1
		found++
		return nil
	})
	if err != nil || found == 0 {
		return err
	}
	n, err := c.exec(c.text(opLease, table, size), args...)
	if err == nil && n != found {
		err = fmt.Errorf("%w: %d rows marked, %d read", errDamaged, n, found)
	}
	return err
}

// find returns the position in part of the ref with key's primary key. Rows come
// in key order, so the search begins behind the last one found.
func find(refs []queue.Ref, part []int, from int, key queue.Ref) int {
	for k := range part {
		i := (from + k) % len(part)
		if sqlstore.CompareKeys(refs[part[i]], key) == 0 {
			return i
		}
	}
	return -1
}
