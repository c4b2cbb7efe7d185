package throttle

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestRuleBounds(t *testing.T) {
	n := func(i int) *int { return &i }
	for _, c := range []struct {
		weight, inFlight *int
		good             bool
	}{
		{nil, nil, true},
		{n(1), n(0), true}, {n(MaxWeight), n(1), true}, {n(500), nil, true},
		{n(0), nil, false}, {n(-1), nil, false}, {n(MaxWeight + 1), nil, false},
		{nil, n(-1), false},
	} {
		r := Rule{Pattern: "a", Weight: c.weight, MaxInFlight: c.inFlight}
		if err := r.Validate(); (err == nil) != c.good {
			t.Errorf("weight %v, max in flight %v: %v", c.weight, c.inFlight, err)
		}
		if r.IsEmpty() != (c.weight == nil && c.inFlight == nil) {
			t.Errorf("weight %v, max in flight %v: empty is %v", c.weight, c.inFlight, r.IsEmpty())
		}
		store := NewMemoryRules()
		if _, err := SetShare(t.Context(), store, t0, "a", c.weight, c.inFlight); (err == nil) != c.good {
			t.Errorf("SetShare of %v, %v: %v", c.weight, c.inFlight, err)
		}
	}
	longest := strings.Repeat("x", MaxPattern)
	if err := (Rule{Pattern: longest}).Validate(); err != nil {
		t.Errorf("the longest pattern: %v", err)
	}
	if err := (Rule{Pattern: longest + "x"}).Validate(); !errors.Is(err, ErrPattern) {
		t.Errorf("a longer one: %v", err)
	}
}

func TestSetDefaultWhereNothingIs(t *testing.T) {
	ctx, store := t.Context(), NewMemoryRules()
	weight := 3
	if _, err := SetShare(ctx, store, t0, "a", &weight, nil); err != nil {
		t.Fatal(err)
	}
	for _, pattern := range []string{"a", "b"} {
		r, err := SetDefault(ctx, store, t0, pattern, mustLimit(t, "7/1s"))
		if err != nil || r.Limit == nil || r.Limit.Max != 7 {
			t.Errorf("%s: %+v, %v", pattern, r, err)
		}
	}
	rules, _, err := store.LoadRules(ctx)
	if err != nil || len(rules) != 2 || rules[0].Weight == nil || *rules[0].Weight != 3 {
		t.Errorf("%+v, %v", rules, err)
	}
}

// What a limit says to have been before it: the one before and, within two days,
// also the one before that, unless it allowed no more.
func TestWhatWasBefore(t *testing.T) {
	const long = pruneAfter
	for _, c := range []struct {
		first, second string
		apart         time.Duration
		want          string
	}{
		{"none", "none", 0, "none"},
		{"10/1s", "20/5s", long, "20/1s"},
		{"10/1s", "20/5s", long + 1, "20/5s"},
		{"10/1s", "5/1s paced", time.Minute, "10/1s"},
		{"10/5s", "20/1s paced", time.Minute, "20/1s paced"},
		{"10/5s", "20/1s guard=1s", time.Minute, "20/1s guard=1s"},
		{"30/5s", "20/1s", time.Minute, "30/1s"},
		{"10/1s", "none", time.Minute, "10/1s"},
		{"10/1s", "none", long + 1, "none"},
	} {
		ctx, store := t.Context(), NewMemoryRules()
		for i, text := range []string{c.first, c.second} {
			if _, err := SetLimit(ctx, store, t0.Add(time.Duration(i)*time.Second), "d", mustLimit(t, text)); err != nil {
				t.Fatal(err)
			}
		}
		r, err := SetLimit(ctx, store, t0.Add(time.Second+c.apart), "d", mustLimit(t, "1/7s"))
		if err != nil {
			t.Fatal(err)
		}
		was := Limit{}
		if r.Was != nil {
			was = *r.Was
		}
		if was.String() != c.want {
			t.Errorf("%s, then %s, %v later another: was %v, want %s", c.first, c.second, c.apart, was, c.want)
		}
	}
}

// A rule that is set again as it is does not count as changed, another share
// does not either.
func TestUnchangedLimit(t *testing.T) {
	ctx, store := t.Context(), NewMemoryRules()
	for i := range 3 {
		r, err := SetLimit(ctx, store, t0.Add(time.Duration(i)*time.Hour), "d", mustLimit(t, "1/1s"))
		if err != nil || !r.ChangedAt.Equal(t0) || r.Was != nil {
			t.Errorf("set again: %+v, %v", r, err)
		}
	}
	weight := 2
	r, err := SetShare(ctx, store, t0.Add(time.Hour), "new", &weight, nil)
	if err != nil || !r.ChangedAt.Equal(t0.Add(time.Hour)) {
		t.Errorf("a new rule without a limit: %+v, %v", r, err)
	}
}

// A rule that says nothing is kept for two days and the longest window that
// there is, and the one that changed last for ever.
func TestPruneRulesAfterTheLongestWindow(t *testing.T) {
	ctx := t.Context()
	for _, c := range []struct {
		limit string
		age   time.Duration
		kept  bool
	}{
		{"1/1s", 48 * time.Hour, true},
		{"1/1s", 48*time.Hour + 2*time.Second, false},
		{"1/100h", 148 * time.Hour, true},
		{"1/100h", 148*time.Hour + time.Second, false},
		{"1/50h guard=50h", 148 * time.Hour, true},
	} {
		store, now := NewMemoryRules(), t0
		put := func(pattern string, at time.Time, limit *Limit) {
			t.Helper()
			if _, err := store.PutRule(ctx, at, Rule{Pattern: pattern, ChangedAt: at, Limit: limit}, false); err != nil {
				t.Fatal(err)
			}
		}
		limit := mustLimit(t, c.limit)
		put("old", now.Add(-c.age), nil)
		put("longest", now.Add(-1000*time.Hour), &limit)
		put("short", now.Add(-time.Hour), &Limit{Max: 1, Interval: time.Second})
		put("latest", now, nil)
		if err := PruneRules(ctx, store, now); err != nil {
			t.Fatal(err)
		}
		rules, _, err := store.LoadRules(ctx)
		if err != nil {
			t.Fatal(err)
		}
		kept := slices.ContainsFunc(rules, func(r Rule) bool { return r.Pattern == "old" })
		if kept != c.kept || len(rules) < 3 {
			t.Errorf("%s, %v ago: kept %v of %d", c.limit, c.age, kept, len(rules))
		}
	}
}

// Everything that names one destination only is more specific than a glob, and
// of globs the one with more bytes of its own.
func TestMoreSpecificRules(t *testing.T) {
	want := []string{`\*\?`, "a", "b", "longer*", "long*", "?*", "??"}
	rules := make([]Rule, 0, len(want))
	for _, p := range want {
		rules = append(rules, Rule{Pattern: p})
	}
	slices.Reverse(rules)
	var got []string
	for _, r := range newRuleSet(rules, 1).sorted {
		got = append(got, r.Pattern)
	}
	if !slices.Equal(got, want) {
		t.Errorf("order %q, want %q", got, want)
	}
}

// A pattern that ends with a backslash is refused when it is set; one that is
// met all the same takes the byte for itself.
func TestTrailingBackslash(t *testing.T) {
	if !MatchGlob(`a\`, `a\`) || MatchGlob(`a\`, "a") || MatchGlob(`a\`, "ab") {
		t.Error("a backslash at the end")
	}
	for p, want := range map[string]struct {
		n     int
		exact bool
	}{`a\`: {2, true}, `a\*`: {2, true}, `a\\*`: {2, false}, "a?b": {2, false}, "": {0, true}} {
		n, name, exact := literal(p)
		if n != want.n || exact != want.exact || len(name) != n {
			t.Errorf("%q: %d bytes of its own (%q), exact %v", p, n, name, exact)
		}
	}
}

// holdsSince tells since when holds were asked for.
type holdsSince struct {
	RuleStore
	since []time.Time
}

func (s *holdsSince) LoadHolds(ctx context.Context, now, since time.Time) ([]Hold, error) {
	s.since = append(s.since, since)
	return s.RuleStore.LoadHolds(ctx, now, since)
}

// Holds are read from ten seconds before the last time on, because commits come
// late, and remembered as long as they matter.
func TestReloadOfHolds(t *testing.T) {
	ctx, store := t.Context(), &holdsSince{RuleStore: NewMemoryRules()}
	rules := NewRules(store, nil)
	put := func(name string, at time.Time, h Hold) {
		t.Helper()
		h.Destination = name
		if err := store.PutHold(ctx, at, h); err != nil {
			t.Fatal(err)
		}
	}
	reload := func(at time.Time) {
		t.Helper()
		if err := rules.Reload(ctx, at); err != nil {
			t.Fatal(err)
		}
	}
	put("before", t0, Hold{Until: t0.Add(time.Minute)})
	put("over", t0.Add(-time.Hour), Hold{Until: t0})
	put("superseded", t0, Hold{SupersededBefore: t0})
	reload(t0)
	put("late", t0.Add(-10*time.Second), Hold{Until: t0.Add(time.Minute)})
	put("too late", t0.Add(-10*time.Second-1), Hold{Until: t0.Add(time.Minute)})
	reload(t0.Add(time.Second))
	if want := []time.Time{{}, t0.Add(-10 * time.Second)}; !slices.EqualFunc(store.since, want, time.Time.Equal) {
		t.Errorf("holds read since %v, want %v", store.since, want)
	}
	for name, want := range map[string]bool{"before": true, "over": false, "superseded": true, "late": true, "too late": false} {
		if _, ok := rules.Hold(name); ok != want {
			t.Errorf("hold %q known: %v", name, ok)
		}
	}
	reload(t0.Add(24 * time.Hour))
	if _, ok := rules.Hold("before"); ok {
		t.Error("a hold that is over is still known")
	}
	if _, ok := rules.Hold("superseded"); !ok {
		t.Error("what was superseded a day ago is not known")
	}
	reload(t0.Add(24*time.Hour + 1))
	if _, ok := rules.Hold("superseded"); ok {
		t.Error("what was superseded longer ago is still known")
	}
}

// What the first read of holds gives: those that are not over, and those that
// superseded something within a day.
func TestHoldsThatMatter(t *testing.T) {
	ctx, store := t.Context(), NewMemoryRules()
	for name, h := range map[string]Hold{
		"over":            {Until: t0},
		"held":            {Until: t0.Add(1)},
		"superseded":      {SupersededBefore: t0.Add(-24*time.Hour + 1)},
		"superseded long": {SupersededBefore: t0.Add(-24 * time.Hour)},
	} {
		h.Destination = name
		if err := store.PutHold(ctx, t0.Add(-time.Hour), h); err != nil {
			t.Fatal(err)
		}
	}
	names := func(since time.Time) (names []string) {
		t.Helper()
		holds, err := store.LoadHolds(ctx, t0, since)
		if err != nil {
			t.Fatal(err)
		}
		for _, h := range holds {
			names = append(names, h.Destination)
		}
		slices.Sort(names)
		return names
	}
	if got := names(time.Time{}); !slices.Equal(got, []string{"held", "superseded"}) {
		t.Errorf("at first: %q", got)
	}
	if got := names(t0.Add(-time.Hour)); len(got) != 4 {
		t.Errorf("changed since: %q, want all", got)
	}
	if got := names(t0.Add(-time.Hour + 1)); len(got) != 0 {
		t.Errorf("changed since: %q, want none", got)
	}
	if err := store.PruneHolds(ctx, t0.Add(-time.Hour)); err != nil {
		t.Fatal(err)
	}
	if got := names(t0.Add(-2 * time.Hour)); len(got) != 4 {
		t.Errorf("after pruning what is older: %q, want all", got)
	}
	if err := store.Free(ctx, t0, "held"); err != nil {
		t.Fatal(err)
	}
	if err := store.PruneHolds(ctx, t0.Add(1)); err != nil {
		t.Fatal(err)
	}
	if got := names(t0.Add(-2 * time.Hour)); len(got) != 0 {
		t.Errorf("after pruning: %q", got)
	}
}

// oldRules tells an older version than there was.
type oldRules struct {
	RuleStore
	version int64
}

func (o *oldRules) RulesVersion(context.Context) (int64, error) { return o.version, nil }

func (o *oldRules) LoadRules(ctx context.Context) ([]Rule, int64, error) {
	rules, _, err := o.RuleStore.LoadRules(ctx)
	return rules, o.version, err
}

func TestRulesThatGoBackAreTold(t *testing.T) {
	var text bytes.Buffer
	store := &oldRules{NewMemoryRules(), 0}
	rules := NewRules(store, slog.New(slog.NewTextHandler(&text, nil)))
	for _, v := range []int64{5, 5, 7} {
		store.version = v
		if err := rules.Reload(t.Context(), t0); err != nil || rules.Version() != v {
			t.Fatalf("version %d: %v", rules.Version(), err)
		}
	}
	if text.Len() > 0 {
		t.Errorf("logged: %s", &text)
	}
	store.version = 6
	if err := rules.Reload(t.Context(), t0); err != nil || rules.Version() != 6 || !strings.Contains(text.String(), "older") {
		t.Errorf("version %d, %v, logged: %s", rules.Version(), err, &text)
	}
}

// What applies to a destination is remembered, for a bounded number of them.
func TestResolvedRulesAreBounded(t *testing.T) {
	set := newRuleSet(nil, 1)
	for i := range resolvedCap + 2 {
		set.resolve(strconv.Itoa(i))
		if i < 3 && len(set.resolved) != i+1 || len(set.resolved) > resolvedCap {
			t.Fatalf("after %d: %d are remembered", i+1, len(set.resolved))
		}
	}
}

// Without any limit rules are kept for two days, and the only one for ever.
func TestPruneRulesWithoutLimits(t *testing.T) {
	ctx := t.Context()
	for _, c := range []struct {
		ages []time.Duration // of rules without any setting, in order of their versions
		left int
	}{
		{[]time.Duration{1000 * time.Hour}, 1},
		{[]time.Duration{48 * time.Hour, 0}, 2},
		{[]time.Duration{48*time.Hour + 1, 0}, 1},
		{[]time.Duration{1000 * time.Hour, 100 * time.Hour}, 1},
	} {
		store := NewMemoryRules()
		for i, age := range c.ages {
			r := Rule{Pattern: strconv.Itoa(i), ChangedAt: t0.Add(-age)}
			if _, err := store.PutRule(ctx, r.ChangedAt, r, false); err != nil {
				t.Fatal(err)
			}
		}
		if err := PruneRules(ctx, store, t0); err != nil {
			t.Fatal(err)
		}
		rules, _, err := store.LoadRules(ctx)
		if err != nil || len(rules) != c.left || rules[len(rules)-1].Pattern != strconv.Itoa(len(c.ages)-1) {
			t.Errorf("ages %v: left %+v, %v", c.ages, rules, err)
		}
	}
}
