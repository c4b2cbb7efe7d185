// Package sqlstore holds what the SQL drivers of the queue share: the column
// lists, how rows become messages and references, how a change is split into
// statements, and the bounded retry. The statements themselves are literal SQL
// in each driver.
package sqlstore

import (
	"errors"
	"fmt"
	"time"

	"github.com/mvalve/mvalve/queue"
)

// SchemaVersion is the value that q_meta must have under MetaSchema.
const (
	SchemaVersion = "2"
	MetaSchema    = "schema"
)

// Columns are the columns of q_emerg, q_timed, q_incoming and, before dead_at
// and reason, of q_dead, in the order of AppendArgs and Row.
const Columns = "id, destination, priority, lane, ready_at, expires_at, enqueued_at, hold, size, attempts, " +
	"lease_until, lease_token, checksum, headers, body"

// ColumnCount is how many Columns there are.
const ColumnCount = 15

// RefColumns are the first of Columns, all that a queue.Ref needs.
const RefColumns = "id, destination, priority, lane, ready_at, expires_at, enqueued_at, hold, size, attempts"

// Table returns the name of the table in which rows of lane l lie, "" for no lane.
func Table(l queue.Lane) string {
	switch l {
	case queue.Emergency:
		return "q_emerg"
	case queue.Timed:
		return "q_timed"
	case queue.Incoming:
		return "q_incoming"
	case queue.Dead:
		return "q_dead"
	}
	return ""
}

// StoredPriority is the value of the priority column: 9 minus the level, so that
// an ascending index has the first to go first.
func StoredPriority(p queue.Priority) int64 { return int64(9 - p.Level()) }

// PriorityOf is the inverse of StoredPriority.
func PriorityOf(stored int64) queue.Priority { return queue.Level(int(9 - stored)) }

// AppendArgs appends the values of Columns for m. Byte values alias m.
func AppendArgs(dst []any, m *queue.Message) []any {
	headers := queue.AppendHeaders([]byte{}, m.Headers)
	body := m.Body
	if body == nil {
		body = []byte{} // the column is NOT NULL
	}
	return append(dst,
		m.ID[:], m.Destination, StoredPriority(m.Priority), int64(m.Lane),
		queue.Micros(m.ReadyAt), queue.Micros(m.ExpiresAt), queue.Micros(m.EnqueuedAt),
		m.Hold.Microseconds(), int64(len(headers)+len(m.Body)), int64(m.Attempts),
		queue.Micros(m.LeaseUntil), m.LeaseToken[:],
		int64(queue.Checksum(m, headers)), headers, body)
}

// RefRow receives RefColumns. Use: rows.Scan(r.Dest()...), then Ref. One RefRow
// may be reused for all rows of a query.
type RefRow struct {
	id                                                            []byte
	destination                                                   string
	priority, lane, ready, expires, enqueued, hold, size, attempt int64
}

// Dest returns the scan destinations for RefColumns.
func (r *RefRow) Dest() []any { return r.appendDest(nil) }

func (r *RefRow) appendDest(dst []any) []any {
	return append(dst, &r.id, &r.destination, &r.priority, &r.lane, &r.ready, &r.expires, &r.enqueued, &r.hold, &r.size, &r.attempt)
}

// Ref returns the reference to the row in table. A row whose id is not 16 bytes
// gives queue.ErrCorrupt.
func (r *RefRow) Ref(table queue.Lane) (queue.Ref, error) {
	ref := queue.Ref{
		Destination: r.destination, Table: table, Lane: queue.Lane(r.lane),
		Priority: PriorityOf(r.priority), Attempts: int(r.attempt), ReadyAt: r.ready,
		ExpiresAt: r.expires, EnqueuedAt: r.enqueued, Hold: time.Duration(r.hold) * time.Microsecond, Size: int(r.size),
	}
	if len(r.id) != len(ref.ID) {
		return ref, fmt.Errorf("%w: id of %d bytes in %s", queue.ErrCorrupt, len(r.id), Table(table))
	}
	copy(ref.ID[:], r.id)
	return ref, nil
}

// Row receives Columns. The message takes over the scanned body, so that a Row
// may be reused but its body is not copied again.
type Row struct {
	RefRow
	leaseUntil, checksum int64
	token, headers, body []byte
}

// Dest returns the scan destinations for Columns.
func (r *Row) Dest() []any { return r.AppendDest(nil) }

// AppendDest appends the scan destinations for Columns to dst.
func (r *Row) AppendDest(dst []any) []any {
	return append(r.RefRow.appendDest(dst), &r.leaseUntil, &r.token, &r.checksum, &r.headers, &r.body)
}

// Message decodes the row. When checksum or encoding do not fit, it returns what
// could be read and an error wrapping queue.ErrCorrupt.
func (r *Row) Message() (*queue.Message, error) {
	m := &queue.Message{
		Destination: r.destination, Lane: queue.Lane(r.lane), Priority: PriorityOf(r.priority),
		ReadyAt: queue.Time(r.ready), ExpiresAt: queue.Time(r.expires), EnqueuedAt: queue.Time(r.enqueued),
		Hold: time.Duration(r.hold) * time.Microsecond, Attempts: int(r.attempt),
		LeaseUntil: queue.Time(r.leaseUntil), Body: r.body,
	}
	r.body = nil
	copy(m.ID[:], r.id)
	copy(m.LeaseToken[:], r.token)
	if len(r.id) != len(m.ID) {
		return m, fmt.Errorf("%w: id of %d bytes", queue.ErrCorrupt, len(r.id))
	}
	if sum := queue.Checksum(m, r.headers); int64(sum) != r.checksum {
		return m, fmt.Errorf("%w: message %v has checksum %08x, stored is %08x", queue.ErrCorrupt, m.ID, sum, r.checksum)
	}
	if err := r.check(m); err != nil {
		return m, fmt.Errorf("%w: message %v has %w", queue.ErrCorrupt, m.ID, err)
	}
	headers, err := queue.ParseHeaders(r.headers)
	if err != nil {
		return m, fmt.Errorf("message %v: %w", m.ID, err)
	}
	m.Headers = headers
	return m, nil
}

// check reports what columns hold that no message has: those that are wider than
// what the checksum sees of them, or not in it.
func (r *Row) check(m *queue.Message) error {
	switch {
	case int64(m.Lane) != r.lane || m.Lane < queue.Emergency || m.Lane > queue.Incoming:
		return fmt.Errorf("lane %d", r.lane)
	case StoredPriority(m.Priority) != r.priority:
		return fmt.Errorf("priority %d", r.priority)
	case m.Hold.Microseconds() != r.hold || r.hold < 0:
		return fmt.Errorf("hold %d", r.hold)
	case r.size != int64(len(r.headers)+len(m.Body)):
		return fmt.Errorf("size %d, but %d bytes", r.size, len(r.headers)+len(m.Body))
	case r.attempt < 0:
		return fmt.Errorf("%d attempts", r.attempt)
	case queue.CheckDestination(m.Destination) != nil:
		return errors.New("no destination")
	}
	return nil
}

// Fits reports, wrapping queue.ErrCorrupt, that m is not what ref promised: then
// the index by which it was found is damaged. Served, m would leave under the
// limit of another destination.
func Fits(m *queue.Message, ref queue.Ref) error {
	if ref.Destination == "" || ref.Destination == m.Destination {
		return nil
	}
	return fmt.Errorf("%w: message %v is for %.80q, an index of %s names %.80q", queue.ErrCorrupt, m.ID,
		m.Destination, Table(ref.Table), ref.Destination)
}

// Key returns a reference with only the primary key of the row in table set.
func (r *Row) Key(table queue.Lane) queue.Ref {
	ref := queue.Ref{Table: table, ReadyAt: r.ready}
	copy(ref.ID[:], r.id)
	return ref
}
