package proof_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mvalve/mvalve/internal/checker"
	"github.com/mvalve/mvalve/valve"
)

type limited struct {
	destination, text string
	checker.Limit
}

// limits are one destination each; all have a backlog at the same time.
var limits = []limited{
	{"one", "1/1.4s", checker.Limit{Max: 1, Window: 1400 * time.Millisecond}},
	{"quick", "10/100ms", checker.Limit{Max: 10, Window: 100 * time.Millisecond}},
	{"ten", "10/1s", checker.Limit{Max: 10, Window: time.Second}},
	{"hundred", "100/1s", checker.Limit{Max: 100, Window: time.Second}},
	{"thousand", "1000/1s", checker.Limit{Max: 1000, Window: time.Second}},
}

// TestExact: any number of reader processes together never exceed a limit and
// use it up.
func TestExact(t *testing.T) {
	counts := shortOrLong([]int{3}, []int{1, 2, 4, 8})
	span := shortOrLong(3500*time.Millisecond, time.Minute)
	for _, backend := range backends {
		for _, n := range counts {
			t.Run(fmt.Sprintf("%s/%d readers", backend, n), func(t *testing.T) {
				exact(t, backend, n, span)
			})
		}
	}
}

func exact(t *testing.T, backend string, n int, span time.Duration) {
	p := newPipe(t, backend)
	p.limit(t, "day", "5/24h")
	p.write(t, backlog(10, "day"))
	for _, l := range limits {
		p.limit(t, l.destination, l.text)
		most := int(float64(l.Max)*(float64(span+shortOrLong(20*time.Second, 8*time.Second))/float64(l.Window)+3)) + 50
		p.write(t, backlog(most, l.destination))
	}
	readers := p.readers(t, n)
	begin := warm(t, readers)
	measure(span)
	used := goOn(func() bool {
		log := dispatches(t, readers...)
		return len(log["day"]) >= 5 && !slices.ContainsFunc(limits, func(l limited) bool { return usedFrom(begin, log[l.destination], l.Limit) < shortUse })
	})
	if len(dispatches(t, readers...)["day"]) < 5 {
		t.Log(p.mvalve(t, "explain", "day"))
	}
	stopAll(t, readers...)
	log := dispatches(t, readers...)
	for _, l := range limits {
		judgeFrom(t, begin, log, l.destination, l.Limit, unless(used, use(l.Limit)))
	}
	if got := len(log["day"]); got != 5 {
		t.Errorf("day: %d dispatched of 10 at 5/24h, want 5", got)
	}
}

// warm waits until all readers are at work and the windows they share have been
// full once, and returns that moment: from then on the use is judged. Eight
// processes that start at once on two processors take a second to get there.
func warm(t *testing.T, readers []*process) time.Time {
	t.Helper()
	waitFor(t, patience, "all readers print", func() bool {
		return !slices.ContainsFunc(readers, func(r *process) bool { return r.lines() == 0 })
	})
	measure(shortOrLong(0, 3*time.Second))
	return time.Now()
}

// TestExactAlone is each limit with nothing beside it.
func TestExactAlone(t *testing.T) {
	if !long {
		t.Skip("long form only: TestExact covers the same limits together")
	}
	for _, backend := range backends {
		for _, l := range limits {
			t.Run(backend+"/"+strings.ReplaceAll(l.text, "/", " in "), func(t *testing.T) {
				p := newPipe(t, backend)
				p.limit(t, l.destination, l.text)
				p.write(t, backlog(int(float64(l.Max)*(float64(20*time.Second)/float64(l.Window)+3))+50, l.destination))
				readers := p.readers(t, 2)
				measure(20 * time.Second)
				stopAll(t, readers...)
				judge(t, dispatches(t, readers...), l.destination, l.Limit, use(l.Limit))
			})
		}
	}
}

// TestReaderKilled: one of three readers is killed every two seconds and
// started again. Its permits are lost, which may cost a little of the rate.
func TestReaderKilled(t *testing.T) {
	for _, backend := range shortOrLong([]string{onMemcached}, backends) {
		t.Run(backend, func(t *testing.T) {
			alone(t)
			p := newPipe(t, backend)
			limit := checker.Limit{Max: 100, Window: time.Second}
			span := shortOrLong(6*time.Second, 40*time.Second)
			p.limit(t, "*", "100/1s")
			p.write(t, backlog(100*int(span/time.Second)+2000, "a", "b"))
			begin := time.Now()
			live := p.readers(t, 3)
			all := slices.Clone(live)
			for i := range int(span / (2 * time.Second)) {
				measure(2 * time.Second)
				victim := i % len(live)
				waitFor(t, patience, "the victim is at work", live[victim].atWork)
				live[victim].kill()
				live[victim] = p.reader(t)
				all = append(all, live[victim])
			}
			measure(time.Second)
			used := goOn(func() bool {
				log := dispatches(t, all...)
				return usedFrom(begin, log["a"], limit) >= shortUse && usedFrom(begin, log["b"], limit) >= shortUse
			})
			stopAll(t, live...)
			log := dispatches(t, all...)
			for _, destination := range []string{"a", "b"} {
				judgeFrom(t, begin, log, destination, limit, unless(used, shortOrLong(shortUse, 0.95)))
			}
		})
	}
}

// TestProgramAndCommand: a program that uses the library with its defaults counts
// together with the commands.
func TestProgramAndCommand(t *testing.T) {
	p := newPipe(t, onSQLite)
	p.limit(t, "a", "10/1s")
	p.write(t, backlog(1500, "a"))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	store, err := p.open(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	r, err := valve.OpenReader(ctx, store, valve.ReaderConfig{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var mu sync.Mutex
	var own []int64
	stamps := func() []int64 {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(own)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for d, err := range r.All(ctx) {
			if err != nil {
				return
			}
			mu.Lock()
			own = append(own, d.DispatchedAt.UnixMicro())
			mu.Unlock()
			_ = d.Ack(context.WithoutCancel(ctx))
		}
	}()
	waitFor(t, patience, "the program dispatches", func() bool { return len(stamps()) > 0 })
	command, limit := p.reader(t, "--destination", "a"), checker.Limit{Max: 10, Window: time.Second}
	waitFor(t, patience, "the command is at work, too", command.atWork)
	measure(4 * time.Second)
	used := goOn(func() bool {
		return usedFrom(time.Time{}, append(stamps(), dispatches(t, command)["a"]...), limit) >= shortUse
	})
	together := command.lines()
	cancel()
	<-done
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	// Where one of two is asked first, the other may have had nothing so far.
	waitFor(t, patience, "the command dispatches alone", func() bool { return command.lines() > together })
	stopAll(t, command)
	log := dispatches(t, command)
	t.Logf("the program dispatched %d, the command %d meanwhile and %d in all", len(own), together, len(log["a"]))
	log["a"] = append(log["a"], own...)
	judge(t, log, "a", limit, unless(used, shortUse))
}

// TestTwoDefaults: two readers started with different --limit apply one, and the
// second says so.
func TestTwoDefaults(t *testing.T) {
	alone(t)
	p := newPipe(t, onSQLite)
	p.write(t, backlog(1500, "a"))
	first, limit := p.reader(t, "--limit", "10/1s"), checker.Limit{Max: 10, Window: time.Second}
	waitFor(t, patience, "the first reader prints", func() bool { return first.lines() > 0 })
	second := p.reader(t, "--limit", "1000/1s")
	waitFor(t, patience, "the second reader is at work, too", second.atWork)
	measure(3 * time.Second)
	used := goOn(func() bool { return usedFrom(time.Time{}, dispatches(t, first, second)["a"], limit) >= shortUse })
	together := second.lines()
	stopAll(t, first)
	// Where one of two is asked first, the other may have had nothing so far.
	waitFor(t, patience, "the second reader dispatches alone", func() bool { return second.lines() > together })
	measure(limit.Window)
	stopAll(t, second)
	judge(t, dispatches(t, first, second), "a", limit, unless(used, use(limit)))
	if !strings.Contains(second.stderr(), "10/1s") {
		t.Errorf("the second reader does not say that 10/1s stands: %q", second.stderr())
	}
}
