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

// server is one memcached.
type server struct {
	name   string
	seed   uint64
	marker string // the key of its epoch marker
	dials  atomic.Int64
	breaks atomic.Int64  // connections that failed so far
	slots  chan struct{} // one per link that may be in use
	dialer net.Dialer

	mu   sync.Mutex
	idle []*link // the last one used is the next one taken
}

func newServer(name string, cfg Config) *server {
	srv := &server{
		name:   name,
		seed:   mix(hash(name)),
		marker: cfg.Prefix + "m:" + strconv.FormatUint(hash(name), 36),
		slots:  make(chan struct{}, cfg.MaxConns),
	}
	for range cfg.MaxConns {
		srv.idle = append(srv.idle, newLink(srv, cfg.Timeout))
	}
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

// PickServer implements memcache.ServerSelector: there is one server. Which one
// a key is on is decided by [Store.pick], never by the client, whose ServerList
// hashes over the order of the list.
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

// acquire takes a link for one or more requests.
func (srv *server) acquire(ctx context.Context) (*link, error) {
	if ctx.Err() != nil {
		return nil, &dialError{context.Cause(ctx)}
	}
	select {
	case srv.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, &dialError{context.Cause(ctx)}
	}
	srv.mu.Lock()
	defer srv.mu.Unlock()
	last := len(srv.idle) - 1
	l := srv.idle[last]
	srv.idle = srv.idle[:last]
	return l, nil
}

func (srv *server) release(l *link) {
	srv.mu.Lock()
	srv.idle = append(srv.idle, l)
	srv.mu.Unlock()
	<-srv.slots
}

// close waits for the requests under way, which the caller has interrupted.
func (srv *server) close() {
	for range cap(srv.slots) {
		srv.slots <- struct{}{}
	}
	for _, l := range srv.idle {
		l.drop()
	}
	for range cap(srv.slots) {
		<-srv.slots
	}
}

// do runs one request.
func (srv *server) do(ctx context.Context, request func(*memcache.Client) error) error {
	l, err := srv.acquire(ctx)
	if err != nil {
		return err
	}
	defer srv.release(l)
	return l.do(ctx, request)
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
