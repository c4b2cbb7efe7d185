package reader

import (
	"net/http"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestSplitCommand(t *testing.T) {
	for text, want := range map[string][]string{
		"a b  c":            {"a", "b", "c"},
		`sh -c "a 'b' \"c"`: {"sh", "-c", `a 'b' "c`},
		`a 'b \ c' d\ e ""`: {"a", `b \ c`, "d e", ""},
		"":                  nil,
		"  ":                nil,
		`a "b`:              nil,
		`a \`:               nil,
	} {
		got, err := splitCommand(text)
		if diff := cmp.Diff(want, got); diff != "" || (err != nil) != (want == nil) {
			t.Errorf("%q: %v %s", text, err, diff)
		}
	}
}

func TestExpandEscapes(t *testing.T) {
	if got := expand("http://h/{destination}?d={destination}", "a/b c?&#%é"); got != "http://h/a%2Fb%20c%3F%26%23%25%C3%A9?d=a%2Fb%20c%3F%26%23%25%C3%A9" {
		t.Error(got)
	}
}

func TestJudge(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, c := range []struct {
		status     int
		retryAfter string
		end        end
		delay      time.Duration
	}{
		{200, "", ack, 0}, {204, "", ack, 0}, {299, "5", ack, 0},
		{429, "5", throttled, 5 * time.Second},
		{503, "0", throttled, minRetryAfter},
		{503, now.Add(time.Minute).Format(http.TimeFormat), throttled, time.Minute},
		{429, "99999999999", throttled, maxRetryAfter},
		{429, "-5", throttled, minRetryAfter},
		{429, "", retry, -1}, {503, "", retry, -1}, {429, "soon", retry, -1},
		{408, "", retry, -1}, {500, "5", retry, -1}, {302, "", retry, -1}, {101, "", retry, -1},
		{400, "", dead, 0}, {404, "5", dead, 0}, {413, "", dead, 0},
	} {
		got := judge(c.status, c.retryAfter, now)
		if got.end != c.end || got.delay != c.delay {
			t.Errorf("%d with Retry-After %q: end %d delay %v, want %d and %v", c.status, c.retryAfter, got.end, got.delay, c.end, c.delay)
		}
	}
}

func TestHeaderSyntax(t *testing.T) {
	for name, want := range map[string]bool{"X-Ok_1": true, "": false, "a b": false, "a:b": false, "é": false, "a\n": false} {
		if validName(name) != want {
			t.Errorf("name %q", name)
		}
	}
	for value, want := range map[string]bool{"": true, "a b\tc é": true, "a\r\nb": false, "\x00": false, "\x7f": false} {
		if validValue(value) != want {
			t.Errorf("value %q", value)
		}
	}
}
