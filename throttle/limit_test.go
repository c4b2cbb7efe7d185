package throttle

import (
	"errors"
	"strings"
	"testing"
	"time"
)

func TestParseLimit(t *testing.T) {
	for text, want := range map[string]Limit{
		"none":                     {},
		"10/30s":                   {Max: 10, Interval: 30 * time.Second},
		"  10/30s  window ":        {Max: 10, Interval: 30 * time.Second},
		"1/1.4s strict":            {Max: 1, Interval: 1400 * time.Millisecond, Mode: Strict},
		"5/24h":                    {Max: 5, Interval: 24 * time.Hour},
		"5/1d":                     {Max: 5, Interval: 24 * time.Hour},
		"100/s":                    {Max: 100, Interval: time.Second},
		"7/1h30m":                  {Max: 7, Interval: 90 * time.Minute},
		"10/30s paced guard=50ms":  {Max: 10, Interval: 30 * time.Second, Mode: Paced, Guard: 50 * time.Millisecond},
		"10/30s guard=50ms strict": {},
		"1/1ms":                    {Max: 1, Interval: time.Millisecond},
		"1000000000/366d":          {Max: 1e9, Interval: MaxInterval},
	} {
		got, err := ParseLimit(text)
		if strings.Contains(text, "50ms strict") {
			if err == nil {
				t.Errorf("%q was accepted", text)
			}
			continue
		}
		if err != nil || got != want {
			t.Errorf("ParseLimit(%q) = %+v, %v; want %+v", text, got, err, want)
		}
		if again, err := ParseLimit(got.String()); err != nil || again != got {
			t.Errorf("%q became %q, which is read as %+v, %v", text, got, again, err)
		}
	}
}

func TestParseLimitErrors(t *testing.T) {
	for text, says := range map[string]string{
		"":                              "empty",
		"0/0s":                          "at least 1",
		"-1/s":                          "at least 1",
		"10/":                           "missing",
		"/30s":                          "missing",
		"10":                            "missing",
		"5/1s strict":                   "MAX must be 1",
		"10/30":                         "not a duration",
		"10/-3s":                        "at least 1ms",
		"10/0s":                         "at least 1ms",
		"10/999us":                      "at least 1ms",
		"10/1.0000001s":                 "whole microseconds",
		"1.5/s":                         "not a whole number",
		"1000000001/s":                  "at most 1000000000",
		"99999999999999999999/s":        "not a whole number",
		"1/367d":                        "366 days",
		"1/99999d":                      "not a duration",
		"1/366d guard=1s":               "366 days",
		"1/s guard=-1s":                 "negative",
		"1/s guard=x":                   "not a duration",
		"1/s guard=1s guard=1s":         "twice",
		"1/s strict paced":              "twice",
		"1/s fast":                      "none of window",
		"1/s none":                      "none of window",
		"1/9223372036854775807ns":       "366 days",
		"1/s " + strings.Repeat("x", 9): "none of window",
	} {
		_, err := ParseLimit(text)
		if err == nil || !errors.Is(err, ErrLimit) {
			t.Errorf("ParseLimit(%q): %v, want ErrLimit", text, err)
			continue
		}
		if !strings.Contains(err.Error(), says) || !strings.Contains(err.Error(), "10/30s") {
			t.Errorf("ParseLimit(%q) says %q, want %q and the accepted form", text, err, says)
		}
	}
}

func FuzzParseLimit(f *testing.F) {
	for _, seed := range []string{"10/30s", "1/1.4s strict", "5/24h", "10/30s paced guard=50ms", "none", "0/0s", "1/99999999d", "1/µs"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		l, err := ParseLimit(text)
		if err != nil {
			return
		}
		again, err := ParseLimit(l.String())
		if err != nil || again != l {
			t.Fatalf("%q is %+v, written %q, read %+v, %v", text, l, l, again, err)
		}
	})
}

func TestMatchGlob(t *testing.T) {
	for _, tc := range []struct {
		pattern, s string
		want       bool
	}{
		{"*", "", true}, {"*", "anything", true}, {"?", "", false}, {"?", "x", true},
		{"a*c", "abc", true}, {"a*c", "ac", true}, {"a*c", "abcd", false},
		{"*.example", "mail.example", true}, {"*.example", "example", false},
		{`a\*`, "a*", true}, {`a\*`, "ab", false}, {`a\?b`, "a?b", true}, {`\\`, `\`, true},
		{"a**b", "axxb", true}, {"*a*a*", "banana", true}, {"*a*a*a*a*", "banana", false},
		{"??", "é", true}, {"abc", "abc", true}, {"abc", "ab", false}, {"", "", true}, {"", "a", false},
		{strings.Repeat("*a", 60), strings.Repeat("a", 250) + "b", false},
	} {
		if got := MatchGlob(tc.pattern, tc.s); got != tc.want {
			t.Errorf("MatchGlob(%q, %q) = %v", tc.pattern, tc.s, got)
		}
	}
	for _, name := range []string{"plain", "a*b", `q\?`, "***"} {
		if q := QuotePattern(name); !MatchGlob(q, name) || MatchGlob(q, name+"x") {
			t.Errorf("QuotePattern(%q) = %q", name, q)
		}
	}
	for _, bad := range []string{"", `a\`, "\xff", strings.Repeat("x", 256)} {
		if CheckPattern(bad) == nil {
			t.Errorf("pattern %.20q was accepted", bad)
		}
	}
}
