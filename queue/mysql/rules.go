package mysql

import (
	"context"
	"database/sql"
	"fmt"
	"strconv"
	"time"

	"github.com/mvalve/mvalve/internal/sqlstore"
	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/throttle"
)

// metaRules is the key in q_meta under which the last version of any rule
// stands: pruning the newest rule must not let its version be given again.
const metaRules = "rules_version"

// RulesVersion implements throttle.RuleStore.
func (s *Store) RulesVersion(ctx context.Context) (int64, error) {
	var version int64
	err := s.retry(ctx, "rules version", func(*attempt) error {
		return s.auto().query(ctx, "SELECT COALESCE(MAX(version), 0) FROM q_limit", nil, func(rows *sql.Rows) error {
			return rows.Scan(&version)
		})
	})
	return version, err
}

// LoadRules implements throttle.RuleStore.
func (s *Store) LoadRules(ctx context.Context) ([]throttle.Rule, int64, error) {
	var rules []throttle.Rule
	var version int64
	err := s.retry(ctx, "load rules", func(*attempt) error {
		var err error
		rules, err = selectRules(ctx, s.auto(), "ORDER BY pattern")
		return err
	})
	for i := range rules {
		version = max(version, rules[i].Version)
	}
	return rules, version, err
}

func selectRules(ctx context.Context, r runner, rest string, args ...any) ([]throttle.Rule, error) {
	var rules []throttle.Rule
	var row sqlstore.RuleRow
	dest := row.Dest()
	err := r.query(ctx, "SELECT "+sqlstore.RuleColumns+" FROM q_limit "+rest, args, func(rows *sql.Rows) error {
		if err := rows.Scan(dest...); err != nil {
			return err
		}
		rules = append(rules, row.Rule())
		return nil
	})
	return rules, err
}

// PutRule implements throttle.RuleStore. The row of the last version, locked and
// changed conditionally, makes writers take turns, so that a reader that has
// seen a version has seen all smaller ones. Repeating after an unknown outcome
// stores the same rule under a further version.
func (s *Store) PutRule(ctx context.Context, now time.Time, rule throttle.Rule, ifAbsent bool) (throttle.Rule, error) {
	var stands throttle.Rule
	err := s.retry(ctx, "put rule", func(a *attempt) error {
		return s.transact(ctx, a, func(r runner) error {
			version, err := nextVersion(ctx, r)
			if err != nil {
				return err
			}
			rules, err := selectRules(ctx, r, "WHERE pattern = ?", rule.Pattern)
			if err != nil {
				return err
			}
			var prev *throttle.Rule
			if len(rules) > 0 {
				prev = &rules[0]
			}
			next, write := sqlstore.NextRule(prev, rule, ifAbsent, version, now)
			if write {
				text := "REPLACE INTO q_limit (" + sqlstore.RuleColumns + ") VALUES (" + repeat("?", 14) + ")"
				if _, err := r.exec(ctx, text, sqlstore.RuleArgs(next)...); err != nil {
					return err
				}
			}
			stands = next
			return nil
		})
	})
	return stands, err
}

// nextVersion takes the next version of a rule, above all that were ever given.
func nextVersion(ctx context.Context, r runner) (int64, error) {
	var last string
	err := r.query(ctx, "SELECT value FROM q_meta WHERE name = ? FOR UPDATE", []any{metaRules}, func(rows *sql.Rows) error {
		return rows.Scan(&last)
	})
	if err != nil {
		return 0, err
	}
	var highest int64
	err = r.query(ctx, "SELECT COALESCE(MAX(version), 0) FROM q_limit", nil, func(rows *sql.Rows) error { return rows.Scan(&highest) })
	if err != nil {
		return 0, err
	}
	if last == "" {
		_, err := r.exec(ctx, "INSERT INTO q_meta (name, value) VALUES (?, ?)", metaRules, strconv.FormatInt(highest+1, 10))
		if code(err) == codeDuplicate {
			return 0, errConflict
		}
		return highest + 1, err
	}
	given, err := strconv.ParseInt(last, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%w: %s in q_meta: %w", queue.ErrCorrupt, metaRules, err)
	}
	next := max(given, highest) + 1
	n, err := r.exec(ctx, "UPDATE q_meta SET value = ? WHERE name = ? AND value = ?", strconv.FormatInt(next, 10), metaRules, last)
	if err == nil && n != 1 {
		return 0, errConflict
	}
	return next, err
}

// PruneRules implements throttle.RuleStore.
func (s *Store) PruneRules(ctx context.Context, before time.Time) error {
	return s.retry(ctx, "prune rules", func(*attempt) error {
		_, err := s.auto().exec(ctx, "DELETE FROM q_limit WHERE limit_max IS NULL AND weight IS NULL AND max_in_flight IS NULL "+
			"AND paused IS NULL AND changed_at < ?", queue.Micros(before))
		return err
	})
}

// LoadHolds implements throttle.RuleStore.
func (s *Store) LoadHolds(ctx context.Context, now, since time.Time) ([]throttle.Hold, error) {
	text := "SELECT " + sqlstore.HoldColumns + " FROM q_hold WHERE changed_at >= ?"
	args := []any{queue.Micros(since)}
	if since.IsZero() {
		text = "SELECT " + sqlstore.HoldColumns + " FROM q_hold WHERE until > ? OR superseded_before > ?"
		args = []any{queue.Micros(now), queue.Micros(now.Add(-24 * time.Hour))}
	}
	var list []throttle.Hold
	err := s.retry(ctx, "load holds", func(*attempt) error {
		list = nil
		var row sqlstore.HoldRow
		dest := row.Dest()
		return s.auto().query(ctx, text, args, func(rows *sql.Rows) error {
			if err := rows.Scan(dest...); err != nil {
				return err
			}
			list = append(list, row.Hold())
			return nil
		})
	})
	return list, err
}

// PutHold implements throttle.RuleStore. The reason stays with the later until.
func (s *Store) PutHold(ctx context.Context, now time.Time, h throttle.Hold) error {
	return s.retry(ctx, "put hold", func(*attempt) error {
		_, err := s.auto().exec(ctx, "INSERT INTO q_hold ("+sqlstore.HoldColumns+") VALUES (?, ?, ?, ?, ?, ?) "+
			"ON DUPLICATE KEY UPDATE reason = IF(VALUES(until) >= until, VALUES(reason), reason), until = GREATEST(until, VALUES(until)), "+
			"rest_until = GREATEST(rest_until, VALUES(rest_until)), superseded_before = GREATEST(superseded_before, VALUES(superseded_before)), changed_at = GREATEST(changed_at, VALUES(changed_at))",
			h.Destination, queue.Micros(h.Until), queue.Micros(h.RestUntil), queue.Micros(h.SupersededBefore), queue.CutReason(h.Reason), queue.Micros(now))
		return err
	})
}

// Free implements throttle.RuleStore.
func (s *Store) Free(ctx context.Context, now time.Time, destination string) error {
	return s.retry(ctx, "free", func(*attempt) error {
		_, err := s.auto().exec(ctx, "UPDATE q_hold SET until = LEAST(until, ?), rest_until = LEAST(rest_until, ?), changed_at = GREATEST(changed_at, ?) WHERE destination = ?",
			queue.Micros(now), queue.Micros(now), queue.Micros(now), destination)
		return err
	})
}

// PruneHolds implements throttle.RuleStore.
func (s *Store) PruneHolds(ctx context.Context, before time.Time) error {
	return s.retry(ctx, "prune holds", func(*attempt) error {
		_, err := s.auto().exec(ctx, "DELETE FROM q_hold WHERE changed_at < ? AND until < ?", queue.Micros(before), queue.Micros(before))
		return err
	})
}
