package stomp

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/valve"
)

// ErrServerClosed is returned by Serve after Shutdown or Close.
var ErrServerClosed = errors.New("stomp: server closed")

// Server serves STOMP connections. Writer and Reader are required and belong to
// one pipe; make Reader with ReaderConfig.Writer set to Writer, or COMMITs with
// an ACK fail. The caller closes them after the server. A Server must not be
// copied or changed once it serves; its methods are safe for concurrent use.
type Server struct {
	Writer *valve.Writer
	Reader *valve.Reader
	Admin  queue.Admin   // of the same store: for /control/count-msgs and to purge temporary queues; optional
	Auth   Authenticator // nil: only peers on this machine are accepted
	Logger *slog.Logger  // nil discards
	Config Config

	once      sync.Once
	cfg       Config // Config with defaults
	log       *slog.Logger
	serial    atomic.Uint64
	hub       hub
	budget    budget // of what is on its way to disk
	arriving  budget // of what is still to come; see room
	authSlots chan struct{}
	stats     counters

	mu        sync.Mutex
	listeners map[net.Listener]struct{}
	conns     map[*conn]struct{}
	closing   bool
	stop      chan struct{} // closed with closing: ends the keeper
	wg        sync.WaitGroup
}

func (s *Server) init() {
	s.once.Do(func() {
		s.cfg = s.Config.withDefaults()
		s.log = s.Logger
		if s.log == nil {
			s.log = slog.New(slog.DiscardHandler)
		}
		s.serial.Store(uint64(time.Now().UnixMicro()))
		s.hub.init()
		s.budget.limit = int64(s.cfg.MaxTotalBytes)
		s.arriving.limit = int64(s.cfg.MaxArriving)
		s.authSlots = make(chan struct{}, runtime.GOMAXPROCS(0))
		s.listeners = make(map[net.Listener]struct{})
		s.conns = make(map[*conn]struct{})
		s.stop = make(chan struct{})
		s.wg.Go(s.keepLeases)
	})
}

// Serve accepts connections from ln until the server is shut down, and returns
// ErrServerClosed then. It closes ln.
func (s *Server) Serve(ln net.Listener) error {
	s.init()
	defer ln.Close()
	if !s.track(ln) {
		return ErrServerClosed
	}
	defer func() {
		s.mu.Lock()
		delete(s.listeners, ln)
		s.mu.Unlock()
	}()
	delay := time.Duration(0)
	for {
		nc, err := ln.Accept()
		if err == nil {
			delay = 0
			s.start(nc)
			continue
		}
		select {
		case <-s.stop:
			return ErrServerClosed
		default:
		}
		if errors.Is(err, net.ErrClosed) {
			return err
		}
		// Out of file descriptors, most likely: connections that end free some.
		delay = min(max(2*delay, 5*time.Millisecond), time.Second)
		s.log.Warn("accept", "err", err, "retry_in", delay)
		select {
		case <-time.After(delay):
		case <-s.stop:
			return ErrServerClosed
		}
	}
}

func (s *Server) track(ln net.Listener) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return false
	}
	s.listeners[ln] = struct{}{}
	return true
}

// ServeConn serves one connection that was made elsewhere, such as a WebSocket
// with its messages joined to a stream, and returns when it has ended. Its
// RemoteAddr decides whether it is local, its reads must be able to go on after a
// time-out, and each of its writes holds whole frames. It closes nc.
func (s *Server) ServeConn(nc net.Conn) {
	s.init()
	if serve := s.admit(nc); serve != nil {
		serve()
	}
}

// start serves a connection in a goroutine of its own.
func (s *Server) start(nc net.Conn) {
	if t, ok := nc.(*net.TCPConn); ok {
		_ = t.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: s.cfg.KeepAlive, Interval: s.cfg.KeepAlive, Count: 4})
	}
	if serve := s.admit(nc); serve != nil {
		go serve() // ends before s.wg
	}
}

// admit registers a connection and returns what serves it to its end, be that
// telling why it is turned away; nil if the connection is closed already.
func (s *Server) admit(nc net.Conn) func() {
	s.mu.Lock()
	defer s.mu.Unlock()
	why := ""
	switch {
	case s.closing:
		why = "the server is shutting down; connect again later"
	case len(s.conns) >= s.cfg.MaxConnections:
		why = "too many connections; try again later, or raise the server's limit --max-connections"
	case s.stats.Unauthenticated.Load() >= int64(s.cfg.MaxUnauthenticated):
		why = "too many connections wait for CONNECT; try again later"
	}
	if why == "" {
		c := newConn(s, nc)
		s.conns[c] = struct{}{}
		s.wg.Add(1)
		s.stats.Accepted.Add(1)
		s.stats.Unauthenticated.Add(1)
		return c.serve
	}
	s.stats.Refused.Add(1)
	// A few are told why; a flood is only closed.
	if s.stats.turningAway.Add(1) > 64 || s.closing {
		s.stats.turningAway.Add(-1)
		_ = nc.Close()
		return nil
	}
	s.wg.Add(1)
	return func() {
		defer s.wg.Done()
		defer s.stats.turningAway.Add(-1)
		turnAway(nc, why)
	}
}

// forget is the last thing a connection does.
func (s *Server) forget(c *conn) {
	s.mu.Lock()
	delete(s.conns, c)
	s.mu.Unlock()
	s.wg.Done()
}

// connections returns the connections of this moment.
func (s *Server) connections() []*conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]*conn, 0, len(s.conns))
	for c := range s.conns {
		all = append(all, c)
	}
	return all
}

// Shutdown stops accepting, tells every client that the server goes (ERROR),
// writes what is under way, gives the messages of subscribers back to the pipe
// and waits for all that. When ctx ends first it closes what is left and returns
// the context's error.
func (s *Server) Shutdown(ctx context.Context) error {
	s.refuseMore()
	for _, c := range s.connections() {
		c.interrupt(refuse("server shutting down", "the server is being stopped; connect again"))
	}
	done := make(chan struct{})
	go func() {
		s.wg.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		_ = s.Close()
		return ctx.Err()
	}
}

// Close closes all listeners and connections at once and waits for their end.
// What subscribers held is given back to the pipe.
func (s *Server) Close() error {
	s.refuseMore()
	for _, c := range s.connections() {
		c.abandon()
	}
	s.wg.Wait()
	return nil
}

func (s *Server) refuseMore() {
	s.init()
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closing {
		s.closing = true
		close(s.stop)
	}
	for ln := range s.listeners {
		_ = ln.Close()
	}
}

// keepLeases extends the leases of what live connections hold, until it is
// acknowledged or its ack-timeout has passed.
func (s *Server) keepLeases() {
	t := time.NewTicker(s.cfg.Lease / 3)
	defer t.Stop()
	for {
		select {
		case <-s.stop:
			return
		case now := <-t.C:
			var ends []valve.End
			for _, c := range s.connections() {
				ends = c.extend(now, ends)
			}
			if len(ends) > 0 {
				s.Reader.EndAsync(func(lost int, err error) {
					switch {
					case err != nil:
						s.log.Warn("leases not extended", "messages", len(ends), "err", err)
					case lost > 0: // most of them were acknowledged meanwhile
						s.log.Debug("leases not extended", "messages", len(ends), "ended", lost)
					}
				}, ends...)
			}
		}
	}
}

// newSession returns a name for a connection that nobody guesses (S51).
func newSession() string { return rand.Text() }
