package queuetest

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/mvalve/mvalve/throttle"
)

var ruleCases = []testCase{
	{"limits", rulesStored},
	{"limit if absent", ruleIfAbsent},
	{"versions only grow", ruleVersions},
	{"holds", holds},
}

func (f *fixture) rules() throttle.RuleStore {
	r, ok := f.store.(throttle.RuleStore)
	if !ok {
		f.Skip("store has no RuleStore")
	}
	return r
}

func (f *fixture) loadRules(s throttle.RuleStore) map[string]throttle.Rule {
	f.Helper()
	rules, version, err := s.LoadRules(f.ctx)
	if err != nil {
		f.Fatal(err)
	}
	highest, err := s.RulesVersion(f.ctx)
	if err != nil {
		f.Fatal(err)
	}
	byName := make(map[string]throttle.Rule)
	var top int64
	for _, r := range rules {
		byName[r.Pattern] = r
		top = max(top, r.Version)
	}
	f.equal([]int64{version, highest}, []int64{top, top})
	return byName
}

func (f *fixture) putRule(s throttle.RuleStore, r throttle.Rule) throttle.Rule {
	f.Helper()
	got, err := s.PutRule(f.ctx, f.now, r, false)
	if err != nil {
		f.Fatal(err)
	}
	return got
}

func rulesStored(f *fixture) {
	s := f.rules()
	f.equal(len(f.loadRules(s)), 0)
	slow := &throttle.Limit{Max: 10, Interval: 1500 * time.Millisecond, Mode: throttle.Paced, Guard: 50 * time.Millisecond}
	fast := &throttle.Limit{Max: 20, Interval: time.Second}
	weight, inFlight, paused, running := 5, 3, true, false
	full := throttle.Rule{Pattern: "Mail-*", Limit: slow, Weight: &weight, MaxInFlight: &inFlight, Paused: &paused}
	first := f.putRule(s, full)
	want := full
	want.Version, want.ChangedAt = first.Version, f.now
	f.equal(first, want)
	f.equal(f.loadRules(s), map[string]throttle.Rule{"Mail-*": want})
	began := f.now

	f.pass(time.Second) // other settings leave what the limit remembers alone
	weight2 := 7
	full.Weight, full.Paused = &weight2, &running
	second := f.putRule(s, full)
	if second.Version <= first.Version || second.Was != nil || !second.ChangedAt.Equal(began) {
		f.Fatalf("after a change of weight: %+v", second)
	}
	f.pass(time.Second)
	full.Limit = fast
	third := f.putRule(s, full)
	if third.Was == nil || *third.Was != *slow || !third.ChangedAt.Equal(f.now) {
		f.Fatalf("after a change of limit: %+v", third)
	}
	f.pass(time.Second)
	gone := f.putRule(s, throttle.Rule{Pattern: "Mail-*"})
	if gone.Was == nil || *gone.Was != *fast || gone.Limit != nil || gone.Weight != nil || gone.Paused != nil {
		f.Fatalf("after removal: %+v", gone)
	}
	f.putRule(s, throttle.Rule{Pattern: "mail-*", Limit: &throttle.Limit{}}) // none; bytes compare
	f.equal(len(f.loadRules(s)), 2)
	if err := s.PruneRules(f.ctx, f.now); err != nil {
		f.Fatal(err)
	}
	f.equal(len(f.loadRules(s)), 2)
	if err := s.PruneRules(f.ctx, f.now.Add(time.Second)); err != nil {
		f.Fatal(err)
	}
	left := f.loadRules(s)
	if len(left) != 1 || left["mail-*"].Limit == nil {
		f.Fatalf("after pruning: %+v", left)
	}
}

func ruleIfAbsent(f *fixture) {
	s := f.rules()
	limit := func(n int64) *throttle.Limit { return &throttle.Limit{Max: n, Interval: time.Second} }
	weight := 2
	f.putRule(s, throttle.Rule{Pattern: "*", Weight: &weight})
	var wg sync.WaitGroup
	stand := make([]int64, 8)
	for i := range stand {
		wg.Go(func() {
			got, err := s.PutRule(f.ctx, f.now, throttle.Rule{Pattern: "*", Limit: limit(int64(i + 1))}, true)
			if err != nil || got.Limit == nil {
				f.Errorf("PutRule: %+v, %v", got, err)
				return
			}
			stand[i] = got.Limit.Max
		})
	}
	wg.Wait()
	if slices.Max(stand) != slices.Min(stand) {
		f.Fatalf("limits that stood: %v, want all the same", stand)
	}
	kept := f.loadRules(s)["*"]
	if kept.Limit.Max != stand[0] || kept.Weight == nil || *kept.Weight != 2 {
		f.Fatalf("stored %+v, want limit %d and the weight that was there", kept, stand[0])
	}
}

func ruleVersions(f *fixture) {
	s := f.rules()
	var last int64
	for i := range 5 {
		got := f.putRule(s, throttle.Rule{Pattern: fmt.Sprint("p", i), Paused: new(bool)})
		if got.Version <= last {
			f.Fatalf("version %d after %d", got.Version, last)
		}
		last = got.Version
	}
	last = f.putRule(s, throttle.Rule{Pattern: "p4"}).Version // newest of all, then pruned
	if err := s.PruneRules(f.ctx, f.now.Add(time.Hour)); err != nil {
		f.Fatal(err)
	}
	if got := f.putRule(s, throttle.Rule{Pattern: "p0"}).Version; got <= last {
		f.Fatalf("version %d after %d was pruned", got, last)
	}
}

func holds(f *fixture) {
	s := f.rules()
	put := func(h throttle.Hold) {
		f.Helper()
		if err := s.PutHold(f.ctx, f.now, h); err != nil {
			f.Fatal(err)
		}
	}
	load := func(since time.Time) []throttle.Hold {
		f.Helper()
		got, err := s.LoadHolds(f.ctx, f.now, since)
		if err != nil {
			f.Fatal(err)
		}
		slices.SortFunc(got, func(a, b throttle.Hold) int { return strings.Compare(a.Destination, b.Destination) })
		return got
	}
	start := f.now
	a := throttle.Hold{Destination: "a", Until: start.Add(time.Minute), Reason: "429", ChangedAt: start}
	put(a)
	put(throttle.Hold{Destination: "b", SupersededBefore: start, Reason: "emergency"})
	f.equal(load(time.Time{}), []throttle.Hold{a,
		{Destination: "b", SupersededBefore: start, Reason: "emergency", ChangedAt: start}})

	f.pass(time.Second) // never moves back, each value on its own
	put(throttle.Hold{Destination: "a", Until: start.Add(time.Second), SupersededBefore: start})
	a.SupersededBefore = start
	got := load(f.now)
	if len(got) != 1 || !got[0].Until.Equal(a.Until) || !got[0].SupersededBefore.Equal(start) || !got[0].ChangedAt.Equal(f.now) {
		f.Fatalf("shortened hold is %+v", got)
	}
	put(throttle.Hold{Destination: "a", Until: start.Add(time.Hour), Reason: "longer"})
	if got = load(f.now); len(got) != 1 || !got[0].Until.Equal(start.Add(time.Hour)) || got[0].Reason != "longer" {
		f.Fatalf("lengthened hold is %+v", got)
	}
	put(throttle.Hold{Destination: "a", Until: start.Add(time.Minute), RestUntil: start.Add(time.Minute), Reason: "429"})
	put(throttle.Hold{Destination: "a", Until: start.Add(2 * time.Hour), RestUntil: start.Add(time.Second), Reason: "emergency"})
	want := throttle.Hold{
		Destination: "a", Until: start.Add(2 * time.Hour), RestUntil: start.Add(time.Minute), SupersededBefore: start,
		Reason: "emergency", ChangedAt: f.now,
	}
	f.equal(load(f.now), []throttle.Hold{want})
	f.pass(time.Second)
	if err := s.Free(f.ctx, f.now, "a"); err != nil {
		f.Fatal(err)
	}
	if got = load(f.now); len(got) != 1 || !got[0].Until.Equal(f.now) || !got[0].RestUntil.Equal(f.now) || !got[0].ChangedAt.Equal(f.now) {
		f.Fatalf("freed hold is %+v", got)
	}
	f.pass(time.Second)
	f.equal(len(load(f.now)), 0)
	if err := s.Free(f.ctx, f.now, "never held"); err != nil {
		f.Fatal(err)
	}
	f.pass(25 * time.Hour)
	f.equal(len(load(time.Time{})), 0) // superseded a day ago matters no more
	if err := s.PruneHolds(f.ctx, f.now); err != nil {
		f.Fatal(err)
	}
	f.equal(len(load(start)), 0)
	put(throttle.Hold{Destination: "a", Until: f.now.Add(time.Hour)})
	if err := s.PruneHolds(f.ctx, f.now.Add(time.Minute)); err != nil {
		f.Fatal(err)
	}
	f.equal(len(load(time.Time{})), 1)
}
