package testserver

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"

	"github.com/mvalve/mvalve/internal/testserver/locate"
)

// The account that template creates. It may do everything.
const (
	mariadbUser     = "mvalve"
	mariadbPassword = "secret"
)

// MariaDBServer is a database on a test server. The fields are read only.
type MariaDBServer struct {
	Addr     string // host:port
	Socket   string // path of the Unix socket; empty for a server from the environment
	User     string
	Password string
	Database string // empty and existing
	URL      string // mysql://user:password@host:port/database

	port int
	dir  string
	args []string
	bin  locate.Program
	proc *process // nil: a server from the environment
}

// MariaDB returns a new database on the server that the tests of this process
// share. The database is dropped when the test ends.
func MariaDB(tb testing.TB) *MariaDBServer {
	tb.Helper()
	s, err := sharedMariaDB()
	if err != nil {
		unavailable(tb, err)
	}
	return s.NewDatabase(tb)
}

// OwnMariaDB starts a server for one test, with a database, and stops it when
// the test ends. args are further options of mariadbd, without a blank.
func OwnMariaDB(tb testing.TB, args ...string) *MariaDBServer {
	tb.Helper()
	bin, err := locate.MariaDB()
	if err != nil {
		unavailable(tb, err)
	}
	dir, err := newDir("mariadb")
	if err != nil {
		tb.Fatalf("test server: %v", err)
	}
	s, err := startMariaDB(bin, dir, args)
	if err != nil {
		tb.Fatalf("test server: %v", err)
	}
	tb.Cleanup(func() {
		s.proc.kill()
		os.RemoveAll(dir)
	})
	if err := s.createDatabase(databaseName()); err != nil {
		tb.Fatalf("test server: %v", err)
	}
	return s
}

// NewDatabase returns another, empty database on the same server, dropped when
// the test ends. It cannot kill or stop the server; s can.
func (s *MariaDBServer) NewDatabase(tb testing.TB) *MariaDBServer {
	tb.Helper()
	db := *s
	if err := db.createDatabase(databaseName()); err != nil {
		tb.Fatalf("test server: %v", err)
	}
	tb.Cleanup(func() {
		// A test may have left the server dead; its folder goes anyway.
		_ = db.exec("DROP DATABASE IF EXISTS " + db.Database)
	})
	db.proc = nil
	return &db
}

// Config returns the driver's configuration for the database, for tests that
// look into tables. Times are parsed.
func (s *MariaDBServer) Config() *mysql.Config {
	cfg := mysql.NewConfig()
	cfg.Net, cfg.Addr, cfg.User, cfg.Passwd, cfg.DBName = "tcp", s.Addr, s.User, s.Password, s.Database
	cfg.ParseTime = true
	return cfg
}

// Open returns a connection pool on the database, closed when the test ends.
func (s *MariaDBServer) Open(tb testing.TB) *sql.DB {
	tb.Helper()
	connector, err := mysql.NewConnector(s.Config())
	if err != nil {
		tb.Fatalf("test server: %v", err)
	}
	db := sql.OpenDB(connector)
	tb.Cleanup(func() { db.Close() })
	return db
}

// Kill ends the server as a crash does. Only for OwnMariaDB.
func (s *MariaDBServer) Kill(tb testing.TB) {
	tb.Helper()
	s.own(tb).kill()
}

// Stop shuts the server down in good order. Only for OwnMariaDB.
func (s *MariaDBServer) Stop(tb testing.TB) {
	tb.Helper()
	if err := s.own(tb).stop(); err != nil {
		tb.Errorf("test server: %v", err)
	}
}

// Restart starts the server again on the same port and data, after shutting it
// down if it runs. It returns when the server answers. Only for OwnMariaDB.
func (s *MariaDBServer) Restart(tb testing.TB) {
	tb.Helper()
	if err := s.own(tb).stop(); err != nil {
		tb.Errorf("test server: %v", err)
	}
	if err := s.run(); err != nil {
		tb.Fatalf("test server: %v", err)
	}
}

// Freeze stops the server from doing anything, with its connections open, until
// Thaw. Only for OwnMariaDB.
func (s *MariaDBServer) Freeze(tb testing.TB) {
	tb.Helper()
	s.own(tb).signal(syscall.SIGSTOP)
}

// Thaw ends Freeze.
func (s *MariaDBServer) Thaw(tb testing.TB) {
	tb.Helper()
	s.own(tb).signal(syscall.SIGCONT)
}

func (s *MariaDBServer) own(tb testing.TB) *process {
	tb.Helper()
	if s.proc == nil {
		tb.Fatal("test server: only a server from OwnMariaDB can be killed, stopped or frozen")
	}
	return s.proc
}

// sharedMariaDB returns the server of this process, started at the first call.
func sharedMariaDB() (*MariaDBServer, error) {
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if shared.mariadb != nil || shared.err != nil {
		return shared.mariadb, shared.err
	}
	shared.mariadb, shared.err = newSharedMariaDB()
	return shared.mariadb, shared.err
}

func newSharedMariaDB() (*MariaDBServer, error) {
	if from := os.Getenv("MVALVE_TEST_MYSQL"); from != "" {
		return mariadbFromURL(from)
	}
	bin, err := locate.MariaDB()
	if err != nil {
		return nil, err
	}
	dir, err := newDirLocked("mariadb")
	if err != nil {
		return nil, err
	}
	return startMariaDB(bin, dir, nil)
}

func mariadbFromURL(from string) (*MariaDBServer, error) {
	u, err := url.Parse(from)
	if err != nil || u.Scheme != "mysql" || u.Host == "" {
		return nil, errors.New("MVALVE_TEST_MYSQL: want mysql://user:password@host:port/")
	}
	password, _ := u.User.Password()
	s := &MariaDBServer{Addr: u.Host, User: u.User.Username(), Password: password}
	if u.Port() == "" {
		s.Addr = net.JoinHostPort(u.Hostname(), "3306")
	}
	if err := s.exec("DO 1"); err != nil {
		return nil, fmt.Errorf("MVALVE_TEST_MYSQL: %w", err)
	}
	return s, nil
}

// portTries is how often another free port is tried when somebody was faster.
const portTries = 3

func startMariaDB(bin locate.Program, dir string, args []string) (*MariaDBServer, error) {
	data := filepath.Join(dir, "data")
	if err := copyTemplate(bin, data); err != nil {
		return nil, fmt.Errorf("prepare data folder: %w", err)
	}
	s := &MariaDBServer{
		Socket: filepath.Join(dir, "sock"), User: mariadbUser, Password: mariadbPassword,
		dir: dir, args: args, bin: bin,
	}
	var err error
	for range portTries {
		if s.port, err = freePort(); err != nil {
			return nil, err
		}
		s.Addr = net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port))
		if err = s.run(); err == nil {
			return s, nil
		}
	}
	return nil, err
}

// run starts the program on the data folder and waits until it answers.
func (s *MariaDBServer) run() error {
	options, err := mariadbOptions(s.bin, filepath.Join(s.dir, "data"))
	if err != nil {
		return err
	}
	options = append(options, "--bind-address=127.0.0.1", "--port="+strconv.Itoa(s.port), "--socket="+s.Socket)
	s.proc, err = start(s.bin, s.dir, append(options, s.args...)...)
	if err != nil {
		return err
	}
	// The socket is in our own folder: who answers there is our server, and by
	// then it listens on its port too.
	err = s.proc.await(func() error { return s.execOn("unix", s.Socket, "DO 1") })
	if err != nil {
		s.proc.kill()
	}
	return err
}

// lastDatabase numbers the databases of this process.
var lastDatabase atomic.Int64

// databaseName is unique on a server that several processes share.
func databaseName() string {
	return fmt.Sprintf("mvalve_%d_%d_%d", os.Getpid(), time.Now().UnixNano(), lastDatabase.Add(1))
}

func (s *MariaDBServer) createDatabase(name string) error {
	if err := s.exec("CREATE DATABASE " + name); err != nil {
		return err
	}
	s.Database = name
	u := url.URL{Scheme: "mysql", User: url.UserPassword(s.User, s.Password), Host: s.Addr, Path: "/" + name}
	s.URL = u.String()
	return nil
}

func (s *MariaDBServer) exec(statement string) error {
	return s.execOn("tcp", s.Addr, statement)
}

func (s *MariaDBServer) execOn(network, addr, statement string) error {
	cfg := mysql.NewConfig()
	cfg.Net, cfg.Addr, cfg.User, cfg.Passwd = network, addr, s.User, s.Password
	cfg.Timeout, cfg.Logger = 10*time.Second, &mysql.NopLogger{}
	connector, err := mysql.NewConnector(cfg)
	if err != nil {
		return err
	}
	db := sql.OpenDB(connector)
	defer db.Close()
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	_, err = db.ExecContext(ctx, statement)
	return err
}
