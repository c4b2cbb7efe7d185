// Package sqlite keeps a pipe in one SQLite file: the embedded back end, which
// needs no server. It uses the pure Go driver modernc.org/sqlite.
//
//	store, err := sqlite.Open(ctx, sqlite.Config{Path: "mvalve.db"})
//
// Open makes the file and its tables. Commits are on disk when a call returns
// (write-ahead log, synchronous=FULL). All writes of a process go through one
// goroutine that merges what is waiting into one commit; several processes may
// share a file and take turns (see turnstile). Two more files lie beside the
// database, its path with "-lock" and "-next" added; they are empty and stay.
//
// Nothing else in the process may open and close the database file itself (to
// copy or hash it): by the rules of POSIX that drops the locks of SQLite. A
// second SQLite library in the process does the same. The file must lie on a
// local disk.
//
// [InsertTx] enqueues within an application's own transaction.
package sqlite

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mvalve/mvalve/internal/sqlstore"
	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/throttle"
)

// Config says which file to open. Path is required.
type Config struct {
	// Path of the database file; its directory must exist. Opening a path twice
	// in one process shares the connections.
	Path   string
	Logger *slog.Logger // nil discards
	// Readers is how many connections read at once; default 3. The first Open
	// of a path in a process decides.
	Readers int
}

// Store is a pipe in an SQLite file. Get one with Open; it is safe for
// concurrent use. It implements the queue's Store, Registry, Meta, Admin,
// Initializer and DirtyChecker, and throttle.RuleStore.
type Store struct {
	*pool
	closed atomic.Bool
}

var (
	_ queue.Store          = (*Store)(nil)
	_ queue.Registry       = (*Store)(nil)
	_ queue.Meta           = (*Store)(nil)
	_ queue.Admin          = (*Store)(nil)
	_ queue.Initializer    = (*Store)(nil)
	_ queue.DirtyChecker   = (*Store)(nil)
	_ queue.ForeignChecker = (*Store)(nil)
	_ throttle.RuleStore   = (*Store)(nil)
)

// pool is what all Stores of one file in a process share.
type pool struct {
	path    string
	created bool
	users   int // guarded by pools.mu
	w       *writer
	readers chan *conn

	untold atomic.Int64 // changes of this process that no reader was told of

	dirtyMu sync.Mutex
	dirty   *conn // opened by the first Dirty
}

// pools are the open files of the process: a file must not be opened twice,
// because its locks belong to the process.
var pools = struct {
	mu     sync.Mutex
	byPath map[string]*pool
}{byPath: make(map[string]*pool)}

// Open opens the pipe in cfg.Path and makes file and tables if they are missing.
// Errors: queue.ErrSchema (tables of another version), queue.ErrRefused (not a
// database, read-only), queue.ErrUnavailable (no such directory, locked).
func Open(ctx context.Context, cfg Config) (*Store, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	path, err := absolute(cfg.Path)
	if err != nil {
		return nil, err
	}
	pools.mu.Lock()
	defer pools.mu.Unlock()
	p := pools.byPath[path]
	if p == nil {
		if p, err = openPool(ctx, path, cfg); err != nil {
			return nil, translate(path, fmt.Errorf("open: %w", err))
		}
		pools.byPath[path] = p
	}
	p.users++
	return &Store{pool: p}, nil
}

// absolute returns the path under which a file is known in the process.
func absolute(path string) (string, error) {
	if path == "" {
		return "", fmt.Errorf("%w: path of the database file is empty", queue.ErrRefused)
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", fmt.Errorf("%w: %w", queue.ErrUnavailable, err)
	}
	if real, err := filepath.EvalSymlinks(abs); err == nil {
		abs = real
	} else if dir, err := filepath.EvalSymlinks(filepath.Dir(abs)); err == nil {
		abs = filepath.Join(dir, filepath.Base(abs))
	} else {
		return "", fmt.Errorf("%w: %s: directory cannot be reached: %w", queue.ErrUnavailable, abs, err)
	}
	if info, err := os.Stat(abs); err == nil && !info.Mode().IsRegular() {
		return "", fmt.Errorf("%w: %s is not a regular file; name a file for the database", queue.ErrRefused, abs)
	}
	return abs, nil
}

// pragmas of the writing connection. The cache is 16 MiB; the writer itself says
// when the log is written back.
var writerPragmas = []string{
	fmt.Sprintf("busy_timeout=%d", busyWait), "page_size=8192", "journal_mode=WAL", "synchronous=FULL",
	"temp_store=MEMORY", "cache_size=-16384", "wal_autocheckpoint=0", fmt.Sprintf("journal_size_limit=%d", walLimit),
}

var readerPragmas = []string{"busy_timeout=5000", "query_only=ON", "temp_store=MEMORY", "cache_size=-4096"}

func openPool(ctx context.Context, path string, cfg Config) (*pool, error) {
	turn, err := openTurnstile(path)
	if err != nil {
		as := queue.ErrUnavailable
		if errors.Is(err, fs.ErrPermission) {
			as = queue.ErrRefused
		}
		return nil, fmt.Errorf("%w: the directory must be writable: %w", as, err)
	}
	p := &pool{path: path}
	p.w = &writer{
		turn: turn, path: path, walLimit: walLimit, saveAt: walCommits,
		wake: make(chan struct{}, 1), ended: make(chan struct{}),
	}
	if err := p.connect(ctx, cfg); err != nil {
		p.disconnect()
		return nil, err
	}
	go p.w.loop()
	if cfg.Logger != nil {
		cfg.Logger.Debug("sqlite file opened", "path", path, "created", p.created)
	}
	return p, nil
}

// connect opens the connections, one process at a time.
func (p *pool) connect(ctx context.Context, cfg Config) error {
	if err := p.w.turn.enter(); err != nil {
		return err
	}
	defer func() { _ = p.w.turn.leave() }()
	if err := sqlstore.Retry(ctx, beginTries, busy, p.connectWriter); err != nil {
		return err
	}
	n := cfg.Readers
	if n <= 0 {
		n = 3
	}
	p.readers = make(chan *conn, n)
	for range n {
		c, err := openConn(p.path, readerPragmas...)
		if err != nil {
			return err
		}
		p.readers <- c
	}
	return nil
}

// connectWriter opens the connection that writes and makes the tables. Programs
// that know nothing of the turnstile may make it busy.
func (p *pool) connectWriter() error {
	c, err := openConn(p.path, writerPragmas...)
	if err != nil {
		return err
	}
	if p.created, err = ensureSchema(c, p.path); err != nil {
		_ = c.close()
		return err
	}
	p.w.conn = c
	return nil
}

// disconnect closes what connect opened; no caller may be inside any more.
func (p *pool) disconnect() {
	for len(p.readers) > 0 {
		_ = (<-p.readers).close()
	}
	if p.dirty != nil {
		_ = p.dirty.close()
	}
	if p.w.conn != nil {
		_ = p.w.conn.close()
	}
	p.w.turn.close()
}

// Close releases the store; the last Close of a file waits for the writes under
// way and closes its connections. It is safe to call twice.
func (s *Store) Close() error {
	if s.closed.Swap(true) {
		return nil
	}
	pools.mu.Lock()
	defer pools.mu.Unlock()
	p := s.pool
	if p.users--; p.users > 0 {
		return nil
	}
	delete(pools.byPath, p.path)
	p.w.close()
	select {
	case <-p.w.ended:
	case <-time.After(closeWait):
		return fmt.Errorf("%w: %s: another process keeps the lock; connections left open", queue.ErrUnavailable, p.path)
	}
	for range cap(p.readers) { // waits for those that are out
		_ = (<-p.readers).close()
	}
	close(p.readers)
	p.dirtyMu.Lock()
	defer p.dirtyMu.Unlock()
	p.disconnect()
	p.dirty = nil
	return nil
}

// Path returns the absolute path of the database file.
func (s *Store) Path() string { return s.path }

// Created reports whether the first Open in this process made the tables.
func (s *Store) Created() bool { return s.created }

// Now implements queue.Store: the back end's clock is the machine's.
func (s *Store) Now(ctx context.Context) (time.Time, error) {
	if s.closed.Load() {
		return time.Time{}, queue.ErrClosed
	}
	return time.Now(), ctx.Err()
}

// Init implements queue.Initializer; Open has done it already.
func (s *Store) Init(ctx context.Context) error {
	return s.write(ctx, 1, func(c *conn, _ bool) error { return nil })
}

// write runs fn in the writer's next transaction; see request.
func (s *Store) write(ctx context.Context, rows int, fn func(c *conn, alone bool) error) error {
	if s.closed.Load() {
		return queue.ErrClosed
	}
	return s.w.do(ctx, rows, fn)
}

// read runs fn with a connection that only reads. fn must not wait for anything:
// a read transaction that spans a wait keeps the log from being reused.
func (s *Store) read(ctx context.Context, fn func(c *conn) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if s.closed.Load() {
		return queue.ErrClosed
	}
	select {
	case c := <-s.readers:
		if c == nil {
			return queue.ErrClosed
		}
		err := fn(c)
		s.readers <- c
		return s.translate(err)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Dirty implements queue.DirtyChecker with PRAGMA data_version.
func (s *Store) Dirty(ctx context.Context) (int64, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	s.dirtyMu.Lock()
	defer s.dirtyMu.Unlock()
	if s.closed.Load() {
		return 0, queue.ErrClosed
	}
	if s.dirty == nil {
		c, err := openConn(s.path, readerPragmas...)
		if err != nil {
			return 0, s.translate(err)
		}
		s.pool.dirty = c
	}
	n, err := s.dirty.queryInt("PRAGMA data_version")
	return n, s.translate(err)
}

// Foreign implements queue.ForeignChecker: the writing connection's data_version
// changes when any other connection commits.
func (s *Store) Foreign(ctx context.Context) (int64, error) {
	if s.closed.Load() {
		return 0, queue.ErrClosed
	}
	version, err := s.w.probe(ctx)
	return version<<24 ^ s.untold.Load(), s.translate(err)
}
