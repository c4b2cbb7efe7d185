package sqlite

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"github.com/mvalve/mvalve/internal/sqlstore"
	"github.com/mvalve/mvalve/queue"
)

// txIDs makes the ids of InsertTx: they must grow within the process.
var txIDs queue.IDSource

// InsertTx enqueues msgs within tx, a transaction of the application on its own
// connection to the file of a pipe that Open or `mvalve init` made: the messages
// are there if, and as soon as, the application commits. It is never retried and
// writes nothing but the rows. Zero fields are set in the messages: ID (from now,
// the machine's clock), EnqueuedAt, and Lane (timed with a ReadyAt, else incoming).
//
// The connection must use modernc.org/sqlite, as this package does: two SQLite
// libraries in one process destroy each other's locks. Keep such transactions
// short, the pipe waits for them; begin them with IMMEDIATE (_txlock=immediate)
// and set a busy_timeout. Errors wrap queue.ErrInvalid, queue.ErrDuplicate, ...;
// after any of them the application should roll back.
func InsertTx(ctx context.Context, tx *sql.Tx, now time.Time, msgs ...*queue.Message) error {
	for _, m := range msgs {
		if m.ID.IsZero() {
			m.ID = txIDs.New(now)
		}
		if m.EnqueuedAt.IsZero() {
			m.EnqueuedAt = now
		}
		if m.Lane == queue.LaneUnset {
			if m.Lane = queue.Incoming; !m.ReadyAt.IsZero() {
				m.Lane = queue.Timed
			}
		}
	}
	if err := (&queue.Change{Token: queue.ID{1}, Put: msgs}).Check(now, 0); err != nil {
		return err
	}
	for _, m := range msgs {
		text := buildText(opInsert, m.Table(), 1)
		if _, err := tx.ExecContext(ctx, text, sqlstore.AppendArgs(nil, m)...); err != nil {
			return translate("insert in transaction", fmt.Errorf("message %v: %w", m.ID, err))
		}
	}
	return nil
}
