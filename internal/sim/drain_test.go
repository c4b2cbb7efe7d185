package sim

import (
	"context"
	"time"

	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/throttle"
)

// limitedQuiet is how long the run goes on under its limits once faults ended.
const limitedQuiet = 1500 * time.Millisecond

// calmDown ends all faults and starts what is down.
func (w *world) calmDown() {
	w.mu.Lock()
	w.quiet = true
	for i := range w.slots {
		w.slots[i].armed, w.slots[i].stallTo, w.slots[i].skew = nil, time.Time{}, 0
	}
	w.note(event{kind: kQuiet})
	w.mu.Unlock()
}

const (
	// longDrain is how long a destination may need under its limit to be emptied
	// in runs that keep their limits.
	longDrain = 12 * time.Second
	// keptLimits is when they are lifted all the same.
	keptLimits = 40 * time.Second
)

// drain waits until the store is empty but for dead letters. After a while limits
// are lifted, which is one more live change; in half of the runs with faults only
// those that would take too long.
func (w *world) drain() {
	begin := time.Now()
	lifted, kept := false, false
	for {
		last := w.owed.Load() == 0
		n := w.left()
		switch since := time.Since(begin); {
		case n == 0 && last:
			return
		case since > w.patience() || w.busy():
			w.overtime = true
			return
		case since > limitedQuiet && !lifted:
			lifted = true
			w.liftAll(func(dest string) bool { return !w.plan.keep || w.drainTime(dest) > longDrain })
		case since > keptLimits && !kept:
			kept = true
			w.liftAll(func(string) bool { return true })
		}
		pass(50 * time.Millisecond)
	}
}

// mostCalls is far more than any run needs: one that gets there asks in vain, over
// and over.
const mostCalls = 100_000

func (w *world) busy() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.calls > mostCalls
}

// patience is how long a run may take to drain. After the back end's clock went
// back, a reader that starts then waits until it is where the others were.
func (w *world) patience() time.Duration {
	d := 2 * time.Minute
	for _, f := range w.plan.faults {
		if f.kind == fStep {
			d += 2 * f.dur.Abs()
		}
	}
	return d
}

// liftAll lifts the limits of the destinations of the plan that are to be lifted.
func (w *world) liftAll(lifts func(dest string) bool) {
	for i := range w.plan.msgs {
		if dest := w.plan.msgs[i].dest; lifts(dest) {
			w.lift(dest)
		}
	}
}

// drainTime returns how long what is left of a destination takes at least.
func (w *world) drainTime(dest string) time.Duration {
	rules, _, err := w.rules.LoadRules(context.Background())
	if err != nil {
		panic(err)
	}
	var exact, other *throttle.Limit
	for i := range rules {
		switch rules[i].Pattern {
		case dest:
			exact = rules[i].Limit
		case "*":
			other = rules[i].Limit
		}
	}
	if exact == nil {
		exact = other
	}
	if exact == nil || exact.IsNone() {
		return 0
	}
	return exact.Window() * time.Duration(w.leftOf(dest)/exact.Max)
}

// lift removes what keeps a destination waiting, once.
func (w *world) lift(dest string) {
	rules, _, _ := w.rules.LoadRules(context.Background())
	for _, r := range rules {
		if r.Pattern == dest && r.Limit != nil && r.Limit.IsNone() {
			return
		}
	}
	w.setLimit(dest, "none")
}

func (w *world) left() int64 { return w.leftOf("") }

// leftOf counts the messages of a destination, or of all, that have no end yet.
func (w *world) leftOf(dest string) int64 {
	counts, err := w.db.Count(context.Background(), w.now(), dest)
	if err != nil {
		panic(err)
	}
	n := int64(0)
	for _, c := range counts {
		if c.Table != queue.Dead {
			n += c.Waiting + c.Leased
		}
	}
	return n
}
