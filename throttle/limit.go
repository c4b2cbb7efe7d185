package throttle

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// ErrLimit is wrapped by every error about the text or the values of a Limit.
var ErrLimit = errors.New("throttle: invalid limit")

// Bounds of a Limit.
const (
	MinInterval = time.Millisecond
	MaxInterval = 366 * 24 * time.Hour // of Interval and Guard together
	MaxMax      = 1_000_000_000
)

const limitForm = `write MAX/INTERVAL, such as 10/30s, "1/1.4s strict", "10/30s paced guard=50ms", or none`

// Mode is how a Limit spaces dispatches.
type Mode uint8

// The modes; the values are stored.
const (
	Window Mode = iota // at most Max in any half-open window of Interval
	Strict             // at least Interval between two; Max is 1
	Paced              // evenly spaced, at most Max per window
)

// String returns window, strict or paced.
func (m Mode) String() string {
	switch m {
	case Window:
		return "window"
	case Strict:
		return "strict"
	case Paced:
		return "paced"
	}
	return "mode(" + strconv.Itoa(int(m)) + ")"
}

// Limit is at most Max dispatches in any half-open window [t, t+Interval+Guard).
// Max 0 means no limit; it is what the zero value says.
type Limit struct {
	Max      int64
	Interval time.Duration // at least 1ms, whole microseconds
	Mode     Mode
	Guard    time.Duration // widens the window
}

// IsNone reports whether l does not limit anything.
func (l Limit) IsNone() bool { return l.Max == 0 }

// Window returns Interval and Guard together: the length of the window within
// which at most Max dispatches fall.
func (l Limit) Window() time.Duration { return l.Interval + l.Guard }

// Validate reports, wrapping ErrLimit, the first thing that is wrong with l.
func (l Limit) Validate() error {
	if l == (Limit{}) {
		return nil
	}
	bad := func(format string, a ...any) error {
		return fmt.Errorf("%w: %s; %s", ErrLimit, fmt.Sprintf(format, a...), limitForm)
	}
	switch {
	case l.Max < 1:
		return bad("MAX is %d, at least 1 is needed", l.Max)
	case l.Max > MaxMax:
		return bad("MAX is %d, at most %d is possible", l.Max, int64(MaxMax))
	case l.Interval < MinInterval:
		return bad("the interval is %v, at least %v is needed", l.Interval, MinInterval)
	case l.Guard < 0:
		return bad("guard is %v, it cannot be negative", l.Guard)
	case l.Interval > MaxInterval || l.Guard > MaxInterval-l.Interval:
		return bad("interval and guard are longer than 366 days together")
	case l.Interval%time.Microsecond != 0 || l.Guard%time.Microsecond != 0:
		return bad("interval and guard are counted in whole microseconds")
	case l.Mode > Paced:
		return bad("mode %d is unknown, use window, strict or paced", l.Mode)
	case l.Mode == Strict && l.Max != 1:
		return bad("strict spaces single dispatches, so MAX must be 1 and not %d (1/%s strict)",
			l.Max, durationText(l.Interval))
	}
	return nil
}

// String returns the text form, which ParseLimit reads back.
func (l Limit) String() string {
	if l.IsNone() {
		return "none"
	}
	b := append(make([]byte, 0, 32), strconv.FormatInt(l.Max, 10)...)
	b = append(b, '/')
	b = append(b, durationText(l.Interval)...)
	if l.Mode != Window {
		b = append(b, ' ')
		b = append(b, l.Mode.String()...)
	}
	if l.Guard != 0 {
		b = append(b, " guard="...)
		b = append(b, durationText(l.Guard)...)
	}
	return string(b)
}

// durationText is Duration.String without trailing zero units: 24h, 1m30s.
func durationText(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = s[:len(s)-2]
	}
	if strings.HasSuffix(s, "h0m") {
		s = s[:len(s)-2]
	}
	return s
}

// ParseLimit reads the text form: MAX/INTERVAL, then optionally window, strict
// or paced, then optionally guard=DURATION; or none. Durations are Go's
// (1.4s, 100ms, 1h30m), whole days (7d), or a unit alone (100/s is 100/1s).
// Errors wrap ErrLimit and name the accepted form.
func ParseLimit(text string) (Limit, error) {
	fields := strings.Fields(text)
	if len(fields) == 1 && fields[0] == "none" {
		return Limit{}, nil
	}
	l, err := parseFields(fields)
	if err == nil {
		err = l.Validate()
	}
	if err != nil {
		return Limit{}, fmt.Errorf("limit %.80q: %w", text, err)
	}
	return l, nil
}

func parseFields(fields []string) (l Limit, err error) {
	bad := func(format string, a ...any) error {
		return fmt.Errorf("%w: %s; %s", ErrLimit, fmt.Sprintf(format, a...), limitForm)
	}
	if len(fields) == 0 {
		return l, bad("it is empty")
	}
	count, interval, ok := strings.Cut(fields[0], "/")
	if !ok || count == "" || interval == "" {
		return l, bad("MAX or INTERVAL is missing")
	}
	if l.Max, err = strconv.ParseInt(count, 10, 64); err != nil {
		return l, bad("MAX %.40q is not a whole number of at most %d", count, int64(MaxMax))
	}
	if l.Max == 0 {
		return l, bad("MAX is 0, at least 1 is needed")
	}
	if l.Interval, err = parseDuration(interval); err != nil {
		return l, bad("interval %.40q is not a duration", interval)
	}
	mode, guard := false, false
	for _, f := range fields[1:] {
		g, isGuard := strings.CutPrefix(f, "guard=")
		switch {
		case isGuard && !guard:
			guard = true
			if l.Guard, err = parseDuration(g); err != nil {
				return l, bad("guard %.40q is not a duration", g)
			}
		case isGuard || mode:
			return l, bad("%.40q says it twice", f)
		case f == "window" || f == "strict" || f == "paced":
			mode = true
			l.Mode = map[string]Mode{"window": Window, "strict": Strict, "paced": Paced}[f]
		default:
			return l, bad("%.40q is none of window, strict, paced, guard=DURATION", f)
		}
	}
	return l, nil
}

func parseDuration(s string) (time.Duration, error) {
	switch s {
	case "us", "µs", "ms", "s", "m", "h", "d":
		s = "1" + s
	}
	if days, ok := strings.CutSuffix(s, "d"); ok {
		n, err := strconv.ParseUint(days, 10, 16)
		return time.Duration(n) * 24 * time.Hour, err
	}
	return time.ParseDuration(s)
}

// MarshalText returns the text form.
func (l Limit) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// UnmarshalText reads the text form like ParseLimit.
func (l *Limit) UnmarshalText(text []byte) (err error) {
	*l, err = ParseLimit(string(text))
	return err
}
