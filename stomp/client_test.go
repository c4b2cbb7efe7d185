package stomp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/stomp/frame"
	"github.com/mvalve/mvalve/valve"
)

// patience is how long a test waits for what must come: less than a lease, whose
// end would make up for much. quiet is how long it listens for what must not.
const (
	patience = 30 * time.Second
	quiet    = 150 * time.Millisecond
)

// broker is a server over a store, on a real socket unless it is piped.
type broker struct {
	t      testing.TB
	srv    *Server
	store  queue.Store
	addr   string
	writer *valve.Writer
	reader *valve.Reader
	served chan error
}

type brokerConfig struct {
	store  queue.Store // default: memory
	reader valve.ReaderConfig
	config Config
	auth   Authenticator
	piped  bool // no socket: see virtually
}

// virtually runs a test in virtual time, which stands still while anybody has
// something to do: its bounds are exact, and no goroutine comes too late. Clients
// are connected by pipes, which hold nothing: what is written has been read.
func virtually(t *testing.T, bc brokerConfig, test func(t *testing.T, b *broker)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		bc.piped = true
		test(t, startBroker(t, bc))
	})
}

// pass lets virtual time pass.
func pass(d time.Duration) {
	time.Sleep(d) //nolint:forbidigo // in a synctest bubble: nothing waits for real
}

func startBroker(t testing.TB, bc brokerConfig) *broker {
	t.Helper()
	ctx := context.Background()
	b := &broker{t: t, store: bc.store, served: make(chan error, 1)}
	if b.store == nil {
		b.store = queue.NewMemory()
	}
	var err error
	if b.writer, err = valve.NewWriter(ctx, b.store, valve.WriterConfig{}); err != nil {
		t.Fatal(err)
	}
	bc.reader.Writer, bc.reader.Address = b.writer, "-"
	if b.reader, err = valve.OpenReader(ctx, b.store, bc.reader); err != nil {
		t.Fatal(err)
	}
	if bc.config.Linger == 0 {
		bc.config.Linger = 2 * patience // who waits for the end of a connection closes the client
	}
	b.srv = &Server{Writer: b.writer, Reader: b.reader, Auth: bc.auth, Config: bc.config, Logger: slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelWarn}))}
	b.srv.Admin, _ = b.store.(queue.Admin)
	t.Cleanup(b.close)
	if bc.piped {
		return b
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b.addr = ln.Addr().String()
	go func() { b.served <- b.srv.Serve(ln) }()
	return b
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

func (b *broker) close() {
	_ = b.srv.Close()
	_ = b.reader.Close()
	_ = b.writer.Close()
}

// client is a STOMP client that does what tests say, right or wrong.
type client struct {
	t  testing.TB
	nc net.Conn
	r  *frame.Reader
	v  frame.Version
	n  int

	held []*frame.Frame // MESSAGEs that came while do waited for its RECEIPT
}

// dial opens a connection without CONNECT.
func (b *broker) dial() *client {
	b.t.Helper()
	nc := b.open()
	b.t.Cleanup(func() { nc.Close() })
	return &client{t: b.t, nc: nc, r: frame.NewReader(nc, frame.Limits{Body: 64 << 20})}
}

// open makes the way of a connection.
func (b *broker) open() net.Conn {
	b.t.Helper()
	if b.addr == "" {
		ours, theirs := net.Pipe()
		go b.srv.ServeConn(theirs)
		return ours
	}
	nc, err := net.Dial("tcp", b.addr)
	if err != nil {
		b.t.Fatal(err)
	}
	return nc
}

// connect opens a connection of a version; extra are header lines.
func (b *broker) connect(v frame.Version, extra ...string) *client {
	b.t.Helper()
	c := b.dial()
	c.write("CONNECT\naccept-version:" + v.String() + "\nhost:x\n" + lines(extra) + "\n\x00")
	c.expect(frame.Connected)
	c.v = v
	c.r.SetVersion(v)
	_ = c.nc.SetDeadline(time.Time{})
	return c
}

func lines(l []string) string {
	s := ""
	for _, line := range l {
		s += line + "\n"
	}
	return s
}

// write sends bytes as they are.
func (c *client) write(s string) {
	c.t.Helper()
	_ = c.nc.SetWriteDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c.nc, s); err != nil {
		c.t.Fatalf("write: %v", err)
	}
}

// frame sends a frame of header lines, which are not escaped, and a body.
func (c *client) frame(command string, headers []string, body string) {
	c.t.Helper()
	s := command + "\n" + lines(headers)
	if body != "" {
		s += fmt.Sprintf("content-length:%d\n", len(body))
	}
	c.write(s + "\n" + body + "\x00")
}

// do sends a frame with a receipt and waits for it; MESSAGEs on the way are kept
// for later.
func (c *client) do(command string, headers ...string) *frame.Frame {
	c.t.Helper()
	return c.doBody(command, "", headers...)
}

func (c *client) doBody(command, body string, headers ...string) *frame.Frame {
	c.t.Helper()
	c.n++
	id := fmt.Sprintf("r%d", c.n)
	c.frame(command, append(headers, "receipt:"+id), body)
	for {
		f, err := c.receive()
		switch {
		case err != nil:
			c.t.Fatalf("waiting for the RECEIPT of %s: %v", command, err)
		case f.Command == frame.Message:
			c.held = append(c.held, f)
		case f.Command != frame.Receipt || header(f, "receipt-id") != id:
			c.t.Fatalf("%s with receipt %s: got %s", command, id, show(f))
		default:
			return f
		}
	}
}

func (c *client) send(destination, body string, headers ...string) {
	c.t.Helper()
	c.doBody("SEND", body, append([]string{"destination:" + destination}, headers...)...)
}

func (c *client) subscribe(id, destination, ack string, headers ...string) {
	c.t.Helper()
	c.do("SUBSCRIBE", append([]string{"id:" + id, "destination:" + destination, "ack:" + ack}, headers...)...)
}

// read returns the next frame.
func (c *client) read() (*frame.Frame, error) {
	if len(c.held) > 0 {
		f := c.held[0]
		c.held = c.held[1:]
		return f, nil
	}
	return c.receive()
}

// receive returns the next frame of the socket.
func (c *client) receive() (*frame.Frame, error) {
	_ = c.nc.SetReadDeadline(time.Now().Add(patience))
	f, err := c.r.Read()
	if err != nil {
		return nil, err
	}
	return f.Clone(), nil
}

func (c *client) expect(command frame.Command) *frame.Frame {
	c.t.Helper()
	f, err := c.read()
	if err != nil {
		c.t.Fatalf("waiting for %v: %v", command, err)
	}
	if f.Command != command {
		c.t.Fatalf("got %s, want %v", show(f), command)
	}
	return f
}

// message reads a MESSAGE with this body.
func (c *client) message(body string) *frame.Frame {
	c.t.Helper()
	f := c.expect(frame.Message)
	if string(f.Body) != body {
		c.t.Fatalf("got %s, want body %q", show(f), body)
	}
	return f
}

// nothingElse makes sure that nothing was sent before the answer to a frame of
// ours. It costs no time, but proves nothing about what others still prepare.
func (c *client) nothingElse() {
	c.t.Helper()
	c.do("BEGIN", "transaction:nothing else")
	c.do("ABORT", "transaction:nothing else")
	if len(c.held) > 0 {
		c.t.Fatalf("got %s, want nothing", show(c.held[0]))
	}
}

// silent makes sure that nothing comes.
func (c *client) silent() {
	c.t.Helper()
	c.silentFor(quiet)
}

func (c *client) silentFor(d time.Duration) {
	c.t.Helper()
	if len(c.held) > 0 {
		c.t.Fatalf("got %s, want nothing", show(c.held[0]))
	}
	_ = c.nc.SetReadDeadline(time.Now().Add(d))
	if f, err := c.r.Read(); err == nil {
		c.t.Fatalf("got %s, want nothing", show(f))
	} else if ne, ok := errors.AsType[net.Error](err); !ok || !ne.Timeout() {
		c.t.Fatalf("got %v, want nothing", err)
	}
}

// fails reads an ERROR that mentions what, and then the end of the connection (S120).
func (c *client) fails(what string) *frame.Frame {
	c.t.Helper()
	f := c.expect(frame.ErrorCommand)
	if text := header(f, "message") + ": " + string(f.Body); !strings.Contains(text, what) {
		c.t.Fatalf("ERROR %q, want %q in it", text, what)
	}
	c.closed()
	return f
}

func (c *client) closed() {
	c.t.Helper()
	if f, err := c.read(); !errors.Is(err, io.EOF) {
		c.t.Fatalf("got %s, %v; want the end of the connection", show(f), err)
	}
}

func header(f *frame.Frame, name string) string {
	v, _ := f.Get(name)
	return string(v)
}

func show(f *frame.Frame) string {
	if f == nil {
		return "no frame"
	}
	return string(frame.Append(nil, frame.V10, f))
}

// eventually polls until ok.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
		<-tick.C
	}
}
