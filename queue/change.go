package queue

import (
	"fmt"
	"time"
	"unicode/utf8"
)

// MaxReason is how many bytes of Settle.Reason are kept.
const MaxReason = 1000

// Check reports, wrapping ErrInvalid, the first thing about c that no store
// accepts. maxBody is in bytes; 0 means MaxBody. Every Store calls it first, so
// that an invalid change touches nothing.
func (c *Change) Check(now time.Time, maxBody int) error {
	if len(c.Put) > 0 && c.Token.IsZero() {
		return fmt.Errorf("%w: messages to put need a batch token", ErrInvalid)
	}
	if c.Strict && c.Token.IsZero() {
		return fmt.Errorf("%w: a strict change needs a batch token", ErrInvalid)
	}
	for _, m := range c.Put {
		switch {
		case m.ID[6]>>4 != 7 || m.ID[8]>>6 != 2:
			return fmt.Errorf("%w: id %v is not a version 7 UUID", ErrInvalid, m.ID)
		case m.ID.Time().After(now.Add(MaxIDAhead)):
			return fmt.Errorf("%w: id %v lies more than %v in the future", ErrInvalid, m.ID, MaxIDAhead)
		case m.Lane == LaneUnset:
			return fmt.Errorf("%w: message %v has no lane", ErrInvalid, m.ID)
		case m.EnqueuedAt.IsZero():
			return fmt.Errorf("%w: message %v has no enqueue time", ErrInvalid, m.ID)
		}
		if err := m.Validate(maxBody); err != nil {
			return err
		}
	}
	for i := range c.Settle {
		s := &c.Settle[i]
		if s.Ref.Table < Emergency || s.Ref.Table > Incoming {
			return fmt.Errorf("%w: settle in table %v", ErrInvalid, s.Ref.Table)
		}
		if s.Verb < Ack || s.Verb > Kill {
			return fmt.Errorf("%w: verb %d", ErrInvalid, s.Verb)
		}
		if s.Verb == Extend && s.Token.IsZero() {
			return fmt.Errorf("%w: a lease that nobody holds cannot be extended", ErrInvalid)
		}
	}
	return nil
}

// CutReason shortens a reason to MaxReason bytes without splitting a rune.
func CutReason(s string) string {
	if len(s) <= MaxReason {
		return s
	}
	n := MaxReason
	for n > MaxReason-utf8.UTFMax && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}
