// Package mysql keeps a pipe in MariaDB 10.6 or later or in MySQL 8, in the
// tables of schema.sql.
//
//	config, err := mysql.ParseURL("mysql://user:password@127.0.0.1:3306/mail")
//	store, err := mysql.Open(ctx, config)
//
// Correctness rests on conditional writes and the number of rows they matched,
// each in one short transaction; no lock and no GET_LOCK is relied on, so that
// engines which accept row locks and ignore them hand nothing out twice. What
// the server asks to repeat is repeated here (deadlocks, lock waits, lost
// connections), for Config.RetryFor at most.
//
// It makes no tables but in Init, holds no message in memory, and never retries
// inside a transaction that is not its own (InsertTx).
package mysql

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mvalve/mvalve"
	"github.com/mvalve/mvalve/internal/sqlstore"
	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/throttle"
)

// Store is a queue.Store, and implements queue.Sizer, Registry, Meta, Admin,
// Initializer and throttle.RuleStore. All methods are safe for concurrent use.
type Store struct {
	db       *sql.DB
	stmts    *statements
	address  string
	log      *slog.Logger
	retryFor time.Duration
	packet   int           // max_allowed_packet in bytes
	slots    chan struct{} // one per transaction under way; one connection fewer than the pool has
	leasing  claims
	state    stateStore
	closed   atomic.Bool
}

var (
	_ queue.Store        = (*Store)(nil)
	_ queue.Sizer        = (*Store)(nil)
	_ queue.Registry     = (*Store)(nil)
	_ queue.Meta         = (*Store)(nil)
	_ queue.Admin        = (*Store)(nil)
	_ queue.Initializer  = (*Store)(nil)
	_ throttle.RuleStore = (*Store)(nil)
)

// maxRetries bounds the attempts of one call beside Config.RetryFor.
const maxRetries = 10000

// Open connects and checks that the tables are there. Errors: queue.ErrInvalid
// (the configuration), queue.ErrUnavailable (names the address), queue.ErrRefused
// (user, password, database), queue.ErrSchema (tables missing or of another version).
func Open(ctx context.Context, c Config) (*Store, error) {
	s, err := OpenForInit(ctx, c)
	if err != nil {
		return nil, err
	}
	if err := s.checkSchema(ctx); err != nil {
		_ = s.Close()
		return nil, err
	}
	return s, nil
}

// OpenForInit connects like Open but does not look for the tables: what Init needs.
func OpenForInit(ctx context.Context, c Config) (*Store, error) {
	if c.Database == "" {
		return nil, fmt.Errorf("%w: mysql: the database has no name", queue.ErrInvalid)
	}
	c = c.withDefaults()
	c.MaxConns = max(c.MaxConns, 2)
	packet, err := probe(ctx, c)
	if err != nil {
		return nil, err
	}
	connector, err := newConnector(c, packet)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", queue.ErrInvalid, err)
	}
	db := sql.OpenDB(connector)
	db.SetMaxOpenConns(c.MaxConns)
	db.SetMaxIdleConns(c.MaxConns)
	db.SetConnMaxIdleTime(2 * time.Minute) // below the session's wait_timeout
	s := newStore(db, c)
	s.packet = packet
	return s, nil
}

func newStore(db *sql.DB, c Config) *Store {
	s := &Store{
		db: db, stmts: &statements{db: db, by: make(map[string]*sql.Stmt)},
		address: c.String(), log: c.Logger, retryFor: c.RetryFor,
		slots: make(chan struct{}, c.MaxConns-1), leasing: claims{ids: make(map[queue.ID]struct{})},
	}
	s.state.s = s
	return s
}

// probe asks the server for max_allowed_packet over a connection of its own.
// It does not wait for a server that is not there.
func probe(ctx context.Context, c Config) (int, error) {
	connector, err := newConnector(c, 1<<20)
	if err != nil {
		return 0, fmt.Errorf("%w: %w", queue.ErrInvalid, err)
	}
	db := sql.OpenDB(connector)
	defer db.Close()
	var packet int
	if err := db.QueryRowContext(ctx, "SELECT @@max_allowed_packet").Scan(&packet); err != nil {
		return 0, newStore(db, c).translate("open", err, false)
	}
	return packet, nil
}

// checkSchema returns queue.ErrSchema unless q_meta has this version.
func (s *Store) checkSchema(ctx context.Context) error {
	version, err := s.Meta(ctx, sqlstore.MetaSchema)
	if err != nil {
		return err
	}
	if version != sqlstore.SchemaVersion {
		return fmt.Errorf("%w: the tables at %s have version %.20q, this program needs %s; "+
			"use the mvalve that made them, or run `mvalve init` on an empty database", queue.ErrSchema, s.address, version, sqlstore.SchemaVersion)
	}
	return nil
}

// Init implements queue.Initializer: it applies schema.sql, statement by
// statement, and returns queue.ErrSchema, changing nothing, if the tables are
// there in another version.
func (s *Store) Init(ctx context.Context) error {
	version, err := s.Meta(ctx, sqlstore.MetaSchema)
	switch {
	case err == nil && version != "" && version != sqlstore.SchemaVersion:
		return s.checkSchema(ctx)
	case err != nil && !errors.Is(err, queue.ErrSchema):
		return err
	}
	for statement := range splitStatements(mvalve.Schema) {
		err := s.retry(ctx, "init", func(*attempt) error {
			_, err := s.db.ExecContext(ctx, statement)
			return err
		})
		if err != nil {
			return err
		}
	}
	return s.checkSchema(ctx)
}

// splitStatements yields the statements of a schema: comment lines left out,
// each ended by a semicolon at the end of a line.
func splitStatements(schema string) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		var b strings.Builder
		for line := range strings.Lines(schema) {
			line = strings.TrimRight(line, " \r\n")
			if line == "" || strings.HasPrefix(line, "--") {
				continue
			}
			b.WriteString(strings.TrimSuffix(line, ";"))
			if !strings.HasSuffix(line, ";") {
				b.WriteByte('\n')
				continue
			}
			if !yield(b.String()) {
				return
			}
			b.Reset()
		}
	}
}

// MaxBody implements queue.Sizer: queue.MaxBody, or less when the server's
// max_allowed_packet, which must hold a whole row, does not allow it.
func (s *Store) MaxBody() int {
	return min(queue.MaxBody, s.packet-min(queue.MaxHeaders+8<<10, s.packet/4))
}

// Now implements queue.Store: the server's clock, one round trip.
func (s *Store) Now(ctx context.Context) (time.Time, error) {
	var micros int64
	err := s.retry(ctx, "now", func(*attempt) error {
		return s.auto().query(ctx, "SELECT CAST(UNIX_TIMESTAMP(SYSDATE(6)) * 1000000 AS SIGNED)", nil, func(rows *sql.Rows) error {
			return rows.Scan(&micros)
		})
	})
	if err != nil {
		return time.Time{}, err
	}
	return queue.Time(micros), nil
}

// Close implements queue.Store. Calls under way fail.
func (s *Store) Close() error {
	if s.closed.Swap(true) {
		return nil
	}
	return s.db.Close()
}

// auto returns a runner whose every statement is a transaction of its own.
func (s *Store) auto() runner { return runner{stmts: s.stmts} }

// attempt is one run of a call's transaction.
type attempt struct {
	// unknown: this or an earlier attempt may have been committed without our
	// knowing. Cleared once it is known.
	unknown bool
	// careful: an optimistic attempt met a row it did not expect.
	careful bool
}

// retry runs fn until it succeeds or fails for good, for at most retryFor.
func (s *Store) retry(ctx context.Context, op string, fn func(a *attempt) error) error {
	if s.closed.Load() {
		return fmt.Errorf("mysql %s: %w", op, queue.ErrClosed)
	}
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	case <-ctx.Done():
		return fmt.Errorf("%w: mysql %s: %w", queue.ErrUnavailable, op, ctx.Err())
	}
	a := &attempt{}
	deadline := time.Now().Add(s.retryFor)
	again := func(err error) bool {
		f := faultOf(err)
		if f == faultFinal || ctx.Err() != nil || s.closed.Load() || time.Now().After(deadline) {
			return false
		}
		if code(err) == codeTooManyStatements {
			s.stmts.forget()
		}
		s.log.Debug("transaction repeated", "op", op, "err", err)
		return true
	}
	err := sqlstore.Retry(ctx, maxRetries, again, func() error { return fn(a) })
	if err == nil {
		return nil
	}
	return s.translate(op, err, a.unknown)
}

// transact runs fn in a transaction of its own and commits it.
func (s *Store) transact(ctx context.Context, a *attempt, fn func(r runner) error) error {
	tx, err := s.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	if err := fn(runner{stmts: s.stmts, tx: tx}); err != nil {
		_ = tx.Rollback() // a connection that cannot roll back is dropped, and the server rolls back
		return err
	}
	err = tx.Commit()
	if err != nil && faultOf(err) == faultLost { // any other answer of the server is a no
		a.unknown = true
	}
	return err
}

// claims are the ids that Lease calls of this process are working on.
type claims struct {
	mu  sync.Mutex
	ids map[queue.ID]struct{}
}
