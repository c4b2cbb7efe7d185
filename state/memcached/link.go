package memcached

import (
	"context"
	"net"
	"sync"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
)

// link is a connection with a client of its own. The client library takes no
// context and starts its time-out again with every value it reads; because a
// link does one request at a time, it can bound the request as a whole.
type link struct {
	srv    *server
	client *memcache.Client
	breaks int64 // srv.breaks when the connection was made

	mu   sync.Mutex
	ctx  context.Context // of the request under way
	turn int             // numbers the requests
	cut  bool            // ctx has ended
	conn net.Conn
}

func newLink(srv *server, timeout time.Duration) *link {
	l := &link{srv: srv, client: memcache.NewFromSelector(srv)}
	l.client.Timeout = timeout
	l.client.MaxIdleConns = 1
	l.client.DialContext = l.dial
	return l
}

// do runs one request, which ends when ctx does.
func (l *link) do(ctx context.Context, request func(*memcache.Client) error) error {
	if l.breaks != l.srv.breaks.Load() {
		// Some connection to the server broke, so that this one, older, may be
		// dead as well; to notice that after sending would be too late.
		l.drop()
	}
	l.mu.Lock()
	l.turn++
	l.ctx, l.cut = ctx, false
	turn := l.turn
	l.mu.Unlock()
	stop := context.AfterFunc(ctx, func() { l.interrupt(turn) })
	defer stop()
	err := request(l.client)
	if err != nil && !others(err) {
		if !nothingSent(err) {
			l.srv.breaks.Add(1)
		}
		if ctx.Err() != nil {
			return interrupted(ctx, err)
		}
	}
	return err
}

// interrupted says why a request ended, and keeps whether anything was sent.
func interrupted(ctx context.Context, err error) error {
	if nothingSent(err) {
		return &dialError{context.Cause(ctx)}
	}
	return context.Cause(ctx)
}

// interrupt ends the request with number turn, if it is still under way.
func (l *link) interrupt(turn int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.turn != turn {
		return
	}
	l.cut = true
	if l.conn != nil {
		// The only failure is a connection that is closed already.
		_ = l.conn.SetDeadline(time.Unix(1, 0))
	}
}

// drop closes the idle connection.
func (l *link) drop() {
	l.breaks = l.srv.breaks.Load()
	// Closing an idle connection loses nothing that an error could tell about.
	_ = l.client.Close()
}

func (l *link) dial(_ context.Context, network, address string) (net.Conn, error) {
	l.mu.Lock()
	ctx := l.ctx
	l.mu.Unlock()
	conn, err := l.srv.dialer.DialContext(ctx, network, address)
	if err != nil {
		return nil, &dialError{err}
	}
	l.srv.dials.Add(1)
	l.mu.Lock()
	l.conn = conn
	l.mu.Unlock()
	return &linkConn{Conn: conn, link: l}, nil
}

// linkConn keeps the client from extending the time of a request that has ended.
type linkConn struct {
	net.Conn
	link *link
}

func (c *linkConn) SetDeadline(t time.Time) error {
	c.link.mu.Lock()
	defer c.link.mu.Unlock()
	if c.link.cut {
		t = time.Unix(1, 0)
	} else if end, ok := c.link.ctx.Deadline(); ok && t.After(end) {
		t = end
	}
	return c.Conn.SetDeadline(t)
}
