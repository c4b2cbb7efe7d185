package throttle

import (
	"context"
	"time"
)

// Permit is the right to dispatch one message within [At, Until] of the pipe's
// clock, or not at all. Charge permits (Request.Charge) may be used at once.
type Permit struct {
	At    time.Time
	Until time.Time
	dest  string
}

// Request asks for up to Want permits of one destination.
type Request struct {
	Destination string
	Limit       Limit
	Version     int64  // of the rules Limit came from
	Was         *Limit // what limited this destination until Changed, nil if nothing did
	Changed     time.Time
	Want        int
	// Hold, when positive, makes the first permit also close the destination
	// for Hold after its dispatch: a spaced series. Limit may be zero then.
	Hold time.Duration
	// Charge takes Want permits at once, whatever the limit says: emergency
	// with policy bypass. They count for those that come later.
	Charge bool
}

// Grant answers a Request. NotBefore is when asking again makes sense (zero: at
// once, or Want was met). Stale says that other readers know newer rules:
// reload, then ask again.
type Grant struct {
	Permits   []Permit
	NotBefore time.Time
	Stale     bool
	Err       error // wraps state.ErrUnavailable, ...: nothing granted
}

// Taker is the part of Limiter that a scheduler uses.
type Taker interface {
	Take(ctx context.Context, now time.Time, reqs []Request) []Grant
	Dispatched(p Permit, at time.Time)
	Return(p Permit)
}
