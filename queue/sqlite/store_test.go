package sqlite

import (
	"context"
	"database/sql/driver"
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

// Damage implements queuetest.Damager.
func (d damageable) Damage(t *testing.T, ref queue.Ref, column string, change func([]byte) []byte) bool {
	err := d.write(t.Context(), 1, func(c *conn, _ bool) error {
		where := " FROM " + sqlstore.Table(ref.Table) + " WHERE id = ?"
		var value any
		err := c.query(t.Context(), "SELECT "+column+where, []any{ref.ID[:]}, func(row []driver.Value) error {
			switch old := row[0].(type) {
			case int64:
				value = queuetest.Number(change(queuetest.Bytes(old)))
			case string:
				value = string(change([]byte(old)))
			case []byte:
				value = change(old)
			}
			return nil
		})
		if err != nil {
			return err
		}
		n, err := c.exec("UPDATE "+sqlstore.Table(ref.Table)+" SET "+column+" = ? WHERE id = ?", value, ref.ID[:])
		if n != 1 {
			t.Errorf("%d rows damaged", n)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return true
}

func TestStore(t *testing.T) {
	queuetest.Run(t, func(t *testing.T) queue.Store {
		return damageable{open(t, filepath.Join(t.TempDir(), "mvalve.db"))}
	})
}
