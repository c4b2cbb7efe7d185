package mysql_test

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mvalve/mvalve/internal/testserver"
	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/queue/mysql"
)

// ledger counts, beside the store, what was committed, handed out and acked.
type ledger struct {
	mu    sync.Mutex
	put   map[queue.ID]bool
	held  map[queue.ID]bool // handed out and not yet settled
	acked map[queue.ID]bool
}

func newLedger() *ledger {
	return &ledger{put: map[queue.ID]bool{}, held: map[queue.ID]bool{}, acked: map[queue.ID]bool{}}
}

func (l *ledger) inserted(msgs []*queue.Message) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, m := range msgs {
		l.put[m.ID] = true
	}
}

// lease notes that id was handed out and says what is wrong with that.
func (l *ledger) lease(id queue.ID) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.acked[id]:
		return fmt.Errorf("%v handed out after its ack", id)
	case l.held[id]:
		return fmt.Errorf("%v handed out twice", id)
	}
	l.held[id] = true
	return nil
}

func (l *ledger) settled(id queue.ID, acked bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.held, id)
	if acked {
		l.acked[id] = true
	}
}

// consume leases what it finds, settles it (mostly ack, some release), and
// returns how many messages it acked.
func consume(ctx context.Context, s *mysql.Store, l *ledger, token queue.ID, n int) (int, error) {
	now := time.Now()
	refs, _, err := s.Scan(ctx, now, queue.Incoming, queue.Cursor{}, time.Time{}, n)
	if err != nil {
		return 0, fmt.Errorf("scan: %w", err)
	}
	won, err := s.Lease(ctx, now, now.Add(time.Hour), token, refs)
	if err != nil {
		return 0, fmt.Errorf("lease: %w", err)
	}
	settles := make([]queue.Settle, len(won))
	for i, w := range won {
		if err := l.lease(w.Ref.ID); err != nil {
			return 0, err
		}
		settles[i] = queue.Settle{Ref: w.Ref, Verb: queue.Ack, Token: token}
		if i%7 == 3 {
			settles[i].Verb = queue.Release
			l.settled(w.Ref.ID, false) // before: others may lease it at once
		}
	}
	out, err := s.Apply(ctx, now, &queue.Change{Settle: settles})
	if err != nil {
		return 0, fmt.Errorf("settle: %w", err)
	}
	if len(out.Lost) > 0 {
		return 0, fmt.Errorf("lost %d of %d leases of an hour", len(out.Lost), len(settles))
	}
	acked := 0
	for i := range settles {
		if settles[i].Verb == queue.Ack {
			l.settled(settles[i].Ref.ID, true)
			acked++
		}
	}
	return acked, nil
}

// disturbance is what a flood meets.
type disturbance struct {
	run func(ctx context.Context, acked *atomic.Int64)
	// enough is closed once the flood was disturbed often enough to show anything:
	// producers hold their last quarter back until then. nil: they need not.
	enough <-chan struct{}
}

// flood runs producers and consumers until n messages are through, and then
// checks the ledger: nothing lost, nothing doubled, no error seen.
func flood(t *testing.T, stores []*mysql.Store, n int, disturb disturbance) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	l := newLedger()
	var acked atomic.Int64
	var wg, disturber sync.WaitGroup
	disturber.Go(func() { disturb.run(ctx, &acked) })
	var ids queue.IDSource
	for w := range 4 {
		s := stores[w%len(stores)]
		token := ids.New(time.Now())
		wg.Go(func() {
			for ctx.Err() == nil && acked.Load() < int64(n) {
				k, err := consume(ctx, s, l, token, 10)
				if err != nil {
					t.Errorf("consumer: %v", err)
					cancel()
				}
				acked.Add(int64(k))
			}
		})
	}
	for w := range 4 {
		wg.Go(func() {
			for i := 0; i < n/4 && ctx.Err() == nil; i += 5 {
				if disturb.enough != nil && i >= n/4*3/4 {
					select {
					case <-disturb.enough:
					case <-ctx.Done():
						return
					}
				}
				now := time.Now()
				msgs := make([]*queue.Message, 5)
				for k := range msgs {
					msgs[k] = &queue.Message{ID: ids.New(now), Destination: fmt.Sprint("d", k), Lane: queue.Incoming, EnqueuedAt: now}
				}
				if _, err := stores[w%len(stores)].Apply(ctx, now, &queue.Change{Token: ids.New(now), Put: msgs}); err != nil {
					t.Errorf("producer: %v", err)
					cancel()
				}
				l.inserted(msgs)
			}
		})
	}
	wg.Wait()
	cancel()
	disturber.Wait()
	counts, err := stores[0].Count(t.Context(), time.Now(), "")
	if err != nil {
		t.Fatal(err)
	}
	if len(l.put) != n || len(l.acked) != n || len(l.held) != 0 || len(counts) != 0 {
		t.Fatalf("put %d, acked %d, held %d of %d; left %+v", len(l.put), len(l.acked), len(l.held), n, counts)
	}
	for id := range l.put {
		if !l.acked[id] {
			t.Fatalf("%v was never acked", id)
		}
	}
}

var quiet = disturbance{run: func(context.Context, *atomic.Int64) {}}

// Eight goroutines of two processes' stores on a table that is nearly empty all
// the time: what the optimizer and the locks make of that is not the caller's.
func TestNearEmptyTableShowsNoDeadlock(t *testing.T) {
	s := open(t)
	other := must[*mysql.Store](t)(mysql.Open(t.Context(), config(t, s.server)))
	defer other.Close()
	flood(t, []*mysql.Store{s.Store, other}, 4000, quiet)
}

// All leases of a process carry one token. Many callers that want the same rows
// get each row once, together with others that have a token of their own.
func TestOneTokenManyCallers(t *testing.T) {
	s := open(t)
	other := must[*mysql.Store](t)(mysql.Open(t.Context(), config(t, s.server)))
	defer other.Close()
	var ids queue.IDSource
	now := time.Now()
	stores := []*mysql.Store{s.Store, s.Store, s.Store, other}
	tokens := []queue.ID{ids.New(now), {}, {}, ids.New(now)}
	tokens[1], tokens[2] = tokens[0], tokens[0]
	for range 40 {
		msgs := benchMessages(&ids, now, 40)
		if _, err := s.Apply(t.Context(), now, &queue.Change{Token: ids.New(now), Put: msgs}); err != nil {
			t.Fatal(err)
		}
		refs := make([]queue.Ref, len(msgs))
		for i, m := range msgs {
			refs[i] = m.Ref()
		}
		l := newLedger()
		var wg sync.WaitGroup
		for w, store := range stores {
			wg.Go(func() {
				for part := range slices.Chunk(refs, 7+3*w) { // they overlap in part
					won, err := store.Lease(t.Context(), now, now.Add(time.Minute), tokens[w], part)
					if err != nil {
						t.Error(err)
					}
					for i := range won {
						if err := l.lease(won[i].Ref.ID); err != nil {
							t.Error(err)
						}
					}
				}
			})
		}
		wg.Wait()
		if len(l.held) != len(refs) {
			t.Fatalf("%d of %d rows were leased", len(l.held), len(refs))
		}
	}
}

// often calls harm, which tells how many connections it ended, every few
// milliseconds, until at least 10 have ended. As long as nothing gets through it
// waits twice as long each time, up to a second: a machine so slow that no
// transaction ends between two disturbances would show nothing.
func often(t *testing.T, harm func() int) disturbance {
	enough := make(chan struct{})
	return disturbance{enough: enough, run: func(ctx context.Context, acked *atomic.Int64) {
		const least = 15 * time.Millisecond
		pause, seen, harmed := least, int64(0), 0
		for {
			select {
			case <-ctx.Done():
				if harmed < 10 {
					t.Errorf("only %d connections were ended", harmed)
				}
				t.Logf("%d connections ended", harmed)
				return
			case <-time.After(pause):
			}
			pause = min(2*pause, time.Second)
			if now := acked.Load(); now > seen {
				pause, seen = least, now
			}
			was := harmed
			if harmed += harm(); was < 10 && harmed >= 10 {
				close(enough)
			}
		}
	}}
}

// Every few milliseconds the server kills all connections of the store.
func TestKilledConnections(t *testing.T) {
	server := testserver.OwnMariaDB(t)
	s := openOn(t, server)
	flood(t, []*mysql.Store{s.Store}, 2000, often(t, func() (kills int) {
		ids, err := connections(s.db, server.User)
		if err != nil {
			return 0 // the next time
		}
		for _, id := range ids {
			if _, err := s.db.Exec(fmt.Sprintf("KILL %d", id)); err == nil {
				kills++
			}
		}
		return kills
	}))
}

// connections lists user's connections except the one that asks.
func connections(db *sql.DB, user string) ([]int64, error) {
	rows, err := db.Query("SELECT id FROM information_schema.processlist WHERE id <> CONNECTION_ID() AND user = ?", user)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var ids []int64
	for rows.Next() {
		var id int64
		if err := rows.Scan(&id); err != nil {
			return nil, err
		}
		ids = append(ids, id)
	}
	return ids, rows.Err()
}

// The wire is cut at random moments, also between a COMMIT and its answer.
func TestCutConnections(t *testing.T) {
	server := testserver.OwnMariaDB(t)
	proxy := testserver.NewProxy(t, server.Addr)
	s := openOn(t, server, func(c *mysql.Config) { c.Addr = proxy.Addr })
	flood(t, []*mysql.Store{s.Store}, 2000, often(t, proxy.Drop))
}

// The server is killed and restarted twice in the middle of the work.
func TestServerKilledUnderLoad(t *testing.T) {
	server := testserver.OwnMariaDB(t)
	s := openOn(t, server, func(c *mysql.Config) { c.RetryFor = time.Minute })
	const n = 3000
	flood(t, []*mysql.Store{s.Store}, n, disturbance{run: func(ctx context.Context, acked *atomic.Int64) {
		for _, at := range []int64{n / 4, n / 2} {
			for acked.Load() < at && ctx.Err() == nil {
				select {
				case <-ctx.Done():
					return
				case <-time.After(time.Millisecond):
				}
			}
			server.Kill(t)
			server.Restart(t)
		}
	}})
}

// While the server is away a call fails in time, names the address, and says
// whether anything may have been done.
func TestUnreachable(t *testing.T) {
	server := testserver.OwnMariaDB(t)
	s := openOn(t, server, func(c *mysql.Config) { c.RetryFor = 100 * time.Millisecond })
	server.Kill(t)
	start := time.Now()
	_, err := s.Now(t.Context())
	if !errors.Is(err, queue.ErrUnavailable) || !strings.Contains(err.Error(), server.Addr) || time.Since(start) > time.Minute {
		t.Fatalf("after %v: %v", time.Since(start), err)
	}
	_, err = mysql.Open(t.Context(), config(t, server))
	if !errors.Is(err, queue.ErrUnavailable) || !strings.Contains(err.Error(), server.Addr) {
		t.Fatalf("open: %v", err)
	}
	server.Restart(t)
	for deadline := time.Now().Add(time.Minute); err != nil; { // a tenth of a second may be too short
		if _, err = s.Now(t.Context()); err != nil && time.Now().After(deadline) {
			t.Fatalf("after its return: %v", err)
		}
	}
}

// A context that ends stops the retries of a call.
func TestContextEndsRetries(t *testing.T) {
	server := testserver.OwnMariaDB(t)
	s := openOn(t, server, func(c *mysql.Config) { c.RetryFor = time.Hour })
	server.Kill(t)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	start := time.Now()
	if _, err := s.Now(ctx); err == nil || time.Since(start) > time.Minute {
		t.Fatalf("after %v: %v", time.Since(start), err)
	}
}

func TestRefused(t *testing.T) {
	server := testserver.MariaDB(t)
	const secret = "wr0ng-s3cret"
	var log bytes.Buffer
	for name, change := range map[string]func(*mysql.Config){
		"password": func(c *mysql.Config) { c.Password = secret },
		"database": func(c *mysql.Config) { c.Database = "no_such_database" },
		"user":     func(c *mysql.Config) { c.User = "nobody-here" },
	} {
		c := config(t, server)
		change(&c)
		c.Logger = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
		_, err := mysql.Open(t.Context(), c)
		if !errors.Is(err, queue.ErrRefused) {
			t.Errorf("wrong %s: %v", name, err)
			continue
		}
		if !strings.Contains(err.Error(), server.Addr) {
			t.Errorf("wrong %s: %v does not name %s", name, err, server.Addr)
		}
		c.Logger.Info("config", "config", c)
		for _, text := range []string{err.Error(), fmt.Sprint(c), fmt.Sprintf("%+v %#v", c, c), log.String()} {
			if strings.Contains(text, secret) || strings.Contains(text, server.Password) {
				t.Errorf("wrong %s: the password is in %s", name, text)
			}
		}
	}
}

func TestSchemaVersions(t *testing.T) {
	server := testserver.MariaDB(t)
	_, err := mysql.Open(t.Context(), config(t, server))
	if !errors.Is(err, queue.ErrSchema) || !strings.Contains(err.Error(), "mvalve init") {
		t.Fatalf("without tables: %v", err)
	}
	s := openOn(t, server)
	if _, err := s.db.Exec("UPDATE q_meta SET value = '99' WHERE name = 'schema'"); err != nil {
		t.Fatal(err)
	}
	if _, err := mysql.Open(t.Context(), config(t, server)); !errors.Is(err, queue.ErrSchema) || !strings.Contains(err.Error(), "mvalve init") {
		t.Fatalf("tables of another version: %v", err)
	}
	if err := s.Init(t.Context()); !errors.Is(err, queue.ErrSchema) {
		t.Fatalf("init over another version: %v", err)
	}
	if _, err := s.db.Exec("DROP TABLE q_batch"); err != nil {
		t.Fatal(err)
	}
	var ids queue.IDSource
	now := time.Now()
	_, err = s.Apply(t.Context(), now, &queue.Change{Token: ids.New(now), Put: benchMessages(&ids, now, 1)})
	if !errors.Is(err, queue.ErrSchema) {
		t.Fatalf("with a table missing: %v", err)
	}
}

// A client falls off the network in the middle of its transactions: the server
// does not notice and keeps their locks. Others, and the client's own retry,
// wait for them, and then everything is there once.
func TestLostClientKeepsNoLock(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for idle_transaction_timeout")
	}
	server := testserver.OwnMariaDB(t)
	s := openOn(t, server)
	stuck, err := s.db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer stuck.Close()
	var ids queue.IDSource
	now := time.Now()
	token := ids.New(now)
	// What the driver had sent before the wire broke, with its session settings.
	for _, statement := range append(slices.Clone(mysql.SessionSettings), "START TRANSACTION") {
		if _, err := stuck.ExecContext(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := stuck.ExecContext(t.Context(), "INSERT INTO q_batch (token, at) VALUES (?, ?)", token[:], now.UnixMicro()); err != nil {
		t.Fatal(err)
	}
	msgs := benchMessages(&ids, now, 3)
	if _, err := s.Apply(t.Context(), now, &queue.Change{Token: token, Put: msgs}); err != nil {
		t.Fatal(err)
	}
	refs, _, err := s.Scan(t.Context(), now, queue.Incoming, queue.Cursor{}, now, 10)
	if err != nil || len(refs) != 3 {
		t.Fatalf("%d of 3 messages: %v", len(refs), err)
	}
}

// The server has room for fewer prepared statements than the pipe would keep.
func TestFewPreparedStatements(t *testing.T) {
	server := testserver.OwnMariaDB(t, "--max-prepared-stmt-count=40")
	s := openOn(t, server)
	flood(t, []*mysql.Store{s.Store}, 1000, quiet)
}
