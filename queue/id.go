package queue

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"sync"
	"time"
)

// ID names a message, a batch or a lease holder: a UUID version 7 (RFC 9562,
// section 5.7). Its first 48 bits are Unix milliseconds, so ids sort by time.
// The zero ID means "none".
type ID [16]byte

// IsZero reports whether id is the zero ID.
func (id ID) IsZero() bool { return id == ID{} }

// Compare orders ids by time, then by their remaining bits.
func (id ID) Compare(other ID) int { return bytes.Compare(id[:], other[:]) }

// Time returns the instant in the id, with millisecond precision, in UTC.
func (id ID) Time() time.Time {
	return time.UnixMilli(int64(binary.BigEndian.Uint64(id[:8]) >> 16)).UTC()
}

// String returns the canonical 36-character form in lower case.
func (id ID) String() string {
	var b [36]byte
	hex.Encode(b[0:8], id[0:4])
	b[8] = '-'
	hex.Encode(b[9:13], id[4:6])
	b[13] = '-'
	hex.Encode(b[14:18], id[6:8])
	b[18] = '-'
	hex.Encode(b[19:23], id[8:10])
	b[23] = '-'
	hex.Encode(b[24:36], id[10:16])
	return string(b[:])
}

// MarshalText implements encoding.TextMarshaler with the form of String.
func (id ID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler; see ParseID.
func (id *ID) UnmarshalText(text []byte) error {
	parsed, err := ParseID(string(text))
	if err != nil {
		return err
	}
	*id = parsed
	return nil
}

// ParseID reads the 36-character form of a UUID version 7.
func ParseID(s string) (ID, error) {
	var id ID
	bad := fmt.Errorf("%w: id %.40q is not a version 7 UUID such as 01942f3e-6c00-7000-8000-000000000001", ErrInvalid, s)
	if len(s) != 36 || s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' {
		return ID{}, bad
	}
	compact := s[0:8] + s[9:13] + s[14:18] + s[19:23] + s[24:36]
	if _, err := hex.Decode(id[:], []byte(compact)); err != nil {
		return ID{}, bad
	}
	if id[6]>>4 != 7 || id[8]>>6 != 2 {
		return ID{}, bad
	}
	return id, nil
}

// MinID returns the smallest ID of t's millisecond. A scan that starts there
// sees every id made at t or later.
func MinID(t time.Time) ID {
	var id ID
	binary.BigEndian.PutUint64(id[:8], uint64(t.UnixMilli())<<16)
	return id
}

// IDSource makes ids that grow strictly within one process: 48 bits of
// milliseconds, 12 bits of sub-millisecond fraction (RFC 9562, section 6.2,
// method 3) counted up within a tick, 62 random bits. The zero value is ready;
// it is safe for concurrent use.
type IDSource struct {
	mu   sync.Mutex
	last uint64 // milliseconds<<12 | fraction of the newest id
}

// New returns an id for the instant now, later than every id it returned before.
func (s *IDSource) New(now time.Time) ID {
	micros := now.UnixMicro()
	tick := uint64(micros/1000)<<12 | uint64(micros%1000)*4096/1000
	s.mu.Lock()
	if tick <= s.last {
		tick = s.last + 1
	}
	s.last = tick
	s.mu.Unlock()

	var id ID
	_, _ = rand.Read(id[8:]) // crypto/rand.Read never fails (Go 1.24)
	binary.BigEndian.PutUint64(id[:8], tick>>12<<16|0x7000|tick&0xfff)
	id[8] = id[8]&0x3f | 0x80
	return id
}
