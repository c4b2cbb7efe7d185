package sim

import (
	"context"
	"fmt"
	"time"

	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/state"
	"github.com/mvalve/mvalve/throttle"
)

// stateOf is a state store as one process sees it.
type stateOf struct {
	p     *proc
	inner *state.Memory
	fast  bool
}

var stateErrors = portErrors{state.ErrUnavailable, state.ErrUnknown}

func all(n int, err error) []error {
	if err == nil {
		return nil
	}
	errs := make([]error, n)
	for i := range errs {
		errs[i] = err
	}
	return errs
}

// down reports whether the store is unreachable. The mutex is held.
func (s *stateOf) down() error {
	until := s.p.w.downTo
	if s.fast {
		until = s.p.w.fastTo
	}
	if time.Now().Before(until) {
		return fmt.Errorf("%w: injected", state.ErrUnavailable)
	}
	return nil
}

// Get implements state.Store.
func (s *stateOf) Get(ctx context.Context, keys []string) (entries []state.Entry, errs []error) {
	err := s.p.call(ctx, mState, stateErrors, func() error {
		if err := s.down(); err != nil {
			return err
		}
		entries, errs = s.inner.Get(context.Background(), keys)
		return nil
	})
	if err != nil {
		return make([]state.Entry, len(keys)), all(len(keys), err)
	}
	return entries, errs
}

// Update implements state.Store. fn runs twice now and then, as it does where
// others change the value in between.
func (s *stateOf) Update(ctx context.Context, now time.Time, keys []string, ttls []time.Duration, fn func(int, state.Entry) []byte) []error {
	var errs []error
	err := s.p.call(ctx, mState, stateErrors, func() error {
		if err := s.down(); err != nil {
			return err
		}
		w := s.p.w
		twice := s.p.dice.oneIn(8)
		errs = s.inner.Update(context.Background(), now, keys, ttls, func(i int, old state.Entry) []byte {
			if w.bugs.state != nil {
				old = w.bugs.state(w, old)
			}
			if twice {
				_ = fn(i, old)
			}
			return fn(i, old)
		})
		return nil
	})
	if err != nil {
		return all(len(keys), err)
	}
	return errs
}

// Delete implements state.Store.
func (s *stateOf) Delete(ctx context.Context, key string) error {
	return s.p.call(ctx, mState, stateErrors, func() error { return s.inner.Delete(context.Background(), key) })
}

// Close implements state.Store.
func (s *stateOf) Close() error { return nil }

// rulesOf is the table of rules and holds as one process sees it; without a
// process, as an operator does.
type rulesOf struct {
	w *world
	p *proc
}

func (r *rulesOf) call(ctx context.Context, m method, effect func() error) error {
	if r.p == nil {
		r.w.mu.Lock()
		defer r.w.mu.Unlock()
		return effect()
	}
	return r.p.call(ctx, m, queueErrors, effect)
}

// RulesVersion implements throttle.RuleStore.
func (r *rulesOf) RulesVersion(ctx context.Context) (v int64, err error) {
	err = r.call(ctx, mRules, func() (err error) {
		v, err = r.w.rules.RulesVersion(ctx)
		return err
	})
	return v, err
}

// LoadRules implements throttle.RuleStore.
func (r *rulesOf) LoadRules(ctx context.Context) (rules []throttle.Rule, v int64, err error) {
	err = r.call(ctx, mRules, func() (err error) {
		rules, v, err = r.w.rules.LoadRules(ctx)
		if r.w.bugs.rules != nil && r.p != nil {
			rules = r.w.bugs.rules(rules)
		}
		return err
	})
	if err == nil && r.p != nil {
		r.w.tell(event{kind: kRulesSeen, proc: r.p.id, version: v})
	}
	return rules, v, err
}

// PutRule implements throttle.RuleStore.
func (r *rulesOf) PutRule(ctx context.Context, now time.Time, rule throttle.Rule, ifAbsent bool) (stored throttle.Rule, err error) {
	err = r.call(ctx, mRules, func() (err error) {
		if stored, err = r.w.rules.PutRule(ctx, now, rule, ifAbsent); err != nil {
			return err
		}
		text := &ruleText{pattern: stored.Pattern, paused: stored.Paused}
		said := "inherits"
		if stored.Limit != nil {
			l := textOf(*stored.Limit)
			text.limit, said = &l, stored.Limit.String()
		}
		if stored.Paused != nil {
			said += fmt.Sprintf(" paused %v", *stored.Paused)
		}
		r.w.note(event{kind: kRule, version: stored.Version, dest: stored.Pattern, rule: text, text: said})
		return nil
	})
	return stored, err
}

// PruneRules implements throttle.RuleStore.
func (r *rulesOf) PruneRules(ctx context.Context, before time.Time) error {
	return r.call(ctx, mRules, func() error { return r.w.rules.PruneRules(ctx, before) })
}

// LoadHolds implements throttle.RuleStore.
func (r *rulesOf) LoadHolds(ctx context.Context, now, since time.Time) (holds []throttle.Hold, err error) {
	seen := int64(0)
	err = r.call(ctx, mRules, func() (err error) {
		seen = r.w.holds
		holds, err = r.w.rules.LoadHolds(ctx, now, since)
		return err
	})
	if err == nil && r.p != nil {
		r.w.tell(event{kind: kHoldsSeen, proc: r.p.id, version: seen})
	}
	return holds, err
}

// PutHold implements throttle.RuleStore.
func (r *rulesOf) PutHold(ctx context.Context, now time.Time, h throttle.Hold) error {
	version := int64(0)
	err := r.call(ctx, mPutHold, func() error {
		if err := r.w.rules.PutHold(ctx, now, h); err != nil {
			return err
		}
		r.w.holds++
		version = r.w.holds
		r.w.note(event{kind: kHold, proc: r.p.id, dest: h.Destination, stamp: queue.Micros(now), until: queue.Micros(h.Until), version: version, text: h.Reason})
		return nil
	})
	if err == nil {
		r.w.tell(event{kind: kHoldTold, proc: r.p.id, version: version})
	}
	return err
}

// Free implements throttle.RuleStore.
func (r *rulesOf) Free(ctx context.Context, now time.Time, destination string) error {
	return r.call(ctx, mRules, func() error { return r.w.rules.Free(ctx, now, destination) })
}

// PruneHolds implements throttle.RuleStore.
func (r *rulesOf) PruneHolds(ctx context.Context, before time.Time) error {
	return r.call(ctx, mRules, func() error { return r.w.rules.PruneHolds(ctx, before) })
}

// defects are bugs put in on purpose. The mutex is held when they are called.
type defects struct {
	apply func(*world, *queue.Change) *queue.Change // what is carried out instead
	after func(*world, *queue.Change)               // and then
	lease func(w *world, now, until time.Time) (time.Time, time.Time)
	refs  func(*world, []queue.Ref) []queue.Ref // what scans and heads show instead
	state func(*world, state.Entry) state.Entry // what is in the state store instead
	rules func([]throttle.Rule) []throttle.Rule // what is read instead
	now   time.Duration                         // how wrong the clock is told
	blind bool                                  // scans and heads find nothing
}
