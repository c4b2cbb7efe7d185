package sqlite

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/mvalve/mvalve/internal/sqlstore"
	"github.com/mvalve/mvalve/queue"
)

// maxKeys is the most keys in one statement.
const maxKeys = 256

// insertSizes are the numbers of rows for which INSERT statements are prepared.
var insertSizes = []int{64, 16, 4, 1}

// Apply implements queue.Store.
func (s *Store) Apply(ctx context.Context, now time.Time, c *queue.Change) (queue.Outcome, error) {
	if err := c.Check(now, 0); err != nil {
		return queue.Outcome{}, err
	}
	var puts [queue.Incoming + 1][]any
	for i, m := range c.Put { // encoded here, so that the writer only binds
		args := &puts[m.Table()]
		if *args == nil {
			*args = make([]any, 0, (len(c.Put)-i)*sqlstore.ColumnCount)
		}
		*args = sqlstore.AppendArgs(*args, m)
	}
	groups := sqlstore.GroupSettles(c.Settle)
	var out queue.Outcome
	err := s.write(ctx, len(c.Put)+len(c.Settle)+len(c.Log), func(w *conn, alone bool) error {
		out = queue.Outcome{}
		if len(c.Put) > 0 || c.Strict {
			n, err := w.exec("INSERT INTO q_batch (token, at) VALUES (?, ?) ON CONFLICT DO NOTHING",
				c.Token[:], queue.Micros(now))
			if err != nil || n == 0 {
				return err
			}
			for table, args := range puts {
				if err := insertRows(w, queue.Lane(table), args); err != nil {
					return fmt.Errorf("put: %w", err)
				}
			}
		}
		for _, g := range groups {
			lost, err := settleGroup(w, now, c.Settle, g, alone)
			if err != nil {
				return err
			}
			out.Lost = append(out.Lost, lost...)
		}
		slices.Sort(out.Lost)
		if c.Strict && len(out.Lost) > 0 {
			return errStrict
		}
		return insertStats(w, c.Log)
	})
	if errors.Is(err, errStrict) {
		return out, nil
	}
	if len(c.Put) > 0 && !c.Told {
		s.untold.Add(1) // whatever came of it
	}
	if err != nil {
		return queue.Outcome{}, err
	}
	return out, nil
}

// errStrict takes back a strict change that lost a lease.
var errStrict = errors.New("sqlite: a lease of a strict change was lost")

// insertRows inserts rows given as their column values one after the other.
func insertRows(c *conn, table queue.Lane, args []any) error {
	for start, n := range sqlstore.Batches(len(args)/sqlstore.ColumnCount, insertSizes) {
		text := c.text(opInsert, table, n)
		if _, err := c.exec(text, args[start*sqlstore.ColumnCount:(start+n)*sqlstore.ColumnCount]...); err != nil {
			return err
		}
	}
	return nil
}

func insertStats(c *conn, stats []queue.Stat) error {
	var args []any
	for start, n := range sqlstore.Batches(len(stats), insertSizes) {
		args = args[:0]
		for _, st := range stats[start : start+n] {
			args = append(args, st.Action, st.Destination, st.Count, queue.Micros(st.At))
		}
		if _, err := c.exec(c.text(opInsertStats, 0, n), args...); err != nil {
			return fmt.Errorf("log: %w", err)
		}
	}
	return nil
}

// settleGroup carries out one group and returns the indices whose lease was
// lost. Statements over many rows only tell how many rows they changed: when
// that is too few, errAgain asks for another run, which goes row by row.
func settleGroup(c *conn, now time.Time, settles []queue.Settle, g sqlstore.Group, alone bool) (lost []int, err error) {
	if alone || g.Verb == queue.Retry || g.Verb == queue.Kill {
		for _, i := range g.Index {
			done, err := settleRow(c, now, &settles[i])
			if err != nil {
				return nil, fmt.Errorf("settle: %w", err)
			}
			if !done {
				lost = append(lost, i)
			}
		}
		return lost, nil
	}
	for start := 0; start < len(g.Index); start += maxKeys {
		index := g.Index[start:min(start+maxKeys, len(g.Index))]
		n, err := settleKeys(c, now, settles, g, index)
		if err != nil {
			return nil, fmt.Errorf("settle: %w", err)
		}
		if n != int64(len(index)) {
			return nil, errAgain
		}
	}
	return nil, nil
}

// settleKeys acks, releases or extends the rows in index.
func settleKeys(c *conn, now time.Time, settles []queue.Settle, g sqlstore.Group, index []int) (int64, error) {
	size := keySize(len(index))
	args := make([]any, 0, 2*size+3)
	if g.Verb == queue.Extend {
		args = append(args, g.At)
	}
	for i := range size { // padded with the last key: a set does not mind
		args = appendKey(args, settles[index[min(i, len(index)-1)]].Ref)
	}
	free, args := appendFence(args, now, g.Token, g.Until)
	return c.exec(c.text(verbOps[g.Verb]+free, g.Table, size), args...)
}

// appendFence appends what the row's lease must be like, and returns what makes
// an op the one that compares it.
func appendFence(args []any, now time.Time, token queue.ID, until int64) (op, []any) {
	if token.IsZero() {
		return opFree, append(args, queue.Micros(now))
	}
	return 0, append(args, until, token[:])
}

var verbOps = map[queue.Verb]op{queue.Ack: opAck, queue.Release: opRelease, queue.Extend: opExtend}

// settleRow ends one lease and reports whether it still stood.
func settleRow(c *conn, now time.Time, s *queue.Settle) (bool, error) {
	switch s.Verb {
	case queue.Retry, queue.Kill:
	default:
		g := sqlstore.Group{Table: s.Ref.Table, Verb: s.Verb, Token: s.Token, Until: sqlstore.Until(s), At: queue.Micros(s.At)}
		n, err := settleKeys(c, now, []queue.Settle{*s}, g, []int{0})
		return n == 1, err
	}
	at := queue.Micros(s.At)
	if s.At.IsZero() {
		at = queue.Micros(now)
	}
	var move op
	var args []any
	switch {
	case s.Verb == queue.Kill:
		move = opKill
		args = append(args, queue.Micros(now), queue.CutReason(s.Reason))
	case s.Ref.Table == queue.Timed:
		move = opDelay
		args = append(args, at)
	default:
		move = opRetry
		args = append(args, at)
	}
	free, args := appendFence(appendKey(args, s.Ref), now, s.Token, sqlstore.Until(s))
	n, err := c.exec(c.text(move+free, s.Ref.Table, 1), args...)
	if err != nil || n == 0 || s.Verb == queue.Retry && s.Ref.Table == queue.Timed {
		return n == 1, err
	}
	_, err = c.exec(c.text(opDelete, s.Ref.Table, 1), appendKey(nil, s.Ref)...)
	return true, err
}

// appendKey appends the primary key of ref's row.
func appendKey(args []any, ref queue.Ref) []any {
	if ref.Table == queue.Timed {
		args = append(args, ref.ReadyAt)
	}
	id := ref.ID
	return append(args, id[:])
}

// keySize returns the number of keys to prepare a statement for: the next power
// of two.
func keySize(n int) int {
	size := 1
	for size < n {
		size *= 2
	}
	return size
}

// op names a statement; op+opFree is the one that takes free rows instead of
// those with a token.
type op uint8

const (
	opInsert op = iota
	opInsertStats
	opAck
	opRelease
	opExtend
	opRetry // copy to q_timed
	opDelay // within q_timed
	opKill  // copy to q_dead
	opDelete
	opRead
	opLease
	opReadState
	opWriteState
	opFree op = 32
)

type textKey struct {
	op    op
	table queue.Lane
	n     int
}

// text returns the statement for n keys or rows of table.
func (c *conn) text(o op, table queue.Lane, n int) string {
	key := textKey{o, table, n}
	text, ok := c.texts[key]
	if !ok {
		text = buildText(o, table, n)
		c.texts[key] = text
	}
	return text
}

func buildText(o op, table queue.Lane, n int) string {
	name := sqlstore.Table(table)
	keys := "id IN (" + marks("?", n) + ")"
	if table == queue.Timed {
		keys = "(ready_at, id) IN (VALUES " + marks("(?, ?)", n) + ")"
	}
	fence := " AND lease_until <= ? AND lease_token = ?"
	if o >= opFree {
		o, fence = o-opFree, " AND lease_until <= ?"
	}
	where := " WHERE " + keys + fence
	const end = "lease_until = 0, lease_token = zeroblob(16)"
	// copies take the row as it is, but for where it goes and its lease
	copied := strings.Replace(sqlstore.Columns, "lease_until, lease_token", "0, zeroblob(16)", 1)
	switch o {
	case opInsert:
		return "INSERT INTO " + name + " (" + sqlstore.Columns + ") VALUES " +
			marks("("+marks("?", sqlstore.ColumnCount)+")", n)
	case opInsertStats:
		return "INSERT INTO q_statslog (action, destination, count, logged_on) VALUES " + marks("(?, ?, ?, ?)", n)
	case opAck:
		return "DELETE FROM " + name + where
	case opRelease:
		return "UPDATE " + name + " SET " + end + ", attempts = max(attempts - 1, 0)" + where
	case opExtend:
		return "UPDATE " + name + " SET lease_until = max(lease_until, ?)" + where
	case opRetry:
		return "INSERT OR REPLACE INTO q_timed (" + sqlstore.Columns + ") SELECT " +
			strings.Replace(copied, "ready_at", "?", 1) + " FROM " + name + where
	case opDelay:
		return "UPDATE OR REPLACE q_timed SET ready_at = ?, " + end + where
	case opKill:
		return "INSERT OR REPLACE INTO q_dead (" + sqlstore.Columns + ", dead_at, reason) SELECT " +
			copied + ", ?, ? FROM " + name + where
	case opDelete:
		return "DELETE FROM " + name + " WHERE " + keys
	case opRead:
		return "SELECT " + sqlstore.Columns + " FROM " + name + " WHERE " + keys + " AND lease_until <= ?"
	case opLease:
		return "UPDATE " + name + " SET lease_token = ?, lease_until = ?, attempts = attempts + 1 WHERE " + keys +
			" AND lease_until <= ?"
	case opReadState:
		return "SELECT key, value FROM q_state WHERE key IN (" + marks("?", n) + ") AND expires_at > ?"
	case opWriteState:
		return "INSERT INTO q_state (key, value, version, expires_at) VALUES " + marks("(?, ?, 1, ?)", n) +
			" ON CONFLICT (key) DO UPDATE SET value = excluded.value, version = version + 1, expires_at = excluded.expires_at"
	}
	panic(fmt.Sprintf("sqlite: no statement %d", o))
}
