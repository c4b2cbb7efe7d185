package proof_test

import (
	"bytes"
	"database/sql"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	_ "modernc.org/sqlite" // to look at rows from outside

	"github.com/mvalve/mvalve/internal/testserver"
)

// coldMessages go to destinations that have nothing else, one at a time, while
// a destination that may not go has many waiting before them.
var coldMessages = shortOrLong(20, 200)

// TestUntouched: messages that wait for their limit are not written to, and do
// not delay others.
func TestUntouched(t *testing.T) {
	t.Run(onMariaDB, func(t *testing.T) {
		alone(t)
		server := testserver.OwnMariaDB(t, "--userstat=1")
		p := &pipe{queue: server.URL}
		p.init(t)
		db := server.Open(t)
		untouched(t, p, db, func() int64 { return rowsChanged(t, db, server.Database) })
	})
	t.Run(onSQLite, func(t *testing.T) {
		alone(t)
		p := newPipe(t, onSQLite)
		db, err := sql.Open("sqlite", "file:"+strings.TrimPrefix(p.queue, "sqlite:")+"?mode=ro")
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		untouched(t, p, db, nil)
	})
}

// rowsChanged is how many rows of the message tables the server has written.
func rowsChanged(t *testing.T, db *sql.DB, database string) int64 {
	t.Helper()
	var n int64
	err := db.QueryRow(`SELECT COALESCE(SUM(rows_changed),0) FROM information_schema.TABLE_STATISTICS
		WHERE table_schema = ? AND table_name IN ('q_emerg','q_timed','q_incoming','q_dead')`, database).Scan(&n)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func untouched(t *testing.T, p *pipe, db *sql.DB, changed func() int64) {
	waiting := shortOrLong(20_000, 1_000_000)
	p.limit(t, "hot", "1/24h")
	first := p.reader(t, "--destination", "hot", "--count", "1")
	p.write(t, []byte("{\"destination\":\"hot\",\"body\":\"the one of today\"}\n"))
	first.wait(t, patience)

	var lines bytes.Buffer
	for i := range waiting {
		fmt.Fprintf(&lines, "{\"destination\":\"hot\",\"body\":\"%d\"}\n", i)
	}
	p.write(t, lines.Bytes())
	readers := p.readers(t, 2)
	measure(shortOrLong(time.Second, 10*time.Second))
	var before int64
	if changed != nil {
		before = changed()
	}
	lines.Reset()
	for i := range coldMessages {
		fmt.Fprintf(&lines, "{\"destination\":\"cold%d\",\"body\":\"%d\"}\n", i, i)
	}
	p.write(t, lines.Bytes(), "--rate", "20/s")
	waitFor(t, patience, "the cold messages are dispatched", func() bool {
		return readers[0].lines()+readers[1].lines() >= coldMessages
	})
	own := int64(3 * coldMessages) // each is inserted, leased and deleted, which is after it was printed
	if changed != nil {
		waitFor(t, patience, "the cold messages are gone", func() bool { return changed()-before >= own })
	}
	measure(shortOrLong(time.Second, 10*time.Second))
	if changed != nil {
		got := changed() - before
		t.Logf("%d waiting: %d row writes in the message tables, %d of them for the %d other messages", waiting, got, own, coldMessages)
		if got != own {
			t.Errorf("%d row writes for waiting messages, want 0", got-own)
		}
	}
	var rows, written int64
	err := db.QueryRow("SELECT COUNT(*), COALESCE(SUM(attempts <> 0 OR lease_until <> 0), 0) FROM q_incoming WHERE destination = 'hot'").Scan(&rows, &written)
	if err != nil {
		t.Fatal(err)
	}
	if rows != int64(waiting) || written != 0 {
		t.Errorf("%d rows wait, %d of them with an attempt or a lease; want %d and 0", rows, written, waiting)
	}
	stopAll(t, readers...)
	latency(t, append(readers[0].whole(), readers[1].whole()...))
}

// latency judges the time from enqueueing to dispatch.
func latency(t *testing.T, log []byte) {
	t.Helper()
	var took []time.Duration
	for line := range bytes.Lines(log) {
		var m struct {
			Destination  string
			EnqueuedAt   time.Time `json:"enqueued_at"`
			DispatchedAt time.Time `json:"dispatched_at"`
		}
		if err := json.Unmarshal(line, &m); err != nil {
			t.Fatal(err)
		}
		if m.Destination == "hot" {
			t.Error("a message of the destination that may not go was dispatched")
			continue
		}
		took = append(took, m.DispatchedAt.Sub(m.EnqueuedAt))
	}
	slices.Sort(took)
	if len(took) == 0 {
		t.Fatal("no dispatch")
	}
	p50, p99 := took[len(took)/2], took[len(took)*99/100]
	t.Logf("cold messages: p50 %v, p99 %v, most %v from enqueued_at to dispatched_at", p50, p99, took[len(took)-1])
	if most := shortOrLong(30*time.Second, 20*time.Millisecond); p99 > most {
		t.Errorf("p99 %v, want at most %v", p99, most)
	}
}
