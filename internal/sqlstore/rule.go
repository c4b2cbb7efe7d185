package sqlstore

import (
	"database/sql"
	"time"

	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/throttle"
)

// RuleColumns are the columns of q_limit in the order of RuleArgs and RuleRow.
// Durations are microseconds; NULL limit_max means that the pattern inherits.
const RuleColumns = "pattern, limit_max, limit_interval, limit_mode, limit_guard, weight, max_in_flight, paused, " +
	"version, was_max, was_interval, was_mode, was_guard, changed_at"

// HoldColumns are the columns of q_hold in the order of HoldRow.
const HoldColumns = "destination, until, rest_until, superseded_before, reason, changed_at"

// RuleArgs returns the values of RuleColumns.
func RuleArgs(r throttle.Rule) []any {
	args := append([]any{r.Pattern}, limitArgs(r.Limit)...)
	var weight, inFlight, paused any
	if r.Weight != nil {
		weight = int64(*r.Weight)
	}
	if r.MaxInFlight != nil {
		inFlight = int64(*r.MaxInFlight)
	}
	if r.Paused != nil {
		paused = int64(0)
		if *r.Paused {
			paused = int64(1)
		}
	}
	args = append(args, weight, inFlight, paused, r.Version)
	args = append(args, limitArgs(r.Was)...)
	return append(args, queue.Micros(r.ChangedAt))
}

func limitArgs(l *throttle.Limit) []any {
	if l == nil {
		return []any{nil, nil, nil, nil}
	}
	return []any{l.Max, l.Interval.Microseconds(), int64(l.Mode), l.Guard.Microseconds()}
}

// RuleRow receives RuleColumns.
type RuleRow struct {
	pattern                  string
	limit, was               [4]sql.NullInt64
	weight, inFlight, paused sql.NullInt64
	version, changed         int64
}

// Dest returns the scan destinations for RuleColumns.
func (r *RuleRow) Dest() []any {
	return []any{&r.pattern, &r.limit[0], &r.limit[1], &r.limit[2], &r.limit[3], &r.weight, &r.inFlight, &r.paused,
		&r.version, &r.was[0], &r.was[1], &r.was[2], &r.was[3], &r.changed}
}

// Rule decodes the row.
func (r *RuleRow) Rule() throttle.Rule {
	rule := throttle.Rule{
		Pattern: r.pattern, Limit: limitOf(r.limit), Was: limitOf(r.was),
		Version: r.version, ChangedAt: queue.Time(r.changed),
	}
	if r.weight.Valid {
		n := int(r.weight.Int64)
		rule.Weight = &n
	}
	if r.inFlight.Valid {
		n := int(r.inFlight.Int64)
		rule.MaxInFlight = &n
	}
	if r.paused.Valid {
		p := r.paused.Int64 != 0
		rule.Paused = &p
	}
	return rule
}

func limitOf(v [4]sql.NullInt64) *throttle.Limit {
	if !v[0].Valid {
		return nil
	}
	l := &throttle.Limit{
		Max: v[0].Int64, Interval: time.Duration(v[1].Int64) * time.Microsecond,
		Mode: throttle.Mode(v[2].Int64), Guard: time.Duration(v[3].Int64) * time.Microsecond,
	}
	if l.Interval.Microseconds() != v[1].Int64 || int64(l.Mode) != v[2].Int64 || l.Guard.Microseconds() != v[3].Int64 {
		return &throttle.Limit{Max: -1} // damaged: nothing that another limit could be read from
	}
	return l
}

// NextRule decides what PutRule writes over prev (nil if the pattern has no row):
// r as version, and true; or prev itself and false when ifAbsent finds a limit.
// A changed limit remembers the one it replaces; while the limit stays the same,
// Was and ChangedAt stay with it. With ifAbsent the other settings of prev stay.
func NextRule(prev *throttle.Rule, r throttle.Rule, ifAbsent bool, version int64, now time.Time) (throttle.Rule, bool) {
	r.Version, r.ChangedAt = version, queue.Time(queue.Micros(now))
	if prev == nil {
		return r, true
	}
	if ifAbsent {
		if prev.Limit != nil {
			return *prev, false
		}
		r.Weight, r.MaxInFlight, r.Paused = prev.Weight, prev.MaxInFlight, prev.Paused
	}
	same := (prev.Limit == nil) == (r.Limit == nil) && (r.Limit == nil || *prev.Limit == *r.Limit)
	switch {
	case same:
		r.Was, r.ChangedAt = prev.Was, prev.ChangedAt
	case prev.Limit != nil:
		was := *prev.Limit
		r.Was = &was
	}
	return r, true
}

// HoldRow receives HoldColumns.
type HoldRow struct {
	destination, reason              string
	until, rest, superseded, changed int64
}

// Dest returns the scan destinations for HoldColumns.
func (r *HoldRow) Dest() []any {
	return []any{&r.destination, &r.until, &r.rest, &r.superseded, &r.reason, &r.changed}
}

// Hold decodes the row.
func (r *HoldRow) Hold() throttle.Hold {
	return throttle.Hold{
		Destination: r.destination, Until: queue.Time(r.until), RestUntil: queue.Time(r.rest),
		SupersededBefore: queue.Time(r.superseded), Reason: r.reason, ChangedAt: queue.Time(r.changed),
	}
}
