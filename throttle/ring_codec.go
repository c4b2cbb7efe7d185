package throttle

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"slices"
	"time"
)

// A value is a format byte, the fields of ring as varints, the entries as
// differences, and a CRC-32C of it all. It stays far below the 64 KiB of a
// state.Store: ringEntries of at most 19 bytes.

const (
	ringFormat  = 1
	maxMicros   = int64(1) << 56 // year 4253
	maxRingTail = ringEntries * 2
)

var (
	errRing    = errors.New("throttle: stored state is malformed")
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

// encode returns the stored form.
func (r *ring) encode() []byte {
	b := make([]byte, 0, 96+6*len(r.entries))
	b = append(b, ringFormat, byte(r.limit.Mode), flag(r.moved))
	for _, v := range [...]int64{
		r.limit.Max, int64(r.limit.Interval / time.Microsecond), int64(r.limit.Guard / time.Microsecond),
		r.version, r.era, r.high, r.tat, r.forgot, r.closed, r.closer, r.hold,
	} {
		b = binary.AppendVarint(b, v)
	}
	b = append(b, byte(len(r.pasts)))
	for _, p := range r.pasts {
		for _, v := range [...]int64{p.max, p.window, p.until} {
			b = binary.AppendVarint(b, v)
		}
	}
	b = binary.LittleEndian.AppendUint64(b, r.nonce)
	b = binary.AppendUvarint(b, uint64(len(r.entries)))
	last := int64(0)
	for _, e := range r.entries {
		many := e.n != 1
		b = binary.AppendUvarint(b, uint64(e.hi-last)<<2|uint64(flag(many))<<1|uint64(flag(e.open)))
		if many {
			b = binary.AppendUvarint(b, uint64(e.n))
		}
		last = e.hi
	}
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

func flag(b bool) byte {
	if b {
		return 1
	}
	return 0
}

// decode reads the stored form into r, reusing its entries. Bytes that encode
// does not write are errRing; r is undefined then.
func (r *ring) decode(b []byte) error {
	if len(b) < 7 || b[0] != ringFormat || b[1] > byte(Paced) || b[2] > 1 {
		return errRing
	}
	body, sum := b[:len(b)-4], binary.LittleEndian.Uint32(b[len(b)-4:])
	if crc32.Checksum(body, castagnoli) != sum {
		return errRing
	}
	*r = ring{entries: r.entries[:0], pasts: r.pasts[:0], moved: b[2] == 1}
	var interval, guard int64
	body = decodeInts(body[3:], &r.limit.Max, &interval, &guard,
		&r.version, &r.era, &r.high, &r.tat, &r.forgot, &r.closed, &r.closer, &r.hold)
	if len(body) == 0 || body[0] > maxPasts {
		return errRing
	}
	pasts := body[0]
	body = body[1:]
	for range pasts {
		var p past
		body = decodeInts(body, &p.max, &p.window, &p.until)
		if p.max < 1 || p.max > MaxMax || p.window < 1 {
			return errRing
		}
		r.pasts = append(r.pasts, p)
	}
	const longest = int64(MaxInterval / time.Microsecond)
	if interval > longest || guard > longest || len(body) < 9 {
		return errRing
	}
	r.limit.Mode = Mode(b[1])
	r.limit.Interval = time.Duration(interval) * time.Microsecond
	r.limit.Guard = time.Duration(guard) * time.Microsecond
	if r.limit.Validate() != nil {
		return errRing
	}
	r.nonce = binary.LittleEndian.Uint64(body)
	return r.decodeEntries(body[8:])
}

// decodeInts reads one number per field and returns what follows, nil if one is
// missing or out of range.
func decodeInts(b []byte, fields ...*int64) []byte {
	for _, f := range fields {
		v, n := binary.Varint(b)
		if n <= 0 || v < 0 || v >= maxMicros {
			return nil
		}
		*f, b = v, b[n:]
	}
	return b
}

func (r *ring) decodeEntries(b []byte) error {
	count, w := binary.Uvarint(b)
	if w <= 0 || count > maxRingTail || count > uint64(len(b)) {
		return errRing
	}
	b = b[w:]
	r.entries = slices.Grow(r.entries, int(count)+16)
	hi := uint64(0)
	for range count {
		v, w := binary.Uvarint(b)
		if w <= 0 {
			return errRing
		}
		b = b[w:]
		hi += v >> 2
		n := uint64(1)
		if v&2 != 0 {
			if n, w = binary.Uvarint(b); w <= 0 || n == 0 || n > 1<<40 {
				return errRing
			}
			b = b[w:]
		}
		if hi >= uint64(maxMicros) {
			return errRing
		}
		r.entries = append(r.entries, entry{int64(hi), int64(n), v&1 != 0})
		r.total += int64(n)
	}
	if len(b) != 0 {
		return errRing
	}
	return nil
}
