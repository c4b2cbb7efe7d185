package bench

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/mvalve/mvalve/cmd/internal/setup"
	"github.com/mvalve/mvalve/queue"
)

// broker is the process under load, as far as it is known.
type broker struct {
	pid   int    // 0: unknown
	debug string // address of its profiles and heap; "" for none
	cmd   *exec.Cmd
	ended chan struct{}
	said  lines // its last lines on stderr
}

// lines keeps the last lines of a text.
type lines struct {
	mu   sync.Mutex
	last []string
}

func (l *lines) add(line string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last = append(l.last[max(0, len(l.last)-9):], line)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.last, "; ")
}

// startBroker starts `mvalve serve` on a free port and waits until it is ready.
func (b *stompBench) startBroker(ctx context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	url := b.c.String("queue")
	if b.folder != "" {
		url = "sqlite:" + filepath.Join(b.folder, "stomp.db")
	}
	cmd := exec.CommandContext(context.WithoutCancel(ctx), self, "serve", "--stomp", "127.0.0.1:0", "--http", "off", "--debug", "127.0.0.1:0")
	cmd.Args[0] = os.Args[0] // what this program is called, whatever its file is
	// The environment, unlike the arguments, hides a password from other users.
	cmd.Env = append(os.Environ(), "MVALVE_QUEUE="+url)
	out, err := cmd.StderrPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return fmt.Errorf("start mvalve serve: %w", err)
	}
	b.broker.cmd, b.broker.pid, b.broker.ended = cmd, cmd.Process.Pid, make(chan struct{})
	ready := make(chan struct{})
	go b.broker.listen(out, &b.target.address, ready)
	select {
	case <-ready:
		return nil
	case <-b.broker.ended:
		return fmt.Errorf("mvalve serve ended: %s", &b.broker.said)
	case <-time.After(stall):
		b.broker.stop()
		return fmt.Errorf("mvalve serve is not ready after %v: %s", stall, &b.broker.said)
	case <-ctx.Done():
		b.broker.stop()
		return context.Cause(ctx)
	}
}

// listen reads the addresses from the start lines and keeps the last lines.
func (b *broker) listen(out io.Reader, address *string, ready chan<- struct{}) {
	text := bufio.NewScanner(out)
	for text.Scan() {
		line := strings.TrimPrefix(text.Text(), "mvalve: ")
		b.said.add(line)
		switch name, rest, _ := strings.Cut(line, " on "); name {
		case "STOMP":
			*address = firstWord(rest)
		case "debug":
			b.debug = firstWord(rest)
		}
		if strings.HasPrefix(line, "ready") && ready != nil {
			close(ready)
			ready = nil
		}
	}
	_ = b.cmd.Wait() // its last lines say more than its code
	close(b.ended)
}

func firstWord(text string) string {
	word, _, _ := strings.Cut(text, " ")
	return strings.TrimRight(word, ",;:")
}

// stop ends a broker that was started.
func (b *broker) stop() {
	if b.cmd == nil {
		return
	}
	_ = b.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	select {
	case <-b.ended:
	case <-time.After(stall):
		_ = b.cmd.Process.Kill()
		<-b.ended
	}
}

// explain adds what a broker that was started and has ended said last.
func (b *broker) explain(err error) error {
	if b.cmd == nil {
		return err
	}
	select {
	case <-b.ended:
		return fmt.Errorf("%w; mvalve serve ended: %s", err, &b.said)
	default:
		return err
	}
}

// memory is what a process has, in bytes; 0 where it is not known.
type memory struct{ resident, heap int64 }

func (m memory) minus(o memory) memory { return memory{m.resident - o.resident, m.heap - o.heap} }

var errNoProcess = errors.New("the broker's memory is not known; give its --pid, or its --debug address")

func (b *broker) memory(ctx context.Context) (m memory, err error) {
	if b.debug == "" && b.pid == 0 {
		return m, setup.Failf(setup.ExitUsage, "%w", errNoProcess)
	}
	if b.debug != "" {
		for range 2 { // what is in a sync.Pool outlives one collection
			text, err := b.get(ctx, "/debug/pprof/heap?gc=1&debug=1")
			if err != nil {
				return m, err
			}
			m.heap = number64(text, "# HeapAlloc = ")
		}
	}
	if b.pid != 0 {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", b.pid))
		if err != nil {
			return m, setup.Failf(setup.ExitInput, "--pid: %w", err)
		}
		m.resident = number64(string(text), "VmRSS:") << 10
	}
	return m, nil
}

func number64(text, behind string) int64 {
	_, rest, _ := strings.Cut(text, behind)
	fields := strings.Fields(rest)
	if len(fields) == 0 {
		return 0
	}
	n, _ := strconv.ParseInt(fields[0], 10, 64) // 0: not known
	return n
}

// cpu returns the processor time that the broker has used; 0 if not known.
func (b *broker) cpu() time.Duration {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", b.pid))
	if b.pid == 0 || err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	fields := strings.Fields(rest)
	if len(fields) < 13 {
		return 0
	}
	user, _ := strconv.ParseInt(fields[11], 10, 64)
	system, _ := strconv.ParseInt(fields[12], 10, 64)
	return time.Duration(user+system) * 10 * time.Millisecond // USER_HZ is 100
}

func (b *broker) get(ctx context.Context, path string) (string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+b.debug+path, http.NoBody)
	if err != nil {
		return "", err
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return "", fmt.Errorf("--debug: %w", err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err == nil && answer.StatusCode != http.StatusOK {
		err = fmt.Errorf("--debug: %s%s answers %s", b.debug, path, answer.Status)
	}
	return string(text), err
}

// use is the processor time that messages took.
type use struct {
	messages    int64
	broker, own time.Duration // 0: not known
}

// watch takes a profile of the broker for d, if one is wanted, and returns what
// tells the use of the time since.
func (b *stompBench) watch(ctx context.Context, name string, d time.Duration, count func() int64) (stop func() use) {
	profiled := make(chan error, 1)
	if folder := b.c.String("profile"); folder != "" && b.broker.debug != "" {
		go func() { profiled <- b.broker.profile(ctx, filepath.Join(folder, name+".cpu"), d) }()
	} else {
		profiled <- nil
	}
	n, broker, own := count(), b.broker.cpu(), cpuTime()
	return func() use {
		u := use{count() - n, b.broker.cpu() - broker, cpuTime() - own}
		if err := <-profiled; err != nil && ctx.Err() == nil {
			fmt.Fprintf(b.c.App.ErrWriter, "mvalve: --profile: %v\n", err)
		}
		return u
	}
}

func (b *broker) profile(ctx context.Context, file string, d time.Duration) error {
	text, err := b.get(ctx, fmt.Sprintf("/debug/pprof/profile?seconds=%d", int(max(d, time.Second)/time.Second)))
	if err != nil {
		return err
	}
	return os.WriteFile(file, []byte(text), 0o644)
}

// heapProfile leaves the broker's heap profile in --profile.
func (b *stompBench) heapProfile(ctx context.Context, name string) error {
	folder := b.c.String("profile")
	if folder == "" || b.broker.debug == "" {
		return nil
	}
	text, err := b.broker.get(ctx, "/debug/pprof/heap?gc=1")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(folder, name+".heap"), []byte(text), 0o644)
}

// noteUse adds what a message cost.
func (b *stompBench) noteUse(name string, u use) {
	if u.messages == 0 {
		return
	}
	if u.broker > 0 {
		b.note(name, "processor time of the broker", "µs/msg", float64(u.broker.Microseconds())/float64(u.messages), goal{})
	}
	b.note(name, "processor time of the load", "µs/msg", float64(u.own.Microseconds())/float64(u.messages), goal{})
}

// baseline measures what the store does alone: inserts, each on disk when the
// call returns.
func (b *stompBench) baseline(ctx context.Context) error {
	for _, one := range []rawCase{{1, 1}, {1, 16}, {100, 4}} {
		err := b.with(func(p *pipe) error {
			s, err := measureInserts(ctx, p.store, one, b.seconds)
			b.results.add("store alone", "insert "+one.String(), "msg/s", s.perSecond(), goal{})
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func measureInserts(ctx context.Context, store queue.Store, c rawCase, d time.Duration) (span, error) {
	var ids queue.IDSource
	var done atomic.Int64
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	var callers sync.WaitGroup
	var stop atomic.Bool
	for range c.callers {
		callers.Go(func() {
			src := newSource("raw-", 1)
			for !stop.Load() && ctx.Err() == nil {
				now := time.Now().UTC().Truncate(time.Microsecond)
				messages := src.messages(c.batch)
				for _, m := range messages {
					m.ID, m.Lane, m.EnqueuedAt = ids.New(now), queue.Incoming, now
				}
				if _, err := store.Apply(ctx, now, &queue.Change{Token: ids.New(now), Put: messages}); err != nil {
					fail(fmt.Errorf("insert: %w", err))
					return
				}
				done.Add(int64(c.batch))
			}
		})
	}
	s, err := measure(ctx, d, done.Load)
	stop.Store(true)
	callers.Wait()
	return s, err
}
