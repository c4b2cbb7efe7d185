package throttle

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// holdMargin is how far back holds are read again: commits come late.
	holdMargin = 10 * time.Second
	// resolvedCap bounds the destinations whose rule is remembered.
	resolvedCap = 100_000
)

// Resolved is what the rules say about one destination.
type Resolved struct {
	Limit   Limit
	Version int64  // of all rules, for Request
	Was     *Limit // what limited it until Changed, nil if nothing did
	Changed time.Time

	Weight      int // share, at least 1
	MaxInFlight int // 0: no cap
	Paused      bool
	Pattern     string // of the rule Limit comes from, "" if there is none
}

// Rules is the rules and holds of a pipe as last read. It is safe for concurrent
// use. Reload keeps it up to date.
type Rules struct {
	store RuleStore
	log   *slog.Logger

	reload chan struct{} // capacity 1: full while a Reload is under way
	since  time.Time     // of the last LoadHolds

	current atomic.Pointer[ruleSet]

	mu    sync.RWMutex
	holds map[string]Hold
	noted map[string]bool // noted since a reload began to read the holds; else nil
}

// NewRules returns Rules without any rule until Reload. A nil store has none; a
// nil logger discards.
func NewRules(store RuleStore, logger *slog.Logger) *Rules {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	r := &Rules{store: store, log: logger, reload: make(chan struct{}, 1), holds: make(map[string]Hold)}
	r.current.Store(newRuleSet(nil, 0))
	return r
}

// Version returns the version of the rules in use.
func (r *Rules) Version() int64 { return r.current.Load().version }

// Rules returns all rules in use, most specific first.
func (r *Rules) Rules() []Rule { return slices.Clone(r.current.Load().sorted) }

// Resolve returns what applies to a destination: of the rules that match it, the
// most specific one that says something, field by field. It is quick: the answer
// is remembered until the rules change.
func (r *Rules) Resolve(destination string) Resolved {
	return r.current.Load().resolve(destination)
}

// Hold returns the hold of a destination, if there is one that is not over yet
// or that superseded something within the last day.
func (r *Rules) Hold(destination string) (Hold, bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	h, ok := r.holds[destination]
	return h, ok
}

// Note makes a hold that was just stored effective here at once, and returns the
// one that was known before.
func (r *Rules) Note(h Hold) (before Hold) {
	r.mu.Lock()
	defer r.mu.Unlock()
	before = r.holds[h.Destination]
	r.extend(h)
	if r.noted != nil {
		r.noted[h.Destination] = true
	}
	return before
}

// with returns h with what newer adds to it: no time moves back, and the reason is
// that of the later Until.
func (h Hold) with(newer Hold) Hold {
	if newer.Until.Before(h.Until) {
		newer.Until, newer.Reason = h.Until, h.Reason
	}
	newer.RestUntil = later(newer.RestUntil, h.RestUntil)
	newer.SupersededBefore = later(newer.SupersededBefore, h.SupersededBefore)
	return newer
}

func later(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

// Reload reads what changed: the rules if their version did, and the recent
// holds. Call it at least every 500 ms and when a Grant is Stale. One call at a
// time reads; others wait for it, as long as ctx lets them. On an error what was
// known stays in use.
func (r *Rules) Reload(ctx context.Context, now time.Time) error {
	if r.store == nil {
		return nil
	}
	select {
	case r.reload <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("throttle: reload rules: %w", ctx.Err())
	}
	defer func() { <-r.reload }()
	if err := r.reloadRules(ctx); err != nil {
		return fmt.Errorf("throttle: reload rules: %w", err)
	}
	if err := r.reloadHolds(ctx, now); err != nil {
		return fmt.Errorf("throttle: reload holds: %w", err)
	}
	return nil
}

func (r *Rules) reloadRules(ctx context.Context) error {
	version, err := r.store.RulesVersion(ctx)
	if err != nil || version == r.Version() {
		return err
	}
	rules, version, err := r.store.LoadRules(ctx)
	if err != nil {
		return err
	}
	if version < r.Version() {
		r.log.Warn("rules went back to an older version", "version", version, "was", r.Version())
	}
	usable := rules[:0:0]
	for _, rule := range rules {
		if err := CheckPattern(rule.Pattern); err != nil {
			return fmt.Errorf("rule of version %d is damaged; delete its row of q_limit and set it again: %w", rule.Version, err)
		}
		if err := rule.Validate(); err != nil {
			r.log.Error("rule damaged; what it names waits until the limit is set again", "pattern", rule.Pattern, "err", err)
			paused := true
			rule = Rule{Pattern: rule.Pattern, Paused: &paused, Version: rule.Version, Was: rule.Was, ChangedAt: rule.ChangedAt}
		}
		if rule.Was != nil && rule.Was.Validate() != nil {
			rule.Was = &Limit{Max: MaxMax, Interval: MinInterval} // damaged: it may have allowed anything
		}
		usable = append(usable, rule)
	}
	r.current.Store(newRuleSet(usable, version))
	r.log.Debug("rules loaded", "version", version, "rules", len(usable))
	return nil
}

// extend makes a hold known besides the one there may be. The mutex is held.
func (r *Rules) extend(h Hold) {
	r.holds[h.Destination] = r.holds[h.Destination].with(h)
}

func (r *Rules) reloadHolds(ctx context.Context, now time.Time) error {
	since := r.since
	if !since.IsZero() {
		since = since.Add(-holdMargin)
	}
	r.mu.Lock()
	r.noted = make(map[string]bool)
	r.mu.Unlock()
	holds, err := r.store.LoadHolds(ctx, now, since)
	r.mu.Lock()
	defer r.mu.Unlock()
	noted := r.noted
	r.noted = nil
	if err != nil {
		return err
	}
	r.since = now
	for _, h := range holds {
		if noted[h.Destination] {
			r.extend(h) // which of the two is newer, the next reload tells
			continue
		}
		r.holds[h.Destination] = h
	}
	maps.DeleteFunc(r.holds, func(_ string, h Hold) bool {
		return !h.Until.After(now) && h.SupersededBefore.Before(now.Add(-24*time.Hour))
	})
	return nil
}

// ruleSet is one version of the rules.
type ruleSet struct {
	version int64
	sorted  []Rule
	exact   map[string][]Rule
	globs   []Rule // most specific first

	mu       sync.RWMutex
	resolved map[string]Resolved
}

func newRuleSet(rules []Rule, version int64) *ruleSet {
	s := &ruleSet{version: version, exact: make(map[string][]Rule), resolved: make(map[string]Resolved)}
	s.sorted = slices.SortedFunc(slices.Values(rules), compareRules)
	for _, rule := range s.sorted {
		if _, name, ok := literal(rule.Pattern); ok {
			s.exact[name] = append(s.exact[name], rule)
		} else {
			s.globs = append(s.globs, rule)
		}
	}
	return s
}

// compareRules orders the more specific rule first.
func compareRules(a, b Rule) int {
	an, _, aExact := literal(a.Pattern)
	bn, _, bExact := literal(b.Pattern)
	if aExact != bExact {
		if aExact {
			return -1
		}
		return 1
	}
	return cmp.Or(cmp.Compare(bn, an), cmp.Compare(a.Pattern, b.Pattern))
}

func (s *ruleSet) resolve(destination string) Resolved {
	s.mu.RLock()
	res, ok := s.resolved[destination]
	s.mu.RUnlock()
	if ok {
		return res
	}
	res = s.match(destination)
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.resolved) >= resolvedCap {
		clear(s.resolved)
	}
	s.resolved[destination] = res
	return res
}

// match merges the rules that match, most specific first.
func (s *ruleSet) match(destination string) Resolved {
	m := merger{res: Resolved{Version: s.version}}
	for _, rule := range s.exact[destination] {
		m.add(rule)
	}
	for _, rule := range s.globs {
		if m.complete() {
			break
		}
		if MatchGlob(rule.Pattern, destination) {
			m.add(rule)
		}
	}
	m.res.Weight = max(m.res.Weight, 1)
	return m.res
}

// merger collects the fields of a Resolved.
type merger struct {
	res                             Resolved
	limit, weight, inFlight, paused bool
}

func (m *merger) complete() bool { return m.limit && m.weight && m.inFlight && m.paused }

func (m *merger) add(rule Rule) {
	if !m.limit && rule.ChangedAt.After(m.res.Changed) {
		// Of this rule and those more specific that have no limit any more, the
		// one that changed last says what applied before.
		m.res.Was, m.res.Changed = rule.Was, rule.ChangedAt
	}
	if !m.limit && rule.Limit != nil {
		m.limit, m.res.Limit, m.res.Pattern = true, *rule.Limit, rule.Pattern
	}
	if !m.weight && rule.Weight != nil {
		m.weight, m.res.Weight = true, *rule.Weight
	}
	if !m.inFlight && rule.MaxInFlight != nil {
		m.inFlight, m.res.MaxInFlight = true, *rule.MaxInFlight
	}
	if !m.paused && rule.Paused != nil {
		m.paused, m.res.Paused = true, *rule.Paused
	}
}
