package sqlite

import (
	"context"
	"path/filepath"
	"testing"

	"github.com/mvalve/mvalve/internal/sqlstore"
	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/queue/queuetest"
)

func open(t testing.TB, path string) *Store {
	t.Helper()
	s, err := Open(context.Background(), Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// damageable lets the suite flip a byte with plain SQL.
type damageable struct{ *Store }

func (d damageable) Corrupt(t *testing.T, ref queue.Ref) {
	err := d.write(t.Context(), 1, func(c *conn, _ bool) error {
		n, err := c.exec("UPDATE "+sqlstore.Table(ref.Table)+" SET body = x'58' || substr(body, 2) WHERE id = ?", ref.ID[:])
		if n != 1 {
			t.Errorf("%d rows damaged", n)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestStore(t *testing.T) {
	queuetest.Run(t, func(t *testing.T) queue.Store {
		return damageable{open(t, filepath.Join(t.TempDir(), "mvalve.db"))}
	})
}
