package sim

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/state"
	"github.com/mvalve/mvalve/throttle"
)

// Each rule of the oracle must be able to fail: a store that breaks a promise on
// purpose is noticed, by the rule that is there for it, within a few seeds.
func TestOracleNotices(t *testing.T) {
	for _, tc := range []struct {
		name  string
		rule  string
		plans func(p *plan) bool // nil: all
		bugs  func() defects
	}{
		{"limiter state is forgotten", ruleWindow, nil, func() defects {
			return defects{state: func(*world, state.Entry) state.Entry { return state.Entry{} }}
		}},
		{"a committed message is dropped", ruleLoss, nil, func() defects { return defects{apply: dropMessages} }},
		{"a nack deletes", ruleLoss, (*plan).faulty, func() defects { return defects{apply: deleteInstead} }},
		{"an acked message comes back", ruleAgain, nil, comesBack},
		{"a lease is taken twice", ruleLease, (*plan).faulty, func() defects {
			return defects{lease: func(_ *world, now, until time.Time) (time.Time, time.Time) { return now.Add(time.Hour), until }}
		}},
		{"a lease is too short", ruleLease, nil, func() defects {
			return defects{lease: func(_ *world, now, until time.Time) (time.Time, time.Time) {
				return now, now.Add(until.Sub(now) / 4)
			}}
		}},
		{"emergencies are hidden for a while", ruleOrder, (*plan).isCalm, func() defects { return defects{refs: hideEmergencies} }},
		{"timed messages are stored as due", ruleEarly, nil, func() defects { return defects{apply: dueAtOnce} }},
		{"the clock is told wrong", ruleStamp, nil, func() defects { return defects{now: 10 * time.Millisecond} }},
		{"a pause is not read", ruleEarly, (*plan).faulty, func() defects {
			return defects{rules: func(rules []throttle.Rule) []throttle.Rule {
				for i := range rules {
					rules[i].Paused = nil
				}
				return rules
			}}
		}},
		{"readers see nothing", ruleIdle, (*plan).isCalm, func() defects { return defects{blind: true} }},
		{"readers see nothing for ever", ruleStuck, (*plan).isCalm, func() defects { return defects{blind: true} }},
		{"limits are halved", ruleUse, func(p *plan) bool { return p.full != "" && mustLimit(p.full).Max > 1 }, func() defects {
			return defects{rules: func(rules []throttle.Rule) []throttle.Rule {
				for i := range rules {
					if l := rules[i].Limit; l != nil && l.Max > 1 {
						l.Max /= 2
					}
				}
				return rules
			}}
		}},
		{"a destination is shown one by one", ruleFair, func(p *plan) bool { return p.fair }, func() defects {
			return defects{refs: func(_ *world, refs []queue.Ref) []queue.Ref {
				n := 0
				return slices.DeleteFunc(refs, func(r queue.Ref) bool {
					if r.Destination != "d1" {
						return false
					}
					n++
					return n > 1
				})
			}}
		}},
	} {
		t.Run(strings.ReplaceAll(tc.name, " ", "-"), func(t *testing.T) {
			seen := make(map[string]int)
			for seed, runs := uint64(0), 0; runs < 60; seed++ {
				p := newPlan(seed)
				if tc.plans != nil && !tc.plans(p) {
					continue
				}
				runs++
				w := simulate(t, p, tc.bugs())
				for _, v := range judge(w) {
					seen[v.rule]++
					if v.rule == tc.rule {
						t.Logf("seed %d, the %dth run: %v", seed, runs, v)
						return
					}
				}
			}
			t.Errorf("not noticed by rule %q; by others: %v", tc.rule, seen)
		})
	}
}

func (p *plan) faulty() bool { return !p.calm }
func (p *plan) isCalm() bool { return p.calm && p.full == "" && !p.fair }

// dropMessages stores every change without its last message.
func dropMessages(_ *world, c *queue.Change) *queue.Change {
	if len(c.Put) < 2 {
		return c
	}
	d := *c
	d.Put = c.Put[:len(c.Put)-1]
	return &d
}

// deleteInstead deletes what should be tried again, before anybody was asked.
func deleteInstead(_ *world, c *queue.Change) *queue.Change {
	d := *c
	d.Settle = slices.Clone(c.Settle)
	for i := range d.Settle {
		if d.Settle[i].Verb == queue.Retry {
			d.Settle[i].Verb = queue.Ack
		}
	}
	return &d
}

// comesBack stores acked messages once more.
func comesBack() defects {
	known := make(map[queue.ID]*queue.Message)
	return defects{
		apply: func(_ *world, c *queue.Change) *queue.Change {
			for _, m := range c.Put {
				known[m.ID] = m
			}
			return c
		},
		after: func(w *world, c *queue.Change) {
			for _, s := range c.Settle {
				m := known[s.Ref.ID]
				if s.Verb != queue.Ack || m == nil {
					continue
				}
				delete(known, s.Ref.ID)
				again := *m
				again.LeaseToken, again.LeaseUntil = queue.ID{}, time.Time{}
				token := s.Ref.ID
				token[15]++
				_, _ = w.db.Apply(context.Background(), w.now(), &queue.Change{Token: token, Put: []*queue.Message{&again}})
			}
		},
	}
}

// hideEmergencies shows an emergency a second after it was stored.
func hideEmergencies(w *world, refs []queue.Ref) []queue.Ref {
	return slices.DeleteFunc(refs, func(r queue.Ref) bool {
		return r.Lane == queue.Emergency && r.EnqueuedAt+1_000_000 > w.now().UnixMicro()
	})
}

// dueAtOnce stores timed messages as due since long.
func dueAtOnce(_ *world, c *queue.Change) *queue.Change {
	for _, m := range c.Put {
		if !m.ReadyAt.IsZero() {
			m.ReadyAt = m.ReadyAt.Add(-time.Hour)
		}
	}
	return c
}
