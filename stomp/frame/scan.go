package frame

import (
	"bytes"
	"strconv"
	"unicode/utf8"
)

type phase uint8

const (
	between   phase = iota // frames; ends of line are skipped
	inCommand              // its first line
	inHeaders
	inBody
	complete // scanned
	returned // to the caller of Read
)

// absent is the length of a body that ends at the first NUL.
const absent = -1

// line is one header line, as offsets.
type line struct{ start, colon, end int32 }

// scanner is how far the frame that begins at start is scanned. Scanning
// changes no byte, so that it may run ahead of the frame that the caller of
// Read still holds. Offsets count from start.
type scanner struct {
	phase   phase
	command Command
	isLong  bool
	pos     int // up to here it is scanned
	seen    int // up to here there is no end of line
	lines   []line
	bodyAt  int
	length  int    // content-length, or absent
	long    []byte // a body too big for buf
}

// scan goes on as far as the buffered bytes allow. It returns true if Read has
// an answer: a complete frame or r.err.
func (r *Reader) scan() bool {
	for r.err == nil {
		b := r.buf[r.start:r.end]
		switch r.phase {
		case between:
			n := countEOLs(b)
			r.start += n
			if rest := b[n:]; len(rest) == 0 || len(rest) == 1 && rest[0] == '\r' {
				return false
			}
			r.phase, r.length = inCommand, absent
		case inCommand:
			if !r.scanCommand(b) {
				return r.err != nil
			}
		case inHeaders:
			if !r.scanHeaders(b) {
				return r.err != nil
			}
		case inBody:
			if !r.scanBody(b) {
				return r.err != nil
			}
		default:
			return true
		}
	}
	return true
}

// countEOLs returns how many bytes at the beginning are ends of line.
func countEOLs(b []byte) int {
	n := 0
	for n < len(b) {
		switch {
		case b[n] == '\n':
			n++
		case b[n] == '\r' && n+1 < len(b) && b[n+1] == '\n':
			n += 2
		default:
			return n
		}
	}
	return n
}

func (r *Reader) scanCommand(b []byte) bool {
	i := bytes.IndexByte(b[:min(len(b), maxCommand+2)], '\n')
	if i < 0 {
		if len(b) > maxCommand+1 || bytes.IndexByte(b, 0) >= 0 {
			return r.failCommand(b)
		}
		return false
	}
	text := b[:i]
	if i > 0 && b[i-1] == '\r' {
		text = b[:i-1]
	}
	r.command = ParseCommand(text)
	if r.command == Invalid {
		return r.failCommand(text)
	}
	r.pos, r.seen = i+1, i+1
	r.phase = inHeaders
	return true
}

func (r *Reader) scanHeaders(b []byte) bool {
	limit, from := r.limits.HeaderBytes, r.seen
	for {
		i := bytes.IndexByte(b[r.seen:], '\n')
		if i < 0 {
			if bytes.IndexByte(b[from:], 0) >= 0 {
				return r.failNUL()
			}
			if len(b) > limit {
				return r.failHeaderBytes()
			}
			r.seen = len(b)
			return false
		}
		end := r.seen + i
		if end >= limit {
			return r.failHeaderBytes()
		}
		start := r.pos
		r.pos, r.seen = end+1, end+1
		if end > start && b[end-1] == '\r' {
			end-- // S3, S4
		}
		if end == start {
			return r.endHeaders(b)
		}
		colon := bytes.IndexByte(b[start:end], ':')
		if colon <= 0 {
			return r.failColon(b[start:end], colon)
		}
		if len(r.lines) == r.limits.Headers {
			return r.failLimit(LimitHeaders, r.limits.Headers, "too many headers")
		}
		r.lines = append(r.lines, line{int32(start), int32(start + colon), int32(end)})
		if colon == len(contentLength) && r.length == absent && string(b[start:start+colon]) == contentLength {
			if !r.setLength(b[start+colon+1 : end]) {
				return false
			}
		}
	}
}

// setLength takes the value of the first content-length (S34, S38, S41).
func (r *Reader) setLength(value []byte) bool {
	if r.version < V11 {
		value = trimBlanks(value)
	}
	n, digits := 0, len(value) > 0
	for _, c := range value {
		digits = digits && '0' <= c && c <= '9'
		n = min(n*10+int(c-'0'), 1<<31) // no overflow: the limit is lower
	}
	if !digits {
		return r.fail(Syntax, "content-length is not a number: give the body's length in bytes as decimal digits, or leave the header out")
	}
	if n > r.limits.Body {
		return r.failLimit(LimitBody, r.limits.Body, "content-length is more than the server takes: send less, or have the limit raised")
	}
	r.length = n
	return true
}

func (r *Reader) endHeaders(b []byte) bool {
	r.bodyAt = r.pos
	head := b[:r.pos]
	if bytes.IndexByte(head, 0) >= 0 {
		return r.failNUL()
	}
	if !utf8.Valid(head) { // S10
		return r.fail(Syntax, "a header is not UTF-8: encode it, or move the bytes to the body")
	}
	r.phase = inBody
	return true
}

func (r *Reader) scanBody(b []byte) bool {
	switch {
	case r.length == absent:
		return r.scanNUL(b)
	case r.isLong:
		if len(r.long) <= r.length {
			return false
		}
		return r.endBody(r.long[r.length], r.bodyAt)
	}
	if len(b)-r.bodyAt <= r.length {
		return false
	}
	return r.endBody(b[r.bodyAt+r.length], r.bodyAt+r.length+1)
}

// endBody checks the octet after content-length octets (S31).
func (r *Reader) endBody(octet byte, pos int) bool {
	if octet != 0 {
		return r.fail(Syntax, "no NUL after content-length bytes: count the body in bytes, not in characters, and end the frame with NUL")
	}
	r.pos, r.phase = pos, complete
	return true
}

// scanNUL looks for the end of a body without content-length (S32). What of a
// long one is in buf moves to where the rest of it is.
func (r *Reader) scanNUL(b []byte) bool {
	before := len(r.long)
	part := b[r.pos:]
	i := bytes.IndexByte(part, 0)
	if i >= 0 {
		part = part[:i]
	}
	if before+r.pos-r.bodyAt+len(part) > r.limits.Body {
		return r.failLimit(LimitBody, r.limits.Body, "the body is more than the server takes: send less, or have the limit raised")
	}
	if r.isLong {
		if need := before + len(part); r.room != nil && need > r.reserved {
			if r.err = r.reserve(max(need-r.reserved, r.reserved)); r.err != nil {
				return false
			}
		}
		r.long = append(r.long, part...)
	}
	switch {
	case i >= 0:
		r.length = before + r.pos - r.bodyAt + i
		r.pos, r.phase = r.pos+i+1, complete
		return true
	case r.isLong:
		r.end = r.start + r.bodyAt
	default:
		r.pos = len(b)
	}
	return false
}

func (r *Reader) failHeaderBytes() bool {
	return r.failLimit(LimitHeaderBytes, r.limits.HeaderBytes, "headers too long: move data to the body, or have the limit raised")
}

func (r *Reader) failNUL() bool {
	return r.fail(Syntax, "NUL in the headers: put an empty line between the headers and the body, also where there is none")
}

func (r *Reader) failColon(text []byte, colon int) bool {
	switch {
	case colon == 0:
		return r.fail(Syntax, "a header without name: write name:value") // S12
	case text[0] == 0:
		return r.failNUL()
	}
	return r.fail(Syntax, "header line "+strconv.Itoa(len(r.lines)+1)+ // S11
		" has no colon: write name:value, and an empty line before the body")
}
