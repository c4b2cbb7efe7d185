// Package queue holds what a pipe stores: messages in three lanes and dead
// letters, leases on them, and the port [Store] that a back end implements.
//
// A Store knows nothing of limits and never chooses: it puts messages, finds
// references, leases by key and settles leases. What to lease is decided above
// it (package valve). [Memory] defines the semantics; queue/sqlite and
// queue/mysql keep messages on disk; queue/queuetest is the suite that all of
// them pass.
//
//	store := queue.NewMemory()
//	_, err := store.Apply(ctx, now, &queue.Change{Token: token, Put: messages})
//
// Times in the database are integer microseconds UTC. A Store has no clock of
// its own but Now, the back end's; every other call is told the time.
package queue

import (
	"context"
	"errors"
	"time"
)

// Errors a caller can act on. Drivers wrap them around the back end's own error.
var (
	ErrInvalid     = errors.New("queue: invalid message")        // the caller's data is wrong
	ErrCorrupt     = errors.New("queue: stored message damaged") // checksum or encoding does not fit
	ErrDuplicate   = errors.New("queue: id exists already")      // an id given from outside is taken
	ErrUnavailable = errors.New("queue: back end unreachable")   // try again later
	ErrUnknown     = errors.New("queue: outcome unknown")        // the answer to a commit was lost
	ErrRefused     = errors.New("queue: refused by the back end")
	ErrSchema      = errors.New("queue: schema mismatch") // tables missing or of another version
	ErrClosed      = errors.New("queue: store closed")
)

// Ref is all that a reader keeps of a waiting message: its whole primary key
// and what choosing needs. Times are microseconds UTC, 0 for none.
type Ref struct {
	ID          ID
	Destination string
	Table       Lane // where the row lies: Emergency, Timed, Incoming (Dead for admin)
	Lane        Lane // lane of origin
	Priority    Priority
	Attempts    int
	ReadyAt     int64 // part of the key in q_timed, else 0
	ExpiresAt   int64
	EnqueuedAt  int64
	Hold        time.Duration
	Size        int // bytes of the stored headers and the body
}

// Cursor is a position in a lane: rows after (ReadyAt, ID) come next. ReadyAt
// is used only in q_timed. The zero Cursor is before all rows.
type Cursor struct {
	ReadyAt int64
	ID      ID
}

// Verb says how a delivery ends.
type Verb uint8

// The verbs of Settle.
const (
	Ack     Verb = iota + 1 // delete the row
	Retry                   // to q_timed, due at Settle.At; attempts kept
	Release                 // back in place, lease ended, attempts minus one
	Extend                  // lease until Settle.At, never shorter than it is
	Kill                    // to q_dead with Settle.Reason
)

// Settle ends or extends one lease. It takes effect only while the row still
// carries Token: the token is the fence. A zero Token settles a row that nobody
// holds (LeaseUntil not after now): expiry and supersession use that.
//
// Until tells one lease of a token from the next: one that ends later is left
// alone. It is when the lease ends as far as its holder knows; zero: it does not
// matter. Settles of one Change with the same table, verb and token may be
// measured by the latest of their Untils.
type Settle struct {
	Ref    Ref
	Verb   Verb
	Token  ID
	Until  time.Time
	At     time.Time
	Reason string // at most 1,000 bytes are kept
}

// Stat is one line of q_statslog: how often something happened to a
// destination within the second that starts at At.
type Stat struct {
	Action      string // enqueue, dequeue, throttle, retry, dead, expire, ...
	Destination string
	Count       int64
	At          time.Time
}

// Change is what Apply does in one transaction. With messages to Put, Token is
// required: a Change whose Token is already stored was done before and does
// nothing. Where it has none, what vanished on a repeated attempt after an
// unknown outcome counts as done; acks of that kind are named in Outcome.
type Change struct {
	Token  ID
	Put    []*Message // ID, EnqueuedAt and Lane set; may carry a lease
	Settle []Settle
	Log    []Stat
	// Strict makes all of Settle hold or nothing be done: if a lease was lost,
	// nothing is stored or settled and Outcome.Lost names it. It needs Token.
	Strict bool
	// Told says that the caller tells the readers of its process what it puts:
	// ForeignChecker then counts it as known.
	Told bool
}

// Outcome tells what Apply could not do, or does not know, by index into
// Change.Settle.
type Outcome struct {
	Lost []int // the lease was lost
	// Vanished are acks whose rows are not there. An attempt of this call whose
	// answer was lost had deleted them, unless the lease had run out and another
	// holder did, or moved them: the caller knows whether its lease still lasts.
	Vanished []int
}

// Leased is one row that Lease won. Err is nil or wraps ErrCorrupt; then Message
// has what could still be read and must be killed, not served.
type Leased struct {
	Ref     Ref // as asked, with Attempts as now stored
	Message *Message
	Err     error
}

// HeadQuery asks Heads for destinations or for the rows of one destination.
type HeadQuery struct {
	// Destination, when set, asks for the rows of this destination that a
	// reader may lease now, best first: by table, priority, then
	// (ready_at, id); rows under a live lease and not yet due are left out.
	Destination string
	// Behind, with Destination, leaves out the rows of q_incoming up to this
	// one in the order of the answer; those of the other tables are not.
	Behind *Ref
	// After pages over all destinations in byte order, starting behind it;
	// one Ref per destination and table, the best row by index order. Such a
	// Ref promises only that the destination has rows there: its row may be
	// leased or gone, and only Destination, Table, ID, Priority and ReadyAt are set.
	After string
	// Table, when set, restricts the query to one lane.
	Table Lane
	// Limit is the most rows to return with Destination (per table), or the
	// most (destination, priority) groups to visit per table without.
	Limit int
}

// Store keeps messages. All methods are safe for concurrent use and retry
// inside what a back end asks to retry (deadlocks, lock waits, lost
// connections, busy files), bounded by ctx. Errors wrap the errors above.
type Store interface {
	// Apply carries out c in one transaction and returns when it is on disk.
	// Put is all or nothing; settles whose lease is lost are named in Outcome.
	Apply(ctx context.Context, now time.Time, c *Change) (Outcome, error)

	// Lease takes those of refs that nobody holds at now, adds one to their
	// attempts, marks them with token until until, and returns them with their
	// bodies, in the order of refs. What is not returned was gone or held.
	// ErrUnknown: some may be leased to token; they come back after until.
	Lease(ctx context.Context, now, until time.Time, token ID, refs []Ref) ([]Leased, error)

	// Scan returns up to n rows of a lane behind the cursor in key order that
	// nobody holds at now, and the cursor behind the last row it looked at (the
	// given one if there was none). In q_timed it ends with rows due at upTo.
	Scan(ctx context.Context, now time.Time, table Lane, after Cursor, upTo time.Time, n int) ([]Ref, Cursor, error)

	// Heads answers a HeadQuery. Without Destination, more is the After for the
	// next page, "" at the end.
	Heads(ctx context.Context, now time.Time, q HeadQuery) (refs []Ref, more string, err error)

	// Now returns the back end's clock.
	Now(ctx context.Context) (time.Time, error)

	// Close releases what Open acquired. It is safe to call twice.
	Close() error
}

// Sizer is implemented by a Store that takes smaller bodies than MaxBody.
type Sizer interface {
	// MaxBody returns the largest body in bytes.
	MaxBody() int
}

// DirtyChecker is implemented by stores that can tell more cheaply than by Scan
// whether there may be something new. A commit out of id order, and what becomes
// due in q_timed, may go unnoticed: readers look for those from time to time.
type DirtyChecker interface {
	// Dirty returns a number that changes when a newer message is committed.
	Dirty(ctx context.Context) (int64, error)
}

// ForeignChecker is implemented by stores that can tell whether anybody else
// commits: then what this process put itself need not be looked for.
type ForeignChecker interface {
	// Foreign returns a number that changes when anything was committed but
	// the Changes of this process that put nothing or are Told.
	Foreign(ctx context.Context) (int64, error)
}

// Presence is a live reader's row in q_reader.
type Presence struct {
	ID      ID
	Host    string
	PID     int
	Address string // where its doorbell listens (host:port, UDP); "" for none
	Started time.Time
	SeenAt  time.Time
	Held    int // deliveries out
}

// Registry is implemented by stores that know who reads.
type Registry interface {
	// Announce stores p (SeenAt is now) and returns every reader seen at or
	// after since, p included; a p with a zero ID is not stored. Rows older
	// than an hour are removed.
	Announce(ctx context.Context, now, since time.Time, p Presence) ([]Presence, error)
	// Leave removes the reader's row.
	Leave(ctx context.Context, id ID) error
}

// Meta is implemented by stores that keep q_meta: small named values of the
// pipe, such as which limiter store rules.
type Meta interface {
	// Meta returns the value of key, "" when absent.
	Meta(ctx context.Context, key string) (string, error)
	// SetMeta replaces the value if it still is old and returns the value that
	// then stands. old "" means absent.
	SetMeta(ctx context.Context, key, old, value string) (string, error)
}

// Count is how many messages of a destination lie in a table.
type Count struct {
	Destination string
	Table       Lane
	Waiting     int64 // free to be leased now or later
	Leased      int64
	Oldest      time.Time // enqueued_at of the one with the smallest key; zero if none
	NextReady   time.Time // smallest ready_at (q_timed); zero elsewhere
}

// Letter is a row as Peek shows it: a message, and for dead letters why.
type Letter struct {
	Message *Message
	Table   Lane
	DeadAt  time.Time
	Reason  string
	Err     error // wraps ErrCorrupt if the row is damaged
}

// Move says what Admin.Move does with the rows it selects.
type Move struct {
	From        Lane   // Dead for redrive
	Destination string // exact; "" for all
	IDs         []ID   // only these; nil for all
	Purge       bool   // delete instead of moving to the lane of origin
	Limit       int    // at most so many; 0 means no limit
}

// Admin is implemented by stores that can be looked into and repaired.
type Admin interface {
	// Count returns the counts per destination and table; destination "" means
	// all of them, ordered by destination, then table.
	Count(ctx context.Context, now time.Time, destination string) ([]Count, error)
	// Peek returns rows of a table in key order behind after, without leasing.
	Peek(ctx context.Context, table Lane, destination string, after Cursor, n int) ([]Letter, error)
	// Move moves dead letters back to their lane of origin (attempts 0, new
	// enqueue time kept as it was) or purges rows; it returns how many.
	Move(ctx context.Context, now time.Time, m Move) (int64, error)
	// Stats sums q_statslog from since on, per action and destination.
	Stats(ctx context.Context, since time.Time) ([]Stat, error)
	// Prune deletes q_statslog lines older than logs and batch tokens older
	// than batches.
	Prune(ctx context.Context, logs, batches time.Time) error
}

// Initializer is implemented by stores whose tables are made explicitly.
type Initializer interface {
	// Init creates the tables if they are missing.
	Init(ctx context.Context) error
}
