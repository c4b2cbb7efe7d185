package valve

import (
	"errors"
	"testing"
	"time"

	"github.com/mvalve/mvalve/queue"
)

// FuzzHeaders: whatever the X-Mvalve headers say, a message is refused or one
// that every store takes, and its pause is within bounds.
func FuzzHeaders(f *testing.F) {
	for _, s := range [][2]string{{"1", "3"}, {"true", "1.5"}, {"0", "2m"}, {" 1 ", "-1"}, {"yes", "1e3"}, {"", "9999999999h"}, {"1", "0x1p3"}, {"T", "NaN"}} {
		f.Add(s[0], s[1], uint8(0))
		f.Add(s[0], s[1], uint8(queue.Incoming))
	}
	now := time.UnixMicro(1_735_732_800_000_000)
	f.Fuzz(func(t *testing.T, emergency, duration string, lane uint8) {
		m := &queue.Message{Destination: "d", Lane: queue.Lane(lane % 4), Headers: queue.Headers{{Name: HeaderEmergency, Value: emergency}, {Name: "x-mvalve-DURATION", Value: duration}}}
		if err := applyHeaders(m, now); err != nil {
			if !errors.Is(err, queue.ErrInvalid) {
				t.Fatal(err)
			}
			return
		}
		if m.Hold < 0 || m.Hold > maxHold || m.Hold%time.Microsecond != 0 {
			t.Fatalf("%q: hold %v", duration, m.Hold)
		}
		if !m.ReadyAt.IsZero() && m.ReadyAt.Sub(now) != m.Hold {
			t.Fatalf("%q: ready after %v, hold %v", duration, m.ReadyAt.Sub(now), m.Hold)
		}
		if m.Lane == queue.LaneUnset {
			m.Lane = queue.Incoming
			if !m.ReadyAt.IsZero() {
				m.Lane = queue.Timed
			}
		}
		if err := m.Validate(0); err != nil {
			t.Fatalf("%q, %q: accepted, then %v", emergency, duration, err)
		}
	})
}
