package mysql

import (
	"context"
	"database/sql"
	"strings"

	"github.com/mvalve/mvalve/internal/sqlstore"
	"github.com/mvalve/mvalve/queue"
)

// settler carries out settles inside one transaction. Its statements change rows
// only where the fence holds: the row carries the token and its lease ends in
// time, or, for a zero token, nobody holds it. Optimistically it expects every
// row to be changed; when the count says otherwise it fails with errConflict, the
// transaction is rolled back, and a careful one reads first which rows the fence
// lets through.
type settler struct {
	ctx      context.Context
	r        runner
	now      int64
	settles  []queue.Settle
	refs     []queue.Ref
	careful  bool
	repeated bool // an earlier attempt may have been committed
	lost     []int
	vanished []int // acks that an earlier attempt may have carried out
}

func (w *settler) settle(g sqlstore.Group) error {
	size := maxKeys
	if g.Verb == queue.Retry || g.Verb == queue.Kill {
		size = maxMoves
	}
	for part := range chunks(g.Index, size) {
		if w.careful {
			var err error
			if part, err = w.carriers(g, part); err != nil {
				return err
			}
			if len(part) == 0 {
				continue
			}
		}
		if err := w.apply(g, part); err != nil {
			return err
		}
	}
	return nil
}

// fence is the condition under which a row may be settled, and its arguments.
func (w *settler) fence(g sqlstore.Group) (string, []any) {
	if g.Token.IsZero() {
		return " AND lease_until <= ?", []any{w.latest(g)}
	}
	return " AND lease_until <= ? AND lease_token = ?", []any{w.latest(g), g.Token[:]}
}

// latest is the last end of a lease that the fence lets through.
func (w *settler) latest(g sqlstore.Group) int64 {
	if g.Token.IsZero() {
		return w.now
	}
	return g.Until
}

// carriers returns those of part whose rows pass the fence, and notes the others
// as lost. Of a row named twice it returns one.
func (w *settler) carriers(g sqlstore.Group, part []int) ([]int, error) {
	latest := w.latest(g)
	size := paddedSize(len(part))
	text := cached.get("carriers", g.Table, size, func() string {
		return "SELECT id, lease_token, lease_until FROM " + sqlstore.Table(g.Table) + byKey + " WHERE " + keyWhere(g.Table, size) + " FOR UPDATE"
	})
	passes := make(map[queue.ID]bool, len(part))
	var id, carried []byte
	var until int64
	err := w.r.query(w.ctx, text, keyArgs(nil, g.Table, w.refs, part, size), func(rows *sql.Rows) error {
		if err := rows.Scan(&id, &carried, &until); err != nil {
			return err
		}
		passes[queue.ID(id)] = until <= latest && (g.Token.IsZero() || string(carried) == string(g.Token[:]))
		return nil
	})
	if err != nil {
		return nil, err
	}
	kept := make([]int, 0, len(part))
	for k, i := range part {
		passed, there := passes[w.refs[i].ID]
		switch {
		case passed && k > 0 && w.refs[part[k-1]].ID == w.refs[i].ID: // named twice: the first one counts
			if g.Verb != queue.Extend {
				w.lost = append(w.lost, i)
			}
		case passed:
			kept = append(kept, i)
		case w.repeated && !there && g.Verb == queue.Ack:
			w.vanished = append(w.vanished, i)
		case w.repeated && (!there && g.Verb != queue.Extend || g.Verb == queue.Release):
			// settled by the attempt whose answer was lost
		default:
			w.lost = append(w.lost, i)
		}
	}
	return kept, nil
}

// apply settles part and checks that every row was changed.
func (w *settler) apply(g sqlstore.Group, part []int) error {
	switch g.Verb {
	case queue.Ack:
		return w.change(g, part, "")
	case queue.Release:
		return w.change(g, part,
			" SET lease_until = 0, lease_token = '', attempts = IF(attempts > 0, attempts - 1, 0)")
	case queue.Extend:
		return w.change(g, part, " SET lease_until = GREATEST(lease_until, ?)", g.At)
	case queue.Retry:
		if g.Table == queue.Timed {
			return w.postpone(g, part)
		}
		return w.move(g, part)
	}
	return w.move(g, part)
}

// change updates the rows of part, or deletes them if there is nothing to set.
func (w *settler) change(g sqlstore.Group, part []int, set string, setArgs ...any) error {
	fence, fenceArgs := w.fence(g)
	size := paddedSize(len(part))
	text := cached.get("change"+set+fence, g.Table, size, func() string {
		text := deleteFrom(g.Table)
		if set != "" {
			text = "UPDATE " + sqlstore.Table(g.Table) + byKey + set
		}
		return text + " WHERE " + keyWhere(g.Table, size) + fence
	})
	args := keyArgs(append(make([]any, 0, size*2+3), setArgs...), g.Table, w.refs, part, size)
	n, err := w.r.exec(w.ctx, text, append(args, fenceArgs...)...)
	if err != nil {
		return err
	}
	return w.expect(n, part)
}

// expect compares the rows that a statement matched with those it named. On a
// careful attempt the rows are locked or, where locks mean nothing, were changed
// by others since: errConflict then starts over.
func (w *settler) expect(matched int64, part []int) error {
	if matched != int64(len(part)) {
		return errConflict
	}
	return nil
}

// maxMoves is how many rows one statement moves: it looks for each row's new
// value in a CASE, which is linear.
const maxMoves = 16

// perRow returns the CASE that gives each row of part its value, and its arguments.
func (w *settler) perRow(part []int, other string, value func(queue.Settle) any) (string, []any) {
	args := make([]any, 0, 2*maxMoves)
	for k := range maxMoves {
		i := part[min(k, len(part)-1)]
		args = append(args, w.refs[i].ID[:], value(w.settles[i]))
	}
	return "CASE id" + strings.Repeat(" WHEN ? THEN ?", maxMoves) + " ELSE " + other + " END", args
}

func (w *settler) dueAt(s queue.Settle) any {
	if at := queue.Micros(s.At); at > 0 {
		return at
	}
	return w.now
}

// postpone gives rows of q_timed another time, and with it another key.
func (w *settler) postpone(g sqlstore.Group, part []int) error {
	fence, fenceArgs := w.fence(g)
	when, args := w.perRow(part, "ready_at", w.dueAt)
	text := cached.get("postpone"+fence, g.Table, maxMoves, func() string {
		return "UPDATE q_timed" + byKey + " SET ready_at = " + when + ", lease_until = 0, lease_token = '' WHERE " +
			keyWhere(g.Table, maxMoves) + fence
	})
	args = append(keyArgs(args, g.Table, w.refs, part, maxMoves), fenceArgs...)
	n, err := w.r.exec(w.ctx, text, args...)
	if err != nil {
		return err
	}
	return w.expect(n, part)
}

// move copies rows to q_timed (Retry) or q_dead (Kill) and deletes them here.
// The copy stays inside the server: bodies do not travel.
func (w *settler) move(g sqlstore.Group, part []int) error {
	fence, fenceArgs := w.fence(g)
	var text string
	var args []any
	from := " FROM " + sqlstore.Table(g.Table) + byKey + " WHERE " + keyWhere(g.Table, maxMoves) + fence
	const upTo, rest = "SELECT id, destination, priority, lane, ", ", expires_at, enqueued_at, hold, size, attempts, 0, '', checksum, headers, body"
	if g.Verb == queue.Retry {
		var when string
		when, args = w.perRow(part, "ready_at", w.dueAt)
		text = cached.get("retry"+fence, g.Table, maxMoves, func() string {
			return "INSERT INTO q_timed (" + sqlstore.Columns + ") " + upTo + when + rest + from
		})
	} else {
		var why string
		why, args = w.perRow(part, "''", func(s queue.Settle) any { return queue.CutReason(s.Reason) })
		args = append([]any{w.now}, args...)
		text = cached.get("kill"+fence, g.Table, maxMoves, func() string {
			return "INSERT INTO q_dead (" + sqlstore.Columns + ", dead_at, reason) " + upTo + "ready_at" + rest + ", ?, " + why + from +
				" ON DUPLICATE KEY UPDATE dead_at = VALUES(dead_at), reason = VALUES(reason)"
		})
	}
	n, err := w.r.exec(w.ctx, text, append(keyArgs(args, g.Table, w.refs, part, maxMoves), fenceArgs...)...)
	if err != nil {
		return err
	}
	if n < int64(len(part)) {
		return errConflict
	}
	return w.change(g, part, "")
}
