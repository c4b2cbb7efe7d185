package testserver

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
)

// Proxy stands between a client and a server and misbehaves on request. All
// methods are safe for concurrent use.
type Proxy struct {
	Addr string // where clients connect

	target string
	wg     sync.WaitGroup

	mu       sync.Mutex
	listener net.Listener // nil while cut
	conns    map[*pair]struct{}
	requests gate
	replies  gate
	closed   bool
}

// gate is open when its channel is closed.
type gate struct {
	open chan struct{}
	held map[*pair][]byte // what waits for it to open
}

func openGate() gate {
	g := gate{open: make(chan struct{}), held: make(map[*pair][]byte)}
	close(g.open)
	return g
}

// pair is one connection: the client's side and the server's.
type pair struct {
	client, server net.Conn
	done           chan struct{}
	once           sync.Once
}

// NewProxy starts a proxy for the server at target (host:port). It ends with the test.
func NewProxy(tb testing.TB, target string) *Proxy {
	tb.Helper()
	p := &Proxy{target: target, conns: make(map[*pair]struct{}), requests: openGate(), replies: openGate()}
	l, err := listenKept()
	if err != nil {
		tb.Fatalf("proxy: %v", err)
	}
	p.Addr = l.Addr().String()
	p.serve(l)
	tb.Cleanup(p.close)
	return p
}

// FreeAddress returns an address of 127.0.0.1 where nobody listens, whose port the
// system does not give to outgoing connections: it stays free while a server
// there is started again.
func FreeAddress(tb testing.TB) string {
	tb.Helper()
	l, err := listenKept()
	if err != nil {
		tb.Fatalf("no free port: %v", err)
	}
	defer l.Close()
	return l.Addr().String()
}

// listenKept listens on a port that the system does not give to outgoing
// connections, so that it is still free after a Cut.
func listenKept() (net.Listener, error) {
	var err error
	for range 100 {
		var l net.Listener
		if l, err = net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 20000+rand.N(12000))); err == nil {
			return l, nil
		}
	}
	return nil, err
}

// Cut closes all connections, resetting them, and refuses new ones until Resume.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.listener != nil {
		p.listener.Close()
		p.listener = nil
	}
	p.dropLocked()
}

// Drop resets the connections there are and returns how many; new ones work.
func (p *Proxy) Drop() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := len(p.conns)
	p.dropLocked()
	return n
}

// Stall accepts connections and holds what either side sends until Resume.
func (p *Proxy) Stall() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.requests.shut()
	p.replies.shut()
}

// StallReplies lets requests through and holds the answers until Resume: the
// server does the work and the client never hears of it.
func (p *Proxy) StallReplies() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.replies.shut()
}

// Held returns what the proxy has read and [Proxy.Stall] or [Proxy.StallReplies]
// keeps it from passing on: a piece of up to 64 KiB of each connection, in no
// order of connections.
func (p *Proxy) Held() (requests, replies []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.requests.pieces(), p.replies.pieces()
}

// Resume ends Cut, Stall and StallReplies: held bytes go on, new connections work.
func (p *Proxy) Resume(tb testing.TB) {
	tb.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.requests.unshut()
	p.replies.unshut()
	if p.listener != nil || p.closed {
		return
	}
	l, err := net.Listen("tcp", p.Addr)
	if err != nil {
		tb.Fatalf("proxy: %v", err)
	}
	p.serve(l)
}

func (p *Proxy) close() {
	p.mu.Lock()
	p.closed = true
	p.requests.unshut()
	p.replies.unshut()
	p.mu.Unlock()
	p.Cut()
	p.wg.Wait()
}

// serve accepts on l until it is closed.
func (p *Proxy) serve(l net.Listener) {
	p.listener = l
	p.wg.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			p.wg.Go(func() { p.connect(client) })
		}
	})
}

func (p *Proxy) connect(client net.Conn) {
	server, err := net.Dial("tcp", p.target)
	if err != nil {
		reset(client)
		return
	}
	c := &pair{client: client, server: server, done: make(chan struct{})}
	p.mu.Lock()
	if p.listener == nil { // cut meanwhile
		p.mu.Unlock()
		c.close()
		return
	}
	p.conns[c] = struct{}{}
	p.mu.Unlock()
	var both sync.WaitGroup
	both.Go(func() { p.copy(c, server, client, &p.requests) })
	both.Go(func() { p.copy(c, client, server, &p.replies) })
	both.Wait()
	p.mu.Lock()
	delete(p.conns, c)
	p.mu.Unlock()
}

// copy moves bytes one way; each piece waits until the gate is open.
func (p *Proxy) copy(c *pair, to, from net.Conn, g *gate) {
	defer c.close()
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			if !p.pass(c, g, buf[:n]) {
				return
			}
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// pass waits with a piece until the gate is open, and reports false if the
// connection ends before.
func (p *Proxy) pass(c *pair, g *gate, piece []byte) bool {
	p.mu.Lock()
	open := g.open
	g.held[c] = piece
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		delete(g.held, c)
		p.mu.Unlock()
	}()
	select {
	case <-open:
		return true
	case <-c.done:
		return false
	}
}

func (p *Proxy) dropLocked() {
	for c := range p.conns {
		c.close()
	}
	clear(p.conns)
}

func (c *pair) close() {
	c.once.Do(func() {
		close(c.done)
		reset(c.client)
		reset(c.server)
	})
}

// reset closes with RST, so that the peer learns of it at once.
func reset(conn net.Conn) {
	if tcp, ok := conn.(*net.TCPConn); ok {
		err := tcp.SetLinger(0)
		if err != nil && !errors.Is(err, net.ErrClosed) {
			panic(err) // a TCP socket that is open takes the option
		}
	}
	conn.Close()
}

func (g *gate) pieces() []byte {
	var all []byte
	for _, piece := range g.held {
		all = append(all, piece...)
	}
	return all
}

func (g *gate) shut() {
	select {
	case <-g.open:
		g.open = make(chan struct{})
	default: // is shut
	}
}

func (g *gate) unshut() {
	select {
	case <-g.open:
	default:
		close(g.open)
	}
}
