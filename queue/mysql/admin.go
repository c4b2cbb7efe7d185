package mysql

import (
	"cmp"
	"context"
	"database/sql"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/mvalve/mvalve/internal/sqlstore"
	"github.com/mvalve/mvalve/queue"
)

// Count implements queue.Admin. Without destination it reads the whole tables.
func (s *Store) Count(ctx context.Context, now time.Time, destination string) ([]queue.Count, error) {
	var counts []queue.Count
	for table := queue.Emergency; table <= queue.Dead; table++ {
		err := s.retry(ctx, "count", func(*attempt) error {
			part, err := s.countTable(ctx, table, queue.Micros(now), destination)
			if err == nil {
				counts = append(counts, part...)
			}
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	slices.SortFunc(counts, func(a, b queue.Count) int {
		return cmp.Or(cmp.Compare(a.Destination, b.Destination), cmp.Compare(a.Table, b.Table))
	})
	return counts, nil
}

// countTable finds the oldest row of each group without a second look-up: the
// smallest concatenation of key and enqueue time is the smallest key's.
func (s *Store) countTable(ctx context.Context, table queue.Lane, now int64, destination string) ([]queue.Count, error) {
	key := "id"
	if table == queue.Timed {
		key = "LPAD(ready_at, 20, '0'), id"
	}
	where, index, args := "", "PRIMARY", []any{now}
	if destination != "" {
		where, index, args = " WHERE destination = ?", "by_destination", append(args, destination)
	}
	text := "SELECT destination, COUNT(*), CAST(COALESCE(SUM(lease_until > ?), 0) AS SIGNED), MIN(ready_at), " +
		"MIN(CONCAT(" + key + ", LPAD(enqueued_at, 20, '0'))) FROM " + sqlstore.Table(table) +
		" FORCE INDEX (" + index + ")" + where + " GROUP BY destination"
	var counts []queue.Count
	err := s.auto().query(ctx, text, args, func(rows *sql.Rows) error {
		c := queue.Count{Table: table}
		var ready int64
		var oldest []byte
		if err := rows.Scan(&c.Destination, &c.Waiting, &c.Leased, &ready, &oldest); err != nil {
			return err
		}
		c.Waiting -= c.Leased
		micros, err := strconv.ParseInt(string(oldest[max(0, len(oldest)-20):]), 10, 64)
		if err != nil {
			return fmt.Errorf("%w: enqueue time in %s: %w", queue.ErrCorrupt, sqlstore.Table(table), err)
		}
		c.Oldest = queue.Time(micros)
		if table == queue.Timed {
			c.NextReady = queue.Time(ready)
		}
		counts = append(counts, c)
		return nil
	})
	return counts, err
}

// Peek implements queue.Admin.
func (s *Store) Peek(ctx context.Context, table queue.Lane, destination string, after queue.Cursor, n int) ([]queue.Letter, error) {
	if table < queue.Emergency || table > queue.Dead {
		return nil, fmt.Errorf("%w: peek into table %v", queue.ErrInvalid, table)
	}
	if n <= 0 {
		return nil, nil // no rows were asked for
	}
	columns := sqlstore.Columns + ", 0, ''"
	if table == queue.Dead {
		columns = sqlstore.Columns + ", dead_at, reason"
	}
	where, args := "id > ?", []any{after.ID[:]}
	if table == queue.Timed {
		where, args = "(ready_at > ? OR (ready_at = ? AND id > ?))", []any{after.ReadyAt, after.ReadyAt, after.ID[:]}
	}
	if destination != "" {
		where, args = where+" AND destination = ?", append(args, destination)
	}
	text := "SELECT " + columns + " FROM " + sqlstore.Table(table) + " WHERE " + where + " ORDER BY " + keyOrder(table) + " LIMIT ?"
	var letters []queue.Letter
	err := s.retry(ctx, "peek", func(*attempt) error {
		letters = nil
		var row sqlstore.Row
		var deadAt int64
		var reason string
		dest := append(row.Dest(), &deadAt, &reason)
		return s.auto().query(ctx, text, append(args, n), func(rows *sql.Rows) error {
			if err := rows.Scan(dest...); err != nil {
				return err
			}
			m, damage := row.Message()
			letters = append(letters, queue.Letter{Message: m, Table: table, DeadAt: queue.Time(deadAt), Reason: reason, Err: damage})
			return nil
		})
	})
	return letters, err
}

// moveBatch is how many rows Move and Prune change in one transaction.
const moveBatch = maxKeys

// Move implements queue.Admin, in transactions of at most moveBatch rows. Rows
// under a live lease stay. After an error some rows may have moved; the number
// returned counts those known to have.
func (s *Store) Move(ctx context.Context, now time.Time, m queue.Move) (int64, error) {
	if err := m.Check(); err != nil {
		return 0, err
	}
	var moved int64
	if m.IDs != nil {
		for start := 0; start < len(m.IDs); start += moveBatch {
			ids := m.IDs[start:min(start+moveBatch, len(m.IDs))]
			n, _, err := s.moveSome(ctx, now, m, ids, moved)
			if moved += n; err != nil {
				return moved, err
			}
		}
		return moved, nil
	}
	for {
		n, more, err := s.moveSome(ctx, now, m, nil, moved)
		if moved += n; err != nil || !more {
			return moved, err
		}
	}
}

// moveSome moves up to moveBatch rows in one transaction, and reports whether
// there may be more. done rows were moved before.
func (s *Store) moveSome(ctx context.Context, now time.Time, m queue.Move, ids []queue.ID, done int64) (moved int64, more bool, err error) {
	limit := moveBatch
	if m.Limit > 0 {
		limit = min(limit, m.Limit-int(done))
	}
	if limit <= 0 {
		return 0, false, nil
	}
	err = s.retry(ctx, "move", func(a *attempt) error {
		return s.transact(ctx, a, func(r runner) error {
			refs, err := s.selectMove(ctx, r, now, m, ids, limit)
			if err != nil {
				return err
			}
			moved, more = int64(len(refs)), len(refs) == limit
			if len(refs) == 0 {
				return nil
			}
			if !m.Purge {
				if err := redrive(ctx, r, now, refs); err != nil {
					return err
				}
			}
			return deleteRows(ctx, r, now, m.From, refs)
		})
	})
	if err != nil {
		return 0, false, err
	}
	return moved, more, nil
}

// selectMove reads the references of the rows to move and locks them.
func (s *Store) selectMove(ctx context.Context, r runner, now time.Time, m queue.Move, ids []queue.ID, limit int) ([]queue.Ref, error) {
	text := "SELECT " + sqlstore.RefColumns + " FROM " + sqlstore.Table(m.From) + " WHERE lease_until <= ?"
	args := []any{queue.Micros(now)}
	if m.Destination != "" {
		text, args = text+" AND destination = ?", append(args, m.Destination)
	}
	if ids != nil {
		size := paddedSize(len(ids))
		text += " AND id IN (" + repeat("?", size) + ")"
		for i := range size {
			args = append(args, ids[min(i, len(ids)-1)][:])
		}
	}
	text += " ORDER BY " + keyOrder(m.From) + " LIMIT ? FOR UPDATE"
	var refs []queue.Ref
	var row sqlstore.RefRow
	dest := row.Dest()
	err := r.query(ctx, text, append(args, limit), func(rows *sql.Rows) error {
		if err := rows.Scan(dest...); err != nil {
			return err
		}
		ref, err := row.Ref(m.From)
		refs = append(refs, ref)
		return err
	})
	return refs, err
}

// redrive copies dead letters back to their lane of origin.
func redrive(ctx context.Context, r runner, now time.Time, refs []queue.Ref) error {
	for lane := queue.Emergency; lane <= queue.Incoming; lane++ {
		var index []int
		for i := range refs {
			if refs[i].Lane == lane {
				index = append(index, i)
			}
		}
		if len(index) == 0 {
			continue
		}
		ready := int64(0)
		if lane == queue.Timed {
			ready = queue.Micros(now)
		}
		size := paddedSize(len(index))
		text := "INSERT INTO " + sqlstore.Table(lane) + " (" + sqlstore.Columns + ") SELECT id, destination, priority, lane, ?, " +
			"expires_at, enqueued_at, hold, size, 0, 0, '', checksum, headers, body FROM q_dead" + byKey + " WHERE " + keyWhere(queue.Dead, size)
		n, err := r.exec(ctx, text, keyArgs([]any{ready}, queue.Dead, refs, index, size)...)
		if err != nil {
			return err
		}
		if n != int64(len(index)) {
			return errConflict
		}
	}
	return nil
}

// deleteRows deletes the rows of refs, all of them and only while free.
func deleteRows(ctx context.Context, r runner, now time.Time, table queue.Lane, refs []queue.Ref) error {
	index := make([]int, len(refs))
	for i := range refs {
		index[i] = i
	}
	size := paddedSize(len(refs))
	text := deleteFrom(table) + " WHERE " + keyWhere(table, size) + " AND lease_until <= ?"
	n, err := r.exec(ctx, text, append(keyArgs(nil, table, refs, index, size), queue.Micros(now))...)
	if err == nil && n != int64(len(refs)) {
		return errConflict
	}
	return err
}

// Stats implements queue.Admin.
func (s *Store) Stats(ctx context.Context, since time.Time) ([]queue.Stat, error) {
	var stats []queue.Stat
	err := s.retry(ctx, "stats", func(*attempt) error {
		stats = nil
		return s.auto().query(ctx, "SELECT action, destination, CAST(SUM(count) AS SIGNED) FROM q_statslog WHERE logged_on >= ? "+
			"GROUP BY action, destination ORDER BY action, destination", []any{queue.Micros(since)}, func(rows *sql.Rows) error {
			var stat queue.Stat
			err := rows.Scan(&stat.Action, &stat.Destination, &stat.Count)
			stats = append(stats, stat)
			return err
		})
	})
	return stats, err
}

// Prune implements queue.Admin. It also removes what expired in q_state before
// batches.
func (s *Store) Prune(ctx context.Context, logs, batches time.Time) error {
	for _, p := range []struct {
		text   string
		before time.Time
	}{
		{"DELETE FROM q_statslog WHERE logged_on < ? LIMIT 1000", logs},
		{"DELETE FROM q_batch WHERE at < ? LIMIT 1000", batches},
		{"DELETE FROM q_state WHERE expires_at < ? LIMIT 1000", batches},
	} {
		for {
			var n int64
			err := s.retry(ctx, "prune", func(*attempt) error {
				var err error
				n, err = s.auto().exec(ctx, p.text, queue.Micros(p.before))
				return err
			})
			if err != nil {
				return err
			}
			if n < 1000 {
				break
			}
		}
	}
	return nil
}
