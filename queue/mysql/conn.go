package mysql

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"fmt"
	"sync"

	client "github.com/go-sql-driver/mysql"
)

// sessionSettings make a connection independent of the server's defaults. A
// scan or a conditional write must see what is committed now, hence READ
// COMMITTED; times are computed in UTC; what does not fit a column is an error.
// A transaction whose client fell off the network keeps its locks only as long
// as idle_transaction_timeout (MariaDB) or wait_timeout say, in seconds; calls
// that meet these locks repeat for longer (DefaultRetryFor).
var sessionSettings = []string{
	"SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED",
	"SET /*M! idle_transaction_timeout = 8, */ wait_timeout = 300, autocommit = 1, time_zone = '+00:00', innodb_lock_wait_timeout = 3, " +
		"sql_mode = 'STRICT_ALL_TABLES,ERROR_FOR_DIVISION_BY_ZERO,NO_ENGINE_SUBSTITUTION'",
}

// connector opens connections and gives each its session settings.
type connector struct{ driver.Connector }

func newConnector(c Config, maxPacket int) (driver.Connector, error) {
	inner, err := client.NewConnector(c.driverConfig(maxPacket))
	if err != nil { // only TLS settings can be wrong; no password is in the text
		return nil, fmt.Errorf("mysql: %w", err)
	}
	return connector{inner}, nil
}

// Connect implements driver.Connector.
func (c connector) Connect(ctx context.Context) (driver.Conn, error) {
	conn, err := c.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	execer, ok := conn.(driver.ExecerContext)
	if !ok {
		_ = conn.Close()
		return nil, fmt.Errorf("mysql: connection of type %T executes nothing", conn)
	}
	for _, statement := range sessionSettings {
		if _, err := execer.ExecContext(ctx, statement, nil); err != nil {
			_ = conn.Close()
			return nil, err
		}
	}
	return conn, nil
}

// statements are prepared once per text and, by database/sql, once per
// connection. Callers ask only for texts of a bounded set. Preparing takes a
// connection while the caller may hold one for its transaction: only one prepares
// at a time, and Store keeps one connection free for it.
type statements struct {
	db      *sql.DB
	prepare sync.Mutex
	mu      sync.RWMutex
	by      map[string]*sql.Stmt
}

func (s *statements) get(ctx context.Context, text string) (*sql.Stmt, error) {
	if stmt := s.lookup(text); stmt != nil {
		return stmt, nil
	}
	s.prepare.Lock()
	defer s.prepare.Unlock()
	if stmt := s.lookup(text); stmt != nil {
		return stmt, nil
	}
	stmt, err := s.db.PrepareContext(ctx, text) //nolint:sqlclosecheck // kept until forget or the end of db
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.by[text] = stmt
	s.mu.Unlock()
	return stmt, nil
}

func (s *statements) lookup(text string) *sql.Stmt {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.by[text]
}

// forget closes all statements: the server has no room for more of them. They
// are prepared again when they are asked for.
func (s *statements) forget() {
	s.mu.Lock()
	old := s.by
	s.by = make(map[string]*sql.Stmt)
	s.mu.Unlock()
	for _, stmt := range old {
		_ = stmt.Close() // a call that is using it is repeated
	}
}

// runner executes prepared statements, either each as a transaction of its own
// (tx nil) or inside tx.
type runner struct {
	stmts *statements
	tx    *sql.Tx
}

func (r runner) prepared(ctx context.Context, text string) (*sql.Stmt, error) {
	stmt, err := r.stmts.get(ctx, text)
	if err != nil || r.tx == nil {
		return stmt, err
	}
	return r.tx.StmtContext(ctx, stmt), nil
}

// exec returns the number of rows that the statement matched.
func (r runner) exec(ctx context.Context, text string, args ...any) (int64, error) {
	stmt, err := r.prepared(ctx, text) //nolint:sqlclosecheck // shared, see statements
	if err != nil {
		return 0, err
	}
	result, err := stmt.ExecContext(ctx, args...)
	if err != nil {
		return 0, err
	}
	return result.RowsAffected()
}

// query calls each for every row.
func (r runner) query(ctx context.Context, text string, args []any, each func(*sql.Rows) error) error {
	stmt, err := r.prepared(ctx, text) //nolint:sqlclosecheck // shared, see statements
	if err != nil {
		return err
	}
	rows, err := stmt.QueryContext(ctx, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := each(rows); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fmt.Errorf("%w: %w", errRow, err)
		}
	}
	return rows.Err()
}
