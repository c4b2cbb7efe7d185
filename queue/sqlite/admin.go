package sqlite

import (
	"cmp"
	"context"
	"database/sql/driver"
	"slices"
	"time"

	"github.com/mvalve/mvalve/internal/sqlstore"
	"github.com/mvalve/mvalve/queue"
)

// moveChunk is how many rows one transaction of Move takes; between two of them
// the others have their turn.
const moveChunk = 500

// Count implements queue.Admin. It reads every row it counts.
func (s *Store) Count(ctx context.Context, now time.Time, destination string) ([]queue.Count, error) {
	var counts []queue.Count
	err := s.read(ctx, func(c *conn) error {
		for table := queue.Emergency; table <= queue.Dead; table++ {
			if err := countTable(ctx, c, now, table, destination, &counts); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(counts, func(a, b queue.Count) int {
		return cmp.Or(cmp.Compare(a.Destination, b.Destination), cmp.Compare(a.Table, b.Table))
	})
	return counts, nil
}

func countTable(ctx context.Context, c *conn, now time.Time, table queue.Lane, destination string, counts *[]queue.Count) error {
	first := "min(id), 0" // the other columns come from the row with the minimum
	if table == queue.Timed {
		first = "min(ready_at), ready_at"
	}
	text := "SELECT destination, count(*), sum(lease_until > ?), enqueued_at, " + first + " FROM " + sqlstore.Table(table)
	args := []any{queue.Micros(now)}
	if destination != "" {
		text, args = text+" WHERE destination = ?", append(args, destination)
	}
	return c.query(ctx, text+" GROUP BY destination", args, func(row []driver.Value) error {
		n := queue.Count{Destination: textOf(row[0]), Table: table}
		var all, oldest, ready int64
		assign([]any{&all, &n.Leased, &oldest}, row[1:4])
		ready, _ = row[5].(int64)
		n.Waiting, n.Oldest, n.NextReady = all-n.Leased, queue.Time(oldest), queue.Time(ready)
		*counts = append(*counts, n)
		return nil
	})
}

// Peek implements queue.Admin.
func (s *Store) Peek(ctx context.Context, table queue.Lane, destination string, after queue.Cursor, n int) ([]queue.Letter, error) {
	if err := (&queue.Move{From: table, Purge: true}).Check(); err != nil {
		return nil, err
	}
	text := "SELECT " + sqlstore.Columns
	if table == queue.Dead {
		text += ", dead_at, reason"
	}
	text += " FROM " + sqlstore.Table(table)
	key, args := "id", []any{after.ID[:]}
	if table == queue.Timed {
		key, args = "ready_at, id", []any{after.ReadyAt, after.ID[:]}
		text += " WHERE (ready_at, id) > (?, ?)"
	} else {
		text += " WHERE id > ?"
	}
	if destination != "" {
		text, args = text+" AND destination = ?", append(args, destination)
	}
	var letters []queue.Letter
	err := s.read(ctx, func(c *conn) error {
		return c.query(ctx, text+" ORDER BY "+key+" LIMIT ?", append(args, int64(max(n, 0))), func(values []driver.Value) error {
			var row sqlstore.Row
			letter := queue.Letter{Table: table}
			var deadAt int64
			dest := row.Dest()
			if table == queue.Dead {
				dest = append(dest, &deadAt, &letter.Reason)
			}
			assign(dest, values)
			letter.Message, letter.Err = row.Message()
			letter.DeadAt = queue.Time(deadAt)
			letters = append(letters, letter)
			return nil
		})
	})
	return letters, err
}

// Move implements queue.Admin, in transactions of moveChunk rows: when it ends
// with an error, the rows it counted are moved.
func (s *Store) Move(ctx context.Context, now time.Time, mv queue.Move) (moved int64, err error) {
	if err := mv.Check(); err != nil {
		return 0, err
	}
	chunks := [][]queue.ID{nil}
	if mv.IDs != nil {
		chunks = slices.Collect(slices.Chunk(mv.IDs, maxKeys))
	}
	for _, ids := range chunks {
		for {
			n := int64(moveChunk)
			if mv.Limit > 0 {
				n = min(n, int64(mv.Limit)-moved)
			}
			if n == 0 {
				return moved, nil
			}
			var got int64
			err := s.write(ctx, int(n), func(c *conn, _ bool) (err error) {
				got, err = moveRows(c, now, mv, ids, n)
				return err
			})
			if err != nil {
				return moved, err
			}
			if moved += got; got < n {
				break
			}
		}
	}
	return moved, nil
}

// moveRows moves or purges the first n rows that mv selects.
func moveRows(c *conn, now time.Time, mv queue.Move, ids []queue.ID, n int64) (int64, error) {
	key := "id"
	if mv.From == queue.Timed {
		key = "ready_at, id"
	}
	text := "SELECT id, lane, ready_at FROM " + sqlstore.Table(mv.From) + " WHERE lease_until <= ?"
	args := []any{queue.Micros(now)}
	if mv.Destination != "" {
		text, args = text+" AND destination = ?", append(args, mv.Destination)
	}
	if !mv.Purge {
		text += " AND lane BETWEEN 1 AND 3"
	}
	if len(ids) > 0 {
		size := keySize(len(ids))
		text += " AND id IN (" + marks("?", size) + ")"
		for i := range size {
			args = append(args, ids[min(i, len(ids)-1)][:])
		}
	}
	var refs []queue.Ref
	err := c.query(context.Background(), text+" ORDER BY "+key+" LIMIT ?", append(args, n), func(row []driver.Value) error {
		ref := queue.Ref{Table: mv.From}
		copy(ref.ID[:], bytesOf(row[0]))
		lane, _ := row[1].(int64)
		ref.Lane = queue.Lane(lane)
		ref.ReadyAt, _ = row[2].(int64)
		refs = append(refs, ref)
		return nil
	})
	if err != nil {
		return 0, err
	}
	for _, ref := range refs {
		if !mv.Purge {
			if err := redriveRow(c, now, ref); err != nil {
				return 0, err
			}
		}
		if _, err := c.exec(c.text(opDelete, mv.From, 1), appendKey(nil, ref)...); err != nil {
			return 0, err
		}
	}
	return int64(len(refs)), nil
}

// redriveRow copies a dead letter to its lane of origin, with attempts 0.
func redriveRow(c *conn, now time.Time, ref queue.Ref) error {
	ready := int64(0)
	if ref.Lane == queue.Timed {
		ready = queue.Micros(now)
	}
	_, err := c.exec("INSERT OR REPLACE INTO "+sqlstore.Table(ref.Lane)+" ("+sqlstore.Columns+") SELECT id, destination, priority, lane, ?,"+
		" expires_at, enqueued_at, hold, size, 0, 0, zeroblob(16), checksum, headers, body FROM q_dead WHERE id = ?", ready, ref.ID[:])
	return err
}

// Stats implements queue.Admin.
func (s *Store) Stats(ctx context.Context, since time.Time) (stats []queue.Stat, err error) {
	const text = "SELECT action, destination, sum(count) FROM q_statslog WHERE logged_on >= ? GROUP BY action, destination ORDER BY action, destination"
	err = s.read(ctx, func(c *conn) error {
		return c.query(ctx, text, []any{queue.Micros(since)}, func(row []driver.Value) error {
			var st queue.Stat
			assign([]any{&st.Action, &st.Destination, &st.Count}, row)
			stats = append(stats, st)
			return nil
		})
	})
	return stats, err
}

// Prune implements queue.Admin. It also forgets limiter state that expired
// before batches.
func (s *Store) Prune(ctx context.Context, logs, batches time.Time) error {
	return s.write(ctx, 1, func(c *conn, _ bool) error {
		if _, err := c.exec("DELETE FROM q_statslog WHERE logged_on < ?", queue.Micros(logs)); err != nil {
			return err
		}
		if _, err := c.exec("DELETE FROM q_state WHERE expires_at < ?", queue.Micros(batches)); err != nil {
			return err
		}
		_, err := c.exec("DELETE FROM q_batch WHERE at < ?", queue.Micros(batches))
		return err
	})
}
