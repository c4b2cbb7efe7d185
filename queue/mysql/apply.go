package mysql

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/mvalve/mvalve/internal/sqlstore"
	"github.com/mvalve/mvalve/queue"
)

// Apply implements queue.Store. After an unknown outcome the whole transaction
// is repeated: its token then says whether it was committed. A change that puts
// nothing leaves no token; what vanished of its settles counts as settled, and
// its acks are named.
func (s *Store) Apply(ctx context.Context, now time.Time, c *queue.Change) (queue.Outcome, error) {
	if err := c.Check(now, s.MaxBody()); err != nil {
		return queue.Outcome{}, err
	}
	if len(c.Put) == 0 && len(c.Settle) == 0 && len(c.Log) == 0 {
		return queue.Outcome{}, nil
	}
	groups := sqlstore.GroupSettles(c.Settle)
	refs := make([]queue.Ref, len(c.Settle))
	for i := range c.Settle {
		refs[i] = c.Settle[i].Ref
	}
	var out queue.Outcome
	err := s.retry(ctx, "apply", func(a *attempt) error {
		out = queue.Outcome{}
		err := s.transact(ctx, a, func(r runner) error {
			if len(c.Put) > 0 || c.Strict {
				if err := claimToken(ctx, r, c.Token, now); err != nil {
					return err
				}
				a.unknown = false // an earlier attempt would have left the token
			}
			if err := put(ctx, r, c.Put); err != nil {
				return err
			}
			w := &settler{ctx: ctx, r: r, now: queue.Micros(now), settles: c.Settle, refs: refs, careful: a.careful, repeated: a.unknown}
			for _, g := range groups {
				if err := w.settle(g); err != nil {
					return err
				}
			}
			slices.Sort(w.lost)
			out.Lost, out.Vanished = w.lost, w.vanished
			if c.Strict && len(w.lost) > 0 {
				return errStrict
			}
			return logStats(ctx, r, c.Log)
		})
		switch {
		case errors.Is(err, errSettledDuplicate):
			out = queue.Outcome{}
			return nil
		case errors.Is(err, errStrict):
			return nil
		case errors.Is(err, errConflict):
			a.careful = true
		}
		return err
	})
	return out, err
}

// errStrict takes back a strict change that lost a lease.
var errStrict = errors.New("mysql: a lease of a strict change was lost")

// claimToken stores the token of a transaction; errSettledDuplicate says that it
// is there already.
func claimToken(ctx context.Context, r runner, token queue.ID, now time.Time) error {
	_, err := r.exec(ctx, "INSERT INTO q_batch (token, at) VALUES (?, ?)", token[:], queue.Micros(now))
	if code(err) == codeDuplicate {
		return errSettledDuplicate
	}
	return err
}

// put inserts messages, per table, in statements of prepared sizes that carry at
// most maxBytes (or one message).
func put(ctx context.Context, r runner, messages []*queue.Message) error {
	if len(messages) == 0 {
		return nil
	}
	args := make([]any, 0, min(len(messages), insertSizes[0])*sqlstore.ColumnCount)
	for _, table := range []queue.Lane{queue.Emergency, queue.Timed, queue.Incoming} {
		rows := inTable(messages, table)
		for len(rows) > 0 {
			run := runOf(rows)
			plain := allPlain(rows[:run])
			for start, size := range sqlstore.Batches(run, insertSizes) {
				args = args[:0]
				for _, m := range rows[start : start+size] {
					args = appendRow(args, m, plain)
				}
				text := insertText(table, size)
				if plain {
					text = plainText(table, size)
				}
				if _, err := r.exec(ctx, text, args...); err != nil {
					return err
				}
			}
			rows = rows[run:]
		}
	}
	return nil
}

// allPlain reports whether all messages have only zeros in the columns that
// plainText gives as constants. Most have; it spares a third of the insert.
func allPlain(messages []*queue.Message) bool {
	for _, m := range messages {
		if !m.ReadyAt.IsZero() || !m.ExpiresAt.IsZero() || m.Hold != 0 || m.Attempts != 0 ||
			!m.LeaseUntil.IsZero() || !m.LeaseToken.IsZero() {
			return false
		}
	}
	return true
}

// appendRow appends the arguments of insertText or plainText for m.
func appendRow(args []any, m *queue.Message, plain bool) []any {
	start := len(args)
	args = sqlstore.AppendArgs(args, m)
	if !plain {
		return args
	}
	row := args[start:] // id, destination, priority, lane, 0, 0, enqueued_at, 0, size, 0, 0, 0, checksum, headers, body
	row[4], row[5] = row[6], row[8]
	copy(row[6:9], row[12:15])
	return args[:start+9]
}

// inTable returns the messages that lie in table, without copying if all do.
func inTable(messages []*queue.Message, table queue.Lane) []*queue.Message {
	n := 0
	for _, m := range messages {
		if m.Table() == table {
			n++
		}
	}
	switch n {
	case 0:
		return nil
	case len(messages):
		return messages
	}
	rows := make([]*queue.Message, 0, n)
	for _, m := range messages {
		if m.Table() == table {
			rows = append(rows, m)
		}
	}
	return rows
}

// runOf returns how many of rows, at least one, make up at most maxBytes.
func runOf(rows []*queue.Message) int {
	bytes := 0
	for i, m := range rows {
		if bytes += m.Size(); bytes > maxBytes && i > 0 {
			return i
		}
	}
	return len(rows)
}

var logSizes = []int{64, 8, 1}

func logStats(ctx context.Context, r runner, stats []queue.Stat) error {
	for start, size := range sqlstore.Batches(len(stats), logSizes) {
		args := make([]any, 0, size*4)
		for _, stat := range stats[start : start+size] {
			args = append(args, stat.Action, stat.Destination, stat.Count, queue.Micros(stat.At))
		}
		text := "INSERT INTO q_statslog (action, destination, count, logged_on) VALUES " + repeat("(?, ?, ?, ?)", size)
		if _, err := r.exec(ctx, text, args...); err != nil {
			return err
		}
	}
	return nil
}

// InsertTx writes messages inside the application's own transaction: they exist
// if and only if tx commits. It assigns what is missing of ID, EnqueuedAt (now)
// and Lane, and never retries: any error, also a deadlock, means that tx is to
// be rolled back. tx must be on the pipe's database. now should come from
// Store.Now; messages of a transaction that commits late are found by the
// readers' destination pass.
func InsertTx(ctx context.Context, tx *sql.Tx, now time.Time, messages ...*queue.Message) error {
	for i, m := range messages {
		if m.ID.IsZero() {
			m.ID = txIDs.New(now)
		}
		if m.EnqueuedAt.IsZero() {
			m.EnqueuedAt = queue.Time(queue.Micros(now))
		}
		if m.Lane == queue.LaneUnset {
			m.Lane = queue.Incoming
			if !m.ReadyAt.IsZero() {
				m.Lane = queue.Timed
			}
		}
		if m.Lane == queue.Timed && m.ReadyAt.IsZero() {
			m.ReadyAt = m.EnqueuedAt
		}
		if err := m.Validate(0); err != nil {
			return fmt.Errorf("mysql insert: message %d of %d: %w", i+1, len(messages), err)
		}
	}
	for _, table := range []queue.Lane{queue.Emergency, queue.Timed, queue.Incoming} {
		rows := inTable(messages, table)
		for len(rows) > 0 {
			run := min(runOf(rows), 64)
			args := make([]any, 0, run*sqlstore.ColumnCount)
			for _, m := range rows[:run] {
				args = sqlstore.AppendArgs(args, m)
			}
			if _, err := tx.ExecContext(ctx, insertText(table, run), args...); err != nil {
				if code(err) == codeDuplicate {
					return fmt.Errorf("mysql insert: %w: %w", queue.ErrDuplicate, err)
				}
				return fmt.Errorf("mysql insert: %w", err)
			}
			rows = rows[run:]
		}
	}
	return nil
}

// txIDs makes the ids of InsertTx.
var txIDs queue.IDSource
