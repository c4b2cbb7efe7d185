package throttle

import (
	"context"
	"errors"
	"math"
	"slices"
	"testing"
	"time"

	"github.com/mvalve/mvalve/state"
)

// TestDamagedStateOpensNoWindow damages a stored value in every bit, cuts it off
// at every length and replaces it: a used-up window stays used up for a whole
// window from then on, and the limiter recovers after that.
func TestDamagedStateOpensNoWindow(t *testing.T) {
	limit := mustLimit(t, "3/10s")
	l, m := newTest(t)
	if g := take(t, l, t0, Request{Limit: limit, Want: 3}); len(g.Permits) != 3 {
		t.Fatalf("%+v", g)
	}
	entries, errs := m.Get(t.Context(), []string{l.key("d")})
	if errs != nil {
		t.Fatal(errs)
	}
	sound := slices.Clone(entries[0].Data)
	var values [][]byte
	for bit := range 8 * len(sound) {
		b := slices.Clone(sound)
		b[bit/8] ^= 1 << (bit % 8)
		values = append(values, b)
	}
	for n := range sound {
		values = append(values, sound[:n], append(slices.Clone(sound), sound[:n]...), make([]byte, n))
	}
	values = append(values, []byte{}, []byte("\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"))
	for i, v := range values {
		if slices.Equal(v, sound) {
			continue
		}
		l, m := newTest(t)
		store(t, m, l.key("d"), v)
		now := t0.Add(20 * time.Millisecond)
		for at := now; at.Before(now.Add(limit.Interval)); at = at.Add(333 * time.Millisecond) {
			if g := take(t, l, at, Request{Limit: limit, Want: 3}); len(g.Permits) > 0 || g.Err != nil {
				t.Fatalf("value %d (%x): %d permits after %v, %v", i, v, len(g.Permits), at.Sub(t0), g.Err)
			}
		}
		if g := take(t, l, now.Add(limit.Interval+time.Second), Request{Limit: limit, Want: 3}); len(g.Permits) != 3 {
			t.Fatalf("value %d (%x): %d permits after a window", i, v, len(g.Permits))
		}
	}
}

func store(t *testing.T, m *state.Memory, key string, value []byte) {
	t.Helper()
	errs := m.Update(t.Context(), t0, []string{key}, []time.Duration{time.Hour}, func(int, state.Entry) []byte { return value })
	if errs != nil {
		t.Fatal(errs)
	}
}

// damagedRules is a RuleStore that a disk has changed.
type damagedRules struct {
	RuleStore
	change func(*Rule)
}

func (d *damagedRules) LoadRules(ctx context.Context) ([]Rule, int64, error) {
	rules, version, err := d.RuleStore.LoadRules(ctx)
	for i := range rules {
		d.change(&rules[i])
	}
	return rules, version, err
}

// TestDamagedRuleLiftsNoLimit: a rule that cannot be read pauses what it names.
func TestDamagedRuleLiftsNoLimit(t *testing.T) {
	now := time.Unix(1000, 0)
	for name, change := range map[string]func(*Rule){
		"max 0":             func(r *Rule) { r.Limit.Max = 0 },
		"max negative":      func(r *Rule) { r.Limit.Max = -5 },
		"max too large":     func(r *Rule) { r.Limit.Max = math.MaxInt64 },
		"interval 0":        func(r *Rule) { r.Limit.Interval = 0 },
		"interval negative": func(r *Rule) { r.Limit.Interval = math.MinInt64 },
		"mode":              func(r *Rule) { r.Limit.Mode = 200 },
		"guard":             func(r *Rule) { r.Limit.Guard = -1 },
		"weight":            func(r *Rule) { n := -1; r.Weight = &n },
	} {
		t.Run(name, func(t *testing.T) {
			memory := NewMemoryRules()
			for _, pattern := range []string{"*", "mail.*"} {
				if _, err := SetLimit(t.Context(), memory, now, pattern, mustLimit(t, "5/1s")); err != nil {
					t.Fatal(err)
				}
			}
			rules := NewRules(&damagedRules{memory, func(r *Rule) {
				if r.Pattern == "mail.*" {
					limit := *r.Limit
					r.Limit = &limit
					change(r)
				}
			}}, nil)
			if err := rules.Reload(t.Context(), now); err != nil {
				t.Fatal(err)
			}
			if r := rules.Resolve("mail.a"); !r.Paused {
				t.Errorf("what a damaged rule names: %+v", r)
			}
			if r := rules.Resolve("x"); r.Paused || r.Limit.Max != 5 {
				t.Errorf("others: %+v", r)
			}
		})
	}
	memory := NewMemoryRules()
	if _, err := SetLimit(t.Context(), memory, now, "*", mustLimit(t, "5/1s")); err != nil {
		t.Fatal(err)
	}
	damaged := &damagedRules{memory, func(r *Rule) { r.Pattern = "" }}
	if err := NewRules(damaged, nil).Reload(t.Context(), now); !errors.Is(err, ErrPattern) {
		t.Errorf("pattern lost: %v", err)
	}
	damaged.change = func(r *Rule) { r.Was = &Limit{Max: -1, Interval: -1} }
	rules := NewRules(damaged, nil)
	if err := rules.Reload(t.Context(), now); err != nil {
		t.Fatal(err)
	}
	if was := rules.Resolve("x").Was; was == nil || was.Validate() != nil {
		t.Errorf("Was is %v", was)
	}
}
