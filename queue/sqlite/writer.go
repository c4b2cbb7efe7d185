package sqlite

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	codes "modernc.org/sqlite/lib"

	"github.com/mvalve/mvalve/internal/sqlstore"
	"github.com/mvalve/mvalve/queue"
)

const (
	mergeRows   = 1000 // rows written in one commit at most, unless one request has more
	mergeShared = 200  // the same while another process waits for the lock, or fewer:
	mergeLeast  = 16   // as many as take about mergeTime, but not fewer than this
	mergeTime   = 2 * time.Millisecond
	walLimit    = 64 << 20         // bytes of write-ahead log past which it is truncated
	walCommits  = 128              // commits after which the log is written back
	walRows     = 20000            // rows after which the log is written back
	walBytes    = 32 << 20         // bytes of log after which it is written back, looked at
	walLook     = 4                // once in so many commits: writing back holds up all others
	busyWait    = 200              // ms that SQLite itself waits for a foreign lock, per attempt
	beginTries  = 40               // attempts to begin a transaction: about 10 s
	closeWait   = 10 * time.Second // how long Close waits for a writer that cannot get the lock
)

// errAgain asks for the batch to be repeated with every request on its own: a
// statement over many rows found fewer than it expected.
var errAgain = errors.New("sqlite: repeat row by row")

// request is one caller's part of a transaction. run may be called twice, the
// second time with alone set; it must start from scratch each time.
type request struct {
	run  func(c *conn, alone bool) error
	rows int
	err  error
	done chan struct{}
}

// writer owns the only connection that writes. All callers of the process queue
// up here, and what is waiting goes into one transaction and one fsync.
type writer struct {
	conn  *conn
	turn  *turnstile
	path  string
	wake  chan struct{} // capacity 1
	ended chan struct{}

	mu      sync.Mutex
	queue   []*request
	probes  []chan probed
	closing bool

	perRow   time.Duration                  // what a row took lately, without the commit
	commits  int                            // since the start, failed ones included
	unsaved  int                            // commits since the log was written back
	rows     int                            // rows, likewise
	walLimit int64                          // bytes; see walLimit
	saveAt   int                            // commits; see walCommits
	took     func(wait, held time.Duration) // told of the lock, for tests; may be nil
}

// do queues a request and waits for its commit. When ctx ends before the request
// was begun, it is withdrawn; once begun, its outcome is waited for.
func (w *writer) do(ctx context.Context, rows int, run func(c *conn, alone bool) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	r := &request{run: run, rows: rows, done: make(chan struct{})}
	w.mu.Lock()
	if w.closing {
		w.mu.Unlock()
		return queue.ErrClosed
	}
	w.queue = append(w.queue, r)
	w.mu.Unlock()
	w.signal()
	select {
	case <-r.done:
		return r.err
	case <-ctx.Done():
	}
	if w.withdraw(r) {
		return ctx.Err()
	}
	<-r.done
	return r.err
}

// probed is the answer to a probe.
type probed struct {
	version int64
	err     error
}

// probe returns data_version of the writing connection, between transactions.
func (w *writer) probe(ctx context.Context) (int64, error) {
	answer := make(chan probed, 1)
	w.mu.Lock()
	if w.closing {
		w.mu.Unlock()
		return 0, queue.ErrClosed
	}
	w.probes = append(w.probes, answer)
	w.mu.Unlock()
	w.signal()
	select {
	case p := <-answer:
		return p.version, p.err
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

// answer serves the probes that wait.
func (w *writer) answer() {
	w.mu.Lock()
	probes := w.probes
	w.probes = nil
	w.mu.Unlock()
	if len(probes) == 0 {
		return
	}
	version, err := w.conn.queryInt("PRAGMA data_version")
	for _, p := range probes {
		p <- probed{version, err}
	}
}

func (w *writer) signal() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

func (w *writer) withdraw(r *request) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range w.queue {
		if w.queue[i] == r {
			w.queue = append(w.queue[:i], w.queue[i+1:]...)
			return true
		}
	}
	return false
}

// claim takes the requests of the next transaction, about limit rows.
func (w *writer) claim(limit int) []*request {
	w.mu.Lock()
	defer w.mu.Unlock()
	n, rows := 0, 0
	for n < len(w.queue) && (n == 0 || rows+w.queue[n].rows <= limit) {
		rows += w.queue[n].rows
		n++
	}
	batch := append([]*request(nil), w.queue[:n]...)
	rest := copy(w.queue, w.queue[n:])
	clear(w.queue[rest:])
	w.queue = w.queue[:rest]
	w.rows += rows
	return batch
}

func (w *writer) waiting() (n int, closing bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.queue), w.closing
}

// loop serves requests until close was called and none is left.
func (w *writer) loop() {
	defer close(w.ended)
	for {
		w.answer()
		n, closing := w.waiting()
		switch {
		case n > 0:
			w.serve()
		case closing:
			return
		default:
			<-w.wake
		}
	}
}

// close lets the loop end after the requests that wait now.
func (w *writer) close() {
	w.mu.Lock()
	w.closing = true
	w.mu.Unlock()
	w.signal()
}

// serve carries out one transaction. Requests are claimed only once the lock is
// held: until then callers may withdraw, and more of them can share the commit.
func (w *writer) serve() {
	start := time.Now()
	limit := mergeRows
	err := w.turn.enter()
	entered := err == nil
	if entered {
		err = w.begin()
		if w.turn.contended() {
			limit = w.share()
		}
	}
	began := time.Now()
	batch := w.claim(limit)
	if err == nil {
		err = w.transact(batch)
	}
	if entered {
		_ = w.turn.leave() // fails only if the file was closed
	}
	if w.took != nil {
		w.took(began.Sub(start), time.Since(began))
	}
	for _, r := range batch {
		if r.err == nil {
			r.err = err
		}
		r.err = translate(w.path, r.err)
		close(r.done)
	}
	w.commits++
	if w.unsaved++; w.unsaved >= w.saveAt || w.rows >= walRows || w.unsaved%walLook == 0 && w.logSize() > walBytes {
		w.unsaved, w.rows = 0, 0
		w.saveLog()
	}
}

// share returns how many rows a transaction has while other processes wait.
func (w *writer) share() int {
	if w.perRow <= 0 {
		return mergeShared
	}
	return min(max(int(mergeTime/w.perRow), mergeLeast), mergeShared)
}

// begin starts a transaction. Within the turnstile only programs that know
// nothing of it (an application's own transaction) can be in the way.
func (w *writer) begin() error {
	return sqlstore.Retry(context.Background(), beginTries, busy, func() error {
		_, err := w.conn.exec("BEGIN IMMEDIATE")
		return err
	})
}

// transact runs the batch in the transaction begun. First all requests run
// together; if one fails, all of it is taken back and each runs in a savepoint,
// so that a failure stays its own.
func (w *writer) transact(batch []*request) error {
	began, rows := time.Now(), 0
	for _, r := range batch {
		if r.run(w.conn, false) != nil {
			return w.transactEach(batch)
		}
		rows += r.rows
	}
	if rows >= mergeLeast {
		w.perRow += (time.Since(began)/time.Duration(rows) - w.perRow) / 8
	}
	return w.commit()
}

func (w *writer) transactEach(batch []*request) error {
	w.rollback()
	if err := w.begin(); err != nil {
		return err
	}
	for _, r := range batch {
		if _, err := w.conn.exec("SAVEPOINT request"); err != nil {
			w.rollback()
			return err
		}
		if r.err = r.run(w.conn, true); r.err == nil {
			continue
		}
		if fatal(r.err) {
			err := r.err
			w.rollback()
			return err
		}
		if _, err := w.conn.exec("ROLLBACK TO request"); err != nil {
			w.rollback()
			return err
		}
	}
	return w.commit()
}

// commit ends the transaction. Its failure leaves the outcome open only where
// the disk failed: then the log may or may not hold the commit.
func (w *writer) commit() error {
	_, err := w.conn.exec("COMMIT")
	if err == nil {
		return nil
	}
	w.rollback()
	if c := code(err) & 0xff; c == codes.SQLITE_IOERR {
		return fmt.Errorf("%w: commit to %s: %w", queue.ErrUnknown, w.path, err)
	}
	return err
}

// rollback ends a transaction, if SQLite has not done so itself.
func (w *writer) rollback() { _, _ = w.conn.exec("ROLLBACK") }

// logSize returns the bytes of the write-ahead log's file.
func (w *writer) logSize() int64 {
	info, err := os.Stat(w.path + "-wal")
	if err != nil {
		return 0
	}
	return info.Size()
}

// saveLog writes the log back into the database file: the bulk while others may
// commit, and the little that they added meanwhile within a turn, so that the next
// writer starts the log from its beginning. A log that readers kept from that
// until it passed its limit is truncated. Failures are left to the next time: all
// that is missing then is in the log.
func (w *writer) saveLog() {
	_, _ = w.conn.queryInt("PRAGMA wal_checkpoint(PASSIVE)")
	if w.turn.enter() != nil {
		return
	}
	defer func() { _ = w.turn.leave() }()
	_, _ = w.conn.queryInt("PRAGMA wal_checkpoint(PASSIVE)")
	if w.logSize() > w.walLimit {
		_, _ = w.conn.queryInt("PRAGMA wal_checkpoint(TRUNCATE)")
	}
}
