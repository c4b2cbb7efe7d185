package throttle

import (
	"errors"
	"testing"
)

// matches is MatchGlob as its definition reads.
func matches(p, s string) bool {
	switch {
	case p == "":
		return s == ""
	case p[0] == '*':
		for i := range len(s) + 1 {
			if matches(p[1:], s[i:]) {
				return true
			}
		}
		return false
	case p[0] == '\\' && len(p) > 1:
		return s != "" && s[0] == p[1] && matches(p[2:], s[1:])
	}
	return s != "" && (p[0] == '?' || p[0] == s[0]) && matches(p[1:], s[1:])
}

// FuzzGlob compares patterns with the naive matcher and with what they quote.
func FuzzGlob(f *testing.F) {
	for _, s := range [][2]string{{"*", ""}, {"a*b", "ab"}, {`\*?`, "*x"}, {"*a*a*b", "aaaaaaaa"}, {"é?", "é\x80"}, {`a\`, `a\`}, {"", "x"}} {
		f.Add(s[0], s[1])
	}
	f.Fuzz(func(t *testing.T, pattern, name string) {
		if q := QuotePattern(name); !MatchGlob(q, name) || name != pattern && MatchGlob(q, pattern) {
			t.Fatalf("%q quotes %q", q, name)
		}
		if err := CheckPattern(pattern); err != nil {
			if !errors.Is(err, ErrPattern) {
				t.Fatal(err)
			}
			return
		}
		n, only, exact := literal(pattern)
		if n > len(pattern) || exact && !MatchGlob(pattern, only) {
			t.Fatalf("%q stands for %q", pattern, only)
		}
		got := MatchGlob(pattern, name)
		if exact && got != (name == only) {
			t.Fatalf("%q and %q: %v", pattern, name, got)
		}
		if len(pattern) < 12 && len(name) < 24 && got != matches(pattern, name) {
			t.Fatalf("%q and %q: %v", pattern, name, got)
		}
	})
}
