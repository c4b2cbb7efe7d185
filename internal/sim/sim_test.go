package sim

import (
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"testing/cryptotest"
	"testing/synctest"
	"time"
)

// simulate runs a plan and returns what happened.
func simulate(t *testing.T, p *plan, bugs defects) (w *world) {
	t.Helper()
	cryptotest.SetGlobalRandom(t, p.seed)
	synctest.Test(t, func(*testing.T) {
		w = newWorld(p)
		w.bugs = bugs
		w.run()
	})
	return w
}

func setting(name string, def int) int {
	if n, err := strconv.Atoi(os.Getenv(name)); err == nil {
		return n
	}
	return def
}

func TestSim(t *testing.T) {
	n := setting("MVALVE_SIM_SEEDS", 200)
	first := setting("MVALVE_SEED", 0)
	var virtual time.Duration
	faults, dispatched, calls, events := 0, 0, 0, 0
	begin := time.Now()
	for i := range n {
		seed := uint64(first + i)
		t.Run(strconv.Itoa(first+i), func(t *testing.T) {
			w := simulate(t, newPlan(seed), defects{})
			virtual += w.history[len(w.history)-1].at
			for _, n := range w.fired {
				faults += n
			}
			faults += w.hung
			calls += w.calls
			events += len(w.history)
			for _, e := range w.history {
				if e.kind == kDispatch {
					dispatched++
				}
			}
			if n == 1 {
				for _, e := range w.history {
					t.Log(e)
				}
			}
			for _, v := range judge(w.plan, w.history, w.overtime) {
				t.Errorf("seed %d (calm %v): %v", seed, w.plan.calm, v)
			}
		})
	}
	t.Logf("%d seeds, %v virtual, %d faults, %d dispatches, %d calls, %d events, %v", n, virtual, faults, dispatched, calls, events, time.Since(begin))
	_ = rand.Int
}
