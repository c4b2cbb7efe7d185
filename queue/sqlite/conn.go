package sqlite

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"math"
	"net/url"

	driverlib "modernc.org/sqlite"
)

// conn is one SQLite connection, used by one goroutine at a time. It speaks to
// the driver without database/sql in between, which would cost about as much
// again as the short statements of a queue do.
type conn struct {
	raw   driver.Conn
	stmts map[string]driver.Stmt
	texts map[textKey]string
	args  []driver.NamedValue
	row   []driver.Value
}

// openConn opens path; pragmas are run in order.
func openConn(path string, pragmas ...string) (*conn, error) {
	raw, err := new(driverlib.Driver).Open("file:" + (&url.URL{Path: path}).EscapedPath())
	if err != nil {
		return nil, err
	}
	c := &conn{raw: raw, stmts: make(map[string]driver.Stmt), texts: make(map[textKey]string)}
	for _, p := range pragmas {
		if err := c.once("PRAGMA " + p); err != nil {
			_ = c.close()
			return nil, fmt.Errorf("pragma %s: %w", p, err)
		}
	}
	return c, nil
}

func (c *conn) close() error {
	for _, s := range c.stmts {
		_ = s.Close()
	}
	return c.raw.Close()
}

// once runs SQL text, several statements if need be, without keeping it prepared.
func (c *conn) once(text string) error {
	s, err := c.raw.Prepare(text)
	if err != nil {
		return err
	}
	_, err = s.(driver.StmtExecContext).ExecContext(context.Background(), nil)
	if e := s.Close(); err == nil {
		err = e
	}
	return err
}

// stmt returns the prepared statement of text, which must come from a small set.
func (c *conn) stmt(text string) (driver.Stmt, error) {
	if s := c.stmts[text]; s != nil {
		return s, nil
	}
	s, err := c.raw.Prepare(text)
	if err != nil {
		return nil, fmt.Errorf("prepare %.60s: %w", text, err)
	}
	c.stmts[text] = s
	return s, nil
}

func (c *conn) bind(args []any) []driver.NamedValue {
	c.args = c.args[:0]
	for i, a := range args {
		c.args = append(c.args, driver.NamedValue{Ordinal: i + 1, Value: a})
	}
	return c.args
}

// exec runs a prepared statement and returns how many rows it changed.
func (c *conn) exec(text string, args ...any) (int64, error) {
	s, err := c.stmt(text)
	if err != nil {
		return 0, err
	}
	res, err := s.(driver.StmtExecContext).ExecContext(context.Background(), c.bind(args))
	if err != nil {
		return 0, err
	}
	return res.RowsAffected()
}

// query runs a prepared statement and calls each for every row. The values are
// valid until each returns; byte slices may be kept.
func (c *conn) query(ctx context.Context, text string, args []any, each func(row []driver.Value) error) (err error) {
	s, err := c.stmt(text)
	if err != nil {
		return err
	}
	rows, err := s.(driver.StmtQueryContext).QueryContext(ctx, c.bind(args))
	if err != nil {
		return err
	}
	defer func() {
		if e := rows.Close(); err == nil {
			err = e
		}
	}()
	n := len(rows.Columns())
	for len(c.row) < n {
		c.row = append(c.row, nil)
	}
	row := c.row[:n]
	for {
		switch err := rows.Next(row); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
		if err := each(row); err != nil {
			return err
		}
	}
}

// queryInt returns the single integer that text selects, 0 for NULL or no row.
func (c *conn) queryInt(text string, args ...any) (n int64, err error) {
	err = c.query(context.Background(), text, args, func(row []driver.Value) error {
		n, _ = row[0].(int64)
		return nil
	})
	return n, err
}

// assign stores a row into the scan destinations that package sqlstore gives.
// A value of another type than the schema's leaves a zero value, which the
// checksum of a message tells, or an impossible one in a rule.
func assign(dest []any, row []driver.Value) {
	for i, d := range dest {
		switch d := d.(type) {
		case *int64:
			*d, _ = row[i].(int64)
		case *[]byte:
			*d = bytesOf(row[i])
		case *string:
			*d = textOf(row[i])
		case *sql.NullInt64:
			if d.Int64, d.Valid = row[i].(int64); row[i] != nil && !d.Valid {
				d.Int64, d.Valid = math.MinInt64, true // not absent: no setting has this value
			}
		}
	}
}

func bytesOf(v driver.Value) []byte {
	switch v := v.(type) {
	case []byte:
		return v
	case string:
		return []byte(v)
	}
	return nil
}

func textOf(v driver.Value) string {
	switch v := v.(type) {
	case string:
		return v
	case []byte:
		return string(v)
	}
	return ""
}
