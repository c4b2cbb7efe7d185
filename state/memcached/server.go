package memcached

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bradfitz/gomemcache/memcache"

	"github.com/mvalve/mvalve/state"
)

// server is one memcached with a client of its own: which server a key is on is
// decided by pick, never by the client, whose ServerList hashes over the list's
// order.
type server struct {
	name   string
	seed   uint64
	marker string // the key of its epoch marker
	client *memcache.Client
	slots  chan struct{} // one per connection that may be in use
	dials  atomic.Int64  // connections made so far; see update.go
	dialer net.Dialer

	mu     sync.Mutex
	conns  map[net.Conn]struct{}
	closed bool
	wg     sync.WaitGroup // requests under way, also those nobody waits for any more
}

func newServer(name string, cfg Config) *server {
	srv := &server{
		name:   name,
		seed:   mix(hash(name)),
		marker: cfg.Prefix + "m:" + strconv.FormatUint(hash(name), 36),
		slots:  make(chan struct{}, cfg.MaxConns),
		conns:  make(map[net.Conn]struct{}),
		dialer: net.Dialer{Timeout: cfg.Timeout},
	}
	srv.client = memcache.NewFromSelector(srv)
	srv.client.Timeout = cfg.Timeout
	srv.client.MaxIdleConns = cfg.MaxConns
	srv.client.DialContext = srv.dial
	return srv
}

// hash is FNV-1a. It is part of the contract between readers of different
// versions: it decides where a key is.
func hash(s string) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(s) {
		h = (h ^ uint64(s[i])) * 1099511628211
	}
	return h
}

// mix is the finalizer of splitmix64: FNV alone leaves the high bits of similar
// keys alike.
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// PickServer implements memcache.ServerSelector: there is one server.
func (srv *server) PickServer(string) (net.Addr, error) { return srv, nil }

// Each implements memcache.ServerSelector.
func (srv *server) Each(f func(net.Addr) error) error { return f(srv) }

// Network and String make a server its own net.Addr. A host name is looked up
// at each dial, so that a changed address is found.
func (srv *server) Network() string {
	if strings.HasPrefix(srv.name, "/") {
		return "unix"
	}
	return "tcp"
}

func (srv *server) String() string { return srv.name }

// errClosed: the store was closed before or during the call.
var errClosed = errors.New("store is closed")

// dialError marks failures before anything was sent.
type dialError struct{ err error }

func (e *dialError) Error() string { return e.err.Error() }
func (e *dialError) Unwrap() error { return e.err }

func (srv *server) dial(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := srv.dialer.DialContext(ctx, network, address)
	if err != nil {
		return nil, &dialError{err}
	}
	srv.dials.Add(1)
	srv.mu.Lock()
	defer srv.mu.Unlock()
	if srv.closed {
		conn.Close()
		return nil, &dialError{errClosed}
	}
	tracked := &trackedConn{Conn: conn, srv: srv}
	srv.conns[tracked] = struct{}{}
	return tracked, nil
}

// trackedConn lets close end requests under way.
type trackedConn struct {
	net.Conn
	srv *server
}

func (c *trackedConn) Close() error {
	c.srv.mu.Lock()
	delete(c.srv.conns, c)
	c.srv.mu.Unlock()
	return c.Conn.Close()
}

func (srv *server) close() {
	srv.mu.Lock()
	srv.closed = true
	for conn := range srv.conns {
		conn.(*trackedConn).Conn.Close()
	}
	clear(srv.conns)
	srv.mu.Unlock()
	srv.wg.Wait()
	// The idle connections are closed already; the client forgets them.
	_ = srv.client.Close()
}

// acquire takes a connection slot; release gives it back.
func (srv *server) acquire(ctx context.Context) error {
	select {
	case srv.slots <- struct{}{}:
		return nil
	default:
	}
	select {
	case srv.slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		return &dialError{ctx.Err()}
	}
}

func (srv *server) release() { <-srv.slots }

// start runs f on a goroutine that close waits for; false when closed.
func (srv *server) start(f func()) bool {
	srv.mu.Lock()
	defer srv.mu.Unlock()
	if srv.closed {
		return false
	}
	srv.wg.Go(f)
	return true
}

// do runs one request and returns when it has ended or ctx has. The client
// takes no context, so that a request whose caller has left runs into the
// client's time-out on its own; it holds its slot until then.
func (srv *server) do(ctx context.Context, request func() error) error {
	if err := ctx.Err(); err != nil {
		return &dialError{err}
	}
	if err := srv.acquire(ctx); err != nil {
		return err
	}
	answer := make(chan error, 1)
	if !srv.start(func() {
		defer srv.release()
		answer <- request()
	}) {
		srv.release()
		return &dialError{errClosed}
	}
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
		return fmt.Errorf("no answer: %w", ctx.Err())
	}
}

// nothingSent tells whether a request failed before any of it left.
func nothingSent(err error) bool {
	var dial *dialError
	var timeout *memcache.ConnectTimeoutError
	return errors.As(err, &dial) || errors.As(err, &timeout)
}

// readError wraps the failure of a request that changes nothing.
func (srv *server) readError(err error) error {
	return fmt.Errorf("%w: memcached %s: %w", state.ErrUnavailable, srv.name, err)
}

// writeError wraps the failure of a request that changes a value; nil stays nil.
// The client has no error value for a server's refusal, only its text.
func (srv *server) writeError(verb string, err error) error {
	switch {
	case err == nil:
		return nil
	case nothingSent(err), strings.Contains(err.Error(), "SERVER_ERROR"):
		return fmt.Errorf("%w: memcached %s: %s: %w", state.ErrUnavailable, srv.name, verb, err)
	default:
		return fmt.Errorf("%w: memcached %s: %s: %w", state.ErrUnknown, srv.name, verb, err)
	}
}

// ttlSeconds is the protocol's expiration time: seconds, as an absolute date
// above 30 days. A server's clock ticks in whole seconds, so that one is added:
// a value may live longer, never shorter.
func ttlSeconds(now time.Time, ttl time.Duration) int32 {
	const month = 30 * 24 * 60 * 60
	seconds := int64(max(ttl, 0)/time.Second) + 2
	if seconds > month {
		seconds += now.Unix()
	}
	return int32(min(seconds, 1<<31-1))
}
