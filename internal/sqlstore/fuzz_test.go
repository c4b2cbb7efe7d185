package sqlstore

import (
	"bytes"
	"database/sql"
	"errors"
	"testing"
	"time"

	"github.com/mvalve/mvalve/queue"
)

// FuzzRow decodes rows with anything in their columns: what is accepted is
// written back as the same columns, so nothing that was read differs from what
// is stored.
func FuzzRow(f *testing.F) {
	m := &queue.Message{
		ID: new(queue.IDSource).New(time.UnixMilli(1735732800000)), Destination: "d", Lane: queue.Timed, Priority: queue.Level(9),
		Headers: queue.Headers{{Name: "a", Value: "b"}}, Body: []byte("body"), Hold: time.Second,
		EnqueuedAt: time.UnixMilli(1735732800000), ReadyAt: time.UnixMilli(1735732800001), ExpiresAt: time.UnixMilli(1735732900000),
	}
	headers := queue.AppendHeaders(nil, m.Headers)
	f.Add(m.ID[:], m.Destination, StoredPriority(m.Priority), int64(m.Lane), m.ReadyAt.UnixMicro(), m.ExpiresAt.UnixMicro(), m.EnqueuedAt.UnixMicro(),
		m.Hold.Microseconds(), int64(len(headers)+len(m.Body)), int64(0), int64(0), int64(queue.Checksum(m, headers)), headers, m.Body)
	f.Add([]byte{}, "", int64(-1), int64(256+1), int64(-1), int64(-1), int64(0), int64(1)<<62, int64(0), int64(-1), int64(0), int64(1)<<40, []byte{0xff}, []byte{})
	f.Fuzz(func(t *testing.T, id []byte, destination string, priority, lane, ready, expires, enqueued, hold, size, attempts, lease, checksum int64,
		headers, body []byte) {
		for _, seal := range []bool{false, true} { // also past the checksum
			row := Row{RefRow: RefRow{id, destination, priority, lane, ready, expires, enqueued, hold, size, attempts},
				leaseUntil: lease, token: make([]byte, 16), checksum: checksum, headers: headers, body: body}
			if seal {
				probe := row
				damaged, _ := probe.Message()
				row.checksum = int64(queue.Checksum(damaged, headers))
			}
			want := row
			got, err := row.Message()
			if err != nil {
				if !errors.Is(err, queue.ErrCorrupt) || got == nil {
					t.Fatalf("%v, %v", got, err)
				}
				continue
			}
			args := AppendArgs(nil, got)
			if !bytes.Equal(args[13].([]byte), headers) { // lengths may be written longer than they need
				continue
			}
			for i, v := range []any{destination, priority, lane, ready, expires, enqueued, hold, size, attempts, lease} {
				if args[i+1] != v {
					t.Fatalf("column %d is %v, read and written again %v", i+1, v, args[i+1])
				}
			}
			if !bytes.Equal(args[14].([]byte), want.body) || args[12] != want.checksum {
				t.Fatal("body or checksum changed")
			}
		}
	})
}

// FuzzRule decodes rules with anything in their columns; what was stored is read
// as it was, and no number is taken for another.
func FuzzRule(f *testing.F) {
	f.Add(int64(10), int64(1e6), int64(0), int64(0), int64(1), int64(1))
	f.Add(int64(1), int64(1)<<62, int64(256), int64(-1), int64(-1), int64(1)<<40)
	f.Fuzz(func(t *testing.T, limit, interval, mode, guard, weight, changed int64) {
		valid := func(n int64) sql.NullInt64 { return sql.NullInt64{Int64: n, Valid: true} }
		row := RuleRow{pattern: "*", limit: [4]sql.NullInt64{valid(limit), valid(interval), valid(mode), valid(guard)},
			weight: valid(weight), changed: changed}
		rule := row.Rule()
		if rule.Validate() != nil {
			return
		}
		args := RuleArgs(rule)
		for i, v := range []int64{limit, interval, mode, guard, weight} {
			if args[i+1] != v {
				t.Fatalf("column %d is %d, read and written again %v", i+1, v, args[i+1])
			}
		}
	})
}
