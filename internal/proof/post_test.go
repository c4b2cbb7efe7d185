package proof_test

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mvalve/mvalve/internal/checker"
)

// receiver notes when requests arrive, per destination; those to slow are
// answered late.
type receiver struct {
	*httptest.Server
	mu       sync.Mutex
	arrivals map[string][]int64
}

func newReceiver(t *testing.T, late time.Duration) *receiver {
	t.Helper()
	r := &receiver{arrivals: make(map[string][]int64)}
	closing, stop := context.WithCancel(context.Background())
	r.Server = httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, q *http.Request) {
		now, name := time.Now().UnixMicro(), strings.TrimPrefix(q.URL.Path, "/")
		r.mu.Lock()
		r.arrivals[name] = append(r.arrivals[name], now)
		r.mu.Unlock()
		if name == "slow" {
			select {
			case <-time.After(late):
			case <-closing.Done():
			}
		}
	}))
	t.Cleanup(func() { stop(); r.Close() })
	return r
}

func (r *receiver) count(name string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.arrivals[name])
}

// TestSlowReceiver: one destination answers late to all its requests; the others
// keep their rate although the concurrency is small.
func TestSlowReceiver(t *testing.T) {
	alone(t)
	late, span := shortOrLong(4*time.Second, 30*time.Second), shortOrLong(6*time.Second, 70*time.Second)
	r := newReceiver(t, late)
	p := newPipe(t, onSQLite)
	// The others get the last quarter of the concurrency, one request each at a
	// time; a burst must leave within the slack of its permits.
	limit := checker.Limit{Max: shortOrLong(4, 20), Window: time.Second}
	others := []string{"a", "b", "c"}
	var lines bytes.Buffer
	lines.Write(backlog(200, "slow"))
	lines.Write(backlog(limit.Max*(int(span/time.Second)+5), others...))
	p.write(t, lines.Bytes())
	for _, name := range others {
		p.limit(t, name, fmt.Sprintf("%d/1s", limit.Max))
	}
	reader := p.reader(t, "--post", r.URL+"/{destination}", "--concurrency", "16", "--grace", "1s")
	waitFor(t, 10*time.Second, "the first request", func() bool { return r.count("a") > 0 })
	measure(span)
	reader.stop(t)
	t.Logf("slow: %d requests, each answered after %v", r.count("slow"), late)
	if r.count("slow") < 2 {
		t.Error("nothing was sent to the slow destination: the test proves nothing")
	}
	for _, name := range others {
		r.mu.Lock()
		stamps := r.arrivals[name]
		r.mu.Unlock()
		// Arrivals jitter: only their rate is judged.
		report := checker.Check(name, stamps, limit)
		t.Logf("%s: %d arrivals, use %.4f of %d/1s", name, report.Count, report.Used, limit.Max)
		// Blocked by the slow one, the others would use a quarter.
		if want := shortOrLong(0.2, 0.99); report.Used < want {
			t.Errorf("%s: use %.4f beside a slow destination, want at least %.2f", name, report.Used, want)
		}
	}
}

// TestThrottledByReceiver: a 429 with Retry-After makes the whole destination
// wait, for all readers.
func TestThrottledByReceiver(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var first time.Time
	var early, total int
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		now := time.Now()
		mu.Lock()
		defer mu.Unlock()
		total++
		switch {
		case first.IsZero():
			first = now
			w.Header().Set("Retry-After", "2")
			w.WriteHeader(http.StatusTooManyRequests)
		// Requests under way when the answer came are not called back.
		case now.Sub(first) > effective && now.Sub(first) < 1900*time.Millisecond:
			early++
		}
	}))
	defer server.Close()
	p := newPipe(t, onSQLite)
	p.limit(t, "*", "20/1s")
	p.write(t, backlog(100, "a"))
	readers := p.readers(t, 2, "--post", server.URL, "--concurrency", "1")
	waitFor(t, 20*time.Second, "messages go on after the hold", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return !first.IsZero() && time.Since(first) > 3*time.Second && total > 20
	})
	stopAll(t, readers...)
	mu.Lock()
	defer mu.Unlock()
	if early > 0 {
		t.Errorf("%d requests while the receiver had asked to wait", early)
	}
	t.Logf("%d requests, %d while held", total, early)
}
