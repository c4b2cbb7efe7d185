package testserver

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mvalve/mvalve/internal/testserver/locate"
)

// MemcachedServer is a memcached for tests. The fields are read only.
type MemcachedServer struct {
	Addr string // host:port

	port int
	dir  string
	args []string
	bin  locate.Program
	proc *process // nil: not this test's to kill
}

// Memcached returns the server that the tests of this process share. Use a key
// prefix of your own and never flush it.
func Memcached(tb testing.TB) *MemcachedServer {
	tb.Helper()
	s, err := sharedMemcached()
	if err != nil {
		unavailable(tb, err)
	}
	return &MemcachedServer{Addr: s.Addr}
}

// OwnMemcached starts a server for one test and kills it when the test ends.
// args are further options of memcached; by default evictions are off (-M).
func OwnMemcached(tb testing.TB, args ...string) *MemcachedServer {
	tb.Helper()
	bin, err := locate.Memcached()
	if err != nil {
		unavailable(tb, err)
	}
	dir, err := newDir("memcached")
	if err != nil {
		tb.Fatalf("test server: %v", err)
	}
	if len(args) == 0 {
		args = []string{"-M"}
	}
	s, err := startMemcached(bin, dir, args)
	if err != nil {
		tb.Fatalf("test server: %v", err)
	}
	tb.Cleanup(func() {
		s.proc.kill()
		os.RemoveAll(dir)
	})
	return s
}

// Kill ends the server; all values are gone. Only for OwnMemcached.
func (s *MemcachedServer) Kill(tb testing.TB) {
	tb.Helper()
	s.own(tb).kill()
}

// Restart starts the server again, empty, on the same port, after killing it if
// it runs. It returns when the server answers. Only for OwnMemcached.
func (s *MemcachedServer) Restart(tb testing.TB) {
	tb.Helper()
	s.own(tb).kill()
	if err := s.run(); err != nil {
		tb.Fatalf("test server: %v", err)
	}
}

// Freeze stops the server from doing anything, with its connections open, until
// Thaw. Only for OwnMemcached.
func (s *MemcachedServer) Freeze(tb testing.TB) {
	tb.Helper()
	s.own(tb).signal(syscall.SIGSTOP)
}

// Thaw ends Freeze.
func (s *MemcachedServer) Thaw(tb testing.TB) {
	tb.Helper()
	s.own(tb).signal(syscall.SIGCONT)
}

// Flush wipes the server (flush_all). Only for OwnMemcached.
func (s *MemcachedServer) Flush(tb testing.TB) {
	tb.Helper()
	s.own(tb)
	lines, err := s.command("flush_all")
	if err != nil || !slices.Equal(lines, []string{"OK"}) {
		tb.Fatalf("test server: flush_all: %q, %v", lines, err)
	}
}

func (s *MemcachedServer) own(tb testing.TB) *process {
	tb.Helper()
	if s.proc == nil {
		tb.Fatal("test server: only a server from OwnMemcached can be killed, flushed or frozen")
	}
	return s.proc
}

func sharedMemcached() (*MemcachedServer, error) {
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if shared.memcached != nil {
		return shared.memcached, nil
	}
	if addr := os.Getenv("MVALVE_TEST_MEMCACHED"); addr != "" {
		s := &MemcachedServer{Addr: addr}
		if _, err := s.command("version"); err != nil {
			return nil, fmt.Errorf("MVALVE_TEST_MEMCACHED: %w", err)
		}
		shared.memcached = s
		return s, nil
	}
	bin, err := locate.Memcached()
	if err != nil {
		return nil, err
	}
	dir, err := newDirLocked("memcached")
	if err != nil {
		return nil, err
	}
	s, err := startMemcached(bin, dir, []string{"-M"})
	if err != nil {
		return nil, err
	}
	shared.memcached = s
	return s, nil
}

func startMemcached(bin locate.Program, dir string, args []string) (*MemcachedServer, error) {
	s := &MemcachedServer{dir: dir, args: args, bin: bin}
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

// run starts the program and waits until it, and no other, answers.
func (s *MemcachedServer) run() error {
	args := append([]string{"-l", "127.0.0.1", "-p", strconv.Itoa(s.port), "-U", "0", "-t", "2", "-c", "1024"}, s.args...)
	proc, err := start(s.bin, s.dir, args...)
	if err != nil {
		return err
	}
	s.proc = proc
	err = proc.await(func() error {
		lines, err := s.command("stats")
		if err != nil {
			return err
		}
		if !slices.Contains(lines, "STAT pid "+strconv.Itoa(proc.cmd.Process.Pid)) {
			return errors.New("another server answers on the port")
		}
		return nil
	})
	if err != nil {
		proc.kill()
	}
	return err
}

// command sends one line and returns the lines of the answer, up to END.
func (s *MemcachedServer) command(line string) ([]string, error) {
	conn, err := net.DialTimeout("tcp", s.Addr, answerTimeout)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(answerTimeout)); err != nil {
		return nil, err
	}
	if _, err := fmt.Fprintf(conn, "%s\r\n", line); err != nil {
		return nil, err
	}
	var lines []string
	answer := bufio.NewScanner(conn)
	for answer.Scan() {
		text := answer.Text()
		if text == "END" {
			return lines, nil
		}
		lines = append(lines, text)
		if !strings.HasPrefix(text, "STAT ") {
			return lines, nil
		}
	}
	return lines, errors.Join(errors.New("connection closed"), answer.Err())
}
