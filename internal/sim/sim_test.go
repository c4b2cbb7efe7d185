package sim

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/cryptotest"
	"testing/synctest"
	"time"
)

// hangTime is how long one seed may take: then it hangs.
const hangTime = 3 * time.Minute

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

// manyFaults are enough that faults meet each other.
const manyFaults = 10

// figures are what was covered.
type figures struct {
	Seeds, Calm, Faults, Dispatches, Calls, Failed int
	Least, Many                                    int // the least faults of a seed that has any; seeds with manyFaults or more
	Looks                                          int // for messages that wait in vain, of destinations with a limit
	Virtual                                        time.Duration
	Kinds                                          map[string]int
}

func (f *figures) add(g figures) {
	if f.Seeds == f.Calm || g.Seeds > g.Calm && g.Least < f.Least {
		f.Least = g.Least
	}
	f.Seeds, f.Calm, f.Faults, f.Dispatches = f.Seeds+g.Seeds, f.Calm+g.Calm, f.Faults+g.Faults, f.Dispatches+g.Dispatches
	f.Calls, f.Failed, f.Virtual = f.Calls+g.Calls, f.Failed+g.Failed, f.Virtual+g.Virtual
	f.Looks, f.Many = f.Looks+g.Looks, f.Many+g.Many
	if f.Kinds == nil {
		f.Kinds = make(map[string]int)
	}
	for k, n := range g.Kinds {
		f.Kinds[k] += n
	}
}

func (f *figures) count(w *world) {
	f.Seeds++
	if w.plan.calm {
		f.Calm++
	}
	if f.Kinds == nil {
		f.Kinds = make(map[string]int)
	}
	faults := w.hung
	for k, n := range w.fired {
		f.Kinds[faultNames[k]] += n
		faults += n
	}
	f.Kinds["lease left to run out"] += w.hung
	f.Faults += faults
	if !w.plan.calm && (f.Seeds-f.Calm == 1 || faults < f.Least) {
		f.Least = faults
	}
	if faults >= manyFaults {
		f.Many++
	}
	f.Looks += w.looks
	f.Calls += w.calls
	f.Virtual += w.history[len(w.history)-1].at
	for i := range w.history {
		if w.history[i].kind == kDispatch {
			f.Dispatches++
		}
	}
}

func (f *figures) String() string {
	faulty := float64(max(1, f.Seeds-f.Calm))
	return fmt.Sprintf("%d seeds (%d without faults), %v of virtual time, %d faults (%.1f per seed with faults, at least %d, %.1f %% of them %d or more), "+
		"%d dispatches checked, %d looks for idle readers under a limit, %d calls of stores",
		f.Seeds, f.Calm, f.Virtual.Round(time.Second), f.Faults, float64(f.Faults)/faulty, f.Least, 100*float64(f.Many)/faulty, manyFaults,
		f.Dispatches, f.Looks, f.Calls)
}

// TestSim runs MVALVE_SIM_SEEDS seeds beginning with MVALVE_SEED, as make sim does;
// without either nothing, because a plain binary does not replay them. With
// MVALVE_SEED alone it runs that one and prints its history; with
// MVALVE_SIM_JOBS it shares the seeds between so many processes.
func TestSim(t *testing.T) {
	first, one := setting("MVALVE_SEED", 0), os.Getenv("MVALVE_SEED") != "" && os.Getenv("MVALVE_SIM_SEEDS") == ""
	n := setting("MVALVE_SIM_SEEDS", 0)
	if n == 0 && !one {
		t.Skip("make sim runs the seeds, in a binary that replays them")
	}
	if one {
		n = 1
	}
	var total figures
	begin := time.Now()
	if jobs := setting("MVALVE_SIM_JOBS", 1); jobs > 1 && n >= 10*jobs {
		total = share(t, first, n, jobs)
	} else {
		total = runSeeds(t, first, n, one)
	}
	if os.Getenv("MVALVE_SIM_CHILD") != "" {
		out, _ := json.Marshal(total)
		fmt.Printf("\nsim-figures %s\n", out)
		return
	}
	fmt.Printf("%v; took %v\nfaults: %v\n", &total, time.Since(begin).Round(time.Millisecond), total.Kinds)
}

// runSeeds runs n seeds in this process.
func runSeeds(t *testing.T, first, n int, verbose bool) (total figures) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // between seeds only: it would change the order of things
	child := os.Getenv("MVALVE_SIM_CHILD") != ""
	digests := os.Getenv("MVALVE_SIM_DETAIL") == "digest"
	for seed := first; seed < first+n; seed++ {
		if child {
			fmt.Printf("\nsim-seed %d\n", seed)
		}
		t.Run("seed", func(t *testing.T) {
			w := simulate(t, newPlan(uint64(seed)), defects{})
			found := judge(w)
			total.count(w)
			if digests {
				fmt.Printf("digest %d %x\n", seed, digest(w.history))
			}
			if verbose {
				for _, e := range w.history {
					t.Log(e)
				}
			}
			if len(found) > 0 {
				total.Failed++
				report(t, w.plan, w, found)
			}
		})
		if seed%5 == 0 {
			runtime.GC()
		}
		if total.Failed >= 10 {
			t.Errorf("stopped after %d failures", total.Failed)
			return total
		}
	}
	return total
}

// share lets several processes run a share of the seeds each.
func share(t *testing.T, first, n, jobs int) (total figures) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	done, begin := 0, time.Now()
	for i := range jobs {
		from, to := first+n*i/jobs, first+n*(i+1)/jobs
		wg.Go(func() {
			last := from
			cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestSim$", "-test.timeout=24h")
			cmd.Env = append(os.Environ(), "MVALVE_SIM_CHILD=1", "MVALVE_SIM_JOBS=1", fmt.Sprint("MVALVE_SEED=", from), fmt.Sprint("MVALVE_SIM_SEEDS=", to-from))
			cmd.Stderr = os.Stderr
			out, err := cmd.StdoutPipe()
			if err == nil {
				err = cmd.Start()
			}
			if err != nil {
				t.Error(err)
				return
			}
			hangs := time.AfterFunc(hangTime, func() { _ = cmd.Process.Kill() })
			lines := bufio.NewScanner(out)
			lines.Buffer(nil, 1<<24)
			for lines.Scan() {
				text := lines.Text()
				mu.Lock()
				if s, ok := strings.CutPrefix(text, "sim-seed "); ok {
					last, _ = strconv.Atoi(s)
					hangs.Reset(5 * time.Minute)
					if done++; done%5000 == 0 {
						fmt.Printf("%d of %d seeds, %v\n", done, n, time.Since(begin).Round(time.Second))
					}
				} else if s, ok := strings.CutPrefix(text, "sim-figures "); ok {
					var f figures
					if err := json.Unmarshal([]byte(s), &f); err != nil {
						t.Error(err)
					}
					total.add(f)
				} else if text != "" && text != "PASS" {
					fmt.Println(text)
				}
				mu.Unlock()
			}
			hangs.Stop()
			if err := cmd.Wait(); err != nil {
				t.Errorf("seeds %d to %d: %v; the last one begun is %d: MVALVE_SEED=%d", from, to-1, err, last, last)
			}
		})
	}
	wg.Wait()
	return total
}
