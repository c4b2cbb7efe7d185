package proof_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mvalve/mvalve/internal/checker"
	"github.com/mvalve/mvalve/internal/testserver"
	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/queue/mysql"
	"github.com/mvalve/mvalve/queue/sqlite"
)

// pipe is a queue and the store that counts its limits.
type pipe struct {
	queue string
	state string // "": the queue's own database
}

// The back ends.
const (
	onSQLite    = "sqlite"
	onMariaDB   = "mariadb"
	onMemcached = "mariadb+memcached"
)

var backends = []string{onSQLite, onMariaDB, onMemcached}

// newPipe makes an empty pipe on a back end; servers are shared with other tests.
func newPipe(t *testing.T, backend string) *pipe {
	t.Helper()
	p := &pipe{}
	switch backend {
	case onSQLite:
		p.queue = "sqlite:" + filepath.Join(t.TempDir(), "pipe.db")
	case onMariaDB:
		p.queue = testserver.MariaDB(t).URL
	case onMemcached:
		p.queue = testserver.MariaDB(t).URL
		p.state = "memcached://" + testserver.Memcached(t).Addr
	}
	p.init(t)
	return p
}

func (p *pipe) init(t *testing.T) {
	t.Helper()
	args := []string{"init"}
	if p.state != "" {
		args = append(args, "--state", p.state)
	}
	p.mvalve(t, args...)
}

func (p *pipe) env() []string { return []string{"MVALVE_QUEUE=" + p.queue} }

// mvalve runs the admin command to its end and returns its standard output.
func (p *pipe) mvalve(t *testing.T, args ...string) string {
	t.Helper()
	c := start(t, nil, p.env(), filepath.Join(bin, "mvalve"), args...)
	c.wait(t, time.Minute)
	if t.Failed() {
		t.Fatalf("mvalve %s failed", strings.Join(args, " "))
	}
	return string(c.stdout())
}

// limit sets limits: destination, limit, destination, limit ...
func (p *pipe) limit(t *testing.T, pairs ...string) {
	t.Helper()
	for i := 0; i < len(pairs); i += 2 {
		p.mvalve(t, "limit", "set", pairs[i], pairs[i+1])
	}
}

// reader starts mvalve-reader.
func (p *pipe) reader(t *testing.T, args ...string) *process {
	t.Helper()
	return start(t, nil, p.env(), filepath.Join(bin, "mvalve-reader"), args...)
}

func (p *pipe) readers(t *testing.T, n int, args ...string) []*process {
	t.Helper()
	var all []*process
	for range n {
		all = append(all, p.reader(t, args...))
	}
	return all
}

// writer starts mvalve-writer on lines.
func (p *pipe) writer(t *testing.T, lines []byte, args ...string) *process {
	t.Helper()
	path := filepath.Join(t.TempDir(), "lines")
	if err := os.WriteFile(path, lines, 0o600); err != nil {
		t.Fatal(err)
	}
	return start(t, nil, p.env(), filepath.Join(bin, "mvalve-writer"), append(args, path)...)
}

// write commits lines.
func (p *pipe) write(t *testing.T, lines []byte, args ...string) {
	t.Helper()
	p.writer(t, lines, args...).wait(t, 5*time.Minute)
	if t.Failed() {
		t.Fatal("mvalve-writer failed")
	}
}

// backlog is n messages for each destination, one after the other.
func backlog(n int, destinations ...string) []byte {
	var lines bytes.Buffer
	for i := range n {
		for _, d := range destinations {
			fmt.Fprintf(&lines, "{\"destination\":%q,\"body\":\"%s %d\"}\n", d, d, i)
		}
	}
	return lines.Bytes()
}

// open opens the pipe's store in this process.
func (p *pipe) open(ctx context.Context) (queue.Store, error) {
	if path, ok := strings.CutPrefix(p.queue, "sqlite:"); ok {
		return sqlite.Open(ctx, sqlite.Config{Path: path})
	}
	cfg, err := mysql.ParseURL(p.queue)
	if err != nil {
		return nil, err
	}
	return mysql.Open(ctx, cfg)
}

// left is how many messages wait or are leased, all lanes together, and how
// many are dead letters.
func (p *pipe) left(t *testing.T) (left, dead int64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	store, err := p.open(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	now, err := store.Now(ctx)
	if err != nil {
		t.Fatal(err)
	}
	counts, err := store.(queue.Admin).Count(ctx, now, "")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range counts {
		if c.Table == queue.Dead {
			dead += c.Waiting
		} else {
			left += c.Waiting + c.Leased
		}
	}
	return left, dead
}

// dispatches is what the readers printed, all together.
func dispatches(t *testing.T, readers ...*process) map[string][]int64 {
	t.Helper()
	var all bytes.Buffer
	for _, r := range readers {
		all.Write(r.whole())
	}
	log, err := checker.ReadLog(&all)
	if err != nil {
		t.Fatal(err)
	}
	return log
}

// judge checks one destination's dispatches: no window above, and at least
// wantUse of the limit used (0: not asked).
func judge(t *testing.T, log map[string][]int64, destination string, limit checker.Limit, wantUse float64) checker.Report {
	t.Helper()
	return judgeFrom(t, time.Time{}, log, destination, limit, wantUse)
}

// judgeFrom is judge where only what was dispatched from begin on counts for the use.
func judgeFrom(t *testing.T, begin time.Time, log map[string][]int64, destination string, limit checker.Limit, wantUse float64) checker.Report {
	t.Helper()
	r := checker.Check(destination, log[destination], limit)
	r.Used = usedFrom(begin, log[destination], limit)
	t.Logf("%s: limit %d/%v, %d dispatches, worst window %d, above %d, use %.4f", destination, limit.Max, limit.Window, r.Count, r.Worst, r.Above, r.Used)
	if r.Above > 0 {
		t.Errorf("%s: %d windows above %d in %v, the first %v after the first dispatch, the worst %d %v after it", destination, r.Above, limit.Max, limit.Window,
			time.Duration(r.AboveAt-r.First)*time.Microsecond, r.Worst, time.Duration(r.WorstAt-r.First)*time.Microsecond)
	}
	if r.Count == 0 {
		t.Errorf("%s: nothing was dispatched", destination)
	}
	if r.Used < wantUse {
		t.Errorf("%s: use %.4f of the limit, want at least %.4f", destination, r.Used, wantUse)
	}
	return r
}

// usedFrom is the share of a limit that stamps from begin on used.
func usedFrom(begin time.Time, stamps []int64, limit checker.Limit) float64 {
	rest := slices.DeleteFunc(slices.Clone(stamps), func(at int64) bool { return at < begin.UnixMicro() })
	return checker.Check("", rest, limit).Used
}

// unless is wantUse, and 0 if the readers have already shown that they use enough:
// the machine may stand still after that.
func unless(shown bool, wantUse float64) float64 {
	if shown {
		return 0
	}
	return wantUse
}

// shortUse is how much of a limit the short form wants used, whatever else the
// machine does: enough to notice a limiter that gives one permit per interval.
const shortUse = 0.2

// use is the share that the promise states for a limit.
func use(limit checker.Limit) float64 {
	if !long {
		return shortUse
	}
	if limit.Window >= time.Second {
		return 0.99
	}
	return 1 - float64(10*time.Millisecond)/float64(limit.Window)
}
