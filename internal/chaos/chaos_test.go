// Package chaos_test runs everything at once on one pipe and breaks it at random:
// the three commands, two brokers with STOMP clients, a Go client, on a real
// SQLite file and on real MariaDB and memcached servers. Each round makes one
// trouble. In the end everything must drain, and a judge compares what producers
// were told, what processes logged before they handed it out, and what consumers
// did: nothing committed lost, nothing acknowledged delivered again, no window
// above any limit.
//
// The plan of troubles follows from a seed; the races within do not.
//
//	make chaos ROUNDS=1000
//	make chaos ROUNDS=200 CHAOS_SEED=42
//	make chaos ROUNDS=150 CHAOS_EVICT=1  # memcached evicts (no -M)
package chaos_test

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mvalve/mvalve/internal/checker"
	"github.com/mvalve/mvalve/internal/testserver"
	"github.com/mvalve/mvalve/throttle"
)

// shortRounds is how many rounds `go test` makes; MVALVE_CHAOS_ROUNDS overrules it.
const shortRounds = 12

// shortRun is how many rounds are a short run.
const shortRun = 50

var (
	bin     string   // the folder of the commands, built once
	limited []string // the names of limits, in order
)

func TestMain(m *testing.M) {
	switch os.Getenv(roleVariable) {
	case clientRole:
		os.Exit(runClient())
	case holderRole:
		os.Exit(runHolder())
	}
	limited = slices.Sorted(maps.Keys(limits))
	os.Exit(runTests(m))
}

func runTests(m *testing.M) int {
	defer testserver.Stop()
	dir, err := os.MkdirTemp("", "mvalve-chaos-bin-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	bin = dir
	if out, err := exec.Command("go", "build", "-o", bin+string(filepath.Separator), "../../cmd/...").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "go build: %v: %s", err, out)
		return 1
	}
	return m.Run()
}

// measure lets the processes run for d: the span of a trouble, never a wait for
// something to happen.
func measure(d time.Duration) { <-time.After(d) }

// patience is how long anything may take that must happen in the end, on a slow
// and busy machine.
const patience = 3 * time.Minute

// waitFor polls until done reports true, and reports false after patience.
func waitFor(done func() bool) bool {
	deadline := time.Now().Add(patience)
	for !done() {
		if time.Now().After(deadline) {
			return false
		}
		measure(50 * time.Millisecond)
	}
	return true
}

// setting reads a number from the environment.
func setting[T int | uint64](t *testing.T, name string, otherwise T) T {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(text, 10, 63)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return T(n)
}

// TestChaos is the harness; see the package comment.
func TestChaos(t *testing.T) {
	seed := setting(t, "CHAOS_SEED", rand.Uint64()>>1)
	rounds := setting(t, "MVALVE_CHAOS_ROUNDS", shortRounds)
	if rounds > shortRun {
		lease = longRunLease
	}
	for name, prepare := range map[string]func(*harness){"sqlite": (*harness).onSQLite, "mariadb+memcached": (*harness).onMariaDB} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir, err := os.MkdirTemp("", "mvalve-chaos-")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if t.Failed() {
					t.Logf("CHAOS_SEED=%d; logs and ledgers are in %s", seed, dir)
				} else {
					os.RemoveAll(dir)
				}
			})
			h := &harness{t: t, dir: dir, seed: seed, ledger: newLedger(), proxies: make(map[string]*testserver.Proxy)}
			prepare(h)
			h.run(rounds)
		})
	}
}

// room is how much there is on a small disk beside the files of an empty database.
const room = 48 << 20

func (h *harness) onSQLite() {
	disk := filepath.Join(h.dir, "disk")
	if err := os.Mkdir(disk, 0o755); err != nil {
		h.t.Fatal(err)
	}
	if h.noDisk = smallDisk(h.t, disk, room); h.noDisk == nil {
		h.disk = disk
	}
	h.queue = "sqlite:" + filepath.Join(disk, "pipe.db")
	h.mvalve("init")
}

func (h *harness) onMariaDB() {
	h.mariadb = testserver.OwnMariaDB(h.t)
	h.admin = h.mariadb.Open(h.t)
	options := []string{"-m", "8"}
	if os.Getenv("CHAOS_EVICT") == "" {
		options = append(options, "-M")
	}
	h.memcached = testserver.OwnMemcached(h.t, options...)
	h.smallDataDisk()
	for _, statement := range []string{
		fmt.Sprintf("CREATE USER %s IDENTIFIED BY '%s'", plainUser, plainUser),
		fmt.Sprintf("GRANT ALL PRIVILEGES ON %s.* TO %s", h.mariadb.Database, plainUser),
	} {
		if !h.root(statement) {
			h.t.Fatal(h.log)
		}
	}
	h.queue = h.mariadb.URL
	h.proxies["memcached"] = testserver.NewProxy(h.t, h.memcached.Addr)
	h.mvalve("init", "--state", "memcached://"+h.proxies["memcached"].Addr)
}

// smallDataDisk puts the data of MariaDB on a small disk, if it can.
func (h *harness) smallDataDisk() {
	var data string
	if err := h.admin.QueryRowContext(h.t.Context(), "SELECT @@datadir").Scan(&data); err != nil {
		h.t.Fatal(err)
	}
	h.mariadb.Stop(h.t)
	aside := filepath.Clean(data) + "-aside"
	h.noDisk = func() error {
		if out, err := exec.Command("cp", "-a", data, aside).CombinedOutput(); err != nil {
			return fmt.Errorf("cp: %s", out)
		}
		used, err := exec.Command("du", "-sb", aside).Output()
		if err != nil {
			return fmt.Errorf("du: %w", err)
		}
		var size int64
		if _, err := fmt.Sscan(string(used), &size); err != nil {
			return err
		}
		if err := smallDisk(h.t, filepath.Clean(data), size+room); err != nil {
			return err
		}
		h.disk = data
		if out, err := exec.Command("cp", "-a", aside+"/.", data).CombinedOutput(); err != nil {
			h.t.Fatalf("cp: %s", out)
		}
		return nil
	}()
	h.mariadb.Restart(h.t)
}

// run is the whole of it.
func (h *harness) run(rounds int) {
	t := h.t
	pace := 500 * time.Millisecond
	if rounds <= shortRun {
		pace = 300 * time.Millisecond
	}
	h.began = time.Now()
	h.open()
	kinds := h.kinds()
	feeding, stopFeeding := context.WithCancel(t.Context())
	fed := make(chan struct{})
	go func() { defer close(fed); h.feed(feeding, rand.New(rand.NewPCG(h.seed, 3))) }()
	if !waitFor(func() bool { return h.ledger.count() > 20 || t.Failed() }) {
		t.Error("nothing is delivered before the first trouble")
	}
	measure(pace)
	troubled := time.Now()
	counts := h.trouble(plan(h.seed, rounds, kinds, pace), kinds)
	span := time.Since(troubled)
	measure(pace)
	stopFeeding()
	<-fed
	h.drain()
	h.end()
	h.collect()
	judged := make(map[string]checker.Limit)
	for name, l := range limits {
		judged[name] = l.Limit
	}
	v := h.ledger.judge(judged, lease, func(process string) bool {
		slot, _, _ := strings.Cut(process, ".")
		return slot == "print" || slot == "exec" || slot == "client"
	})
	h.report(rounds, span, counts, v)
}

func (l *ledger) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.deliveries
}

// drain waits until the pipe is empty and stays so.
func (h *harness) drain() {
	h.t.Helper()
	began, ctx := time.Now(), context.Background()
	h.writer.last()
	close(h.client.orders)
	for _, d := range h.doors {
		close(d.orders)
	}
	// The last one to be killed stays dead: others must find what it held.
	h.dead = []*slot{h.slot("print"), h.slot("exec"), h.slot("post"), h.brokers[0], h.brokers[1]}[h.seed%5]
	h.note("kill -9 of %s for good; drain", h.dead.name)
	h.dead.stop(syscall.SIGKILL)
	changed := time.Now()
	if !waitFor(func() bool {
		now, err := h.store.Now(ctx)
		if err != nil {
			return false
		}
		changed = now
		_, err = throttle.SetLimit(ctx, h.store.(throttle.RuleStore), now, slow, throttle.Limit{})
		return err == nil
	}) {
		h.t.Error("the limit of " + slow + " could not be taken away")
	}
	h.ledger.changed[slow] = changed
	empty, noted := 0, time.Time{}
	var left map[string]int64
	var letters int64
	if !waitFor(func() bool {
		var err error
		left, letters, err = h.waiting(ctx)
		if producing := h.producing(); err != nil || len(left) > 0 || producing {
			if now := time.Now(); now.Sub(noted) > time.Second {
				noted = now
				h.note("not empty: %v, producing %v, %v", left, producing, err)
			}
			empty = 0
			return false
		}
		empty++
		return empty >= 10
	}) {
		h.t.Errorf("not empty %v after the last trouble: %v, %d dead letters", patience, left, letters)
		for destination := range left {
			h.t.Log(h.mvalve("explain", destination))
		}
		for _, s := range h.slots {
			s.stop(syscall.SIGQUIT) // prints what it is doing
		}
	}
	if letters > 0 {
		h.t.Errorf("%d dead letters: %s", letters, h.mvalve("dead", "ls"))
	}
	h.t.Logf("empty %v after the last trouble", time.Since(began).Round(time.Millisecond))
}

// producing reports whether a producer still has something on its way.
func (h *harness) producing() bool {
	select {
	case <-h.writer.ended:
	default:
		return true
	}
	for _, d := range h.doors {
		if d.name != h.dead.name && d.producing() {
			return true
		}
	}
	ledger, err := os.ReadFile(h.client.live().ledger)
	return err != nil || !strings.HasSuffix(string(ledger), "Z\n") && !strings.Contains(string(ledger), "\nZ\n")
}

// end stops all processes in good order.
func (h *harness) end() {
	h.t.Helper()
	measure(100 * time.Millisecond) // for RECEIPTs that are on their way
	h.stop()
	h.clients.Wait()
	for _, s := range h.slots {
		if s != h.dead && s != h.writer && !waitFor(s.atWork) {
			h.t.Errorf("%s does not come to work", s.name)
		}
		s.stop(syscall.SIGTERM)
	}
	deadline := time.After(patience)
	for _, s := range h.slots {
		select {
		case <-s.ended:
		case <-deadline:
			h.t.Errorf("%s does not end on SIGTERM", s.name)
			s.stop(syscall.SIGQUIT)
			<-s.ended
		}
	}
	var left map[string]int64
	var err error
	if !waitFor(func() bool {
		left, _, err = h.waiting(context.Background())
		return err == nil
	}) || len(left) > 0 {
		h.t.Errorf("after the end of all processes: %v left, %v", left, err)
	}
}
