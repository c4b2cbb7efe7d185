package mysql

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"strings"
	"time"

	driver "github.com/go-sql-driver/mysql"

	"github.com/mvalve/mvalve/queue"
)

// Defaults of Config.
const (
	DefaultAddr           = "127.0.0.1:3306"
	DefaultMaxConns       = 10
	DefaultConnectTimeout = 5 * time.Second
	DefaultIOTimeout      = 30 * time.Second
	DefaultRetryFor       = 15 * time.Second
)

// Config says how to reach a database. Database is required; every other zero
// field means its default.
type Config struct {
	Addr     string // host:port; DefaultAddr
	Socket   string // path of a Unix socket, instead of Addr
	User     string
	Password string // appears in no error, log or String
	Database string // name of an existing database

	// TLS encrypts the connection: "" and "false" plain, "true" checks the
	// server's certificate against the system's roots, "skip-verify" checks
	// nothing, "preferred" encrypts if the server can. TLSConfig overrides it.
	TLS       string
	TLSConfig *tls.Config

	MaxConns       int           // connections at most; DefaultMaxConns
	ConnectTimeout time.Duration // to establish one; DefaultConnectTimeout
	IOTimeout      time.Duration // for one read or write on the wire; DefaultIOTimeout
	RetryFor       time.Duration // how long one call repeats what failed; DefaultRetryFor
	Logger         *slog.Logger  // nil discards
}

// String returns the address and database, never the password.
func (c Config) String() string {
	return "mysql://" + c.address() + "/" + c.Database
}

// GoString is String: %#v shows no password either.
func (c Config) GoString() string { return c.String() }

// LogValue is String: slog shows no password either.
func (c Config) LogValue() slog.Value { return slog.StringValue(c.String()) }

func (c Config) address() string {
	switch {
	case c.Socket != "":
		return c.Socket
	case c.Addr != "":
		return c.Addr
	}
	return DefaultAddr
}

// ParseURL reads mysql://user:password@host:port/database. User, password and
// database are percent-decoded; the port defaults to 3306, the host to
// 127.0.0.1. Parameters: tls (see Config.TLS), socket (path of a Unix socket,
// instead of host and port), max_conns. Anything else is an error that wraps
// queue.ErrInvalid and does not contain the password.
func ParseURL(s string) (Config, error) {
	bad := func(what string) (Config, error) {
		return Config{}, fmt.Errorf("%w: queue URL: %s; the form is mysql://user:password@host:port/database?tls=true "+
			"with special characters percent-encoded", queue.ErrInvalid, what)
	}
	u, err := url.Parse(s)
	if err != nil { // its text quotes the whole URL
		return bad("cannot be parsed")
	}
	if u.Scheme != "mysql" {
		return bad("the scheme is not mysql")
	}
	c := Config{Addr: u.Host, Database: strings.TrimPrefix(u.Path, "/")}
	if u.User != nil {
		c.User = u.User.Username()
		c.Password, _ = u.User.Password()
	}
	switch {
	case u.Opaque != "" || u.Fragment != "":
		return bad("user, password, host or database has an unencoded special character")
	case c.Database == "":
		return bad("the database is missing")
	case strings.Contains(c.Database, "/"):
		return bad("the database has a slash")
	}
	if c.Addr != "" {
		host, port := u.Hostname(), u.Port()
		if host == "" {
			host = "127.0.0.1"
		}
		if port == "" {
			port = "3306"
		}
		c.Addr = net.JoinHostPort(host, port)
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return bad("the parameters cannot be parsed")
	}
	for name, values := range query {
		if err := c.setParameter(name, values[len(values)-1]); err != nil {
			return bad(err.Error())
		}
	}
	return c, nil
}

func (c *Config) setParameter(name, value string) error {
	switch name {
	case "tls":
		switch value {
		case "true", "false", "skip-verify", "preferred":
			c.TLS = value
		default:
			return fmt.Errorf("tls=%.40q; use true, false, skip-verify or preferred", value)
		}
	case "socket":
		c.Socket = value
	case "max_conns":
		if n, err := fmt.Sscanf(value, "%d", &c.MaxConns); n != 1 || err != nil || c.MaxConns < 2 {
			return fmt.Errorf("max_conns=%.40q; use a number from 2 on", value)
		}
	default:
		return fmt.Errorf("unknown parameter %.40q; there are tls, socket and max_conns", name)
	}
	return nil
}

// withDefaults returns c with every zero field set.
func (c Config) withDefaults() Config {
	if c.MaxConns <= 0 {
		c.MaxConns = DefaultMaxConns
	}
	if c.ConnectTimeout <= 0 {
		c.ConnectTimeout = DefaultConnectTimeout
	}
	if c.IOTimeout <= 0 {
		c.IOTimeout = DefaultIOTimeout
	}
	if c.RetryFor <= 0 {
		c.RetryFor = DefaultRetryFor
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

// driverConfig translates c for the client library. maxPacket is the server's
// max_allowed_packet, or 0 to let the library ask for it.
func (c Config) driverConfig(maxPacket int) *driver.Config {
	d := driver.NewConfig()
	d.User, d.Passwd, d.DBName = c.User, c.Password, c.Database
	d.Net, d.Addr = "tcp", c.address()
	if c.Socket != "" {
		d.Net = "unix"
	}
	d.TLSConfig, d.TLS = c.TLS, c.TLSConfig
	d.Timeout, d.ReadTimeout, d.WriteTimeout = c.ConnectTimeout, c.IOTimeout, c.IOTimeout
	d.MaxAllowedPacket = maxPacket
	d.Collation = "binary"   // no conversion of what is stored
	d.ClientFoundRows = true // affected rows are those matched, also when nothing changes
	d.RejectReadOnly = false
	d.Logger = wireLogger{c.Logger}
	return d
}

// wireLogger hands the client library's complaints to slog.
type wireLogger struct{ log *slog.Logger }

// Print implements the library's Logger.
func (w wireLogger) Print(v ...any) { w.log.Debug("mysql driver", "message", fmt.Sprint(v...)) }
