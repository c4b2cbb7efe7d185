package checker

import (
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// brute counts the windows from every stamp by looking at every other stamp.
func brute(stamps []int64, limit Limit) (worst, above int) {
	for _, start := range stamps {
		n := 0
		for _, s := range stamps {
			if s >= start && s < start+limit.Window.Microseconds() {
				n++
			}
		}
		worst = max(worst, n)
	}
	// Equal stamps open one window each; the two-pointer count gives the
	// second of them fewer, so count what starts at a position instead.
	for i := range stamps {
		n := 0
		for j := range stamps {
			after := stamps[j] > stamps[i] || stamps[j] == stamps[i] && j >= i
			if after && stamps[j] < stamps[i]+limit.Window.Microseconds() {
				n++
			}
		}
		if n > limit.Max {
			above++
		}
	}
	return worst, above
}

func TestCheckAgainstBruteForce(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	judged := 0
	for range 2000 {
		stamps := make([]int64, rng.IntN(40))
		for i := range stamps {
			stamps[i] = rng.Int64N(200)
		}
		limit := Limit{Max: 1 + rng.IntN(6), Window: time.Duration(1+rng.IntN(40)) * time.Microsecond}
		worst, above := brute(stamps, limit)
		got := Check("d", stamps, limit)
		if got.Worst != worst || got.Above != above {
			t.Fatalf("%v under %v: worst %d above %d, want %d and %d", stamps, limit, got.Worst, got.Above, worst, above)
		}
		if above > 0 {
			judged++
		}
	}
	if judged < 100 {
		t.Fatalf("only %d of the random logs broke their limit", judged)
	}
}

func TestCheckWindowIsHalfOpen(t *testing.T) {
	second := int64(time.Second / time.Microsecond)
	limit := Limit{Max: 2, Window: time.Second}
	if got := Check("d", []int64{5, 5, 5 + second}, limit); got.Above != 0 || got.Worst != 2 {
		t.Errorf("the third stamp is exactly one window later, yet %+v", got)
	}
	got := Check("d", []int64{5 + second - 1, 5, 6}, limit)
	want := Report{Destination: "d", Limit: limit, Count: 3, First: 5, Last: 5 + second - 1,
		Worst: 3, WorstAt: 5, Above: 1, AboveAt: 5, Used: 1 / (1 - 1e-6)}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b float64) bool { return a-b < 1e-9 && b-a < 1e-9 })); diff != "" {
		t.Errorf("one microsecond less is above the limit (-want +got):\n%s", diff)
	}
}

func TestUsed(t *testing.T) {
	limit := Limit{Max: 10, Window: time.Second}
	var burst, even, slow []int64
	for i := range int64(100) {
		burst = append(burst, i/10*1_000_000+i%10)
		even = append(even, i*100_000)
		slow = append(slow, i*125_000)
	}
	for _, c := range []struct {
		name   string
		stamps []int64
		want   float64
	}{{"bursts", burst, 1}, {"evenly", even, 1}, {"four fifths", slow, 0.8}, {"too short", even[:10], 0}} {
		if got := Check("d", c.stamps, limit).Used; got < c.want-1e-9 || got > c.want+1e-9 {
			t.Errorf("%s: used %v, want %v", c.name, got, c.want)
		}
	}
}

func TestFairness(t *testing.T) {
	log := make(map[string][]int64)
	for i := range int64(1000) {
		log["a"] = append(log["a"], i*10_000)
		log["b"] = append(log["b"], i*10_000+5)
	}
	if worst, _, ok := Fairness(log, time.Second); !ok || worst < 0.999 {
		t.Errorf("equal shares: %v %v", worst, ok)
	}
	for i := range int64(1000) { // c gets a burst in the fourth second only, and one at the ends
		log["c"] = append(log["c"], 4_000_000+i)
	}
	log["c"] = append(log["c"], 0, 9_990_000)
	if worst, at, ok := Fairness(log, time.Second); !ok || worst > 0.5 || at > 4_000_000 {
		t.Errorf("one destination starves in places, yet %v at %d, %v", worst, at, ok)
	}
	if _, _, ok := Fairness(log, time.Minute); ok {
		t.Error("a span longer than the log was judged")
	}
	if _, _, ok := Fairness(nil, time.Second); ok {
		t.Error("an empty log was judged")
	}
}

func TestReadLog(t *testing.T) {
	log, err := ReadLog(strings.NewReader(`{"id":"x","destination":"a","dispatched_at":"2026-01-02T03:04:05.000006Z","body":"z"}

{"destination":"b","dispatched_at":"2026-01-02T04:04:05.000007+01:00"}
{"destination":"a","dispatched_at":"2026-01-02T03:04:05.000005Z"}
`))
	if err != nil {
		t.Fatal(err)
	}
	base := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC).UnixMicro()
	want := map[string][]int64{"a": {base + 6, base + 5}, "b": {base + 7}}
	if diff := cmp.Diff(want, log); diff != "" {
		t.Error(diff)
	}
	for name, bad := range map[string]string{
		"garbage":        "{}\n{",
		"no destination": `{"dispatched_at":"2026-01-02T03:04:05Z"}`,
		"no stamp":       `{"destination":"a"}`,
	} {
		if _, err := ReadLog(strings.NewReader(bad)); err == nil || !strings.Contains(err.Error(), "line ") {
			t.Errorf("%s: error %v does not name the line", name, err)
		}
	}
}
