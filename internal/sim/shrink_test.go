package sim

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// shrinkTime bounds the search for a shorter history, in real time.
const shrinkTime = 20 * time.Second

// report says what is wrong with a run, and shows the shortest plan and history
// that still break one of the same rules.
func report(t *testing.T, p *plan, w *world, found []violation) {
	t.Helper()
	for _, v := range found {
		t.Errorf("seed %d: %v", p.seed, v)
	}
	t.Logf("again: make sim SEED=%d SEEDS=1, or MVALVE_SEED=%d go test ./internal/sim -run TestSim -v", p.seed, p.seed)
	p, w, found = shrink(t, p, w, found, w.bugs)
	var b strings.Builder
	fmt.Fprintf(&b, "shortest found: %d faults, %d messages, %v of load; %v\n", len(p.faults), len(p.msgs), p.load, found[0])
	for _, f := range p.faults {
		fmt.Fprintf(&b, "  fault %v\n", f)
	}
	for _, e := range w.history {
		switch e.kind {
		case kWaits, kServed, kAsked, kHoldsSeen, kHoldTold, kInserted, kEnds, kProbe:
		default:
			fmt.Fprintf(&b, "  %v\n", e)
		}
		if e.at > found[0].at+10*time.Millisecond {
			break
		}
	}
	t.Log(b.String())
}

// shrink leaves out of a plan what a violation of the same rule does not need.
func shrink(t *testing.T, p *plan, w *world, found []violation, bugs defects) (*plan, *world, []violation) {
	t.Helper()
	rule, end := found[0].rule, time.Now().Add(shrinkTime)
	try := func(q *plan) bool {
		if time.Now().After(end) {
			return false
		}
		x := simulate(t, q, bugs)
		for _, v := range judge(x) {
			if v.rule == rule {
				p, w, found = q, x, []violation{v}
				return true
			}
		}
		return false
	}
	// Parts first, then one by one.
	for size := max(len(p.faults), 1); size > 0; size /= 2 {
		for at := 0; at < len(p.faults); {
			q := *p
			q.faults = slices.Delete(slices.Clone(p.faults), at, min(at+size, len(p.faults)))
			if !try(&q) {
				at += size
			}
		}
	}
	for size := max(len(p.msgs)/2, 1); size > 0; size /= 2 {
		for at := 0; at < len(p.msgs); {
			q := *p
			q.msgs = slices.Delete(slices.Clone(p.msgs), at, min(at+size, len(p.msgs)))
			if !try(&q) {
				at += size
			}
		}
	}
	return p, w, found
}
