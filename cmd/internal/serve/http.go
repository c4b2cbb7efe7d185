package serve

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"sync"
	"time"
)

// connKey is where a request's context holds its connection.
type connKey struct{}

// newHTTP returns the server of the HTTP address.
func (s *server) newHTTP() *http.Server {
	mux := http.NewServeMux()
	mux.HandleFunc("/stomp", s.webSocket)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { answer(w, http.StatusOK, "ok") })
	mux.HandleFunc("GET /readyz", s.readyz)
	return &http.Server{
		Handler: mux, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
		ErrorLog:    slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, connKey{}, c) },
	}
}

func answer(w http.ResponseWriter, code int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(code)
	_, _ = w.Write([]byte(text + "\n"))
}

func (s *server) readyz(w http.ResponseWriter, r *http.Request) {
	if err := s.ready.check(r.Context()); err != "" {
		answer(w, http.StatusServiceUnavailable, err)
		return
	}
	answer(w, http.StatusOK, "ready")
}

// freshFor is how long an answer of the store is believed: a flood of questions
// about readiness is none for the store.
const freshFor = time.Second

// readiness knows whether the server accepts clients and reaches its queue.
type readiness struct {
	ask func(context.Context) error

	mu      sync.Mutex
	open    bool
	asked   time.Time
	lastErr error
}

// set says that clients are accepted, or not any more.
func (r *readiness) set(open bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.open = open
}

// check returns why the server is not ready, "" if it is. Details of the store
// are for the log only.
func (r *readiness) check(ctx context.Context) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.open {
		return "starting or shutting down"
	}
	if time.Since(r.asked) > freshFor {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), freshFor)
		defer cancel()
		r.lastErr = r.ask(ctx)
		r.asked = time.Now()
	}
	if r.lastErr != nil {
		return "the queue cannot be reached"
	}
	return ""
}

// newDebug returns the server of the debug address.
func newDebug() *http.Server {
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	return &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
}
