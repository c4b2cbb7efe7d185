package bench

import (
	"bufio"
	"bytes"
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"

	"github.com/mvalve/mvalve/cmd/internal/setup"
	"github.com/mvalve/mvalve/valve"
)

func app() *cli.App {
	return &cli.App{Name: "mvalve", Commands: []*cli.Command{Command()}}
}

// TestMain lets the test binary be the other process of a benchmark.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "bench" {
		setup.Main(app())
	}
	os.Exit(m.Run())
}

func runBench(t *testing.T, args ...string) (figures map[string]line, err error) {
	t.Helper()
	var out bytes.Buffer
	a := app()
	setup.Strict(a)
	a.Writer = &out
	err = a.RunContext(t.Context(), setup.Arrange(a, append([]string{"mvalve", "bench", "--json", "--seconds", "1"}, args...)))
	figures = make(map[string]line)
	lines := bufio.NewScanner(&out)
	for lines.Scan() {
		var l line
		if err := json.Unmarshal(lines.Bytes(), &l); err != nil {
			t.Fatalf("%s: %v", lines.Bytes(), err)
		}
		figures[l.Bench+": "+l.Case] = l
	}
	return figures, err
}

// TestBenchmarks runs the benchmarks that end within seconds. Speed is not
// judged: what must be exact is.
func TestBenchmarks(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some 20 s")
	}
	figures, err := runBench(t, "--backlog", "3000", "cycle", "latency", "backlog")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{
		"raw: 1000 per call, 2 callers", "raw: 1 per call, 64 callers",
		"cycle: insert 100, ack up to 500", "cycle: insert 100, ack up to 500, of raw", "cycle: insert 1, ack 1",
		"latency: store alone, p99", "latency: same process, p99", "latency: other process, p99",
		"backlog: behind 3000 waiting, same process, p99", "backlog: behind 3000 waiting, other process, p99",
	} {
		if l, ok := figures[name]; !ok || l.Value <= 0 || len(l.Values) != 1 {
			t.Errorf("%s: %+v", name, l)
		}
	}
	for _, name := range []string{"backlog: behind 3000 waiting, rows asked to be written", "backlog: behind 3000 waiting, rows that were leased"} {
		if l, ok := figures[name]; !ok || l.Value != 0 || l.Met == nil || !*l.Met {
			t.Errorf("%s: %+v", name, l)
		}
	}
}

func TestUsage(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"speed"}, `unknown benchmark "speed"; known are raw, cycle`},
		{[]string{"--repeat", "0"}, "--repeat 0"},
		{[]string{"--state", "redis:", "limiter"}, "--state"},
		{[]string{"--queue", "redis:x", "idle"}, "--queue"},
	} {
		_, err := runBench(t, c.args...)
		if err == nil || !strings.Contains(err.Error(), c.want) || setup.Code(err) != setup.ExitUsage {
			t.Errorf("%v: %v", c.args, err)
		}
	}
}

// TestNotEmpty: a queue in use is left alone.
func TestNotEmpty(t *testing.T) {
	url := "sqlite:" + t.TempDir() + "/used.db"
	var opened *setup.Pipe
	a := app()
	a.Commands[0].Action = func(c *cli.Context) (err error) {
		opened, err = setup.OpenPipe(c, setup.PipeOptions{Init: true})
		return err
	}
	if err := a.RunContext(t.Context(), []string{"mvalve", "bench", "--queue", url}); err != nil {
		t.Fatal(err)
	}
	w, err := valve.NewWriter(t.Context(), opened.Store, valve.WriterConfig{})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Insert(t.Context(), newSource("mine-", 1).messages(1)...); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := opened.Close(); err != nil {
		t.Fatal(err)
	}
	_, err = runBench(t, "--queue", url, "idle")
	if err == nil || !strings.Contains(err.Error(), "is not empty") {
		t.Errorf("%v", err)
	}
}

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		values []float64
		want   float64
	}{
		{[]float64{3}, 3}, {[]float64{9, 1}, 5}, {[]float64{9, 1, 2}, 2}, {[]float64{4, 1, 3, 2}, 2.5},
	} {
		if got := (&figure{values: c.values}).median(); got != c.want {
			t.Errorf("%v: %v, want %v", c.values, got, c.want)
		}
	}
}
