package throttle

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

func TestRules(t *testing.T) {
	ctx, store, now := t.Context(), NewMemoryRules(), time.Unix(1000, 0)
	rules := NewRules(store, nil)
	set := func(pattern, limit string) {
		t.Helper()
		if _, err := SetLimit(ctx, store, now, pattern, mustLimit(t, limit)); err != nil {
			t.Fatal(err)
		}
	}
	set("*", "10/1s")
	set("mail.*", "20/1s")
	set("mail.?", "30/1s")
	set("mail.a", "40/1s")
	set(`star\*`, "50/1s")
	set("free.*", "none")
	weight := 7
	if _, err := SetShare(ctx, store, now, "mail.*", &weight, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := Pause(ctx, store, now, "mail.a"); err != nil {
		t.Fatal(err)
	}
	if err := rules.Reload(ctx, now); err != nil {
		t.Fatal(err)
	}
	for dest, want := range map[string]string{
		"x": "10/1s * 1 false", "mail.a": "40/1s mail.a 7 true", "mail.bc": "20/1s mail.* 7 false",
		"mail.b": "20/1s mail.* 7 false", // as literal as mail.?, and * sorts before ?
		"star*":  `50/1s star\* 1 false`, "star": "10/1s * 1 false", "free.x": "none free.* 1 false",
	} {
		for range 2 { // the second answer is remembered
			r := rules.Resolve(dest)
			if got := fmt.Sprint(r.Limit, " ", r.Pattern, " ", r.Weight, " ", r.Paused); got != want {
				t.Errorf("%s: %s, want %s", dest, got, want)
			}
		}
	}

	later := now.Add(time.Hour)
	if _, err := RemoveLimit(ctx, store, later, "mail.a"); err != nil {
		t.Fatal(err)
	}
	if got := rules.Resolve("mail.a").Limit.Max; got != 40 {
		t.Errorf("a change counts before Reload: %d", got)
	}
	if err := rules.Reload(ctx, later); err != nil {
		t.Fatal(err)
	}
	r := rules.Resolve("mail.a")
	if r.Limit.Max != 20 || r.Was == nil || r.Was.Max != 40 || !r.Changed.Equal(later) || !r.Paused {
		t.Errorf("after removal: %+v", r)
	}
}

func TestRulesRememberWhatWas(t *testing.T) {
	ctx, store, now := t.Context(), NewMemoryRules(), time.Unix(1000, 0)
	steps := []struct{ limit, was string }{
		{"10/1s", "none"}, {"10/1s", "none"}, {"5/60s", "10/1s"}, {"100/120s", "10/1s"},
	}
	for i, s := range steps {
		r, err := SetLimit(ctx, store, now.Add(time.Duration(i)*time.Minute), "*", mustLimit(t, s.limit))
		if err != nil {
			t.Fatal(err)
		}
		was := Limit{}
		if r.Was != nil {
			was = *r.Was
		}
		if was.String() != s.was {
			t.Errorf("step %d: was %v, want %s", i, was, s.was)
		}
	}
	r, err := SetLimit(ctx, store, now.Add(time.Hour), "new.example", mustLimit(t, "1/1s"))
	if err != nil || r.Was == nil {
		t.Fatalf("a new exact rule does not know what * said: %+v, %v", r, err)
	}
	r, err = SetDefault(ctx, store, now, "*", mustLimit(t, "1/1s"))
	if err != nil || r.Limit.String() != "100/2m" {
		t.Errorf("SetDefault: %+v, %v; the one before stands", r, err)
	}
}

func TestPruneRulesKeepsTheLatest(t *testing.T) {
	ctx, store, now := t.Context(), NewMemoryRules(), time.Unix(1e9, 0)
	for i, pattern := range []string{"a", "b"} {
		at := now.Add(time.Duration(i) * time.Hour)
		if _, err := SetLimit(ctx, store, at, pattern, mustLimit(t, "1/1s")); err != nil {
			t.Fatal(err)
		}
		if _, err := RemoveLimit(ctx, store, at, pattern); err != nil {
			t.Fatal(err)
		}
	}
	if err := PruneRules(ctx, store, now.Add(1000*time.Hour)); err != nil {
		t.Fatal(err)
	}
	rules, _, _ := store.LoadRules(ctx)
	if len(rules) != 1 || rules[0].Pattern != "b" {
		t.Errorf("left: %+v, want only b, whose version is the highest", rules)
	}
}

func TestHolds(t *testing.T) {
	ctx, store, now := t.Context(), NewMemoryRules(), time.Unix(1e9, 0)
	rules := NewRules(store, nil)
	reload := func(at time.Time) {
		t.Helper()
		if err := rules.Reload(ctx, at); err != nil {
			t.Fatal(err)
		}
	}
	reload(now)
	if err := store.PutHold(ctx, now, Hold{Destination: "d", Until: now.Add(time.Minute), Reason: "429"}); err != nil {
		t.Fatal(err)
	}
	if err := store.PutHold(ctx, now, Hold{Destination: "d", Until: now.Add(time.Second)}); err != nil {
		t.Fatal(err)
	}
	reload(now)
	if h, ok := rules.Hold("d"); !ok || !h.Until.Equal(now.Add(time.Minute)) {
		t.Errorf("hold %+v, %v; a shorter one must not shorten it", h, ok)
	}
	if err := store.Free(ctx, now.Add(time.Second), "d"); err != nil {
		t.Fatal(err)
	}
	reload(now.Add(2 * time.Second))
	if h, ok := rules.Hold("d"); ok {
		t.Errorf("still held: %+v", h)
	}
}

// hangingRules answers nothing until the call's context ends.
type hangingRules struct{ RuleStore }

func (hangingRules) RulesVersion(ctx context.Context) (int64, error) {
	<-ctx.Done()
	return 0, ctx.Err()
}

func TestReloadDoesNotWaitForOneThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rules := NewRules(hangingRules{}, nil)
		first, end := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- rules.Reload(first, time.Now()) }()
		synctest.Wait()
		second, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := rules.Reload(second, time.Now()); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Reload beside one that hangs: %v, want that its time is over", err)
		}
		end()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("the one that hung: %v", err)
		}
	})
}

// slowHolds tells the holds as they were before during was called.
type slowHolds struct {
	RuleStore
	during func()
}

func (s slowHolds) LoadHolds(ctx context.Context, now, since time.Time) ([]Hold, error) {
	holds, err := s.RuleStore.LoadHolds(ctx, now, since)
	s.during()
	return holds, err
}

// A hold that is set while holds are read is not undone by what was read before.
func TestNoteDuringReload(t *testing.T) {
	ctx, store, now := t.Context(), NewMemoryRules(), time.Unix(1e9, 0)
	var rules *Rules
	hold := func(d time.Duration) {
		t.Helper()
		h := Hold{Destination: "d", Until: now.Add(d), Reason: "429"}
		if err := store.PutHold(ctx, now, h); err != nil {
			t.Fatal(err)
		}
		rules.Note(h)
	}
	rules = NewRules(slowHolds{store, func() { hold(time.Hour) }}, nil)
	hold(time.Second)
	for range 2 {
		if err := rules.Reload(ctx, now); err != nil {
			t.Fatal(err)
		}
		if h, ok := rules.Hold("d"); !ok || !h.Until.Equal(now.Add(time.Hour)) {
			t.Errorf("hold %+v, %v; want one hour", h, ok)
		}
	}
}

// A shorter hold that is set while holds are read does not hide a longer one of
// another reader.
func TestShorterNoteDuringReload(t *testing.T) {
	ctx, store, now := t.Context(), NewMemoryRules(), time.Unix(1e9, 0)
	if err := store.PutHold(ctx, now, Hold{Destination: "d", Until: now.Add(time.Hour), Reason: "429"}); err != nil {
		t.Fatal(err)
	}
	var rules *Rules
	rules = NewRules(slowHolds{store, func() { rules.Note(Hold{Destination: "d", Until: now.Add(time.Second), Reason: "429"}) }}, nil)
	if err := rules.Reload(ctx, now); err != nil {
		t.Fatal(err)
	}
	if h, ok := rules.Hold("d"); !ok || !h.Until.Equal(now.Add(time.Hour)) {
		t.Errorf("hold %+v, %v; want one hour", h, ok)
	}
}
