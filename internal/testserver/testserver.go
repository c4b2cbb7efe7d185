// Package testserver starts private MariaDB and memcached servers for tests.
//
//	func TestMain(m *testing.M) { testserver.Main(m) }
//
//	func TestOpen(t *testing.T) {
//		db := testserver.MariaDB(t) // an empty database of its own
//		store, err := mysql.Open(ctx, mysql.Config{URL: db.URL})
//
// [MariaDB] and [Memcached] hand out servers that tests share; [OwnMariaDB] and
// [OwnMemcached] start one that a test may kill, stop, freeze and restart.
// [NewProxy] stands between client and server and cuts or stalls connections.
//
// A shared server is looked for in MVALVE_TEST_MYSQL (mysql://user:password@host:port/)
// and MVALVE_TEST_MEMCACHED (host:port), then a program is started that package
// locate finds. With neither a test is skipped, and fails where CI=true.
//
// Servers listen on 127.0.0.1 on free ports, keep their files in a temporary
// folder, run as an unprivileged user when the test runs as root, and die with
// the test process, even when that is killed. The machine's services and
// configuration are never used.
package testserver

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"github.com/mvalve/mvalve/internal/testserver/locate"
)

// Main is the TestMain of a package that uses shared servers: it runs the tests
// and stops the servers. Without it the servers still die with the process, but
// their folder stays until the next test process cleans up.
func Main(m *testing.M) {
	code := m.Run()
	Stop()
	os.Exit(code)
}

// Stop ends the shared servers of this process and removes their files.
func Stop() {
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if shared.mariadb != nil && shared.mariadb.proc != nil {
		shared.mariadb.proc.kill()
	}
	if shared.memcached != nil && shared.memcached.proc != nil {
		shared.memcached.proc.kill()
	}
	shared.mariadb, shared.memcached = nil, nil
	if shared.dir != "" {
		os.RemoveAll(shared.dir)
		shared.lock.Close()
		shared.dir, shared.lock = "", nil
	}
}

// shared is what the tests of this process have in common. mu is held while a
// server starts, so that a second caller waits for it.
var shared struct {
	mu        sync.Mutex
	dir       string
	lock      *os.File
	mariadb   *MariaDBServer
	memcached *MemcachedServer
	err       error // why mariadb cannot start: not tried for each test again
}

// unavailable ends a test that has no server: with a skip on a developer's
// machine, as a failure in CI, where a skip would look like success. A server
// that is there and does not start is always a failure.
func unavailable(tb testing.TB, err error) {
	tb.Helper()
	if os.Getenv("CI") == "true" || !errors.Is(err, locate.ErrNotFound) {
		tb.Fatalf("test server: %v", err)
	}
	tb.Skipf("test server: %v (make servers fetches them)", err)
}

// dirPrefix marks our folders below os.TempDir, dirLock the file in them that
// their process keeps locked; it gets that name when it is.
const (
	dirPrefix = "mvalve-test-"
	dirLock   = "lock"
)

// processDir returns the folder of this process below os.TempDir (short enough
// for a Unix socket), made at the first call. Call it with shared.mu held.
func processDir() (string, error) {
	if shared.dir != "" {
		return shared.dir, nil
	}
	sweep()
	dir, lock, err := lockedDir()
	if err != nil {
		return "", err
	}
	shared.dir, shared.lock = dir, lock
	return dir, nil
}

// lockedDir makes a folder that no other process sweeps before lock is closed.
func lockedDir() (dir string, lock *os.File, err error) {
	if dir, err = os.MkdirTemp("", dirPrefix); err != nil {
		return "", nil, err
	}
	if err := os.Chmod(dir, 0o755); err != nil { // the servers' user must pass
		return "", nil, err
	}
	path := filepath.Join(dir, dirLock)
	// A lock that could be seen before it is locked would look abandoned.
	if lock, err = lockFile(path+".new", syscall.LOCK_EX); err != nil {
		return "", nil, err
	}
	if err := os.Rename(path+".new", path); err != nil {
		lock.Close()
		return "", nil, err
	}
	return dir, lock, nil
}

// sweep removes the folders of processes that were killed: those whose lock is free.
func sweep() {
	locks, _ := filepath.Glob(filepath.Join(os.TempDir(), dirPrefix+"*", dirLock)) // only a bad pattern fails
	for _, path := range locks {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			continue // another user's
		}
		if syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil {
			os.RemoveAll(filepath.Dir(path))
		}
		f.Close()
	}
}

// lockFile opens path and locks it; closing it, also by dying, releases the lock.
func lockFile(path string, how int) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), how); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return f, nil
}

// newDir makes a folder for one server; only the user the server runs as gets in.
func newDir(name string) (string, error) {
	shared.mu.Lock()
	defer shared.mu.Unlock()
	return newDirLocked(name)
}

func newDirLocked(name string) (string, error) {
	base, err := processDir()
	if err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp(base, name+"-")
	if err != nil {
		return "", err
	}
	return dir, chownServer(dir)
}

// freePort returns a port of 127.0.0.1 that nobody listened on a moment ago, and
// that the system does not give to outgoing connections: it stays free while its
// server is down. Another process may take it before the server does; starting
// is then repeated.
func freePort() (int, error) {
	l, err := listenKept()
	if err != nil {
		return 0, err
	}
	defer l.Close()
	addr, ok := l.Addr().(*net.TCPAddr)
	if !ok {
		return 0, errors.New("no TCP address")
	}
	return addr.Port, nil
}
