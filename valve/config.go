package valve

import (
	"errors"
	"log/slog"
	"time"

	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/state"
	"github.com/mvalve/mvalve/throttle"
)

// Errors a caller can act on.
var (
	// ErrEmpty: nothing could go within ReaderConfig.Wait; see EmptyError.
	ErrEmpty = errors.New("valve: no message may go yet")
	// ErrLeaseLost: the delivery's lease ran out or was ended before; the
	// message is or will be delivered again. Nothing was changed.
	ErrLeaseLost = errors.New("valve: lease lost")
	// ErrClosed: the Reader, Subscription or Writer was closed.
	ErrClosed = errors.New("valve: closed")
)

// EmergencyPolicy says whether emergency messages wait for their destination's limit.
type EmergencyPolicy uint8

// The emergency policies.
const (
	RespectLimit EmergencyPolicy = iota // emergencies go first, within the limit
	Bypass                              // delivered at once, still charged
)

// EmergencyAction is what an emergency with X-Mvalve-Duration does to the
// destination's other messages.
type EmergencyAction uint8

// The emergency actions.
const (
	HoldOthers EmergencyAction = iota // they wait until the duration has passed
	DropOthers                        // what is older is dead-lettered as superseded
)

// WriterConfig configures a Writer. The zero value means the defaults stated.
type WriterConfig struct {
	Logger  *slog.Logger // nil discards
	MaxBody int          // bytes; 0: what the store takes (at most queue.MaxBody)
	// Commits is how many group commits may be under way at once; default 2.
	Commits int
}

// ReaderConfig configures a Reader. The zero value means the defaults stated.
type ReaderConfig struct {
	Logger *slog.Logger // nil discards
	// Writer, of the same process and store, hands what it commits to this
	// reader without a read back. Optional.
	Writer *Writer
	// Rules is where limits and holds live; nil: the store, if it implements
	// throttle.RuleStore, else no limits.
	Rules throttle.RuleStore
	// State counts limits with an interval up to 60 s, for all readers of the
	// pipe, of whatever program: nil is what the pipe says (ruling.Default), and
	// another one must come from ruling.Open.
	State state.Store
	// Durable counts the others; nil: the store's own (method State), else memory.
	Durable state.Store

	Destinations []string      // globs that Next and All serve; empty: everything
	Wait         time.Duration // how long Next waits before ErrEmpty; 0: for ever
	Lease        time.Duration // default 60s
	MaxAttempts  int           // default 20
	RetryMin     time.Duration // first back-off, doubling; default 1s
	RetryMax     time.Duration // longest back-off; default 1h
	Emergency    EmergencyPolicy
	OnEmergency  EmergencyAction
	// DropExpired deletes expired messages instead of dead-lettering them.
	DropExpired bool
	// IndexCap is the most references kept in memory, about 200 bytes each;
	// default 100,000.
	IndexCap int
	// Address is the host or IP on which the doorbell listens (UDP, a free
	// port); default 127.0.0.1; "-" for none.
	Address string
}

// Stats are counters of a Reader since it was opened. Gauges say so.
type Stats struct {
	Dispatched, Acked, Retried, Throttled, Dead, Expired, LeaseLost int64
	Lapsed                                                          int64 // permits that came too late to be used
	LimiterErrors                                                   int64 // requests the limiter could not answer

	Indexed      int // gauge: references in memory
	Destinations int // gauge: destinations with references in memory
	InFlight     int // gauge: deliveries out
}

// EmptyError is the error of a Next that waited in vain; it matches ErrEmpty.
type EmptyError struct {
	// Next is when the next known message may go, zero if none is known.
	Next time.Time
	// Destination is whose message that is and Why it waits: "limit", "hold",
	// "paused", "not due"; empty if none is known.
	Destination, Why string
}

// Delivery is one message handed out, to be ended exactly once by Ack, Nack,
// Throttled, Reject or Release. Methods are safe for concurrent use; those after
// the end return ErrLeaseLost.
type Delivery struct {
	Message      *queue.Message // do not change
	DispatchedAt time.Time      // the moment Next returned it, on the pipe's clock
	Attempt      int            // 1 for the first

	entry  *entry
	reader *Reader
}

// Subscription returns the subscription that the delivery came for.
func (d *Delivery) Subscription() *Subscription { return d.entry.sub }
