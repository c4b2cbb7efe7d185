package throttle

import (
	"errors"
	"fmt"
	"unicode/utf8"
)

// ErrPattern is wrapped by every error about a pattern.
var ErrPattern = errors.New("throttle: invalid pattern")

// MaxPattern is the longest pattern in bytes.
const MaxPattern = 255

// CheckPattern reports, wrapping ErrPattern, why p cannot name destinations: it
// is a name, or a glob in which * stands for any bytes, ? for one byte, and \
// takes the next byte as it is.
func CheckPattern(p string) error {
	switch {
	case p == "":
		return fmt.Errorf("%w: it is empty; use a destination, a glob such as mail.*, or *", ErrPattern)
	case len(p) > MaxPattern:
		return fmt.Errorf("%w: it has %d bytes; at most %d are allowed", ErrPattern, len(p), MaxPattern)
	case !utf8.ValidString(p):
		return fmt.Errorf("%w: %.60q is not UTF-8", ErrPattern, p)
	}
	for i := 0; i < len(p); i++ {
		if p[i] != '\\' {
			continue
		}
		if i++; i == len(p) {
			return fmt.Errorf(`%w: %.60q ends with a backslash; write \\ for the byte itself`, ErrPattern, p)
		}
	}
	return nil
}

// QuotePattern returns the pattern that matches name and nothing else.
func QuotePattern(name string) string {
	b := make([]byte, 0, len(name))
	for i := range len(name) {
		switch name[i] {
		case '*', '?', '\\':
			b = append(b, '\\')
		}
		b = append(b, name[i])
	}
	return string(b)
}

// literal returns how many bytes of p stand for themselves and, if all do, the
// name that p matches.
func literal(p string) (n int, name string, exact bool) {
	exact = true
	b := make([]byte, 0, len(p))
	for i := 0; i < len(p); i++ {
		switch p[i] {
		case '*', '?':
			exact = false
			continue
		case '\\':
			if i+1 < len(p) {
				i++
			}
		}
		b = append(b, p[i])
	}
	return len(b), string(b), exact
}

// MatchGlob reports whether pattern matches all of s: * stands for any bytes,
// also none, ? for one byte, \ takes the next byte as it is. It compares bytes
// and takes at most len(pattern) * len(s) steps.
func MatchGlob(pattern, s string) bool {
	p, i := 0, 0
	star, mark := -1, 0 // where to go on after a mismatch
	for i < len(s) {
		if p < len(pattern) {
			c, width := pattern[p], 1
			switch {
			case c == '*':
				star, mark = p, i
				p++
				continue
			case c == '?':
				p, i = p+1, i+1
				continue
			case c == '\\' && p+1 < len(pattern):
				c, width = pattern[p+1], 2
			}
			if c == s[i] {
				p, i = p+width, i+1
				continue
			}
		}
		if star < 0 {
			return false
		}
		mark++
		p, i = star+1, mark
	}
	for p < len(pattern) && pattern[p] == '*' {
		p++
	}
	return p == len(pattern)
}
