package throttle

import (
	"context"
	"time"
)

// Permit is the right to dispatch one message within [At, Until] of the pipe's
// clock, or not at all. Charge permits (Request.Charge) may be used at once. It
// is used once, by Taker.Dispatched or Taker.Return.
type Permit struct {
	At    time.Time
	Until time.Time
	dest  string
	from  *origin // nil where nothing is counted
}

// Destination returns whose permit it is.
func (p Permit) Destination() string { return p.dest }

// Request asks for up to Want permits of one destination.
type Request struct {
	Destination string
	Limit       Limit
	Version     int64  // of the rules Limit came from
	Was         *Limit // what limited this destination until Changed, nil if nothing did
	Changed     time.Time
	Want        int
	// Lead is how long the caller needs from asking to its dispatch: permits are
	// given so much earlier. 0 is right below some 10 ms, above 50 ms it counts
	// as that: what a reader that dies has taken ahead is lost.
	Lead time.Duration
	// Hold, when positive, makes the first permit also close the destination
	// for Hold after its dispatch: a spaced series. At most one permit is
	// granted then. Limit may be zero; only requests with a Hold or a Limit
	// see that the destination is closed.
	Hold time.Duration
	// Charge takes Want permits at once, whatever the limit says: emergency
	// with policy bypass. They count for those that come later.
	Charge bool
}

// Grant answers a Request. NotBefore is when asking again makes sense (zero: at
// once, or Want was met); it is Lead before a slot gets free. Stale says that
// other readers know newer rules: reload, then ask again.
type Grant struct {
	Permits   []Permit
	NotBefore time.Time
	Lead      time.Duration
	Stale     bool
	// Out says that permits of the destination are out that may come back
	// unused, before NotBefore.
	Out bool
	Err error // wraps state.ErrUnavailable, ...: nothing granted
}

// Taker is the part of Limiter that a scheduler uses.
type Taker interface {
	// Take answers every request, in order, at the price of one update per
	// store. A permit not dispatched within its time must be given to Return.
	Take(ctx context.Context, now time.Time, reqs []Request) []Grant
	// Dispatched says when the permit was used. It only takes a note, which is
	// written with the next Take of the destination or by Limiter.Flush.
	Dispatched(p Permit, at time.Time)
	// Return gives a permit back that was not and will not be used.
	Return(p Permit)
}
