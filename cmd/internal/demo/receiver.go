package demo

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/mvalve/mvalve/cmd/internal/jsonline"
	"github.com/mvalve/mvalve/cmd/internal/reader"
	"github.com/mvalve/mvalve/cmd/internal/setup"
	"github.com/mvalve/mvalve/internal/checker"
)

// maxBody bounds what the receiver reads of a request in bytes.
const maxBody = 64 << 10

// receiver is an HTTP server that notes when which message was dispatched and
// arrives for which destination: the path is the destination, headers name the
// message and its dispatch.
type receiver struct {
	url    string // with a trailing slash
	start  time.Time
	server *http.Server
	served chan struct{}

	mu       sync.Mutex
	arrivals map[string]*arrivals // by destination
}

// arrivals of one destination, in microseconds since the start on the monotonic clock.
type arrivals struct {
	stamps     []int64               // of every request, repetitions included
	first      map[string]int64      // of every message
	dispatches map[dispatch]struct{} // HTTP may repeat the request of one
}

// dispatch is a message that left a reader.
type dispatch struct {
	id string
	at int64 // microseconds since 1970 UTC on the pipe's clock
}

// receive starts a receiver on a free port of this machine.
func receive(ctx context.Context, names []string) (*receiver, error) {
	var config net.ListenConfig
	ln, err := config.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, setup.Failf(setup.ExitUnavailable, "no port for the receiver: %w", err)
	}
	r := &receiver{
		url: "http://" + ln.Addr().String() + "/", start: time.Now(),
		served: make(chan struct{}), arrivals: make(map[string]*arrivals),
	}
	for _, name := range names {
		r.arrivals[name] = &arrivals{first: make(map[string]int64), dispatches: make(map[dispatch]struct{})}
	}
	r.server = &http.Server{Handler: r, ReadHeaderTimeout: 10 * time.Second}
	go func() {
		defer close(r.served)
		if err := r.server.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			panic(err) // a listener on this machine that nobody closed
		}
	}()
	return r, nil
}

// now is the receiver's clock.
func (r *receiver) now() int64 { return time.Since(r.start).Microseconds() }

// ServeHTTP implements http.Handler.
func (r *receiver) ServeHTTP(w http.ResponseWriter, request *http.Request) {
	now := r.now()
	id := request.Header.Get("Idempotency-Key")
	left, err := time.Parse(jsonline.TimeFormat, request.Header.Get(reader.DispatchedAt))
	r.mu.Lock()
	a := r.arrivals[strings.TrimPrefix(request.URL.Path, "/")]
	known := a != nil && id != "" && err == nil
	if known {
		a.dispatches[dispatch{id, left.UnixMicro()}] = struct{}{}
		a.stamps = append(a.stamps, now)
		if _, again := a.first[id]; !again {
			a.first[id] = now
		}
	}
	r.mu.Unlock()
	if !known {
		http.Error(w, "this receiver takes only messages of its demo", http.StatusNotFound)
		return
	}
	_, _ = io.CopyN(io.Discard, request.Body, maxBody) // only to use the connection again
	w.WriteHeader(http.StatusNoContent)
}

// account is what the receiver knows of a destination.
type account struct {
	messages int // different ones
	requests int
	recent   int            // requests within the last interval
	report   checker.Report // on the arrivals
	above    int            // windows above the limit by the moments of dispatch
}

// account judges what arrived for t: by the limit without its guard when it
// arrived, by all of the limit when it was dispatched.
func (r *receiver) account(t *target) account {
	r.mu.Lock()
	a := r.arrivals[t.name]
	stamps, messages := slices.Clone(a.stamps), len(a.first)
	dispatched := make([]int64, 0, len(a.dispatches))
	for d := range a.dispatches {
		dispatched = append(dispatched, d.at)
	}
	now := r.now()
	r.mu.Unlock()
	limit := checker.Limit{Max: int(t.limit.Max), Window: t.limit.Interval}
	out := account{messages: messages, requests: len(stamps), report: checker.Check(t.name, stamps, limit)}
	out.above = checker.Check(t.name, dispatched, checker.Limit{Max: limit.Max, Window: t.limit.Window()}).Above
	for _, s := range stamps {
		if s > now-limit.Window.Microseconds() {
			out.recent++
		}
	}
	return out
}

// firsts returns when each message of a destination arrived first.
func (r *receiver) firsts(name string) map[string]int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make(map[string]int64, len(r.arrivals[name].first))
	for id, at := range r.arrivals[name].first {
		out[id] = at
	}
	return out
}

func (r *receiver) close() {
	_ = r.server.Close()
	<-r.served
}
