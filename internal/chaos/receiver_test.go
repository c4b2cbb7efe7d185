package chaos_test

import (
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"testing"
)

// newReceiver starts what `mvalve-reader --post` posts to. It answers some
// requests with 503, a few with 429, and hangs up on some. Its address stays the
// same: only its clients are troubled.
func newReceiver(t *testing.T, l *ledger) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return // the poster was killed within its request: it has not been told anything
		}
		d := &delivery{process: "post"}
		n := rand.N(1000)
		d.began, d.back = n >= 50, n < 50
		l.delivered(r.Header.Get("Idempotency-Key"), key(string(body)), d)
		switch {
		case d.began:
		case n < 3:
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusTooManyRequests)
		default:
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		if n >= 30 && n < 50 { // nobody hears of it
			panic(http.ErrAbortHandler)
		}
	}))
	t.Cleanup(s.Close)
	return s
}
