package serve

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/urfave/cli/v2"

	"github.com/mvalve/mvalve/cmd/internal/setup"
	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/stomp"
	"github.com/mvalve/mvalve/throttle"
	"github.com/mvalve/mvalve/valve"
)

// server is one run of the command.
type server struct {
	c       *cli.Context
	options *options
	log     *slog.Logger
	pipe    *setup.Pipe
	stomp   *stomp.Server
	cert    *certificate // nil: no TLS
	ready   readiness
	web     sync.WaitGroup // WebSockets
}

func run(c *cli.Context) (err error) {
	o, err := parse(c)
	if err != nil {
		return err
	}
	log, err := setup.Logger(c)
	if err != nil {
		return err
	}
	users, err := openUsers(o.users, log)
	if err != nil {
		return err
	}
	s := &server{c: c, options: o, log: log}
	if o.cert != "" {
		if s.cert, err = openCertificate(o.cert, o.key, log); err != nil {
			return err
		}
	}
	listeners, err := s.listen()
	if err != nil {
		return err
	}
	defer listeners.close() // before the pipe is opened a mistake in an address shows
	if s.pipe, err = setup.OpenPipe(c, setup.PipeOptions{}); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.pipe.Close()) }()
	s.pipe.Announce(c)
	return s.withValve(users, func() error { return s.serve(listeners) })
}

// withValve opens what stands between the pipe and the doors, and closes it.
func (s *server) withValve(users stomp.Authenticator, serve func() error) (err error) {
	c, o := s.c, s.options
	limiter, err := s.pipe.OpenState(c)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, limiter.Close()) }()
	if o.limit != nil {
		if err := s.pipe.SetDefaultLimit(c, *o.limit); err != nil {
			return err
		}
	}
	if err := s.freeReplies(); err != nil {
		return err
	}
	// What ends by itself does not end with the signal: its context lives on.
	ctx := context.WithoutCancel(c.Context)
	writer, err := valve.NewWriter(ctx, s.pipe.Store, valve.WriterConfig{Logger: s.log, MaxBody: o.config.Frame.Body, Commits: s.commits()})
	if err != nil {
		return fmt.Errorf("queue %s: %w", s.pipe.Name, err)
	}
	defer func() { err = errors.Join(err, writer.Close()) }()
	reader, err := valve.OpenReader(ctx, s.pipe.Store, valve.ReaderConfig{
		Logger: s.log, Writer: writer, State: limiter, Lease: o.lease,
		MaxAttempts: o.maxAttempts, RetryMin: o.retryMin, RetryMax: o.retryMax,
	})
	if err != nil {
		return fmt.Errorf("queue %s: %w", s.pipe.Name, err)
	}
	defer func() { err = errors.Join(err, reader.Close()) }()
	admin, _ := s.pipe.Store.(queue.Admin)
	s.stomp = &stomp.Server{Writer: writer, Reader: reader, Admin: admin, Auth: users, Logger: s.log, Config: o.config}
	s.ready.ask = func(ctx context.Context) error {
		_, err := s.pipe.Store.Now(ctx)
		if err != nil {
			s.log.Warn("not ready: queue not reached", "err", err)
		}
		return err
	}
	return serve()
}

// commits is how many group commits are under way at once; 0: the default.
// SQLite does them one after the other, and what arrives during one makes the
// next one larger: 1.5 to 2 times the rate with many clients.
func (s *server) commits() int {
	if strings.HasPrefix(s.pipe.Name, "sqlite:") {
		return 1
	}
	return 0
}

// temporary matches the destinations of temporary queues.
const temporary = "mvalve.temp.*"

// freeReplies keeps the pipe's default limit, if it has one, from temporary
// queues: a limit is for third parties, and answers go back to a client.
func (s *server) freeReplies() error {
	ctx := s.c.Context
	rules, ok := s.pipe.Store.(throttle.RuleStore)
	if !ok {
		return nil
	}
	all, _, err := rules.LoadRules(ctx)
	if err != nil {
		return fmt.Errorf("read the limits: %w", err)
	}
	for _, r := range all {
		if r.Pattern != "*" || r.Limit == nil || r.Limit.Max == 0 {
			continue
		}
		now, err := s.pipe.Store.Now(ctx)
		if err != nil {
			return err
		}
		if _, err := throttle.SetDefault(ctx, rules, now, temporary, throttle.Limit{}); err != nil {
			return fmt.Errorf("store that temporary queues have no limit: %w", err)
		}
	}
	return nil
}

// listeners are the open addresses; nil for none.
type listeners struct{ stomp, http, debug net.Listener }

func (l *listeners) close() {
	for _, ln := range []net.Listener{l.stomp, l.http, l.debug} {
		if ln != nil {
			_ = ln.Close() // whoever serves it may have closed it
		}
	}
}

// keepAlive finds peers that vanished: within two minutes.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 30 * time.Second, Interval: 30 * time.Second, Count: 3}

func (s *server) listen() (*listeners, error) {
	all := &listeners{}
	for _, a := range []struct {
		flag, address string
		next          []string
		to            *net.Listener
	}{
		{"stomp", s.options.stomp, nil, &all.stomp},
		{"http", s.options.http, []string{"http/1.1"}, &all.http},
		{"debug", s.options.debug, nil, &all.debug},
	} {
		if a.address == "" {
			continue
		}
		cfg := net.ListenConfig{KeepAliveConfig: keepAlive}
		ln, err := cfg.Listen(s.c.Context, "tcp", a.address)
		if err != nil {
			all.close()
			return nil, setup.Failf(setup.ExitUnavailable, "--%s: %w; another address: --%s HOST:PORT, none: --%s off", a.flag, err, a.flag, a.flag)
		}
		if s.cert != nil && a.flag != "debug" {
			ln = tls.NewListener(ln, s.cert.config(a.next...))
		}
		*a.to = ln
	}
	return all, nil
}

// serve runs the doors until a signal or until one fails, and closes them.
func (s *server) serve(l *listeners) error {
	ctx, stop := context.WithCancelCause(s.c.Context)
	defer stop(nil)
	var running sync.WaitGroup
	start := func(name string, serve func() error, expected error) {
		running.Go(func() {
			if err := serve(); !errors.Is(err, expected) {
				stop(fmt.Errorf("%s: %w", name, err))
			}
		})
	}
	web, debug := s.newHTTP(), newDebug()
	if l.stomp != nil {
		start("STOMP", func() error { return s.stomp.Serve(l.stomp) }, stomp.ErrServerClosed)
	}
	if l.http != nil {
		start("HTTP", func() error { return web.Serve(l.http) }, http.ErrServerClosed)
	}
	if l.debug != nil {
		start("debug", func() error { return debug.Serve(l.debug) }, http.ErrServerClosed)
	}
	s.ready.set(true)
	s.announce(l)
	s.notify(daemon.SdNotifyReady)
	running.Go(func() { s.answerWatchdog(ctx) })
	<-ctx.Done()
	s.notify(daemon.SdNotifyStopping)
	s.ready.set(false)
	err := s.shutdown(web)
	_ = debug.Close()
	running.Wait()
	if _, signalled := setup.WasSignalled(ctx); !signalled {
		err = errors.Join(context.Cause(ctx), err)
	}
	return err
}

// shutdown ends clients in order, within --grace. The HTTP address answers until
// the last, so that whoever asks learns that this server is not ready.
func (s *server) shutdown(web *http.Server) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.c.Context), max(s.options.grace, time.Millisecond))
	defer cancel()
	if err := s.stomp.Shutdown(ctx); err != nil {
		fmt.Fprintf(s.c.App.ErrWriter, "%s: some clients did not end within --grace %v and were cut off\n", s.c.App.Name, s.options.grace)
	}
	err := web.Shutdown(ctx)
	if err != nil {
		err = web.Close()
	}
	s.web.Wait()
	return err
}

// announce prints the start lines: a line per address, and what to do next.
func (s *server) announce(l *listeners) {
	say := func(format string, a ...any) { fmt.Fprintf(s.c.App.ErrWriter, s.c.App.Name+": "+format+"\n", a...) }
	over, scheme := "", "ws"
	if s.cert != nil {
		over, scheme = " over TLS", "wss"
	}
	if l.stomp != nil {
		say("STOMP on %s%s", l.stomp.Addr(), over)
	}
	if l.http != nil {
		say("HTTP on %s%s: %s://%s/stomp, /healthz, /readyz", l.http.Addr(), over, scheme, local(l.http.Addr()))
	}
	if l.debug != nil {
		say("debug on %s: go tool pprof http://%s/debug/pprof/profile", l.debug.Addr(), l.debug.Addr())
	}
	if s.options.users == "" {
		say("no --users: whoever is on this machine may do everything, nobody else may connect")
	}
	say("ready%s", s.next(l))
}

// next is what to do next, to paste.
func (s *server) next(l *listeners) string {
	if l.stomp == nil {
		return ""
	}
	address := local(l.stomp.Addr())
	host, port, _ := net.SplitHostPort(address)
	switch {
	case s.cert != nil:
		return "; try: openssl s_client -quiet -connect " + address
	case s.options.users != "":
		return "; try: mvalve bench stomp --address " + address + " --login NAME --passcode PASSCODE"
	}
	return fmt.Sprintf(`; try: printf 'CONNECT\naccept-version:1.2\n\n\0SEND\ndestination:/queue/hello\nreceipt:on-disk\n\nhi\0DISCONNECT\nreceipt:bye\n\n\0' | nc %s %s; or: mvalve bench stomp --address %s`, host, port, address)
}

// local is an address under which this machine reaches a listener.
func local(a net.Addr) string {
	text := a.String()
	host, port, err := net.SplitHostPort(text)
	if ip := net.ParseIP(host); err == nil && ip != nil && ip.IsUnspecified() {
		return net.JoinHostPort("localhost", port)
	}
	return strings.TrimSpace(text)
}
