// Package serve is the command `mvalve serve`: the pipe for clients in any
// language, over STOMP and STOMP over WebSocket.
package serve

import (
	"net"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/mvalve/mvalve/cmd/internal/setup"
	"github.com/mvalve/mvalve/stomp"
	"github.com/mvalve/mvalve/stomp/frame"
	"github.com/mvalve/mvalve/throttle"
)

const description = `Serves the pipe to clients in any language over STOMP 1.0, 1.1 and 1.2, and over
WebSocket at /stomp of the HTTP address, until SIGINT or SIGTERM:

  mvalve serve
  mvalve serve --stomp :61613 --http :8080 --users users --tls-cert host.crt --tls-key host.key

SEND to /queue/NAME puts a message in for the destination NAME; its RECEIPT means that
the message is on disk. SUBSCRIBE to /queue/NAME, /queue/PREFIX* or /pipe takes messages
out, never faster than the limits allow, counted over all readers and servers of the
pipe together. /topic/NAME is for whoever listens and stores nothing.

Without --users everybody on this machine may do everything, and nobody else may
connect. With --tls-cert both addresses speak TLS, and only that; a renewed certificate
is taken up by itself.

Several servers may share one queue; consumers of a destination may be spread over them.
On the HTTP address /healthz answers 200 while the process lives, /readyz 200 while it
accepts clients and reaches its queue, else 503. Under systemd (Type=notify) it says
when it is ready, and answers its watchdog.

The first signal stops accepting, finishes what is being written, gives back what
subscribers hold, and exits with 0; a second one ends the process at once.

Every flag can also be given as a variable: MVALVE_STOMP for --stomp.
Exit codes: 0 done, 1 bug, 2 usage, 66 input not readable, 69 back end unreachable or
address in use, 77 refused by the back end, 78 schema or state mismatch.`

// Command returns `mvalve serve`.
func Command() *cli.Command {
	return &cli.Command{
		Name:        "serve",
		Usage:       "serve the pipe over STOMP and WebSocket",
		UsageText:   "mvalve serve [flags]",
		Description: description,
		Action:      run,
		Flags: append([]cli.Flag{
			&cli.StringFlag{Name: "stomp", Value: "127.0.0.1:61613", Usage: "`HOST:PORT` for STOMP; off for none; port 0 for a free one"},
			&cli.StringFlag{Name: "http", Value: "127.0.0.1:8080", Usage: "`HOST:PORT` for WebSocket, /healthz and /readyz; off for none"},
			&cli.StringFlag{Name: "users", DefaultText: "only this machine", Usage: "`FILE` of users as htpasswd -B makes it, NAME:HASH or NAME:HASH:send,subscribe,admin; changes are taken up"},
			&cli.StringFlag{Name: "tls-cert", Usage: "`FILE` of the certificate and its chain, PEM; with it both addresses speak TLS"},
			&cli.StringFlag{Name: "tls-key", Usage: "`FILE` of the key of --tls-cert, PEM"},
			&cli.StringSliceFlag{Name: "origin", DefaultText: "the server's own", Usage: "`HOST` of web pages that may connect by WebSocket, such as *.example.org; repeatable"},
			&cli.StringFlag{Name: "limit", Usage: "`LIMIT` of destinations that have none, such as 10/30s, \"1/1.4s strict\", \"10/30s paced guard=50ms\"; stored as the pipe's default if it has none", DefaultText: "none"},
			&cli.DurationFlag{Name: "lease", Value: time.Minute, Usage: "`DURATION` after which a message of a server that died goes to another; extended while a subscriber is connected"},
			&cli.DurationFlag{Name: "ack-timeout", Value: 30 * time.Minute, Usage: "`DURATION` after which a message that a subscriber holds without ACK goes to another; 0 for never"},
			&cli.IntFlag{Name: "max-attempts", Value: 20, Usage: "after `N` attempts a message is a dead letter"},
			&cli.DurationFlag{Name: "retry-min", Value: time.Second, Usage: "first `DURATION` before a retry after NACK, doubling (±20 %)"},
			&cli.DurationFlag{Name: "retry-max", Value: time.Hour, Usage: "longest `DURATION` before a retry"},
			&cli.IntFlag{Name: "prefetch", Value: 100, Usage: "`N` messages out to a subscription that does not say how many"},
			&cli.IntFlag{Name: "max-prefetch", Value: 10_000, Usage: "most `N` messages that a subscription may ask for"},
			&cli.IntFlag{Name: "max-connections", Value: 10_000, Usage: "`N` connections at once"},
			&cli.IntFlag{Name: "max-subscriptions", Value: 100_000, Usage: "`N` subscriptions of a connection"},
			&cli.IntFlag{Name: "max-header-bytes", Value: frame.DefaultHeaderBytes, Usage: "`BYTES` of command and headers of a frame"},
			&cli.IntFlag{Name: "max-headers", Value: frame.DefaultHeaders, Usage: "`N` headers of a frame"},
			&cli.IntFlag{Name: "max-arriving", Value: 256 << 20, Usage: "`BYTES` of long bodies that are still arriving, and of open transactions, of all connections"},
			&cli.IntFlag{Name: "max-body", Value: frame.DefaultBody, Usage: "`BYTES` of a body; the queue may take less"},
			&cli.DurationFlag{Name: "connect-timeout", Value: 10 * time.Second, Usage: "`DURATION` that a client has for its CONNECT"},
			&cli.DurationFlag{Name: "heart-beat", Value: time.Second, Usage: "shortest `DURATION` between heart-beats that a client may ask for"},
			&cli.StringFlag{Name: "topic-overflow", Value: "drop", Usage: "what happens to a subscriber of a topic that does not keep up, `POLICY`: drop (it misses messages, counted) or close (it is told and disconnected)"},
			&cli.DurationFlag{Name: "grace", Value: 10 * time.Second, Usage: "on SIGINT or SIGTERM wait up to `DURATION` for what is under way"},
			&cli.StringFlag{Name: "debug", DefaultText: "none", Usage: "`HOST:PORT` on this machine for Go profiles at /debug/pprof/"},
			setup.StateFlag(),
		}, setup.QueueFlags()...),
	}
}

// options are the flags, checked.
type options struct {
	stomp, http, debug string // addresses; "" for none
	users              string
	cert, key          string
	origins            []string
	limit              *throttle.Limit
	lease              time.Duration
	maxAttempts        int
	retryMin, retryMax time.Duration
	grace              time.Duration
	config             stomp.Config
}

func parse(c *cli.Context) (*options, error) {
	if c.Args().Present() {
		return nil, setup.Usagef("unexpected argument %q; mvalve serve takes only flags", c.Args().First())
	}
	o := &options{
		users: c.String("users"), cert: c.String("tls-cert"), key: c.String("tls-key"), origins: c.StringSlice("origin"),
		lease: c.Duration("lease"), maxAttempts: c.Int("max-attempts"), retryMin: c.Duration("retry-min"),
		retryMax: c.Duration("retry-max"), grace: c.Duration("grace"),
	}
	if err := checkNumbers(c); err != nil {
		return nil, err
	}
	if err := o.parseAddresses(c); err != nil {
		return nil, err
	}
	if (o.cert == "") != (o.key == "") {
		return nil, setup.Usagef("--tls-cert and --tls-key belong together: give both, or neither")
	}
	if c.IsSet("state") {
		if _, err := setup.ParseState(c.String("state")); err != nil {
			return nil, err
		}
	}
	if c.IsSet("limit") {
		limit, err := throttle.ParseLimit(c.String("limit"))
		if err != nil {
			return nil, setup.Usagef("--limit: %w", err)
		}
		o.limit = &limit
	}
	var err error
	o.config, err = config(c)
	return o, err
}

func config(c *cli.Context) (stomp.Config, error) {
	cfg := stomp.Config{
		Frame:          frame.Limits{HeaderBytes: c.Int("max-header-bytes"), Headers: c.Int("max-headers"), Body: c.Int("max-body")},
		MaxConnections: c.Int("max-connections"), MaxSubscriptions: c.Int("max-subscriptions"),
		MaxArriving: c.Int("max-arriving"),
		Prefetch:    c.Int("prefetch"), MaxPrefetch: c.Int("max-prefetch"),
		ConnectTimeout: c.Duration("connect-timeout"), HeartBeat: c.Duration("heart-beat"),
		AckTimeout: c.Duration("ack-timeout"), Lease: c.Duration("lease"),
	}
	if cfg.AckTimeout == 0 {
		cfg.AckTimeout = -1 // as long as it is connected
	}
	if cfg.Prefetch > cfg.MaxPrefetch {
		return cfg, setup.Usagef("--prefetch %d: use at most --max-prefetch, %d", cfg.Prefetch, cfg.MaxPrefetch)
	}
	switch policy := c.String("topic-overflow"); policy {
	case "drop":
	case "close":
		cfg.TopicOverflow = stomp.OverflowClose
	default:
		return cfg, setup.Usagef("--topic-overflow %q: use drop or close", policy)
	}
	return cfg, nil
}

// parseAddresses reads the addresses to listen on. The empty variable stands for
// the default, so that "off" is the word for none; an empty flag means it, too.
func (o *options) parseAddresses(c *cli.Context) error {
	for _, a := range []struct {
		flag string
		to   *string
	}{{"stomp", &o.stomp}, {"http", &o.http}, {"debug", &o.debug}} {
		text := c.String(a.flag)
		if text == "" || text == "off" {
			continue
		}
		if _, _, err := net.SplitHostPort(text); err != nil {
			return setup.Usagef("--%s %.80q: use HOST:PORT such as 127.0.0.1:61613, :61613 for all addresses, or off", a.flag, text)
		}
		*a.to = text
	}
	if o.stomp == "" && o.http == "" {
		return setup.Usagef("--stomp off and --http off leave nothing to serve")
	}
	if host, _, _ := net.SplitHostPort(o.debug); o.debug != "" && !isLoopback(host) {
		return setup.Usagef("--debug %.80q: profiles are for this machine only; use 127.0.0.1:PORT", o.debug)
	}
	return nil
}

// isLoopback reports whether a host, as a peer names it, is this machine.
func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

func checkNumbers(c *cli.Context) error {
	for _, name := range []string{
		"max-attempts", "prefetch", "max-prefetch", "max-connections", "max-subscriptions", "max-header-bytes", "max-headers", "max-body", "max-arriving",
	} {
		if c.Int(name) < 1 {
			return setup.Usagef("--%s %d: use a number from 1 on", name, c.Int(name))
		}
	}
	for _, f := range []struct {
		name  string
		least time.Duration
	}{
		{"lease", time.Second}, {"ack-timeout", 0}, {"retry-min", time.Millisecond}, {"retry-max", c.Duration("retry-min")},
		{"connect-timeout", time.Millisecond}, {"heart-beat", time.Millisecond}, {"grace", 0},
	} {
		if c.Duration(f.name) < f.least {
			return setup.Usagef("--%s %v: use a duration of at least %v", f.name, c.Duration(f.name), f.least)
		}
	}
	return nil
}
