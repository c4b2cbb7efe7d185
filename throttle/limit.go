package throttle

import "time"

// Mode is how a Limit spaces dispatches.
type Mode uint8

// The modes; the values are stored.
const (
	Window Mode = iota // at most Max in any half-open window of Interval
	Strict             // at least Interval between two; Max is 1
	Paced              // evenly spaced, at most Max per window
)

// Limit is at most Max dispatches in any half-open window [t, t+Interval+Guard).
// Max 0 means no limit; it is what the zero value says.
type Limit struct {
	Max      int64
	Interval time.Duration // at least 1ms, whole microseconds
	Mode     Mode
	Guard    time.Duration // widens the window
}
