package sim

import (
	"time"

	"github.com/mvalve/mvalve/internal/checker"
	"github.com/mvalve/mvalve/throttle"
)

// fairIndex is the least Jain index of three destinations with a backlog, over
// any span of 40 ms, in which consumers take about a hundred messages.
const fairIndex = 0.9

// shares judges runs with a backlog all the time: how much of a limit is used, and
// how destinations share the consumers.
func (o *oracle) shares() {
	end := o.h[len(o.h)-1].at
	if o.plan.fair {
		index, at, ok := checker.Fairness(o.sent, 40*time.Millisecond)
		if !ok || index < fairIndex {
			o.blame(ruleFair, end, "the least share index is %.3f (%v), from %s on; at least %.2f is promised", index, ok, shortTime(at), fairIndex)
		}
	}
	if o.plan.full == "" {
		return
	}
	l := mustLimit(o.plan.full)
	least := leastUse(l)
	r := checker.Check("d0", o.sent["d0"], checker.Limit{Max: int(l.Max), Window: l.Window()})
	if r.Used < least {
		o.blame(ruleUse, end, "%.4f of %v is used; at least %.4f is promised", r.Used, l, least)
	}
	if r.Above > 0 {
		o.blame(ruleWindow, end, "%d windows are above %v", r.Above, l)
	}
}

// leastUse is the promise: 99 % where the interval is a second or more, below that
// all but 10 ms of each; paced dispatches keep one place of Max free.
func leastUse(l throttle.Limit) float64 {
	least := 0.99
	if l.Interval < time.Second {
		least = 1 - float64(10*time.Millisecond)/float64(l.Interval)
	}
	if l.Mode == throttle.Paced {
		least *= float64(l.Max-1) / float64(l.Max)
	}
	return least
}
