package sqlite

import (
	"context"
	"database/sql/driver"
	"time"

	"github.com/mvalve/mvalve/queue"
)

// Announce implements queue.Registry.
func (s *Store) Announce(ctx context.Context, now, since time.Time, p queue.Presence) ([]queue.Presence, error) {
	var seen []queue.Presence
	err := s.write(ctx, 1, func(c *conn, _ bool) error {
		if _, err := c.exec("DELETE FROM q_reader WHERE seen_at < ?", queue.Micros(now.Add(-time.Hour))); err != nil {
			return err
		}
		if !p.ID.IsZero() {
			_, err := c.exec("INSERT OR REPLACE INTO q_reader (id, host, pid, address, started, seen_at, held) VALUES (?, ?, ?, ?, ?, ?, ?)",
				p.ID[:], p.Host, int64(p.PID), p.Address, queue.Micros(p.Started), queue.Micros(now), int64(p.Held))
			if err != nil {
				return err
			}
		}
		seen = nil
		const text = "SELECT id, host, pid, address, started, seen_at, held FROM q_reader WHERE seen_at >= ? ORDER BY id"
		return c.query(context.Background(), text, []any{queue.Micros(since)}, func(row []driver.Value) error {
			var r queue.Presence
			var id []byte
			var pid, started, seenAt, held int64
			assign([]any{&id, &r.Host, &pid, &r.Address, &started, &seenAt, &held}, row)
			copy(r.ID[:], id)
			r.PID, r.Held, r.Started, r.SeenAt = int(pid), int(held), queue.Time(started), queue.Time(seenAt)
			seen = append(seen, r)
			return nil
		})
	})
	if err != nil {
		return nil, err
	}
	return seen, nil
}

// Leave implements queue.Registry.
func (s *Store) Leave(ctx context.Context, id queue.ID) error {
	return s.write(ctx, 1, func(c *conn, _ bool) error {
		_, err := c.exec("DELETE FROM q_reader WHERE id = ?", id[:])
		return err
	})
}

// Meta implements queue.Meta.
func (s *Store) Meta(ctx context.Context, key string) (value string, err error) {
	err = s.read(ctx, func(c *conn) (err error) {
		value, err = readMeta(c, key)
		return err
	})
	return value, err
}

func readMeta(c *conn, key string) (value string, err error) {
	err = c.query(context.Background(), "SELECT value FROM q_meta WHERE name = ?", []any{key}, func(row []driver.Value) error {
		value = textOf(row[0])
		return nil
	})
	return value, err
}

// SetMeta implements queue.Meta.
func (s *Store) SetMeta(ctx context.Context, key, old, value string) (stands string, err error) {
	err = s.write(ctx, 1, func(c *conn, _ bool) (err error) {
		if stands, err = readMeta(c, key); err != nil || stands != old {
			return err
		}
		stands = value
		_, err = c.exec("INSERT OR REPLACE INTO q_meta (name, value) VALUES (?, ?)", key, value)
		return err
	})
	return stands, err
}
