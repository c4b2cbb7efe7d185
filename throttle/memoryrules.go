package throttle

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
)

// MemoryRules is a RuleStore in the memory of one process. The zero value is
// empty and ready. It defines what drivers do.
type MemoryRules struct {
	mu      sync.Mutex
	version int64
	rules   map[string]Rule
	holds   map[string]Hold
}

var _ RuleStore = (*MemoryRules)(nil)

// NewMemoryRules returns an empty MemoryRules.
func NewMemoryRules() *MemoryRules { return &MemoryRules{} }

// RulesVersion implements RuleStore.
func (m *MemoryRules) RulesVersion(context.Context) (int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.version, nil
}

// LoadRules implements RuleStore.
func (m *MemoryRules) LoadRules(context.Context) ([]Rule, int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	rules := slices.SortedFunc(maps.Values(m.rules), func(a, b Rule) int { return strings.Compare(a.Pattern, b.Pattern) })
	for i := range rules {
		rules[i] = rules[i].clone()
	}
	return rules, m.version, nil
}

// PutRule implements RuleStore.
func (m *MemoryRules) PutRule(_ context.Context, _ time.Time, r Rule, ifAbsent bool) (Rule, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if old, ok := m.rules[r.Pattern]; ok && ifAbsent && old.Limit != nil {
		return old.clone(), nil
	}
	if m.rules == nil {
		m.rules = make(map[string]Rule)
	}
	m.version++
	r.Version = m.version
	m.rules[r.Pattern] = r.clone()
	return r, nil
}

// PruneRules implements RuleStore.
func (m *MemoryRules) PruneRules(_ context.Context, before time.Time) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	maps.DeleteFunc(m.rules, func(_ string, r Rule) bool { return r.IsEmpty() && r.ChangedAt.Before(before) })
	return nil
}

// LoadHolds implements RuleStore.
func (m *MemoryRules) LoadHolds(_ context.Context, now, since time.Time) ([]Hold, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	holds := make([]Hold, 0, 8)
	for _, h := range m.holds {
		matters := h.Until.After(now) || h.SupersededBefore.After(now.Add(-24*time.Hour))
		if since.IsZero() && matters || !since.IsZero() && !h.ChangedAt.Before(since) {
			holds = append(holds, h)
		}
	}
	return holds, nil
}

// PutHold implements RuleStore.
func (m *MemoryRules) PutHold(_ context.Context, now time.Time, h Hold) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.holds == nil {
		m.holds = make(map[string]Hold)
	}
	h = m.holds[h.Destination].with(h)
	h.ChangedAt = now
	m.holds[h.Destination] = h
	return nil
}

// Free implements RuleStore.
func (m *MemoryRules) Free(_ context.Context, now time.Time, destination string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if h, ok := m.holds[destination]; ok {
		h.Until, h.ChangedAt = now, now
		if h.RestUntil.After(now) {
			h.RestUntil = now
		}
		m.holds[destination] = h
	}
	return nil
}

// PruneHolds implements RuleStore.
func (m *MemoryRules) PruneHolds(_ context.Context, before time.Time) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	maps.DeleteFunc(m.holds, func(_ string, h Hold) bool { return h.Until.Before(before) && h.ChangedAt.Before(before) })
	return nil
}

// clone returns a rule that shares nothing with r.
func (r Rule) clone() Rule {
	r.Limit, r.Was = copyOf(r.Limit), copyOf(r.Was)
	r.Weight, r.MaxInFlight, r.Paused = copyOf(r.Weight), copyOf(r.MaxInFlight), copyOf(r.Paused)
	return r
}

func copyOf[T any](p *T) *T {
	if p == nil {
		return nil
	}
	v := *p
	return &v
}
