package mysql_test

import (
	"context"
	"database/sql"
	"testing"
	"time"

	"github.com/mvalve/mvalve/internal/sqlstore"
	"github.com/mvalve/mvalve/internal/testserver"
	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/queue/mysql"
	"github.com/mvalve/mvalve/queue/queuetest"
)

func TestMain(m *testing.M) { testserver.Main(m) }

// testStore is a Store and a connection of its own to look behind it.
type testStore struct {
	*mysql.Store
	server *testserver.MariaDBServer
	db     *sql.DB
}

func config(t testing.TB, server *testserver.MariaDBServer) mysql.Config {
	t.Helper()
	c, err := mysql.ParseURL(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// open returns a Store on an empty database, with tables.
func open(t testing.TB, change ...func(*mysql.Config)) *testStore {
	t.Helper()
	return openOn(t, testserver.MariaDB(t), change...)
}

func openOn(t testing.TB, server *testserver.MariaDBServer, change ...func(*mysql.Config)) *testStore {
	t.Helper()
	c := config(t, server)
	for _, f := range change {
		f(&c)
	}
	initialize(t, c)
	store, err := mysql.Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	return &testStore{store, server, server.Open(t)}
}

func initialize(t testing.TB, c mysql.Config) {
	t.Helper()
	first, err := mysql.OpenForInit(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	for range 2 { // a second time changes nothing
		if err := first.Init(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// Corrupt implements queuetest.Corrupter.
func (s *testStore) Corrupt(t *testing.T, ref queue.Ref) {
	t.Helper()
	result, err := s.db.Exec("UPDATE "+sqlstore.Table(ref.Table)+" SET body = CONCAT(CHAR(ASCII(body) ^ 1), SUBSTRING(body, 2)) WHERE id = ?", ref.ID[:])
	if err != nil {
		t.Fatal(err)
	}
	if n, _ := result.RowsAffected(); n != 1 {
		t.Fatalf("damaged %d rows", n)
	}
}

// Damage implements queuetest.Damager.
func (s *testStore) Damage(t *testing.T, ref queue.Ref, column string, change func([]byte) []byte) bool {
	t.Helper()
	table := sqlstore.Table(ref.Table)
	var value any
	switch column {
	case "id", "destination", "headers", "body":
		var old []byte
		if err := s.db.QueryRowContext(t.Context(), "SELECT "+column+" FROM "+table+" WHERE id = ?", ref.ID[:]).Scan(&old); err != nil {
			t.Fatal(err)
		}
		value = change(old)
	default:
		var old int64
		if err := s.db.QueryRowContext(t.Context(), "SELECT "+column+" FROM "+table+" WHERE id = ?", ref.ID[:]).Scan(&old); err != nil {
			t.Fatal(err)
		}
		value = queuetest.Number(change(queuetest.Bytes(old)))
	}
	_, err := s.db.ExecContext(t.Context(), "UPDATE "+table+" SET "+column+" = ? WHERE id = ?", value, ref.ID[:])
	return err == nil // strict mode: out of range
}

func TestStore(t *testing.T) {
	queuetest.Run(t, func(t *testing.T) queue.Store { return open(t) })
}

func must[T any](t testing.TB) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func TestNowFollowsTheServer(t *testing.T) {
	s := open(t)
	const apart = 50 * time.Millisecond
	before := time.Now()
	got := must[time.Time](t)(s.Now(context.Background()))
	after := time.Now()
	if got.Before(before.Add(-apart)) || got.After(after.Add(apart)) {
		t.Fatalf("server's clock says %v between %v and %v of the same machine", got, before, after)
	}
}
