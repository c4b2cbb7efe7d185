package sqlite

import (
	"context"
	"database/sql/driver"
	"time"

	"github.com/mvalve/mvalve/internal/sqlstore"
	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/throttle"
)

const topVersion = "SELECT max(version) FROM q_limit"

// RulesVersion implements throttle.RuleStore.
func (s *Store) RulesVersion(ctx context.Context) (version int64, err error) {
	err = s.read(ctx, func(c *conn) (err error) {
		version, err = c.queryInt(topVersion)
		return err
	})
	return version, err
}

// LoadRules implements throttle.RuleStore. One statement reads it all, so that
// rules and version belong together.
func (s *Store) LoadRules(ctx context.Context) (rules []throttle.Rule, version int64, err error) {
	err = s.read(ctx, func(c *conn) (err error) {
		rules, err = readRules(c, "")
		return err
	})
	for i := range rules {
		version = max(version, rules[i].Version)
	}
	return rules, version, err
}

// readRules reads the rule of a pattern, or all rules for "".
func readRules(c *conn, pattern string) (rules []throttle.Rule, err error) {
	text, args := "SELECT "+sqlstore.RuleColumns+" FROM q_limit", []any(nil)
	if pattern != "" {
		text, args = text+" WHERE pattern = ?", []any{pattern}
	}
	err = c.query(context.Background(), text, args, func(values []driver.Value) error {
		var row sqlstore.RuleRow
		assign(row.Dest(), values)
		rules = append(rules, row.Rule())
		return nil
	})
	return rules, err
}

// PutRule implements throttle.RuleStore.
func (s *Store) PutRule(ctx context.Context, now time.Time, r throttle.Rule, ifAbsent bool) (stands throttle.Rule, err error) {
	if r.Pattern == "" {
		return r, errEmptyPattern
	}
	err = s.write(ctx, 1, func(c *conn, _ bool) error {
		version, err := c.queryInt(topVersion)
		if err != nil {
			return err
		}
		rules, err := readRules(c, r.Pattern)
		if err != nil {
			return err
		}
		var prev *throttle.Rule
		if len(rules) > 0 {
			prev = &rules[0]
		}
		var write bool
		if stands, write = sqlstore.NextRule(prev, r, ifAbsent, version+1, now); !write {
			return nil
		}
		_, err = c.exec("INSERT OR REPLACE INTO q_limit ("+sqlstore.RuleColumns+") VALUES ("+marks("?", 14)+")",
			sqlstore.RuleArgs(stands)...)
		return err
	})
	return stands, err
}

// PruneRules implements throttle.RuleStore. The rule with the highest version
// stays whatever it says: versions must only grow.
func (s *Store) PruneRules(ctx context.Context, before time.Time) error {
	return s.write(ctx, 1, func(c *conn, _ bool) error {
		_, err := c.exec("DELETE FROM q_limit WHERE limit_max IS NULL AND weight IS NULL AND max_in_flight IS NULL"+
			" AND paused IS NULL AND changed_at < ? AND version < ("+topVersion+")", queue.Micros(before))
		return err
	})
}

// LoadHolds implements throttle.RuleStore.
func (s *Store) LoadHolds(ctx context.Context, now, since time.Time) (holds []throttle.Hold, err error) {
	text, args := "SELECT "+sqlstore.HoldColumns+" FROM q_hold WHERE changed_at >= ?", []any{queue.Micros(since)}
	if since.IsZero() {
		text = "SELECT " + sqlstore.HoldColumns + " FROM q_hold WHERE until > ? OR superseded_before >= ?"
		args = []any{queue.Micros(now), queue.Micros(now.Add(-24 * time.Hour))}
	}
	err = s.read(ctx, func(c *conn) error {
		return c.query(context.Background(), text, args, func(values []driver.Value) error {
			var row sqlstore.HoldRow
			assign(row.Dest(), values)
			holds = append(holds, row.Hold())
			return nil
		})
	})
	return holds, err
}

// PutHold implements throttle.RuleStore.
func (s *Store) PutHold(ctx context.Context, now time.Time, h throttle.Hold) error {
	if err := queue.CheckDestination(h.Destination); err != nil {
		return err
	}
	return s.write(ctx, 1, func(c *conn, _ bool) error {
		_, err := c.exec("INSERT INTO q_hold ("+sqlstore.HoldColumns+") VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (destination) DO UPDATE SET"+
			" reason = CASE WHEN excluded.until >= until THEN excluded.reason ELSE reason END,"+
			" until = max(until, excluded.until), rest_until = max(rest_until, excluded.rest_until), superseded_before = max(superseded_before, excluded.superseded_before),"+
			" changed_at = excluded.changed_at",
			h.Destination, queue.Micros(h.Until), queue.Micros(h.RestUntil), queue.Micros(h.SupersededBefore), queue.CutReason(h.Reason), queue.Micros(now))
		return err
	})
}

// Free implements throttle.RuleStore.
func (s *Store) Free(ctx context.Context, now time.Time, destination string) error {
	return s.write(ctx, 1, func(c *conn, _ bool) error {
		_, err := c.exec("UPDATE q_hold SET until = ?1, rest_until = min(rest_until, ?1), changed_at = ?1 WHERE destination = ?2 AND until > ?1",
			queue.Micros(now), destination)
		return err
	})
}

// PruneHolds implements throttle.RuleStore.
func (s *Store) PruneHolds(ctx context.Context, before time.Time) error {
	return s.write(ctx, 1, func(c *conn, _ bool) error {
		_, err := c.exec("DELETE FROM q_hold WHERE until < ? AND changed_at < ?", queue.Micros(before), queue.Micros(before))
		return err
	})
}
