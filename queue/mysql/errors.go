package mysql

import (
	"errors"
	"fmt"
	"slices"

	client "github.com/go-sql-driver/mysql"

	"github.com/mvalve/mvalve/queue"
)

// errConflict says that a conditional write met fewer rows than it must, or that
// rows changed between two statements: the transaction is repeated.
var errConflict = errors.New("mysql: rows changed meanwhile")

// errRow says that a row could not be taken in: its columns are not what they
// should be.
var errRow = errors.New("mysql: unreadable row")

// fault is what an error means for the transaction it happened in.
type fault uint8

const (
	faultFinal    fault = iota // repeating does not help
	faultConflict              // nothing was written; repeat
	faultLost                  // the connection is gone or useless; repeat on another
)

// Error numbers of MariaDB and MySQL, by what they mean here.
var (
	conflictCodes = map[uint16]bool{
		codeTooManyStatements: true,

		1213: true, // deadlock
		1205: true, // lock wait timeout
		3572: true, // NOWAIT met a lock
		1020: true, // record changed since last read
		1615: true, // statement needs to be prepared again
	}
	lostCodes = map[uint16]bool{
		1047: true, // Galera: node not ready
		1180: true, // error during commit: Galera certification
		2006: true, // server has gone away
		2013: true, // lost connection during query
		1053: true, // server shutdown in progress
		1040: true, // too many connections
		1203: true, // too many connections of this user
		1226: true, // user's resource limit
		1317: true, // query killed
		1927: true, // connection killed
		3169: true, // session killed
		4031: true, // disconnected for inactivity
	}
	refusedCodes = map[uint16]bool{
		1044: true, // access to the database denied
		1045: true, // wrong user or password
		1049: true, // unknown database
		1142: true, // privilege on the table missing
		1143: true, // privilege on the column missing
		1227: true, // privilege missing
		1251: true, // authentication protocol not supported
		1698: true, // access denied, no password
		1290: true, // server runs read-only
		1792: true, // read-only transaction
		1836: true, // read-only mode
		1021: true, // disk full
		1114: true, // table full
	}
	schemaCodes = map[uint16]bool{
		1146: true, // no such table
		1054: true, // no such column
		1136: true, // column count
		1364: true, // column without default
	}
	invalidCodes = map[uint16]bool{
		1153: true, // packet larger than max_allowed_packet
		1301: true, // result larger than max_allowed_packet
		1406: true, // data too long for the column
		1264: true, // out of range for the column
		1366: true, // incorrect value
	}
)

const (
	codeDuplicate         = 1062
	codeTooManyStatements = 1461 // max_prepared_stmt_count of the server
)

// code returns the server's error number, 0 if err is not the server's.
func code(err error) uint16 {
	var e *client.MySQLError
	if errors.As(err, &e) {
		return e.Number
	}
	return 0
}

func faultOf(err error) fault {
	if err == nil {
		return faultFinal
	}
	if errors.Is(err, errConflict) {
		return faultConflict
	}
	if n := code(err); n != 0 {
		switch {
		case conflictCodes[n]:
			return faultConflict
		case lostCodes[n]:
			return faultLost
		}
		return faultFinal
	}
	if isOneOf(err, clientFinal) || isOneOf(err, portErrors) || errors.Is(err, errRow) || errors.Is(err, errSettledDuplicate) {
		return faultFinal
	}
	// What is left came from the connection. The client library does not export
	// all of these errors, so they cannot be listed.
	return faultLost
}

// clientFinal are the client library's errors that stay when repeated.
var clientFinal = []error{client.ErrNoTLS, client.ErrCleartextPassword, client.ErrNativePassword, client.ErrOldPassword,
	client.ErrUnknownPlugin, client.ErrOldProtocol, client.ErrPktTooLarge}

// portErrors are those that need no translation.
var portErrors = []error{queue.ErrInvalid, queue.ErrCorrupt, queue.ErrDuplicate, queue.ErrUnavailable,
	queue.ErrUnknown, queue.ErrRefused, queue.ErrSchema, queue.ErrClosed}

func isOneOf(err error, list []error) bool {
	return slices.ContainsFunc(list, func(known error) bool { return errors.Is(err, known) })
}

// translate makes of a final error one that a caller of the port can act on.
// unknown says that an attempt may have been committed.
func (s *Store) translate(op string, err error, unknown bool) error {
	kind := s.kind(err)
	if unknown && !errors.Is(err, errSettledDuplicate) {
		return fmt.Errorf("%w: mysql %s at %s: %w", queue.ErrUnknown, op, s.address, err)
	}
	switch {
	case kind == nil: // an error of the port already
		return fmt.Errorf("mysql %s: %w", op, err)
	case errors.Is(kind, queue.ErrSchema):
		return fmt.Errorf("%w: mysql %s at %s: %w; `mvalve init --queue mysql://...` makes the tables", kind, op, s.address, err)
	}
	return fmt.Errorf("%w: mysql %s at %s: %w", kind, op, s.address, err)
}

// errSettledDuplicate says that a change was committed before.
var errSettledDuplicate = errors.New("mysql: batch stored before")

// kind returns the error of the port that err amounts to, nil if it is one.
func (s *Store) kind(err error) error {
	if isOneOf(err, portErrors) {
		return nil
	}
	if s.closed.Load() {
		return queue.ErrClosed
	}
	n := code(err)
	switch {
	case n == codeDuplicate:
		return queue.ErrDuplicate
	case refusedCodes[n]:
		return queue.ErrRefused
	case schemaCodes[n]:
		return queue.ErrSchema
	case invalidCodes[n], errors.Is(err, client.ErrPktTooLarge):
		return queue.ErrInvalid
	case errors.Is(err, errRow):
		return queue.ErrCorrupt
	case faultOf(err) == faultFinal:
		return queue.ErrRefused
	}
	return queue.ErrUnavailable
}
