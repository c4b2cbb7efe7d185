package throttle

import (
	"context"
	"fmt"
	"time"
)

// MaxWeight is the largest Rule.Weight.
const MaxWeight = 1000

// pruneAfter is how long a rule without any setting is kept at least.
const pruneAfter = 48 * time.Hour

// Validate reports the first thing that is wrong with the rule.
func (r Rule) Validate() error {
	if err := CheckPattern(r.Pattern); err != nil {
		return err
	}
	if r.Limit != nil {
		if err := r.Limit.Validate(); err != nil {
			return err
		}
	}
	switch {
	case r.Weight != nil && (*r.Weight < 1 || *r.Weight > MaxWeight):
		return fmt.Errorf("throttle: weight of %.60q is %d; use 1 to %d", r.Pattern, *r.Weight, MaxWeight)
	case r.MaxInFlight != nil && *r.MaxInFlight < 0:
		return fmt.Errorf("throttle: max in flight of %.60q is %d; use 0 (no cap) or more", r.Pattern, *r.MaxInFlight)
	}
	return nil
}

// IsEmpty reports whether the rule sets nothing: it remembers what applied before.
func (r Rule) IsEmpty() bool {
	return r.Limit == nil && r.Weight == nil && r.MaxInFlight == nil && r.Paused == nil
}

// SetLimit stores the limit of a pattern (the zero Limit is "none": no limit)
// and returns the rule that then stands. Readers follow within a second.
func SetLimit(ctx context.Context, store RuleStore, now time.Time, pattern string, limit Limit) (Rule, error) {
	return edit(ctx, store, now, pattern, func(r *Rule) { r.Limit = &limit })
}

// RemoveLimit lets the pattern inherit its limit from less specific ones. The
// rule stays for a while, so that what it allowed still counts.
func RemoveLimit(ctx context.Context, store RuleStore, now time.Time, pattern string) (Rule, error) {
	return edit(ctx, store, now, pattern, func(r *Rule) { r.Limit = nil })
}

// SetDefault stores limit for a pattern that has no limit yet, and returns the
// rule that then stands: compare its Limit to see whether another one was there.
func SetDefault(ctx context.Context, store RuleStore, now time.Time, pattern string, limit Limit) (Rule, error) {
	r, err := editable(ctx, store, now, pattern, func(r *Rule) {
		if r.Limit == nil {
			r.Limit = &limit
		}
	})
	if err != nil {
		return Rule{}, err
	}
	return store.PutRule(ctx, now, r, true)
}

// Pause stops every destination that the pattern matches, unless a more specific
// rule says otherwise.
func Pause(ctx context.Context, store RuleStore, now time.Time, pattern string) (Rule, error) {
	return edit(ctx, store, now, pattern, func(r *Rule) { r.Paused = new(bool); *r.Paused = true })
}

// Resume ends what Pause did to the same pattern. If a less specific pattern is
// paused too, the destinations of this one run nevertheless.
func Resume(ctx context.Context, store RuleStore, now time.Time, pattern string) (Rule, error) {
	return edit(ctx, store, now, pattern, func(r *Rule) { r.Paused = new(bool) })
}

// SetShare stores the weight and the most deliveries out at once of a pattern;
// nil inherits.
func SetShare(ctx context.Context, store RuleStore, now time.Time, pattern string, weight, maxInFlight *int) (Rule, error) {
	return edit(ctx, store, now, pattern, func(r *Rule) { r.Weight, r.MaxInFlight = weight, maxInFlight })
}

func edit(ctx context.Context, store RuleStore, now time.Time, pattern string, change func(*Rule)) (Rule, error) {
	r, err := editable(ctx, store, now, pattern, change)
	if err != nil {
		return Rule{}, err
	}
	return store.PutRule(ctx, now, r, false)
}

// editable returns the rule of a pattern as changed, with Was and ChangedAt
// telling what applied to it before if its limit changed.
func editable(ctx context.Context, store RuleStore, now time.Time, pattern string, change func(*Rule)) (Rule, error) {
	if err := CheckPattern(pattern); err != nil {
		return Rule{}, err
	}
	rules, version, err := store.LoadRules(ctx)
	if err != nil {
		return Rule{}, err
	}
	r := Rule{Pattern: pattern}
	for _, old := range rules {
		if old.Pattern == pattern {
			r = old
		}
	}
	was := r.Limit
	before := appliedTo(r, newRuleSet(rules, version))
	change(&r)
	if err := r.Validate(); err != nil {
		return Rule{}, err
	}
	if !sameLimit(was, r.Limit) {
		r.Was, r.ChangedAt = whatApplied(before, now), now
	}
	if r.ChangedAt.IsZero() {
		r.ChangedAt = now
	}
	return r, nil
}

// appliedTo returns what applied to the destinations of a rule's pattern: what
// the rule says, else what the pattern as a name would inherit.
func appliedTo(r Rule, set *ruleSet) Resolved {
	if r.Limit != nil {
		return Resolved{Limit: *r.Limit, Was: r.Was, Changed: r.ChangedAt}
	}
	if _, name, exact := literal(r.Pattern); exact {
		return set.match(name)
	}
	return set.match(r.Pattern)
}

func sameLimit(a, b *Limit) bool {
	return a == b || a != nil && b != nil && *a == *b
}

// whatApplied returns the limit that the past of a destination must be held to:
// the one before, and if that one is not old the one before it too.
func whatApplied(before Resolved, now time.Time) *Limit {
	var was *Limit
	if !before.Limit.IsNone() {
		was = &before.Limit
	}
	if before.Was == nil || before.Was.IsNone() || now.Sub(before.Changed) > pruneAfter {
		return was
	}
	if was == nil {
		return before.Was
	}
	both := Limit{Max: max(was.Max, before.Was.Max), Interval: min(was.Window(), before.Was.Window())}
	if both.Max == was.Max && both.Interval == was.Window() {
		return was
	}
	return &both
}

// PruneRules removes the rules that set nothing and changed so long ago that
// what they allowed does not count any more. The latest change is always kept:
// versions never go back.
func PruneRules(ctx context.Context, store RuleStore, now time.Time) error {
	rules, _, err := store.LoadRules(ctx)
	if err != nil {
		return err
	}
	before := now.Add(-pruneAfter)
	version := int64(-1)
	latest := before
	for _, r := range rules {
		if r.Limit != nil {
			if t := now.Add(-r.Limit.Window() - pruneAfter); t.Before(before) {
				before = t
			}
		}
		if r.Version > version {
			version, latest = r.Version, r.ChangedAt
		}
	}
	if latest.Before(before) {
		before = latest
	}
	return store.PruneRules(ctx, before)
}
