package demo

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/urfave/cli/v2"

	"github.com/mvalve/mvalve/cmd/internal/jsonline"
	"github.com/mvalve/mvalve/cmd/internal/reader"
	"github.com/mvalve/mvalve/cmd/internal/setup"
	"github.com/mvalve/mvalve/internal/checker"
	"github.com/mvalve/mvalve/internal/testserver"
	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/queue/mysql"
	"github.com/mvalve/mvalve/queue/sqlite"
	"github.com/mvalve/mvalve/throttle"
	"github.com/mvalve/mvalve/valve"
)

// TestMain makes the test program a mvalve that has only the demo: the demo
// starts the program it is in as its readers.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "demo" {
		setup.Main(&cli.App{Name: "mvalve", Commands: []*cli.Command{Command()}})
	}
	code := m.Run()
	testserver.Stop()
	os.Exit(code)
}

// demo is the command as a process with a temporary folder of its own.
type demo struct {
	*exec.Cmd
	temp           string
	stdout, stderr bytes.Buffer
}

func newDemo(t *testing.T, args ...string) *demo {
	t.Helper()
	d := &demo{Cmd: exec.Command(os.Args[0], append([]string{"demo"}, args...)...), temp: t.TempDir()}
	d.Env = append(withoutFlags(os.Environ()), "TMPDIR="+d.temp)
	d.Stdout, d.Stderr = &d.stdout, &d.stderr
	d.WaitDelay = 5 * time.Second
	return d
}

// result runs the demo and returns what it printed and its exit code.
func (d *demo) result(t *testing.T) (*result, int) {
	t.Helper()
	err := d.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if left, err := filepath.Glob(filepath.Join(d.temp, "*")); err != nil || len(left) > 0 {
		t.Errorf("left in the temporary folder: %v %v", left, err)
	}
	if d.stdout.Len() == 0 {
		return nil, d.ProcessState.ExitCode()
	}
	r := new(result)
	if err := json.Unmarshal(d.stdout.Bytes(), r); err != nil {
		t.Fatalf("%v\n%s%s", err, d.stdout.Bytes(), d.stderr.Bytes())
	}
	return r, d.ProcessState.ExitCode()
}

// checkPerfect asks of the arrivals only how many there are: when they come is up
// to a machine that may be busy.
func checkPerfect(t *testing.T, d *demo, r *result, code int) {
	t.Helper()
	if code != 0 || r == nil || !r.Finished || r.Lost != 0 || r.Dispatched != 0 || r.Sent < 30 || r.Received != r.Sent {
		t.Fatalf("exit code %d, %+v\n%s", code, r, d.stderr.Bytes())
	}
	if len(r.Destinations) != 3 {
		t.Fatalf("%d destinations", len(r.Destinations))
	}
	for _, row := range r.Destinations {
		if row.Emergencies == 0 || row.Max <= 0 || row.Achieved <= 0 {
			t.Errorf("%+v", row)
		}
	}
}

func TestEmbedded(t *testing.T) {
	d := newDemo(t, "--seconds", "6", "--json")
	r, code := d.result(t)
	checkPerfect(t, d, r, code)
	if r.Readers != 3 || !strings.HasPrefix(r.Queue, "sqlite:"+d.temp) {
		t.Errorf("%d readers on %s", r.Readers, r.Queue)
	}
	if !strings.Contains(d.stderr.String(), " windows above\n") {
		t.Errorf("no line of progress in six seconds:\n%s", d.stderr.Bytes())
	}
}

func TestSignal(t *testing.T) {
	d := newDemo(t)
	progress, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer progress.Close()
	d.Cmd.Stderr = w
	if err := d.Start(); err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	var seen strings.Builder
	signalled := false
	scanner := bufio.NewScanner(progress)
	for scanner.Scan() { // ends with the last of the processes
		seen.WriteString(scanner.Text() + "\n")
		if !signalled && strings.Contains(scanner.Text(), " windows above") { // the first line of progress
			signalled = true
			if err := d.Process.Signal(syscall.SIGINT); err != nil {
				t.Error(err)
			}
		}
	}
	err = d.Wait()
	if code := d.ProcessState.ExitCode(); code != setup.Code(setup.Signalled{Signal: syscall.SIGINT}) {
		t.Fatalf("exit code %d, %v\n%s", code, err, &seen)
	}
	if !strings.Contains(d.stdout.String(), "\ndemo.mail ") || !strings.HasSuffix(seen.String(), "mvalve: stopped by SIGINT\n") {
		t.Errorf("%s%s", d.stdout.Bytes(), &seen)
	}
	if left, err := filepath.Glob(filepath.Join(d.temp, "*")); err != nil || len(left) > 0 {
		t.Errorf("left in the temporary folder: %v %v", left, err)
	}
}

// TestOthersUntouched: on somebody's queue the demo changes nothing of others
// and leaves nothing of its own.
func TestOthersUntouched(t *testing.T) {
	ctx := context.Background()
	path := filepath.Join(t.TempDir(), "own.db")
	store, err := sqlite.Open(ctx, sqlite.Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	now, err := store.Now(ctx)
	if err != nil {
		t.Fatal(err)
	}
	own, err := throttle.SetLimit(ctx, store, now, "*", throttle.Limit{Max: 1, Interval: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	w, err := valve.NewWriter(ctx, store, valve.WriterConfig{})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Insert(ctx, &queue.Message{Destination: "mail.example"}, &queue.Message{Destination: "demo.mail"}); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	d := newDemo(t, "--seconds", "5", "--json", "--readers", "2", "--queue", "sqlite:"+path)
	r, code := d.result(t)
	checkPerfect(t, d, r, code)

	rules, _, err := store.LoadRules(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, rule := range rules {
		if rule.Pattern != "*" && !rule.IsEmpty() || rule.Pattern == "*" && (rule.Version != own.Version || *rule.Limit != *own.Limit) {
			t.Errorf("rule after the demo: %+v", rule)
		}
	}
	counts, err := store.Count(ctx, now, "")
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range counts {
		if n.Destination != "mail.example" && n.Destination != "demo.mail" || n.Waiting != 1 {
			t.Errorf("after the demo: %+v", n)
		}
	}
	if len(counts) != 2 {
		t.Errorf("%d destinations have messages, not 2", len(counts))
	}
}

func TestServers(t *testing.T) {
	db, cache := testserver.MariaDB(t), testserver.Memcached(t)
	own := db.NewDatabase(t)
	cfg, err := mysql.ParseURL(own.URL)
	if err != nil {
		t.Fatal(err)
	}
	store, err := mysql.OpenForInit(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	d := newDemo(t, "--seconds", "5", "--json", "--queue", own.URL, "--state", "memcached://"+cache.Addr)
	if _, code := d.result(t); code != setup.ExitMismatch {
		t.Errorf("exit code %d without tables\n%s", code, d.stderr.Bytes())
	}
	if err := store.Init(context.Background()); err != nil {
		t.Fatal(err)
	}
	d = newDemo(t, d.Args[2:]...)
	r, code := d.result(t)
	checkPerfect(t, d, r, code)
}

// TestLiveReader: somebody's reader could take what the demo writes.
func TestLiveReader(t *testing.T) {
	ctx := context.Background()
	path := filepath.Join(t.TempDir(), "own.db")
	store, err := sqlite.Open(ctx, sqlite.Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	r, err := valve.OpenReader(ctx, store, valve.ReaderConfig{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	d := newDemo(t, "--queue", "sqlite:"+path)
	if _, code := d.result(t); code != setup.ExitUsage || !strings.Contains(d.stderr.String(), "1 live readers") {
		t.Errorf("exit code %d\n%s", code, d.stderr.Bytes())
	}
}

func TestUsage(t *testing.T) {
	for _, args := range [][]string{
		{"soon"}, {"--seconds", "4"}, {"--readers", "0"}, {"--queue", "memory:"}, {"--queue", "ftp://x"}, {"--state", "memory:"}, {"--state", "x:"},
	} {
		d := newDemo(t, args...)
		if _, code := d.result(t); code != setup.ExitUsage || strings.Count(d.stderr.String(), "\n") != 1 {
			t.Errorf("%q: exit code %d, %s", args, code, d.stderr.Bytes())
		}
	}
}

// TestLines: a line a second, whenever it looks.
func TestLines(t *testing.T) {
	var out bytes.Buffer
	targets := newTargets("demo", time.Minute)
	view := newView(&out, targets, false)
	accounts := make([]account, len(targets))
	accounts[1] = account{messages: 7, report: checker.Report{Above: 2}}
	for _, ms := range []int{0, 100, 999, 1000, 1100, 1999, 2001, 4500, 5000} {
		view.update(time.Duration(ms)*time.Millisecond, accounts)
	}
	view.close()
	var seconds []string
	for line := range strings.Lines(out.String()) {
		seconds = append(seconds, strings.TrimSpace(line[len(title)+1:][:3]))
		if !strings.Contains(line, "demo.crawl 7/") || !strings.HasSuffix(line, "; 2 windows above\n") {
			t.Errorf("%q", line)
		}
	}
	if diff := cmp.Diff([]string{"1", "2", "4", "5"}, seconds); diff != "" {
		t.Error(diff)
	}
}

// TestReceiver posts by hand: two messages, one of them twice, against a limit of
// two: the third request is one too many, and so is its dispatch, if it is another.
func TestReceiver(t *testing.T) {
	target := &target{name: "demo.a b", limit: throttle.Limit{Max: 2, Interval: time.Hour, Guard: time.Second}, incoming: 3}
	r, err := receive(t.Context(), []string{target.name})
	if err != nil {
		t.Fatal(err)
	}
	defer r.close()
	dispatched := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	post := func(path, id, at string) int {
		request, err := http.NewRequest(http.MethodPost, r.url+path, strings.NewReader("x"))
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Idempotency-Key", id)
		request.Header.Set(reader.DispatchedAt, at)
		answer, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, answer.Body)
		_ = answer.Body.Close()
		return answer.StatusCode
	}
	first, second := jsonline.FormatTime(dispatched), jsonline.FormatTime(dispatched.Add(time.Hour+999*time.Millisecond))
	for _, id := range []string{"1", "2"} {
		if code := post("demo.a%20b", id, first); code != http.StatusNoContent {
			t.Fatalf("answer %d", code)
		}
	}
	if a := r.account(target); a.messages != 2 || a.requests != 2 || a.recent != 2 || a.report.Above != 0 || a.above != 0 {
		t.Errorf("within the limit: %+v", a)
	}
	post("demo.a%20b", "2", first)
	if post("elsewhere", "3", first) != http.StatusNotFound || post("demo.a%20b", "", first) != http.StatusNotFound || post("demo.a%20b", "3", "") != http.StatusNotFound {
		t.Error("a foreign request was taken")
	}
	a := r.account(target)
	if a.messages != 2 || a.requests != 3 || a.report.Above != 1 || a.report.Worst != 3 || a.above != 0 {
		t.Errorf("above the limit, by a repetition: %+v", a)
	}
	post("demo.a%20b", "2", second)
	if a := r.account(target); a.messages != 2 || a.requests != 4 || a.above != 1 {
		t.Errorf("dispatched within the guard: %+v", a)
	}
}

func TestVerdict(t *testing.T) {
	target := &target{name: "demo.mail", limit: throttle.Limit{Max: 2, Interval: time.Second}}
	written := []sent{{id: "1", target: target, at: 10_000}, {id: "2", target: target, at: 20_000, emergency: true}}
	for _, c := range []struct {
		name                    string
		firsts                  map[string]int64
		above, dispatched, left int
		code                    int
	}{
		{"perfect", map[string]int64{"1": 30_000, "2": 25_000}, 0, 0, 0, setup.ExitDone},
		{"lost", map[string]int64{"2": 25_000}, 0, 0, 0, setup.ExitBug},
		{"above", map[string]int64{"1": 30_000, "2": 25_000}, 1, 1, 0, setup.ExitBug},
		{"dispatched above", map[string]int64{"1": 30_000, "2": 25_000}, 0, 1, 0, setup.ExitBug},
		{"travelled long", map[string]int64{"1": 30_000, "2": 25_000}, 1, 0, 0, setup.ExitDone},
		{"late", map[string]int64{"2": 25_000}, 0, 0, 1, setup.ExitUnfinished},
		{"not acknowledged", map[string]int64{"1": 30_000, "2": 25_000}, 0, 0, 1, setup.ExitUnfinished},
	} {
		r := &result{Destinations: []row{newRow(target, account{report: checker.Report{Above: c.above}, above: c.dispatched}, c.firsts, written, c.left)}}
		r.sum()
		var table strings.Builder
		if err := r.print(&table, false); err != nil {
			t.Fatal(err)
		}
		if excused := strings.Contains(table.String(), "this machine is busy"); excused != (c.above > 0 && c.dispatched == 0) || r.Above != c.above {
			t.Errorf("%s:\n%s", c.name, &table)
		}
		if code := setup.Code(r.verdict()); code != c.code {
			t.Errorf("%s: code %d, want %d", c.name, code, c.code)
		}
		if d := r.Destinations[0]; d.Emergencies != 1 || d.P50 != 5 || d.Max != 5 {
			t.Errorf("%s: an emergency took 5 ms, not %+v", c.name, d)
		}
	}
}

// TestPlan: the load keeps a perfect limiter busy for the span, and no longer.
func TestPlan(t *testing.T) {
	for _, span := range []time.Duration{3500 * time.Millisecond, 18 * time.Second, 10 * time.Minute} {
		for _, target := range newTargets("demo", span) {
			n, l := int64(target.total()), target.limit
			if target.incoming < 1 || target.timed < 1 || target.emergencies < 1 {
				t.Errorf("%v: %+v lacks a lane", span, target)
			}
			took := time.Duration((n-1)/l.Max) * l.Window()
			if l.Mode == throttle.Paced {
				took = time.Duration(n-1) * l.Window() / time.Duration(l.Max-1)
			}
			if took > span || took < span-2*l.Window() {
				t.Errorf("%v: %d messages of %s take %v", span, n, target.name, took)
			}
		}
	}
}
