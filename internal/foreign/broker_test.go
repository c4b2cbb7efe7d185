package foreign_test

import (
	"bytes"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mvalve/mvalve/internal/testserver"
)

// broker is a process mvalve serve.
type broker struct {
	t       *testing.T
	program string   // default: command
	args    []string // after the first start with the ports of the first start
	addr    string   // of STOMP
	web     string   // of HTTP
	dir     string
	log     string
	cmd     *exec.Cmd
	done    chan struct{}
	err     error // after done
}

// sqliteURL is a pipe of its own for a test.
func sqliteURL(t *testing.T) string { return "sqlite:" + filepath.Join(t.TempDir(), "mvalve.db") }

// mariadbURL is a pipe of its own on the MariaDB of the tests.
func mariadbURL(t *testing.T) string {
	t.Helper()
	url := testserver.MariaDB(t).URL
	if out, err := exec.Command(command, "init", "--queue", url).CombinedOutput(); err != nil {
		t.Fatalf("init: %v: %s", err, out)
	}
	return url
}

// serve starts a broker on free ports. Retries come soon; leases of a broker
// that was killed end after nine seconds: one that lives extends them every
// three, and a disk that stalls for five does not make it too late.
func serve(t *testing.T, queue string, args ...string) *broker {
	t.Helper()
	b := newBroker(t, queue, args...)
	b.start()
	return b
}

func newBroker(t *testing.T, queue string, args ...string) *broker {
	t.Helper()
	dir := t.TempDir()
	b := &broker{t: t, program: command, dir: dir, log: filepath.Join(dir, "stderr")}
	b.args = append([]string{
		"serve", "--queue", queue, "--stomp", "127.0.0.1:0", "--http", "127.0.0.1:0",
		"--lease", "9s", "--retry-min", "20ms", "--heart-beat", "50ms",
	}, args...)
	t.Cleanup(func() {
		b.kill()
		if text := b.stderr(); t.Failed() {
			t.Logf("stderr of the broker: %s", text[max(0, len(text)-2000):])
		}
	})
	return b
}

var started = regexp.MustCompile(`STOMP on (\S+)[^\n]*\n(?:.*\n)*?.*HTTP on (\S+):(?:.*\n)*.*: ready`)

// start starts the process and waits until it is ready. The second time it has
// the ports of the first.
func (b *broker) start() {
	b.t.Helper()
	before := len(b.stderr())
	b.spawn()
	var found []string
	b.await("the broker is ready", func() bool {
		found = started.FindStringSubmatch(b.stderr()[before:])
		return found != nil
	})
	if b.addr == "" {
		b.addr, b.web = found[1], found[2]
		b.args = append(b.args, "--stomp", b.addr, "--http", b.web) // the last value counts
	}
}

func (b *broker) spawn() {
	b.t.Helper()
	b.cmd, b.done = exec.Command(b.program, b.args...), make(chan struct{})
	b.cmd.Dir = b.dir
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "MVALVE_") {
			b.cmd.Env = append(b.cmd.Env, v)
		}
	}
	b.cmd.SysProcAttr = dieWithParent()
	log, err := os.OpenFile(b.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		b.t.Fatal(err)
	}
	b.cmd.Stderr = log
	result := make(chan error)
	go func() {
		// The death signal comes when the starting thread ends: keep it.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer log.Close()
		err := b.cmd.Start()
		result <- err
		if err == nil {
			b.err = b.cmd.Wait()
			close(b.done)
		}
	}()
	if err := <-result; err != nil {
		b.t.Fatal(err)
	}
}

func (b *broker) stderr() string {
	text, err := os.ReadFile(b.log)
	if err != nil {
		return "" // not started yet
	}
	return string(text)
}

// kill ends the broker as a crash does.
func (b *broker) kill() {
	if b.cmd == nil || b.cmd.Process == nil {
		return
	}
	_ = b.cmd.Process.Kill() // it may have ended
	<-b.done
}

// restart is a crash and a start on the same pipe and ports.
func (b *broker) restart() {
	b.t.Helper()
	b.kill()
	b.start()
}

// stop ends the broker with a signal, in good order.
func (b *broker) stop(s os.Signal) {
	b.t.Helper()
	if err := b.cmd.Process.Signal(s); err != nil {
		b.t.Fatal(err)
	}
	select {
	case <-b.done:
	case <-time.After(patience):
		b.t.Fatalf("the broker did not end after %v", s)
	}
	if b.err != nil {
		b.t.Errorf("after %v: %v", s, b.err)
	}
}

// alive reports that the process runs.
func (b *broker) alive() bool {
	select {
	case <-b.done:
		return false
	default:
		return b.cmd.Process.Signal(syscall.Signal(0)) == nil
	}
}

// await polls until done reports true, while the broker lives.
func (b *broker) await(what string, done func() bool) {
	b.t.Helper()
	deadline := time.Now().Add(patience)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		if !b.alive() {
			b.t.Fatalf("the broker ended (%v) before %s: %s", b.err, what, b.stderr())
		}
		if time.Now().After(deadline) {
			b.t.Fatalf("not within %v: %s", patience, what)
		}
		<-tick.C
	}
}

// raw writes bytes to the broker and returns what it answered until it closed
// the connection.
func (b *broker) raw(frames string) string {
	b.t.Helper()
	nc, err := net.Dial("tcp", b.addr)
	if err != nil {
		b.t.Fatal(err)
	}
	defer nc.Close()
	if err := nc.SetDeadline(time.Now().Add(patience)); err != nil {
		b.t.Fatal(err)
	}
	if _, err := io.WriteString(nc, frames); err != nil {
		b.t.Fatal(err)
	}
	var got bytes.Buffer
	if _, err := got.ReadFrom(nc); err != nil {
		b.t.Fatalf("after %q: %v", got.String(), err)
	}
	return got.String()
}

var counted = regexp.MustCompile(`num-messages:(\d+)\n`)

// count asks how many messages of a queue wait or are out.
func (b *broker) count(queue string) string {
	b.t.Helper()
	answer := b.raw("CONNECT\naccept-version:1.2\nhost:x\n\n\x00SEND\ndestination:/control/count-msgs/queue/" + queue +
		"\nreceipt:n\n\n\x00DISCONNECT\nreceipt:bye\n\n\x00")
	n := counted.FindStringSubmatch(answer)
	if n == nil {
		b.t.Fatalf("no num-messages in %q", answer)
	}
	return n[1]
}

// awaitEmpty waits until a queue holds nothing. A subscriber with ack:auto has a
// message a moment before it is gone from the queue.
func (b *broker) awaitEmpty(queue string) {
	b.t.Helper()
	b.await("queue "+queue+" is empty", func() bool { return b.count(queue) == "0" })
}
