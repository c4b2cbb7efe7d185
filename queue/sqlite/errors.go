package sqlite

import (
	"errors"
	"fmt"

	driverlib "modernc.org/sqlite"
	codes "modernc.org/sqlite/lib"

	"github.com/mvalve/mvalve/queue"
)

var errEmptyPattern = fmt.Errorf("%w: pattern of a limit is empty", queue.ErrInvalid)

// errDamaged is what is found out about a damaged file where SQLite did not notice.
var errDamaged = errors.New("a row is not where its key belongs")

// code returns SQLite's extended result code of err, 0 if it has none.
func code(err error) int {
	var e *driverlib.Error
	if errors.As(err, &e) {
		return e.Code()
	}
	return 0
}

// busy reports whether another connection holds the lock that was needed.
func busy(err error) bool {
	c := code(err) & 0xff
	return c == codes.SQLITE_BUSY || c == codes.SQLITE_LOCKED
}

// fatal reports whether err ends the whole transaction, not one statement. Damage
// (SQLITE_CORRUPT) does not: what does not touch the damaged page goes on.
func fatal(err error) bool {
	switch code(err) & 0xff {
	case codes.SQLITE_FULL, codes.SQLITE_IOERR, codes.SQLITE_NOMEM, codes.SQLITE_NOTADB,
		codes.SQLITE_READONLY, codes.SQLITE_CANTOPEN, codes.SQLITE_BUSY, codes.SQLITE_LOCKED, codes.SQLITE_INTERRUPT:
		return true
	}
	return false
}

// translate wraps err with the queue error that tells a caller what to do and
// the file it is about. Errors without an SQLite code pass unchanged.
func (p *pool) translate(err error) error { return translate(p.path, err) }

func translate(path string, err error) error {
	if err == nil {
		return nil
	}
	say := func(as error, what string) error { return fmt.Errorf("%w: %s: %s: %w", as, path, what, err) }
	c := code(err)
	switch c {
	case 0:
		if !errors.Is(err, errDamaged) {
			return err
		}
		c = codes.SQLITE_CORRUPT
	case codes.SQLITE_CONSTRAINT_PRIMARYKEY, codes.SQLITE_CONSTRAINT_UNIQUE:
		return fmt.Errorf("%w: %w", queue.ErrDuplicate, err)
	}
	switch c & 0xff {
	case codes.SQLITE_BUSY, codes.SQLITE_LOCKED:
		return say(queue.ErrUnavailable, "another program holds the database for too long")
	case codes.SQLITE_FULL:
		return say(queue.ErrRefused, "disk full")
	case codes.SQLITE_READONLY, codes.SQLITE_PERM, codes.SQLITE_AUTH:
		return say(queue.ErrRefused, "database is read-only; the file and its directory must be writable")
	case codes.SQLITE_NOTADB:
		return say(queue.ErrRefused, "file is not a SQLite database; name another file")
	case codes.SQLITE_CORRUPT:
		return say(queue.ErrRefused, "database file is damaged; stop what uses it, keep a copy, and restore a backup or "+
			"save what is sound with: sqlite3 FILE .recover | sqlite3 NEWFILE")
	case codes.SQLITE_CANTOPEN:
		return say(queue.ErrUnavailable, "cannot open; the directory must exist and be writable")
	case codes.SQLITE_TOOBIG:
		return say(queue.ErrInvalid, "value too large")
	case codes.SQLITE_ERROR:
		return say(queue.ErrSchema, "statement does not fit the tables")
	}
	return say(queue.ErrUnavailable, "database error")
}
