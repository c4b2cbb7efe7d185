package sqlite

import (
	"database/sql"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/mvalve/mvalve/queue"
)

func TestInsertTx(t *testing.T) {
	path := filepath.Join(t.TempDir(), "app.db")
	s := open(t, path)
	db, err := sql.Open("sqlite", "file:"+path+"?_txlock=immediate&_pragma=busy_timeout(5000)")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.ExecContext(t.Context(), "CREATE TABLE orders (n INTEGER PRIMARY KEY)"); err != nil {
		t.Fatal(err)
	}
	insert := func(commit bool, n int, msgs ...*queue.Message) error {
		tx, err := db.BeginTx(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Rollback()
		if _, err := tx.ExecContext(t.Context(), "INSERT INTO orders VALUES (?)", n); err != nil {
			t.Fatal(err)
		}
		if err := InsertTx(t.Context(), tx, time.Now(), msgs...); err != nil {
			return err
		}
		if n := waiting(t, s); commit && n != 0 {
			t.Errorf("%d messages visible before the commit", n)
		}
		if commit {
			return tx.Commit()
		}
		return nil
	}
	if err := insert(false, 1, &queue.Message{Destination: "a"}); err != nil {
		t.Fatal(err)
	}
	if n := waiting(t, s); n != 0 {
		t.Errorf("%d messages after a rollback", n)
	}
	first := &queue.Message{Destination: "a", Body: []byte("\x00\xff"), Headers: queue.Headers{{Name: "k", Value: "v"}}}
	timed := &queue.Message{Destination: "b", ReadyAt: time.Now().Add(-time.Second)}
	if err := insert(true, 2, first, timed); err != nil {
		t.Fatal(err)
	}
	if first.ID.IsZero() || first.Lane != queue.Incoming || timed.Lane != queue.Timed || first.ID.Compare(timed.ID) >= 0 {
		t.Errorf("set %+v and %+v", first, timed)
	}
	now := time.Now()
	won, err := s.Lease(t.Context(), now, now.Add(time.Minute), queue.ID{1}, []queue.Ref{first.Ref(), timed.Ref()})
	if err != nil || len(won) != 2 || won[0].Err != nil || won[1].Err != nil || string(won[0].Message.Body) != "\x00\xff" {
		t.Fatalf("leased %+v, %v", won, err)
	}
	if err := insert(false, 3, first); !errors.Is(err, queue.ErrDuplicate) {
		t.Errorf("duplicate: %v", err)
	}
	if err := insert(false, 4, &queue.Message{}); !errors.Is(err, queue.ErrInvalid) {
		t.Errorf("no destination: %v", err)
	}
}

// TestForeignTransaction: an application's transaction keeps the pipe waiting,
// but the writes succeed when it ends.
func TestForeignTransaction(t *testing.T) {
	path := filepath.Join(t.TempDir(), "app.db")
	s := open(t, path)
	db, err := sql.Open("sqlite", "file:"+path+"?_txlock=immediate")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	tx, err := db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := InsertTx(t.Context(), tx, time.Now(), &queue.Message{Destination: "a"}); err != nil {
		t.Fatal(err)
	}
	var ids queue.IDSource
	done := make(chan error, 1)
	go func() { done <- put(t, s, message(&ids, "b")) }()
	select {
	case err := <-done:
		t.Fatalf("put beside an open transaction returned %v", err)
	case <-time.After(3 * busyWait * time.Millisecond):
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if n := waiting(t, s); n != 2 {
		t.Errorf("%d messages, want 2", n)
	}
}

// TestOpenBesideTransaction opens a pipe in an application's own file, which is
// not in WAL mode, while the application writes.
func TestOpenBesideTransaction(t *testing.T) {
	path := filepath.Join(t.TempDir(), "app.db")
	// Its COMMIT may meet Open while that reads.
	db, err := sql.Open("sqlite", "file:"+path+"?_txlock=immediate&_pragma=busy_timeout(20000)")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.ExecContext(t.Context(), "CREATE TABLE orders (n INTEGER PRIMARY KEY)"); err != nil {
		t.Fatal(err)
	}
	tx, err := db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.ExecContext(t.Context(), "INSERT INTO orders VALUES (1)"); err != nil {
		t.Fatal(err)
	}
	type opened struct {
		s   *Store
		err error
	}
	done := make(chan opened, 1)
	go func() {
		s, err := Open(t.Context(), Config{Path: path})
		done <- opened{s, err}
	}()
	select {
	case o := <-done:
		t.Fatalf("Open beside a transaction returned %v", o.err)
	case <-time.After(2 * busyWait * time.Millisecond):
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	o := <-done
	if o.err != nil {
		t.Fatal(o.err)
	}
	defer o.s.Close()
	if !o.s.Created() {
		t.Error("Created is false for new tables")
	}
	var n int
	if err := db.QueryRowContext(t.Context(), "SELECT count(*) FROM orders").Scan(&n); err != nil || n != 1 {
		t.Errorf("the application's table has %d rows, %v", n, err)
	}
}
