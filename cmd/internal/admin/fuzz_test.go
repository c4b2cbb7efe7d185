package admin

import (
	"fmt"
	"strings"
	"testing"
)

// FuzzParseLimits: what is accepted, written line by line, is read as the same.
func FuzzParseLimits(f *testing.F) {
	for _, s := range []string{"# limits\n\nmail.* 10/30s\n\"a b\" 1/1.4s strict\n", "*\tnone", "\"\\x00\" 1/1s", "a", "\"a 1/1s", "a 1/1s guard=", "\xff 1/s"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		lines, err := parseLimits("FILE", strings.NewReader(s))
		if err != nil {
			if lines != nil || strings.ContainsAny(err.Error(), "\n\r\x00") {
				t.Fatalf("%q: %d lines and %q", s, len(lines), err)
			}
			return
		}
		var text strings.Builder
		for _, l := range lines {
			fmt.Fprintf(&text, "%q %v\n", l.pattern, l.limit)
		}
		again, err := parseLimits("FILE", strings.NewReader(text.String()))
		if err != nil || fmt.Sprint(again) != fmt.Sprint(lines) {
			t.Fatalf("%q written as %q: %v", s, text.String(), err)
		}
	})
}
