package throttle

import (
	"context"
	"time"
)

// Rule is a row of q_limit. Nil fields inherit from the next less specific
// pattern; a rule with all fields nil is what a removed one leaves behind for a
// while, so that what it allowed still counts (Was).
type Rule struct {
	Pattern     string
	Limit       *Limit // nil inherits; a Limit with Max 0 is "none": no limit
	Weight      *int   // share among destinations, 1–1000; default 1
	MaxInFlight *int   // deliveries out at once, all readers' own; default no cap
	Paused      *bool
	Version     int64 // set by the store: greater than every earlier version
	Was         *Limit
	ChangedAt   time.Time
}

// Hold tells a destination to wait: nothing leaves before Until, but for what may
// pass the hold of that Reason. Before RestUntil, which is at most Until, nothing
// passes: the destination itself, or an operator, asked for rest. What was
// enqueued before SupersededBefore is dead-lettered instead of dispatched.
type Hold struct {
	Destination      string
	Until            time.Time
	RestUntil        time.Time
	SupersededBefore time.Time
	Reason           string
	ChangedAt        time.Time
}

// RuleStore is implemented by the stores that keep q_limit and q_hold.
type RuleStore interface {
	// RulesVersion returns the highest version in q_limit, 0 if it is empty.
	RulesVersion(ctx context.Context) (int64, error)
	// LoadRules returns all rules and the version they have.
	LoadRules(ctx context.Context) ([]Rule, int64, error)
	// PutRule stores r under the next version. With ifAbsent it does nothing
	// when the pattern already has a Limit. It returns the rule that then stands.
	PutRule(ctx context.Context, now time.Time, r Rule, ifAbsent bool) (Rule, error)
	// PruneRules removes the rules without any setting that changed before t.
	PruneRules(ctx context.Context, before time.Time) error

	// LoadHolds returns the holds changed at or after since (zero: all that
	// still matter at now, that is Until after now or superseded in the last day).
	LoadHolds(ctx context.Context, now, since time.Time) ([]Hold, error)
	// PutHold stores the hold; Until and SupersededBefore never move back. It is
	// committed on return. ChangedAt is now.
	PutHold(ctx context.Context, now time.Time, h Hold) error
	// Free ends the hold of a destination at now (the row stays, with Until now
	// and ChangedAt now, until it is pruned).
	Free(ctx context.Context, now time.Time, destination string) error
	// PruneHolds removes the holds that ended, and changed, before t.
	PruneHolds(ctx context.Context, before time.Time) error
}
