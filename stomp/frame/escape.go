package frame

import "unicode/utf8"

// escapes says what to write for each byte of a header: 0 the byte itself,
// inspect what only a look at its neighbours tells, substitute for what the
// version cannot say, else the letter after a backslash.
type escapes [256]byte

const (
	inspect    = 0x80 // part of a rune, if valid
	substitute = '?'
)

var (
	literalName  = newEscapes("", "\x00\n\r:")
	literalValue = newEscapes("", "\x00\n\r")
	escaped11    = newEscapes("\nn:c\\\\", "\x00\r")
	escaped12    = newEscapes("\nn\rr:c\\\\", "\x00")
)

// newEscapes takes pairs of a byte and its letter, and the bytes to replace.
func newEscapes(pairs, replaced string) *escapes {
	t := new(escapes)
	for i := 0; i < len(pairs); i += 2 {
		t[pairs[i]] = pairs[i+1]
	}
	for i := range len(replaced) {
		t[replaced[i]] = substitute
	}
	for i := utf8.RuneSelf; i < len(t); i++ {
		t[i] = inspect
	}
	return t
}

// tables returns how names and values are written in a version (S18, S24).
func (v Version) tables() (name, value *escapes) {
	switch v {
	case V11:
		return escaped11, escaped11
	case V12:
		return escaped12, escaped12
	}
	return literalName, literalValue
}

// plain reports whether s may be copied as it is. It errs on the safe side.
func plain[T string | []byte](t *escapes, s T) bool {
	n := len(s)
	if n >= 8 {
		for i := 0; i < n-8; i += 8 {
			if suspects(load(s, i))&highs != 0 {
				return false
			}
		}
		return suspects(load(s, n-8))&highs == 0
	}
	for i := range n {
		if t[s[i]] != 0 {
			return false
		}
	}
	return true
}

// load returns the eight bytes of s from i on. The compiler makes it one load.
func load[T string | []byte](s T, i int) uint64 {
	b := s[i : i+8]
	return uint64(b[0]) | uint64(b[1])<<8 | uint64(b[2])<<16 | uint64(b[3])<<24 |
		uint64(b[4])<<32 | uint64(b[5])<<40 | uint64(b[6])<<48 | uint64(b[7])<<56
}

const ones, highs = 0x0101010101010101, 0x8080808080808080

// suspects has a high bit set if one of eight bytes may need more than a copy:
// a control character, a colon, a backslash, a byte that is not ASCII. (Mycroft's
// test for a zero byte, four times.)
func suspects(w uint64) uint64 {
	colon, backslash := w^':'*ones, w^'\\'*ones
	return w | (w-' '*ones)&^w | (colon-ones)&^colon | (backslash-ones)&^backslash
}

// appendEscaped appends one name or value.
func appendEscaped[T string | []byte](dst []byte, t *escapes, s T) []byte {
	for i := 0; i < len(s); i++ {
		switch c := t[s[i]]; c {
		case 0:
			dst = append(dst, s[i])
		case substitute:
			dst = append(dst, substitute)
		case inspect:
			var b [utf8.UTFMax]byte
			n := copy(b[:], s[i:])
			if r, size := utf8.DecodeRune(b[:n]); r != utf8.RuneError || size > 1 {
				dst = append(dst, b[:size]...)
				i += size - 1
			} else {
				dst = append(dst, substitute)
			}
		default:
			dst = append(dst, '\\', c)
		}
	}
	return dst
}

// unescape decodes b in place (S19, S21). It returns what is wrong, or "".
func unescape(v Version, b []byte) (decoded []byte, wrong string) {
	n := 0
	for i := 0; i < len(b); i++ {
		c := b[i]
		if c == '\\' {
			i++
			if i == len(b) {
				return nil, `a header ends in a single backslash: write \\ for a backslash` // S23
			}
			switch {
			case b[i] == 'n':
				c = '\n'
			case b[i] == 'c':
				c = ':'
			case b[i] == '\\':
			case b[i] == 'r' && v == V12:
				c = '\r'
			case v == V12:
				return nil, `undefined escape in a header: STOMP 1.2 has \n, \r, \c and \\` // S22
			default:
				return nil, `undefined escape in a header: STOMP 1.1 has \n, \c and \\` // S20, S22
			}
		}
		b[n] = c
		n++
	}
	return b[:n:n], ""
}
