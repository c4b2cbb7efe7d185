// Package memcached keeps limiter state in memcached servers.
//
//	store, err := memcached.Open(ctx, memcached.Config{
//		Servers:    []string{"10.0.0.1:11211", "10.0.0.2:11211"},
//		Prefix:     "shop:1:",
//		MarkerTime: clock,
//	})
//
// Each key lives on the server with the highest hash of (server, key): rendezvous
// hashing (Thaler and Ravishankar, 1998), so that the order of the list means
// nothing and a fourth server takes over a quarter of the keys. There is no
// fail-over: a server that does not answer makes its keys unavailable, because
// counting elsewhere would exceed the limit.
//
// A cache forgets, and a forgotten count would exceed the limit too. So every
// server carries an epoch marker, a key of its own that says since when the
// server has forgotten nothing. It is wiped with everything else, and the next
// reader writes a new one. [state.Entry].Lost of a missing value is the marker's
// time; marker.go has the details.
//
// Run the servers with -M (no evictions) and one Prefix per pipe and per
// server list: when the list changes, the prefix must change with it, because a
// server that comes back would offer what it knew when it left.
package memcached

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/bradfitz/gomemcache/memcache"

	"github.com/mvalve/mvalve/state"
)

// Limits of the protocol and of [state.Store].
const (
	maxKey    = 200
	maxPrefix = 48
	maxValue  = 64 << 10
)

// Defaults of Config.
const (
	DefaultTimeout  = time.Second
	DefaultMaxConns = 32
)

// Config says where the values are. Servers is required.
type Config struct {
	// Servers are host:port addresses, or absolute paths of Unix sockets. The
	// text is the server's name: all readers must write it alike, in any order.
	Servers []string

	// Prefix, at most 48 bytes of printable ASCII without blanks, keeps users of
	// the same servers apart. See the package comment on when it must change.
	Prefix string

	// Timeout bounds every call, retries included. Default DefaultTimeout.
	Timeout time.Duration

	// MaxConns bounds the connections to one server; further calls wait for one
	// within their time-out. Default DefaultMaxConns.
	MaxConns int

	// Logger tells of lost, unreachable and evicting servers. Nil discards.
	Logger *slog.Logger

	// MarkerTime is asked when a server has lost its values, and returns the time
	// before which they may have been in use: the pipe's clock, or the last sign
	// of life of any reader if that is earlier; zero for a pipe that was never
	// used. No permit taken before the call may be later than it. An error makes
	// the server unavailable. Nil is this machine's clock.
	MarkerTime func(context.Context) (time.Time, error)
}

// Store is a [state.Store] on memcached servers. Open makes one.
type Store struct {
	cfg     Config
	log     *slog.Logger
	servers []*server
	stop    context.CancelFunc
	wg      sync.WaitGroup // the eviction watchers
	close   sync.Once
	closed  context.Context
}

var _ state.Store = (*Store)(nil)

// Open checks cfg, connects to every server and makes sure that each carries an
// epoch marker. A server that cannot be reached is an error that wraps
// [state.ErrUnavailable] and names it.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	s := &Store{cfg: cfg, log: cfg.Logger}
	s.closed, s.stop = context.WithCancel(context.Background())
	for _, name := range cfg.Servers {
		s.servers = append(s.servers, newServer(name, cfg))
	}
	opening, cancel := context.WithTimeout(ctx, cfg.Timeout)
	defer cancel()
	for _, srv := range s.servers {
		if _, err := s.read(opening, srv, nil); err != nil {
			_ = s.Close() // it has no error to report
			return nil, err
		}
	}
	for _, srv := range s.servers {
		s.wg.Go(func() { s.watchEvictions(srv) })
	}
	return s, nil
}

// check completes cfg with its defaults.
func (cfg *Config) check() error {
	if len(cfg.Servers) == 0 {
		return errors.New("memcached: no servers")
	}
	cfg.Servers = slices.Clone(cfg.Servers)
	slices.Sort(cfg.Servers)
	if len(slices.Compact(slices.Clone(cfg.Servers))) != len(cfg.Servers) {
		return errors.New("memcached: a server is listed twice")
	}
	for _, name := range cfg.Servers {
		if !strings.HasPrefix(name, "/") && !strings.Contains(name, ":") || strings.ContainsAny(name, " \t\r\n") {
			return fmt.Errorf("memcached: server %q: want host:port or an absolute socket path", name)
		}
	}
	if len(cfg.Prefix) > maxPrefix || !printable(cfg.Prefix) {
		return fmt.Errorf("memcached: prefix %q: want at most %d bytes of printable ASCII without blanks", cfg.Prefix, maxPrefix)
	}
	if cfg.Timeout <= 0 {
		cfg.Timeout = DefaultTimeout
	}
	if cfg.MaxConns <= 0 {
		cfg.MaxConns = DefaultMaxConns
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.MarkerTime == nil {
		cfg.MarkerTime = func(context.Context) (time.Time, error) { return time.Now(), nil }
	}
	return nil
}

func printable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' })
}

func checkKey(key string) error {
	if key == "" || len(key) > maxKey || !printable(key) {
		return fmt.Errorf("memcached: key %q: want 1 to %d bytes of printable ASCII without blanks", key, maxKey)
	}
	return nil
}

// Close ends the connections and waits for calls under way, which fail. It is
// safe to call twice.
func (s *Store) Close() error {
	s.close.Do(func() {
		s.stop()
		for _, srv := range s.servers {
			srv.close()
		}
		s.wg.Wait()
	})
	return nil
}

// begin bounds a call by Timeout and by the life of the store.
func (s *Store) begin(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, end := context.WithCancelCause(ctx)
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	detach := context.AfterFunc(s.closed, func() { end(errClosed) })
	return ctx, func() { detach(); cancel(); end(nil) }
}

// Get implements [state.Store].
func (s *Store) Get(ctx context.Context, keys []string) ([]state.Entry, []error) {
	ctx, done := s.begin(ctx)
	defer done()
	entries := make([]state.Entry, len(keys))
	var errs []error
	all := make([]int, len(keys))
	for i := range keys {
		all[i] = i
	}
	for i, v := range s.readAll(ctx, keys, all, time.Time{}) {
		if v.err != nil {
			errs = setError(errs, len(keys), i, v.err)
			continue
		}
		entries[i] = v.entry
	}
	return entries, errs
}

// Delete implements [state.Store].
func (s *Store) Delete(ctx context.Context, key string) error {
	if err := checkKey(key); err != nil {
		return err
	}
	ctx, done := s.begin(ctx)
	defer done()
	srv := s.pick(key)
	err := srv.do(ctx, func(c *memcache.Client) error { return c.Delete(s.valueKey(key)) })
	if errors.Is(err, memcache.ErrCacheMiss) {
		return nil
	}
	return srv.writeError("delete", err)
}

// value is what a read found out about one key.
type value struct {
	entry state.Entry
	item  *memcache.Item // as stored, nil when absent
	snap  *snapshot
	err   error
}

// readAll reads the keys with the given indices, each server's in one request,
// and returns a value per element of keys (zero for indices not asked for).
func (s *Store) readAll(ctx context.Context, keys []string, indices []int, now time.Time) []value {
	values := make([]value, len(keys))
	byServer := make(map[*server][]int, len(s.servers))
	for _, i := range indices {
		if err := checkKey(keys[i]); err != nil {
			values[i].err = err
			continue
		}
		srv := s.pick(keys[i])
		byServer[srv] = append(byServer[srv], i)
	}
	one := func(srv *server, mine []int) {
		names := make([]string, len(mine))
		for n, i := range mine {
			names[n] = s.valueKey(keys[i])
		}
		snap, err := s.read(ctx, srv, names)
		for n, i := range mine {
			if err != nil {
				values[i].err = err
				continue
			}
			values[i] = snap.value(names[n], now)
		}
	}
	var wg sync.WaitGroup
	for srv, mine := range byServer {
		if len(byServer) == 1 {
			one(srv, mine)
			break
		}
		wg.Go(func() { one(srv, mine) })
	}
	wg.Wait()
	return values
}

// pick returns the server of a key.
func (s *Store) pick(key string) *server {
	best := s.servers[0]
	if len(s.servers) == 1 {
		return best
	}
	h := hash(key)
	top := mix(h ^ best.seed)
	for _, srv := range s.servers[1:] {
		if score := mix(h ^ srv.seed); score > top {
			best, top = srv, score
		}
	}
	return best
}

// valueKey and markerKey differ in the letter, so that no key of a caller is a marker.
func (s *Store) valueKey(key string) string { return s.cfg.Prefix + "v:" + key }

func setError(errs []error, n, i int, err error) []error {
	if errs == nil {
		errs = make([]error, n)
	}
	errs[i] = err
	return errs
}
