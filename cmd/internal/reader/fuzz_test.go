package reader

import (
	"strings"
	"testing"
	"time"
)

// FuzzRetryAfter: whatever a web server answers, the pause is within bounds.
func FuzzRetryAfter(f *testing.F) {
	for _, s := range []string{"", "120", "-1", "9223372036854775807", "-9223372036854775808", "Wed, 21 Oct 2015 07:28:00 GMT", "1e9", "Fri, 31 Dec 9999 23:59:59 GMT"} {
		f.Add(s)
	}
	now := time.Unix(1_735_732_800, 0)
	f.Fuzz(func(t *testing.T, s string) {
		wait, ok := parseRetryAfter(s, now)
		if ok && (wait < minRetryAfter || wait > maxRetryAfter) || !ok && wait != 0 {
			t.Fatalf("%q: %v, %v", s, wait, ok)
		}
		if strings.HasPrefix(s, "-") && wait > minRetryAfter {
			t.Fatalf("%q: %v", s, wait)
		}
	})
}
