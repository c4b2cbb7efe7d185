package proof_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/mvalve/mvalve/internal/testserver"
)

// broker is a process `mvalve serve`.
type broker struct {
	p       *pipe
	args    []string
	address string // of STOMP, the same after each start
	debug   string // of its profiles
	proc    *process
}

// newBroker starts a broker on a pipe. Its leases outlive a disk that stalls; a
// test that kills brokers gives them shorter ones.
func newBroker(t *testing.T, p *pipe, args ...string) *broker {
	t.Helper()
	b := &broker{p: p, args: args, address: testserver.FreeAddress(t)}
	b.start(t)
	return b
}

var debugLine = regexp.MustCompile(`debug on ([0-9.:]+):`)

// start starts it, again if it was killed, and waits until it is ready.
func (b *broker) start(t *testing.T) {
	t.Helper()
	args := append([]string{
		"serve", "--stomp", b.address, "--http", "off", "--debug", "127.0.0.1:0",
		"--lease", "1m", "--retry-min", "20ms", "--max-attempts", "1000",
	}, b.args...)
	b.proc = start(t, nil, b.p.env(), filepath.Join(bin, "mvalve"), args...)
	waitFor(t, patience, "mvalve serve is ready", func() bool {
		if !b.proc.running() {
			t.Fatalf("mvalve serve ended: %v: %s", b.proc.err, b.proc.stderr())
		}
		return strings.Contains(b.proc.stderr(), "ready;")
	})
	if found := debugLine.FindStringSubmatch(b.proc.stderr()); found != nil {
		b.debug = found[1]
	}
}

// profile reads one of its profiles as text.
func (b *broker) profile(t *testing.T, name string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+b.debug+"/debug/pprof/"+name, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	request.Close = true // an idle connection would count as one of the broker's
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// heap is what is live on its heap, in bytes.
func (b *broker) heap(t *testing.T) int64 {
	t.Helper()
	b.profile(t, "heap?gc=1&debug=1") // what is in a sync.Pool outlives one collection
	return numberBehind(b.profile(t, "heap?gc=1&debug=1"), "# HeapAlloc = ")
}

func (b *broker) goroutines(t *testing.T) int64 {
	t.Helper()
	return numberBehind(b.profile(t, "goroutine?debug=1"), "goroutine profile: total ")
}

// resident is its resident memory and the most that was, in bytes; 0 where the
// system does not tell.
func (b *broker) resident() (now, most int64) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", b.proc.cmd.Process.Pid))
	if err != nil {
		return 0, 0
	}
	return numberBehind(string(text), "VmRSS:") << 10, numberBehind(string(text), "VmHWM:") << 10
}

// files is how many file descriptors it has open.
func (b *broker) files(t *testing.T) int64 {
	t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", b.proc.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	return int64(len(entries))
}

func numberBehind(text, behind string) int64 {
	_, rest, _ := strings.Cut(text, behind)
	fields := strings.Fields(rest)
	if len(fields) == 0 {
		return 0
	}
	n, _ := strconv.ParseInt(fields[0], 10, 64) // 0: not known
	return n
}

// onLinux skips a test that reads of the broker what only /proc tells.
func onLinux(t *testing.T) {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("reads /proc")
	}
}

const mib = 1 << 20

func inMiB(bytes int64) string { return fmt.Sprintf("%.1f MiB", float64(bytes)/mib) }
