package queue

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math/bits"
	"strings"
	"time"
	"unicode/utf8"
)

// Sizes that every store accepts. MaxBody may be lowered by a driver whose
// server takes less (Limits).
const (
	MaxDestination = 255      // bytes of UTF-8
	MaxBody        = 16 << 20 // bytes
	MaxHeaders     = 1 << 20  // bytes, encoded
	MaxIDAhead     = time.Minute
)

// Lane is the part of the pipe a message travels in. Readers take emergency
// before timed before incoming within a destination. The zero Lane means "not
// said": Insert chooses timed for a message with a delay and incoming for others.
type Lane uint8

// The lanes; the values are stored.
const (
	LaneUnset Lane = iota
	Emergency
	Timed
	Incoming
	Dead // dead letters: never read, only shown, moved and purged
)

var laneNames = [...]string{"", "emergency", "timed", "incoming", "dead"}

// String returns the lane's name, "" for LaneUnset.
func (l Lane) String() string {
	if int(l) < len(laneNames) {
		return laneNames[l]
	}
	return fmt.Sprintf("lane(%d)", uint8(l))
}

// ParseLane reads "emergency", "timed" or "incoming".
func ParseLane(s string) (Lane, error) {
	switch s {
	case "emergency":
		return Emergency, nil
	case "timed":
		return Timed, nil
	case "incoming":
		return Incoming, nil
	}
	return LaneUnset, fmt.Errorf("%w: lane %.40q; use emergency, timed or incoming", ErrInvalid, s)
}

// Priority orders messages of one destination and lane. It is an offset from
// the normal priority, so that the zero value is normal; people see it as the
// level 0 (last) to 9 (first) with 4 as normal. Write Level(9), not 9.
type Priority int8

// NormalLevel is the level of the zero Priority.
const NormalLevel = 4

// Level returns the Priority for the level n, 0 (last) to 9 (first).
func Level(n int) Priority { return Priority(min(max(n, -100), 100) - NormalLevel) }

// Level returns the level 0 to 9.
func (p Priority) Level() int { return int(p) + NormalLevel }

// Header is one name and value; both are opaque bytes.
type Header struct{ Name, Value string }

// Headers keep their order and may repeat a name.
type Headers []Header

// Get returns the first value of the header called name, compared without
// regard to ASCII case, and whether there is one.
func (h Headers) Get(name string) (string, bool) {
	for i := range h {
		if strings.EqualFold(h[i].Name, name) {
			return h[i].Value, true
		}
	}
	return "", false
}

// Message is what travels through the pipe. Destination is required; all other
// fields may be zero. Times have microsecond precision; a zero time means none.
type Message struct {
	ID          ID
	Destination string // opaque, 1–255 bytes of UTF-8; what limits count by
	Lane        Lane   // the lane of origin; a retry keeps it
	Priority    Priority
	Headers     Headers
	Body        []byte
	ReadyAt     time.Time     // not before; set only for what lies in q_timed
	ExpiresAt   time.Time     // not after
	EnqueuedAt  time.Time     // when the writer put it, on the back end's clock
	Hold        time.Duration // its dispatch holds the destination this long (X-Mvalve-Duration)
	Attempts    int           // leases so far, the current one included
	LeaseToken  ID            // who holds it; zero: nobody
	LeaseUntil  time.Time     // until when
}

// Table returns where the message lies: q_emerg, q_timed or q_incoming. A
// message with a ReadyAt lies in q_timed whatever its lane of origin.
func (m *Message) Table() Lane {
	if !m.ReadyAt.IsZero() {
		return Timed
	}
	return m.Lane
}

// Ref returns the reference by which the message is leased and settled.
func (m *Message) Ref() Ref {
	return Ref{
		ID: m.ID, Destination: m.Destination, Table: m.Table(), Lane: m.Lane,
		Priority: m.Priority, ReadyAt: Micros(m.ReadyAt), ExpiresAt: Micros(m.ExpiresAt),
		EnqueuedAt: Micros(m.EnqueuedAt), Hold: m.Hold, Attempts: m.Attempts, Size: m.stored(),
	}
}

// Size returns about how many bytes the message takes in a statement.
func (m *Message) Size() int {
	n := len(m.Destination) + len(m.Body) + 128
	for _, h := range m.Headers {
		n += len(h.Name) + len(h.Value) + 8
	}
	return n
}

// stored returns how many bytes of headers and body are stored.
func (m *Message) stored() int {
	n := len(m.Body)
	for _, h := range m.Headers {
		n += uvarintLen(len(h.Name)) + len(h.Name) + uvarintLen(len(h.Value)) + len(h.Value)
	}
	return n
}

func uvarintLen(n int) int { return (bits.Len64(uint64(n)|1) + 6) / 7 }

// CheckDestination reports, wrapping ErrInvalid, why s cannot be a destination.
func CheckDestination(s string) error {
	switch {
	case s == "":
		return fmt.Errorf("%w: destination is empty; name the third party the message is for", ErrInvalid)
	case len(s) > MaxDestination:
		return fmt.Errorf("%w: destination has %d bytes; at most %d are allowed", ErrInvalid, len(s), MaxDestination)
	case !utf8.ValidString(s):
		return fmt.Errorf("%w: destination %.60q is not UTF-8", ErrInvalid, s)
	}
	return nil
}

// Validate reports, wrapping ErrInvalid, the first thing about the message that
// no store accepts. maxBody is in bytes; 0 means MaxBody.
func (m *Message) Validate(maxBody int) error {
	if maxBody <= 0 {
		maxBody = MaxBody
	}
	if err := CheckDestination(m.Destination); err != nil {
		return err
	}
	headers := 0
	for _, h := range m.Headers {
		headers += len(h.Name) + len(h.Value) + 8
	}
	switch {
	case len(m.Body) > maxBody:
		return fmt.Errorf("%w: body has %d bytes; at most %d are allowed", ErrInvalid, len(m.Body), maxBody)
	case headers > MaxHeaders:
		return fmt.Errorf("%w: headers have %d bytes; at most %d are allowed", ErrInvalid, headers, MaxHeaders)
	case m.Lane > Incoming:
		return fmt.Errorf("%w: lane %v; use emergency, timed or incoming", ErrInvalid, m.Lane)
	case m.Lane == Incoming && !m.ReadyAt.IsZero() && m.Attempts == 0:
		return fmt.Errorf("%w: a message in lane incoming cannot have a delay; use lane timed or leave the lane out", ErrInvalid)
	case m.Priority.Level() < 0 || m.Priority.Level() > 9:
		return fmt.Errorf("%w: priority %d; use 0 (last) to 9 (first)", ErrInvalid, m.Priority.Level())
	case m.Hold < 0:
		return fmt.Errorf("%w: X-Mvalve-Duration %v is negative", ErrInvalid, m.Hold)
	}
	return nil
}

// Micros returns t as microseconds since 1970 UTC, the form in which times are
// stored; the zero time is 0.
func Micros(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMicro()
}

// Time is the inverse of Micros.
func Time(micros int64) time.Time {
	if micros == 0 {
		return time.Time{}
	}
	return time.UnixMicro(micros).UTC()
}

// AppendHeaders appends the stored form of h to dst: for every header the
// length of name and value as uvarints, each followed by its bytes.
func AppendHeaders(dst []byte, h Headers) []byte {
	for i := range h {
		dst = binary.AppendUvarint(dst, uint64(len(h[i].Name)))
		dst = append(dst, h[i].Name...)
		dst = binary.AppendUvarint(dst, uint64(len(h[i].Value)))
		dst = append(dst, h[i].Value...)
	}
	return dst
}

// ParseHeaders reads the stored form. It copies nothing twice, never panics,
// and returns ErrCorrupt for bytes that AppendHeaders did not write.
func ParseHeaders(b []byte) (Headers, error) {
	if len(b) == 0 {
		return nil, nil // no headers: the nil slice is the value
	}
	s := string(b)
	var h Headers
	for len(b) > 0 {
		var field [2]string
		for i := range field {
			n, w := binary.Uvarint(b)
			if w <= 0 || n > uint64(len(b)-w) {
				return nil, fmt.Errorf("%w: headers cut off", ErrCorrupt)
			}
			at := len(s) - len(b) + w
			field[i] = s[at : at+int(n)]
			b = b[w+int(n):]
		}
		h = append(h, Header{field[0], field[1]})
	}
	return h, nil
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Checksum returns the CRC-32C over what a message must keep unchanged while it
// is stored: id, destination, lane, priority, expiry, enqueue time, hold, headers
// (stored form) and body. What a retry or a lease changes is not in it.
func Checksum(m *Message, headers []byte) uint32 {
	var fixed [16 + 4 + 4*8]byte
	copy(fixed[:16], m.ID[:])
	fixed[16] = byte(m.Lane)
	fixed[17] = byte(m.Priority)
	binary.BigEndian.PutUint16(fixed[18:], uint16(len(m.Destination)))
	binary.BigEndian.PutUint64(fixed[20:], uint64(Micros(m.ExpiresAt)))
	binary.BigEndian.PutUint64(fixed[28:], uint64(len(headers)))
	binary.BigEndian.PutUint64(fixed[36:], uint64(Micros(m.EnqueuedAt)))
	binary.BigEndian.PutUint64(fixed[44:], uint64(m.Hold.Microseconds()))
	sum := crc32.Update(0, castagnoli, fixed[:])
	sum = crc32.Update(sum, castagnoli, []byte(m.Destination))
	sum = crc32.Update(sum, castagnoli, headers)
	return crc32.Update(sum, castagnoli, m.Body)
}
