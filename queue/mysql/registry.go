package mysql

import (
	"context"
	"database/sql"
	"time"

	"github.com/mvalve/mvalve/queue"
)

// Announce implements queue.Registry.
func (s *Store) Announce(ctx context.Context, now, since time.Time, p queue.Presence) ([]queue.Presence, error) {
	var seen []queue.Presence
	err := s.retry(ctx, "announce", func(*attempt) error {
		seen = nil
		if !p.ID.IsZero() {
			_, err := s.auto().exec(ctx, "INSERT INTO q_reader (id, host, pid, address, started, seen_at, held) VALUES (?, ?, ?, ?, ?, ?, ?) "+
				"ON DUPLICATE KEY UPDATE host = VALUES(host), pid = VALUES(pid), address = VALUES(address), "+
				"started = VALUES(started), seen_at = VALUES(seen_at), held = VALUES(held)",
				p.ID[:], p.Host, p.PID, p.Address, queue.Micros(p.Started), queue.Micros(now), p.Held)
			if err != nil {
				return err
			}
		}
		stale := false
		old := queue.Micros(now.Add(-time.Hour))
		err := s.auto().query(ctx, "SELECT id, host, pid, address, started, seen_at, held FROM q_reader ORDER BY id", nil, func(rows *sql.Rows) error {
			var id []byte
			var started, at int64
			var r queue.Presence
			if err := rows.Scan(&id, &r.Host, &r.PID, &r.Address, &started, &at, &r.Held); err != nil {
				return err
			}
			copy(r.ID[:], id)
			r.Started, r.SeenAt = queue.Time(started), queue.Time(at)
			switch {
			case at < old:
				stale = true
			case at >= queue.Micros(since):
				seen = append(seen, r)
			}
			return nil
		})
		if err == nil && stale {
			_, err = s.auto().exec(ctx, "DELETE FROM q_reader WHERE seen_at < ?", old)
		}
		return err
	})
	return seen, err
}

// Leave implements queue.Registry.
func (s *Store) Leave(ctx context.Context, id queue.ID) error {
	return s.retry(ctx, "leave", func(*attempt) error {
		_, err := s.auto().exec(ctx, "DELETE FROM q_reader WHERE id = ?", id[:])
		return err
	})
}

// Meta implements queue.Meta.
func (s *Store) Meta(ctx context.Context, key string) (string, error) {
	var value string
	err := s.retry(ctx, "meta", func(*attempt) error {
		var err error
		value, err = readMeta(ctx, s.auto(), key)
		return err
	})
	return value, err
}

func readMeta(ctx context.Context, r runner, key string) (string, error) {
	var value string
	err := r.query(ctx, "SELECT value FROM q_meta WHERE name = ?", []any{key}, func(rows *sql.Rows) error {
		return rows.Scan(&value)
	})
	return value, err
}

// SetMeta implements queue.Meta. A conditional write, then a read: after an
// unknown outcome the read tells.
func (s *Store) SetMeta(ctx context.Context, key, old, value string) (string, error) {
	var stands string
	err := s.retry(ctx, "set meta", func(*attempt) error {
		var err error
		if old != "" {
			_, err = s.auto().exec(ctx, "UPDATE q_meta SET value = ? WHERE name = ? AND value = ?", value, key, old)
		} else {
			_, err = s.auto().exec(ctx, "UPDATE q_meta SET value = ? WHERE name = ? AND value = ''", value, key)
			if err == nil {
				_, err = s.auto().exec(ctx, "INSERT INTO q_meta (name, value) VALUES (?, ?)", key, value)
			}
			if code(err) == codeDuplicate {
				err = nil
			}
		}
		if err != nil {
			return err
		}
		stands, err = readMeta(ctx, s.auto(), key)
		return err
	})
	return stands, err
}
