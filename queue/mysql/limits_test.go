package mysql_test

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mvalve/mvalve/internal/testserver"
	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/queue/mysql"
)

// roundTrip puts a message with the body, leases it and returns what came back.
func roundTrip(t *testing.T, s *mysql.Store, body []byte) (*queue.Message, error) {
	t.Helper()
	var ids queue.IDSource
	now := time.Now()
	m := &queue.Message{ID: ids.New(now), Destination: "d", Lane: queue.Incoming, EnqueuedAt: now, Body: body,
		Headers: queue.Headers{{Name: "a", Value: "\x00\xff"}, {Name: "a", Value: ""}}}
	if _, err := s.Apply(t.Context(), now, &queue.Change{Token: ids.New(now), Put: []*queue.Message{m}}); err != nil {
		return nil, err
	}
	won, err := s.Lease(t.Context(), now, now.Add(time.Minute), ids.New(now), []queue.Ref{m.Ref()})
	if err != nil {
		return nil, err
	}
	if len(won) != 1 || won[0].Err != nil {
		t.Fatalf("lease: %+v", won)
	}
	if !cmp.Equal(won[0].Message.Headers, m.Headers) {
		t.Fatalf("headers: %s", cmp.Diff(m.Headers, won[0].Message.Headers))
	}
	return won[0].Message, nil
}

func TestBodyLimits(t *testing.T) {
	for _, c := range []struct {
		packet string
		want   int // MaxBody
	}{
		{"32M", queue.MaxBody},
		{"16M", 15<<20 - 8<<10},
		{"1M", 768 << 10},
	} {
		t.Run(c.packet, func(t *testing.T) {
			server := testserver.OwnMariaDB(t, "--max-allowed-packet="+c.packet)
			s := openOn(t, server)
			if s.MaxBody() != c.want {
				t.Fatalf("MaxBody is %d, want %d", s.MaxBody(), c.want)
			}
			body := bytes.Repeat([]byte{0, 0xff, '\'', '\\', 0x1a, 0xc3, 0x28, '\n'}, c.want/8)
			m, err := roundTrip(t, s.Store, body)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(m.Body, body) {
				t.Fatalf("a body of %d bytes came back with %d, changed", len(body), len(m.Body))
			}
			_, err = roundTrip(t, s.Store, make([]byte, c.want+1))
			if !errors.Is(err, queue.ErrInvalid) || !strings.Contains(err.Error(), fmt.Sprint(c.want)) {
				t.Fatalf("a body too large: %v", err)
			}
			if _, err := roundTrip(t, s.Store, nil); err != nil {
				t.Fatalf("after the refusal: %v", err)
			}
		})
	}
}

// max_allowed_packet was lowered after Open, and the connections are new: what
// the server refuses now is an error within bounds, and later calls work.
func TestPacketLoweredLater(t *testing.T) {
	server := testserver.OwnMariaDB(t, "--max-allowed-packet=16M")
	proxy := testserver.NewProxy(t, server.Addr)
	s := openOn(t, server, func(c *mysql.Config) { c.Addr, c.RetryFor = proxy.Addr, time.Second })
	if _, err := s.db.Exec("SET GLOBAL max_allowed_packet = 1048576"); err != nil {
		t.Fatal(err)
	}
	proxy.Drop()
	low := must[*mysql.Store](t)(mysql.Open(t.Context(), config(t, server)))
	defer low.Close()
	if got := low.MaxBody(); got != 768<<10 {
		t.Fatalf("opened after the change: MaxBody %d", got)
	}
	_, err := roundTrip(t, s.Store, make([]byte, 4<<20))
	if err == nil {
		t.Fatal("the server took a packet above its limit")
	}
	t.Log(err)
	// A second of retries is enough for a refusal, not for a machine that stalls.
	var after error
	for deadline := time.Now().Add(time.Minute); ; {
		if _, after = roundTrip(t, s.Store, make([]byte, 1<<10)); after == nil {
			break
		}
		if !errors.Is(after, queue.ErrUnavailable) || time.Now().After(deadline) {
			t.Fatalf("after the refusal: %v", after)
		}
	}
}

// A batch above the bytes of one statement is still one transaction.
func TestLargeBatch(t *testing.T) {
	s := open(t)
	var ids queue.IDSource
	now := time.Now()
	msgs := benchMessages(&ids, now, 300)
	for _, m := range msgs {
		m.Body = make([]byte, 64<<10)
	}
	token := ids.New(now)
	for range 2 {
		if _, err := s.Apply(t.Context(), now, &queue.Change{Token: token, Put: msgs}); err != nil {
			t.Fatal(err)
		}
	}
	refs, _, err := s.Scan(t.Context(), now, queue.Incoming, queue.Cursor{}, now, 1000)
	if err != nil || len(refs) != 300 {
		t.Fatalf("%d of 300 rows: %v", len(refs), err)
	}
}

func TestInsertTx(t *testing.T) {
	s := open(t)
	now := time.Now()
	insert := func(msgs ...*queue.Message) (commit, rollback func() error, err error) {
		tx, err := s.db.Begin()
		if err != nil {
			t.Fatal(err)
		}
		return tx.Commit, tx.Rollback, mysql.InsertTx(t.Context(), tx, now, msgs...)
	}
	plain := &queue.Message{Destination: "a", Body: []byte{0, 1, 0xff}, Headers: queue.Headers{{Name: "k", Value: "v"}}}
	later := &queue.Message{Destination: "a", ReadyAt: now.Add(-time.Second)}
	urgent := &queue.Message{Destination: "a", Lane: queue.Emergency, ExpiresAt: now.Add(time.Hour)}
	commit, _, err := insert(plain, later, urgent)
	if err != nil {
		t.Fatal(err)
	}
	heads := func() []queue.Ref {
		refs, _, err := s.Heads(t.Context(), now, queue.HeadQuery{Destination: "a", Limit: 10})
		if err != nil {
			t.Fatal(err)
		}
		return refs
	}
	if got := heads(); len(got) != 0 {
		t.Fatalf("visible before commit: %+v", got)
	}
	if err := commit(); err != nil {
		t.Fatal(err)
	}
	got := heads()
	if len(got) != 3 || got[0].ID != urgent.ID || got[1].ID != later.ID || got[2].ID != plain.ID {
		t.Fatalf("after commit: %+v", got)
	}
	won, err := s.Lease(t.Context(), now, now.Add(time.Minute), txToken(now), got)
	if err != nil || len(won) != 3 || won[2].Err != nil || !bytes.Equal(won[2].Message.Body, plain.Body) {
		t.Fatalf("lease: %+v, %v", won, err)
	}
	_, rollback, err := insert(&queue.Message{Destination: "b"})
	if err != nil {
		t.Fatal(err)
	}
	if err := rollback(); err != nil {
		t.Fatal(err)
	}
	_, rollback, err = insert(plain)
	if !errors.Is(err, queue.ErrDuplicate) {
		t.Fatalf("the same id again: %v", err)
	}
	_ = rollback()
	_, rollback, err = insert(&queue.Message{})
	if !errors.Is(err, queue.ErrInvalid) {
		t.Fatalf("no destination: %v", err)
	}
	_ = rollback()
	counts, err := s.Count(t.Context(), now, "")
	if err != nil || len(counts) != 3 {
		t.Fatalf("counts: %+v, %v", counts, err)
	}
}

func txToken(now time.Time) queue.ID {
	var ids queue.IDSource
	return ids.New(now)
}

// The destination pass visits each group once, however many rows it has; a
// refill and a scan follow their index without sorting.
func TestPlans(t *testing.T) {
	s := open(t)
	var ids queue.IDSource
	now := time.Now()
	for range 4 {
		msgs := benchMessages(&ids, now, 1000)
		for i, m := range msgs {
			m.Destination = fmt.Sprint("d", i%10)
			if i%2 == 0 {
				m.Lane, m.ReadyAt = queue.Timed, now.Add(time.Duration(i)*time.Second)
			}
		}
		if _, err := s.Apply(t.Context(), now, &queue.Change{Token: ids.New(now), Put: msgs}); err != nil {
			t.Fatal(err)
		}
	}
	for _, table := range []queue.Lane{queue.Timed, queue.Incoming} {
		if _, err := s.db.Exec("ANALYZE TABLE q_timed, q_incoming"); err != nil {
			t.Fatal(err)
		}
		plan := explain(t, s, mysql.DestinationsText(table), "", 1000)
		if !strings.Contains(plan, "Using index for group-by") {
			t.Errorf("destinations of %v: %s", table, plan)
		}
		refill := []any{"d1", now.UnixMicro(), 256}
		scan := []any{make([]byte, 16), 100}
		if table == queue.Timed {
			refill = []any{"d1", now.UnixMicro(), now.UnixMicro(), 256}
			scan = []any{now.UnixMicro(), make([]byte, 16), now.UnixMicro(), now.Add(time.Second).UnixMicro(), 100}
		}
		for what, plan := range map[string]string{
			"refill": explain(t, s, mysql.RefillText(table), refill...),
			"scan":   explain(t, s, mysql.ScanText(table), scan...),
		} {
			if strings.Contains(plan, "filesort") || strings.Contains(plan, "temporary") || strings.Contains(plan, "ALL") {
				t.Errorf("%s of %v: %s", what, table, plan)
			}
		}
	}
}

func explain(t *testing.T, s *testStore, query string, args ...any) string {
	t.Helper()
	rows, err := s.db.Query("EXPLAIN "+query, args...)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	columns, err := rows.Columns()
	if err != nil {
		t.Fatal(err)
	}
	var plan strings.Builder
	for rows.Next() {
		values := make([][]byte, len(columns))
		dest := make([]any, len(columns))
		for i := range dest {
			dest[i] = &values[i]
		}
		if err := rows.Scan(dest...); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&plan, "%s\n", bytes.Join(values, []byte("|")))
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return plan.String()
}
