package chaos_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mvalve/mvalve/internal/checker"
	"github.com/mvalve/mvalve/internal/testserver"
	"github.com/mvalve/mvalve/queue"
)

// What all processes under test agree on.
const (
	retryMin     = 20 * time.Millisecond
	retryMax     = 200 * time.Millisecond
	manyAttempts = 1_000_000 // a message that a process dies with is innocent
)

// lease is set before anything starts. In a short run, which any machine makes, it
// is longer than a machine may keep a process from running, or a disk a commit; a
// long run is for leases that run out at every moment.
var lease = 6 * time.Second

const longRunLease = 2 * time.Second

// slow is the destination whose limit is counted over more than a minute, and so
// never in a cache. Its limit is taken away in the end, and judged until then.
const slow = "lim.slow"

// limits are those of the destinations that have one.
var limits = map[string]struct {
	text string
	checker.Limit
}{
	"lim.quick":  {"20/200ms", checker.Limit{Max: 20, Window: 200 * time.Millisecond}},
	"lim.ten":    {"10/1s", checker.Limit{Max: 10, Window: time.Second}},
	"lim.wide":   {"60/2s", checker.Limit{Max: 60, Window: 2 * time.Second}},
	"lim.strict": {"1/150ms strict", checker.Limit{Max: 1, Window: 150 * time.Millisecond}},
	"lim.paced":  {"20/1s paced", checker.Limit{Max: 20, Window: time.Second}},
	slow:         {"15/61s", checker.Limit{Max: 15, Window: 61 * time.Second}},
}

// free are the destinations without a limit.
var free = []string{"free.0", "free.1", "free.2", "free.3"}

// order is a message to be sent by some producer.
type order struct {
	destination, body string
	priority          int
	delay             time.Duration
	emergency         bool
}

// harness is one pipe with everything around it.
type harness struct {
	t       *testing.T
	dir     string // of logs and ledgers
	seed    uint64
	queue   string // URL without a proxy
	store   queue.Store
	ledger  *ledger
	slots   []*slot // those of processes
	writer  *slot
	client  *slot
	brokers []*slot
	dead    *slot // the one that was killed for good
	doors   []*door
	proxies map[string]*testserver.Proxy // by what they stand before: a slot's database, a broker, memcached
	disk    string                       // the folder on the small disk; empty: none
	noDisk  error                        // why there is none

	mariadb   *testserver.MariaDBServer
	admin     *sql.DB // of MariaDB, without a proxy
	memcached *testserver.MemcachedServer
	crashed   int // how often MariaDB gave up on a full disk

	log     []string
	began   time.Time
	stop    context.CancelFunc // of the clients of brokers
	clients sync.WaitGroup
	serial  int
}

// url is the queue as a slot's process sees it: through a proxy of its own.
func (h *harness) url(slot string) string {
	if h.mariadb == nil {
		return h.queue
	}
	p := testserver.NewProxy(h.t, h.mariadb.Addr)
	h.proxies[slot] = p
	return fmt.Sprintf("mysql://%s:%s@%s/%s", plainUser, plainUser, p.Addr, h.mariadb.Database)
}

// mvalve runs the admin command to its end.
func (h *harness) mvalve(args ...string) string {
	h.t.Helper()
	cmd := exec.Command(filepath.Join(bin, "mvalve"), args...)
	cmd.Env = append(os.Environ(), "MVALVE_QUEUE="+h.queue)
	out, err := cmd.CombinedOutput()
	if err != nil {
		h.t.Fatalf("mvalve %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// open starts all processes on an empty pipe, which is initialised.
func (h *harness) open() {
	t := h.t
	t.Helper()
	for name, l := range limits {
		h.mvalve("limit", "set", name, l.text)
	}
	var err error
	if h.store, err = openStore(t.Context(), h.queue, nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.store.Close() })
	script := filepath.Join(h.dir, "exec.sh")
	if err := os.WriteFile(script, []byte(execScript), 0o600); err != nil {
		t.Fatal(err)
	}
	receiver := newReceiver(t, h.ledger)
	h.writer = h.start("writer", asLine, "mvalve-writer", "--print-ids")
	reader := []string{
		"--lease", lease.String(), "--retry-min", retryMin.String(), "--retry-max", retryMax.String(), "--max-attempts", fmt.Sprint(manyAttempts),
		"--log-level", "debug", "--log-format", "json",
	}
	h.start("print", nil, "mvalve-reader", reader...)
	h.start("exec", nil, "mvalve-reader", append(reader, "--exec", "sh "+script, "--concurrency", "2")...)
	h.start("post", nil, "mvalve-reader", append(reader, "--post", receiver.URL+"/{destination}", "--concurrency", "4")...)
	h.client = h.start("client", func(o *order) string { return o.destination + " " + o.body }, "")
	ctx, cancel := context.WithCancel(t.Context())
	h.stop = cancel
	for i := range 2 {
		name, address := fmt.Sprint("broker", i), testserver.FreeAddress(t)
		h.brokers = append(h.brokers, h.start(name, nil, "mvalve", append([]string{"serve", "--stomp", address, "--http", "off"}, reader...)...))
		h.proxies["stomp "+name] = testserver.NewProxy(t, address)
		d := &door{name: name, address: h.proxies["stomp "+name].Addr, ledger: h.ledger, orders: make(chan *order, 40)}
		h.doors = append(h.doors, d)
		h.clients.Go(func() { d.keep(ctx, d.produce) })
		h.clients.Go(func() { d.keep(ctx, d.consume("/pipe", "client-individual")) })
		h.clients.Go(func() { d.keep(ctx, d.consume([]string{"/queue/free.*", "/queue/lim.*"}[i], "client")) })
	}
	t.Cleanup(func() { cancel(); h.clients.Wait() })
}

// start starts a command, or without one this binary as the Go client.
func (h *harness) start(name string, fed func(*order) string, command string, args ...string) *slot {
	h.t.Helper()
	url := h.url(name)
	s := &slot{name: name, fed: fed, dir: h.dir, argv: append([]string{filepath.Join(bin, command)}, args...), env: []string{"MVALVE_QUEUE=" + url}}
	if command == "" {
		s.argv, s.env = []string{os.Args[0]}, []string{roleVariable + "=" + clientRole, queueVariable + "=" + url, leaseVariable + "=" + lease.String()}
	}
	s.sent = func(o *order) { h.ledger.send(key(o.body), name) }
	h.slots = append(h.slots, s)
	s.open(h.t)
	return s
}

// asLine is a line of the writer's input.
func asLine(o *order) string {
	line := map[string]any{"destination": o.destination, "body": o.body, "priority": o.priority}
	if o.emergency {
		line["lane"] = "emergency"
	} else if o.delay > 0 {
		line["delay"] = o.delay.String()
	}
	text, err := json.Marshal(line)
	if err != nil {
		panic(err) // strings and numbers
	}
	return string(text)
}

// execScript is what `mvalve-reader --exec` starts: it notes the delivery with one
// write and refuses one in ten the first time.
const execScript = `read -r body
[ ${#body} = "$MVALVE_MESSAGE_BYTES" ] || exit 75 # the reader was killed before it had passed the body on
code=0
case "$MVALVE_MESSAGE_ATTEMPT ${body%% *}" in "1 "*3) code=75 ;; esac
printf '%s %s %s %s\n' "$MVALVE_MESSAGE_ID" "$MVALVE_MESSAGE_DISPATCHED_AT" "$code" "${body%% *}" >>"$MVALVE_CHAOS_LEDGER"
exit $code
`

// waiting is how many messages of each destination are in the pipe, and how many
// are dead letters.
func (h *harness) waiting(ctx context.Context) (left map[string]int64, dead int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	now, err := h.store.Now(ctx)
	if err != nil {
		return nil, 0, err
	}
	counts, err := h.store.(queue.Admin).Count(ctx, now, "")
	if err != nil {
		return nil, 0, err
	}
	left = make(map[string]int64)
	for _, c := range counts {
		if c.Table == queue.Dead {
			dead += c.Waiting
		} else if n := c.Waiting + c.Leased; n > 0 {
			left[c.Destination] += n
		}
	}
	return left, dead, nil
}

// feed keeps every destination supplied until ctx ends: limited ones with more
// than a window, so that there is always a backlog and the end comes soon.
func (h *harness) feed(ctx context.Context, rng *rand.Rand) {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	room := make(map[string]int)
	for n := 0; ; n++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if n%4 == 0 {
			if left, _, err := h.waiting(ctx); err == nil {
				for _, name := range free {
					room[name] = 40 - int(left[name])
				}
				for name, l := range limits {
					room[name] = l.Max + l.Max/2 + 2 - int(left[name])
				}
			}
		}
		for range 30 {
			name := free[rng.IntN(len(free))]
			if rng.IntN(2) == 0 {
				name = limited[rng.IntN(len(limited))]
			}
			if room[name] > 0 && h.put(rng, name) {
				room[name]--
			}
		}
	}
}

// put gives a message to some producer that takes one.
func (h *harness) put(rng *rand.Rand, destination string) bool {
	h.serial++
	o := &order{destination: destination, body: fmt.Sprint(h.serial), priority: rng.IntN(10)}
	switch rng.IntN(20) {
	case 0:
		o.delay = time.Duration(rng.IntN(500)) * time.Millisecond
	case 1:
		o.emergency = true
	case 2:
		o.body += " " + strings.Repeat(".", rng.IntN(16<<10))
	}
	to := []func(*order) bool{h.writer.order, h.writer.order, h.client.order, h.doors[0].order, h.doors[1].order}[rng.IntN(5)]
	return to(o)
}

// slot is one of the slots.
func (h *harness) slot(name string) *slot {
	return h.slots[slices.IndexFunc(h.slots, func(s *slot) bool { return s.name == name })]
}
