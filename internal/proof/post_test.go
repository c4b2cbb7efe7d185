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
	"github.com/mvalve/mvalve/throttle"
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
	// In the short form it does not answer at all: what it blocks stands still.
	late, span := shortOrLong(time.Hour, 30*time.Second), 70*time.Second
	r := newReceiver(t, late)
	p := newPipe(t, onSQLite)
	// The others get the last quarter of the concurrency, one request each at a
	// time; a burst must leave within the slack of its permits.
	const concurrency, quarter = 16, 4
	limit := checker.Limit{Max: shortOrLong(4, 20), Window: time.Second}
	others := []string{"a", "b", "c"}
	var lines bytes.Buffer
	lines.Write(backlog(200, "slow"))
	lines.Write(backlog(limit.Max*(int(span/time.Second)+5), others...))
	p.write(t, lines.Bytes())
	for _, name := range others {
		p.limit(t, name, fmt.Sprintf("%d/1s", limit.Max))
	}
	began := time.Now()
	reader := p.reader(t, "--post", r.URL+"/{destination}", "--concurrency", fmt.Sprint(concurrency), "--timeout", "1h", "--grace", "1s")
	const most = concurrency - quarter // under way to the slow destination
	waitFor(t, patience, "the slow destination has all the requests that it may have", func() bool { return r.count("slow") >= most })
	if !long {
		// Each of the others' requests waits for commits: a disk may stall at each.
		const more = 4
		underWay, want := time.Now(), make(map[string]int)
		for _, name := range others {
			want[name] = r.count(name) + more
		}
		for _, name := range others {
			waitFor(t, 2*patience, name+" goes on beside a slow destination", func() bool { return r.count(name) >= want[name] })
		}
		t.Logf("slow: %d requests under way after %v; each other destination had %d more within %v", r.count("slow"), underWay.Sub(began), more, time.Since(underWay))
		if got := r.count("slow"); got > most {
			t.Errorf("%d requests to the slow destination under way, %d of %d are for the others", got, quarter, concurrency)
		}
		reader.stop(t)
		return
	}
	measure(span)
	reader.stop(t)
	t.Logf("slow: %d requests, each answered after %v", r.count("slow"), late)
	for _, name := range others {
		r.mu.Lock()
		stamps := r.arrivals[name]
		r.mu.Unlock()
		// Arrivals jitter: only their rate is judged.
		report := checker.Check(name, stamps, limit)
		t.Logf("%s: %d arrivals, use %.4f of %d/1s", name, report.Count, report.Used, limit.Max)
		if report.Used < 0.99 {
			t.Errorf("%s: use %.4f beside a slow destination, want at least 0.99", name, report.Used)
		}
	}
}

// TestThrottledByReceiver: a 429 with Retry-After makes the whole destination
// wait, for all readers.
func TestThrottledByReceiver(t *testing.T) {
	t.Parallel()
	const retryAfter = 12 * time.Second
	known := shortOrLong(5*time.Second, effective) // a disk may stall when a reader wants to look at holds
	var mu sync.Mutex
	var arrivals []time.Time
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if arrivals = append(arrivals, time.Now()); len(arrivals) == 1 {
			w.Header().Set("Retry-After", fmt.Sprint(retryAfter.Seconds()))
			w.WriteHeader(http.StatusTooManyRequests)
		}
	}))
	defer server.Close()
	p := newPipe(t, onSQLite)
	p.limit(t, "*", "20/1s")
	p.write(t, backlog(2000, "a")) // more than may go before all know
	// What the readers log of dispatches tells that they are at work.
	readers := p.readers(t, 2, "--post", server.URL, "--concurrency", "1", "--log-level", "debug")
	seen, until := p.held(t, "a")
	waitFor(t, 2*patience, "messages go on after the hold", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(arrivals) > 0 && arrivals[len(arrivals)-1].After(until) && time.Now().After(until.Add(time.Second))
	})
	stopAll(t, readers...)
	from, to := seen.Add(known), until.Add(-100*time.Millisecond)
	before, early := 0, 0
	mu.Lock()
	defer mu.Unlock()
	for _, at := range arrivals {
		switch {
		case at.Before(from):
			before++
		case at.Before(to):
			early++
		}
	}
	t.Logf("%d requests, %d before all had to know of the hold, %d in the %v after that", len(arrivals), before, early, to.Sub(from))
	if early > 0 {
		t.Errorf("%d requests while the receiver had asked to wait", early)
	}
	if to.Sub(from) < time.Second || before == len(arrivals) {
		t.Error("the hold was not watched: the test proves nothing")
	}
}

// held waits until a destination has a hold and returns when that was seen, and its
// end, by the clock of this host: that of a SQLite queue.
func (p *pipe) held(t *testing.T, destination string) (seen, until time.Time) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	store, err := p.open(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	waitFor(t, patience, destination+" is held", func() bool {
		holds, err := store.(throttle.RuleStore).LoadHolds(ctx, time.Now(), time.Time{})
		if err != nil {
			t.Fatal(err)
		}
		for _, h := range holds {
			if h.Destination == destination {
				seen, until = time.Now(), h.Until
			}
		}
		return !until.IsZero()
	})
	return seen, until
}
