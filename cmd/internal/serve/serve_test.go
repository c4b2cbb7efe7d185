package serve

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/mvalve/mvalve/auth"
	"github.com/mvalve/mvalve/cmd/internal/setup"
	"github.com/mvalve/mvalve/internal/testserver"
	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/stomp/frame"
)

func TestMain(m *testing.M) {
	code := m.Run()
	testserver.Stop()
	os.Exit(code)
}

// running is a server in this process.
type running struct {
	stomp, http string // addresses
	stop        func() error
	said        func() string // what it said on stderr
}

// start runs the command on a free port each, until the test ends.
func start(t *testing.T, args ...string) *running {
	t.Helper()
	r, err := tryStart(t, args...)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func tryStart(t *testing.T, args ...string) (*running, error) {
	t.Helper()
	in, out := io.Pipe()
	app := &cli.App{Name: "mvalve", Commands: []*cli.Command{Command()}}
	setup.Strict(app)
	app.Writer, app.ErrWriter = io.Discard, out
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- app.RunContext(ctx, append([]string{"mvalve", "serve", "--stomp", "127.0.0.1:0", "--http", "127.0.0.1:0"}, args...))
		_ = out.Close()
	}()
	r := &running{}
	r.stop = sync.OnceValue(func() error {
		cancel()
		err := <-ended
		if errors.Is(err, context.Canceled) {
			err = nil // no signal ended it, but this function
		}
		return err
	})
	var mu sync.Mutex
	var all strings.Builder
	r.said = func() string {
		mu.Lock()
		defer mu.Unlock()
		return all.String()
	}
	ready := make(chan struct{})
	go func() {
		for lines := bufio.NewScanner(in); lines.Scan(); {
			line := strings.TrimPrefix(lines.Text(), "mvalve: ")
			mu.Lock()
			all.WriteString(line + "\n")
			mu.Unlock()
			if rest, ok := strings.CutPrefix(line, "STOMP on "); ok {
				r.stomp, _, _ = strings.Cut(rest, " ")
			}
			if rest, ok := strings.CutPrefix(line, "HTTP on "); ok {
				r.http, _, _ = strings.Cut(strings.TrimSuffix(strings.Fields(rest)[0], ":"), " ")
			}
			if strings.HasPrefix(line, "ready") {
				close(ready)
			}
		}
	}()
	select {
	case <-ready:
	case err := <-ended:
		cancel()
		return nil, err
	case <-time.After(20 * time.Second):
		t.Fatalf("not ready: %s", r.said())
	}
	t.Cleanup(func() {
		if err := r.stop(); err != nil {
			t.Errorf("stop: %v", err)
		}
	})
	return r, nil
}

func newQueue(t *testing.T) string {
	t.Helper()
	return "sqlite:" + filepath.Join(t.TempDir(), "q.db")
}

// peer is a client.
type peer struct {
	t      *testing.T
	conn   net.Conn
	frames *frame.Reader
}

func newPeer(t *testing.T, conn net.Conn) *peer {
	t.Cleanup(func() { conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	return &peer{t, conn, frame.NewReader(conn, frame.Limits{})}
}

func dial(t *testing.T, address string) *peer {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	return newPeer(t, conn)
}

// say writes frames; @ stands for NUL.
func (p *peer) say(text string) {
	p.t.Helper()
	if _, err := io.WriteString(p.conn, strings.ReplaceAll(text, "@", "\x00")); err != nil {
		p.t.Fatal(err)
	}
}

// hear reads a frame and checks its command.
func (p *peer) hear(command frame.Command) *frame.Frame {
	p.t.Helper()
	f, err := p.frames.Read()
	if err != nil {
		p.t.Fatalf("waiting for %v: %v", command, err)
	}
	if f.Command != command {
		p.t.Fatalf("%v, want %v: %s %s", f.Command, command, f.Header, f.Body)
	}
	if f.Command == frame.Connected {
		p.frames.SetVersion(frame.V12)
	}
	return f
}

const connect = "CONNECT\naccept-version:1.2\nhost:x\n\n@"

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	answer, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer.StatusCode, string(text)
}

func TestServe(t *testing.T) {
	r := start(t, "--queue", newQueue(t))
	for path, want := range map[string]int{"/healthz": 200, "/readyz": 200, "/": 404, "/debug/pprof/": 404, "/stomp": 426} {
		if code, text := get(t, "http://"+r.http+path); code != want {
			t.Errorf("%s: %d %s", path, code, text)
		}
	}
	p := dial(t, r.stomp)
	p.say(connect + "SEND\ndestination:/queue/d\nreceipt:1\n\nhello@")
	p.hear(frame.Connected)
	p.hear(frame.Receipt)
	p.say("SUBSCRIBE\nid:s\ndestination:/queue/d\n\n@")
	if f := p.hear(frame.Message); string(f.Body) != "hello" {
		t.Errorf("%q", f.Body)
	}
	for _, want := range []string{"STOMP on 127.0.0.1:", "no --users: ", "nc 127.0.0.1 ", "mvalve bench stomp --address " + r.stomp, "ws://127.0.0.1:"} {
		if !strings.Contains(r.said(), want) {
			t.Errorf("%q is not in\n%s", want, r.said())
		}
	}
	stopped := make(chan error, 1)
	go func() { stopped <- r.stop() }()
	p.hear(frame.ErrorCommand) // says that it goes
	if _, err := p.frames.Read(); !errors.Is(err, io.EOF) {
		t.Errorf("after ERROR: %v", err)
	}
	p.conn.Close()
	if err := <-stopped; err != nil {
		t.Error(err)
	}
	if _, err := net.Dial("tcp", r.http); err == nil {
		t.Error("the HTTP address still answers")
	}
}

func TestUsers(t *testing.T) {
	file := filepath.Join(t.TempDir(), "users")
	var lines strings.Builder
	for name, role := range map[string]string{"shop": ":send", "all": ""} {
		hash, err := auth.Hash("pass:" + name)
		if err != nil {
			t.Fatal(err)
		}
		lines.WriteString(name + ":" + hash + role + "\n")
	}
	if err := os.WriteFile(file, []byte(lines.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	r := start(t, "--queue", newQueue(t), "--users", file)
	login := func(name, passcode string) *peer {
		p := dial(t, r.stomp)
		p.say("CONNECT\naccept-version:1.2\nhost:x\nlogin:" + name + "\npasscode:" + passcode + "\n\n@")
		return p
	}
	p := login("all", "pass:all")
	p.hear(frame.Connected)
	p.say("SUBSCRIBE\nid:s\ndestination:/queue/d\nreceipt:1\n\n@")
	p.hear(frame.Receipt)
	p = login("shop", "pass:shop")
	p.hear(frame.Connected)
	p.say("SEND\ndestination:/queue/d\nreceipt:1\n\nx@")
	p.hear(frame.Receipt)
	p.say("SUBSCRIBE\nid:s\ndestination:/queue/d\nreceipt:1\n\n@")
	p.hear(frame.ErrorCommand)
	login("all", "pass:shop").hear(frame.ErrorCommand)
	login("nobody", "pass:all").hear(frame.ErrorCommand)
	if strings.Contains(r.said(), "--users") {
		t.Errorf("it speaks of this machine only:\n%s", r.said())
	}
}

// initialize makes the tables, as mvalve init does.
func initialize(t *testing.T, url string) {
	t.Helper()
	app := &cli.App{Flags: setup.QueueFlags(), Action: func(c *cli.Context) error {
		pipe, err := setup.OpenPipe(c, setup.PipeOptions{Init: true})
		if err != nil {
			return err
		}
		defer pipe.Close()
		return pipe.Store.(queue.Initializer).Init(c.Context)
	}}
	if err := app.RunContext(t.Context(), []string{"init", "--queue", url}); err != nil {
		t.Fatal(err)
	}
}

// TestTwoServers: consumers of one destination on two servers of one MariaDB
// get each message once.
func TestTwoServers(t *testing.T) {
	db := testserver.MariaDB(t).NewDatabase(t)
	initialize(t, db.URL)
	one, two := start(t, "--queue", db.URL), start(t, "--queue", db.URL)
	const messages = 40
	got := make(chan string, 2*messages)
	for _, address := range []string{one.stomp, two.stomp} {
		p := dial(t, address)
		p.say(connect + "SUBSCRIBE\nid:s\ndestination:/queue/d\nack:client-individual\nprefetch-count:3\nreceipt:1\n\n@")
		p.hear(frame.Connected)
		p.hear(frame.Receipt)
		go func() {
			for {
				f, err := p.frames.Read()
				if err != nil {
					return
				}
				id, _ := f.Get("ack")
				got <- string(f.Body)
				if _, err := io.WriteString(p.conn, "ACK\nid:"+string(id)+"\n\n\x00"); err != nil {
					return
				}
			}
		}()
	}
	for i, address := range []string{one.stomp, two.stomp} {
		p := dial(t, address)
		p.say(connect)
		p.hear(frame.Connected)
		for n := range messages / 2 {
			p.say("SEND\ndestination:/queue/d\nreceipt:1\n\n" + string(rune('a'+i)) + strings.Repeat("x", n) + "@")
			p.hear(frame.Receipt)
		}
	}
	seen := make(map[string]bool)
	for range messages {
		select {
		case body := <-got:
			if seen[body] {
				t.Errorf("%s came twice", body)
			}
			seen[body] = true
		case <-time.After(20 * time.Second):
			t.Fatalf("%d of %d arrived", len(seen), messages)
		}
	}
}

func TestReadiness(t *testing.T) { synctest.Test(t, testReadiness) }

// testReadiness runs in a bubble, whose clock goes on only when the test sleeps.
func testReadiness(t *testing.T) {
	var answer error
	asked := 0
	r := &readiness{ask: func(context.Context) error {
		asked++
		return answer
	}}
	if text := r.check(t.Context()); text == "" || asked != 0 {
		t.Errorf("before the start: %q after asking %d times", text, asked)
	}
	r.set(true)
	for range 3 {
		if text := r.check(t.Context()); text != "" || asked != 1 {
			t.Errorf("%q after asking %d times", text, asked)
		}
		time.Sleep(freshFor / 2) //nolint:forbidigo // virtual time
	}
	answer = errors.New("secret address")
	if text := r.check(t.Context()); !strings.Contains(text, "queue") || strings.Contains(text, "secret") {
		t.Errorf("%q", text)
	}
	r.set(false)
	if text := r.check(t.Context()); text == "" {
		t.Error("ready after the end")
	}
}

// notifySocket is systemd's end of NOTIFY_SOCKET.
func notifySocket(t *testing.T) (path string, conn *net.UnixConn) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return path, conn
}

// TestSystemdDeaf: a systemd that does not read is given up.
func TestSystemdDeaf(t *testing.T) {
	path, _ := notifySocket(t)
	for told := range 10_000 {
		err := tell(path, "WATCHDOG=1", 10*time.Millisecond)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return
		}
		if err != nil {
			t.Fatalf("after %d: %v", told, err)
		}
	}
	t.Fatal("a socket that nobody reads took everything")
}

// TestSystemd: ready, watchdog, stopping, in this order.
func TestSystemd(t *testing.T) {
	path, conn := notifySocket(t)
	t.Setenv("NOTIFY_SOCKET", path)
	t.Setenv("WATCHDOG_USEC", "30000")
	r := start(t, "--queue", newQueue(t))
	hear := func() string {
		_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second))
		text := make([]byte, 100)
		n, err := conn.Read(text)
		if err != nil {
			t.Fatal(err)
		}
		return string(text[:n])
	}
	if text := hear(); text != "READY=1" {
		t.Errorf("%q", text)
	}
	if text := hear(); text != "WATCHDOG=1" {
		t.Errorf("%q", text)
	}
	// The queue of the socket holds few: who stops must go on reading.
	stopped := make(chan error, 1)
	go func() { stopped <- r.stop() }()
	text := hear()
	for text == "WATCHDOG=1" {
		text = hear()
	}
	if text != "STOPPING=1" {
		t.Errorf("%q", text)
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}

// TestReplies: the default limit is for third parties, not for temporary queues.
func TestReplies(t *testing.T) {
	queue := newQueue(t)
	start(t, "--queue", queue, "--limit", "1/1h")
	r := start(t, "--queue", queue)
	p := dial(t, r.stomp)
	p.say(connect + "SUBSCRIBE\nid:s\ndestination:/temp-queue/x\nreceipt:1\n\n@")
	p.hear(frame.Connected)
	p.hear(frame.Receipt)
	for range 3 {
		p.say("SEND\ndestination:/temp-queue/x\n\nx@")
		p.hear(frame.Message)
	}
}
