package valve

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/mvalve/mvalve/queue"
)

// Headers that Insert understands. All of them travel on unchanged.
const (
	// HeaderDuration is a number of seconds or a Go duration. On an emergency:
	// the destination's other messages wait that long after its dispatch. On
	// others: not before enqueue + d, and its dispatch holds the destination for d.
	HeaderDuration = "X-Mvalve-Duration"
	// HeaderEmergency with a true value ("1", "true") puts the message into the
	// emergency lane.
	HeaderEmergency = "X-Mvalve-Emergency"
)

// maxHold bounds what a header can ask of a destination.
const maxHold = 366 * 24 * time.Hour

// applyHeaders carries the meaning of the X-Mvalve-* headers over to fields the
// caller left unset; explicit fields win.
func applyHeaders(m *queue.Message, now time.Time) error {
	if v, ok := m.Headers.Get(HeaderEmergency); ok && m.Lane == queue.LaneUnset {
		on, err := strconv.ParseBool(strings.TrimSpace(v))
		if err != nil {
			return fmt.Errorf("%w: header %s %.40q; use 1 or 0", queue.ErrInvalid, HeaderEmergency, v)
		}
		if on {
			m.Lane = queue.Emergency
		}
	}
	if v, ok := m.Headers.Get(HeaderDuration); ok && m.Hold == 0 {
		d, err := parseSeconds(v)
		if err != nil {
			return err
		}
		m.Hold = d
		if m.Lane != queue.Emergency && m.ReadyAt.IsZero() {
			m.ReadyAt = now.Add(d)
			if m.Lane == queue.Incoming {
				m.Lane = queue.Timed
			}
		}
	}
	return nil
}

func parseSeconds(v string) (time.Duration, error) {
	v = strings.TrimSpace(v)
	bad := fmt.Errorf("%w: header %s %.40q; use seconds such as 3 or 1.5, or a duration such as 2m", queue.ErrInvalid, HeaderDuration, v)
	d, err := time.ParseDuration(v)
	if err != nil {
		if d, err = time.ParseDuration(v + "s"); err != nil {
			return 0, bad
		}
	}
	if d < 0 || d > maxHold {
		return 0, bad
	}
	return d.Truncate(time.Microsecond), nil
}
