package serve

import (
	"context"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/coder/websocket"
)

// protocols of STOMP over WebSocket, the newest first. Which version is spoken
// is agreed by CONNECT, as on every other connection.
var protocols = []string{"v12.stomp", "v11.stomp", "v10.stomp"}

// webSocket serves /stomp.
func (s *server) webSocket(w http.ResponseWriter, r *http.Request) {
	if why := s.refusal(r); why != "" {
		http.Error(w, why, http.StatusForbidden)
		return
	}
	s.web.Add(1) // before it leaves the HTTP server, which is shut down first
	defer s.web.Done()
	ws, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: protocols, OriginPatterns: s.options.origins})
	if err != nil {
		s.log.Debug("websocket refused", "remote", r.RemoteAddr, "err", err) // Accept has answered
		return
	}
	ws.SetReadLimit(-1) // messages are read as a stream, whose frames have limits
	c := newWebConn(ws)
	c.remote, _ = r.Context().Value(connKey{}).(net.Conn)
	var pump sync.WaitGroup
	pump.Go(c.pump)
	s.stomp.ServeConn(c)
	_ = c.Close()
	pump.Wait()
}

// refusal says why a request may not open a WebSocket, "" if it may. Without
// users whoever is on this machine is let in; a web page in a browser on this
// machine is not meant by that, and neither is whoever comes through a proxy.
// The page's origin is checked by Accept; a page whose own name leads to this
// machine (DNS rebinding) shows by the name in Host.
func (s *server) refusal(r *http.Request) string {
	if s.options.users != "" {
		return ""
	}
	host, _, err := net.SplitHostPort(r.Host)
	if err != nil {
		host = r.Host
	}
	if !isLoopback(host) {
		return "without --users this server is for localhost only, and you call it by another name"
	}
	if r.Header.Get("Forwarded") != "" || r.Header.Get("X-Forwarded-For") != "" {
		return "without --users this server is for its own machine only, and you come through a proxy"
	}
	return ""
}

// webConn is a WebSocket as a stream. What is written in one call is one
// message, so that messages hold whole frames; messages that come may hold
// parts of frames or several. A client that begins with a binary message gets
// binary ones; others get text as far as it is text.
type webConn struct {
	net.Conn          // what comes: the end of a pipe, which has proper deadlines
	feed     net.Conn // the other end
	remote   net.Conn // nil: unknown
	ws       *websocket.Conn
	binary   atomic.Bool
	until    atomic.Pointer[time.Time] // for writes
	closing  sync.Once
}

func newWebConn(ws *websocket.Conn) *webConn {
	c := &webConn{ws: ws}
	c.Conn, c.feed = net.Pipe()
	return c
}

// pump brings what comes to those who read, until the WebSocket ends.
func (c *webConn) pump() {
	defer c.feed.Close()
	buffer := make([]byte, 4<<10)
	for first := true; ; first = false {
		kind, message, err := c.ws.Reader(context.Background())
		if err != nil {
			return
		}
		if first {
			c.binary.Store(kind == websocket.MessageBinary)
		}
		if _, err := io.CopyBuffer(struct{ io.Writer }{c.feed}, message, buffer); err != nil {
			return
		}
	}
}

// Write sends p as one message.
func (c *webConn) Write(p []byte) (int, error) {
	ctx := context.Background()
	if until := c.until.Load(); until != nil && !until.IsZero() {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, *until)
		defer cancel()
	}
	kind := websocket.MessageText
	if c.binary.Load() || !utf8.Valid(p) {
		kind = websocket.MessageBinary
	}
	if err := c.ws.Write(ctx, kind, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// CloseWrite says goodbye; what the client still says can be read.
func (c *webConn) CloseWrite() error {
	c.closing.Do(func() {
		go func() { _ = c.ws.Close(websocket.StatusNormalClosure, "") }() // it waits for the answer, which pump reads
	})
	return nil
}

// Close ends the connection at once.
func (c *webConn) Close() error {
	err := c.Conn.Close()
	_ = c.ws.CloseNow() // it may be closed
	return err
}

// RemoteAddr returns the peer's address.
func (c *webConn) RemoteAddr() net.Addr {
	if c.remote == nil {
		return webAddr{}
	}
	return c.remote.RemoteAddr()
}

// SetDeadline sets both deadlines.
func (c *webConn) SetDeadline(t time.Time) error {
	c.until.Store(&t)
	return c.SetReadDeadline(t)
}

// SetWriteDeadline bounds the writes that begin from now on. One that fails
// ends the connection.
func (c *webConn) SetWriteDeadline(t time.Time) error {
	c.until.Store(&t)
	return nil
}

// webAddr is the address of an unknown peer, which is not on this machine.
type webAddr struct{}

func (webAddr) Network() string { return "websocket" }
func (webAddr) String() string  { return "unknown" }
