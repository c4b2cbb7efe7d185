package testserver_test

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mvalve/mvalve/internal/testserver"
)

// patience is how long anything may take that must happen, on a busy machine.
const patience = time.Minute

func TestMain(m *testing.M) {
	if os.Getenv("TESTSERVER_CHILD") == "1" {
		os.Exit(m.Run()) // killed before it ends, so never cleans up
	}
	testserver.Main(m)
}

func TestMariaDBGivesEachTestItsDatabase(t *testing.T) {
	a, b := testserver.MariaDB(t), testserver.MariaDB(t)
	if a.Addr != b.Addr || a.Database == b.Database {
		t.Fatalf("want one server and two databases, got %s/%s and %s/%s", a.Addr, a.Database, b.Addr, b.Database)
	}
	db := a.Open(t)
	if _, err := db.ExecContext(t.Context(), "CREATE TABLE x (id INT) ENGINE=InnoDB"); err != nil {
		t.Fatal(err)
	}
	var durable int
	if err := db.QueryRowContext(t.Context(), "SELECT @@innodb_flush_log_at_trx_commit").Scan(&durable); err != nil {
		t.Fatal(err)
	}
	if durable != 1 {
		t.Errorf("innodb_flush_log_at_trx_commit = %d, want 1", durable)
	}
	if want := "mysql://" + a.User + ":" + a.Password + "@" + a.Addr + "/" + a.Database; a.URL != want {
		t.Errorf("URL = %s, want %s", a.URL, want)
	}
}

func TestMariaDBRefusesWrongPassword(t *testing.T) {
	cfg := testserver.MariaDB(t)
	cfg.Password = "wrong"
	if err := cfg.Open(t).PingContext(t.Context()); err == nil {
		t.Fatal("a wrong password was accepted")
	}
}

func TestOwnMariaDBSurvivesKill(t *testing.T) {
	s := testserver.OwnMariaDB(t)
	db := s.Open(t)
	for _, q := range []string{"CREATE TABLE x (id INT PRIMARY KEY) ENGINE=InnoDB", "INSERT INTO x VALUES (7)"} {
		if _, err := db.ExecContext(t.Context(), q); err != nil {
			t.Fatal(err)
		}
	}
	s.Kill(t)
	if err := db.PingContext(t.Context()); err == nil {
		t.Fatal("the server answers after Kill")
	}
	s.Restart(t)
	var id int
	if err := s.Open(t).QueryRowContext(t.Context(), "SELECT id FROM x").Scan(&id); err != nil || id != 7 {
		t.Fatalf("after a crash: id %d, %v; want the committed 7", id, err)
	}
	s.Freeze(t)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := s.Open(t).PingContext(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("frozen server: %v, want a time-out", err)
	}
	s.Thaw(t)
	s.Stop(t)
}

func TestOwnMemcached(t *testing.T) {
	s := testserver.OwnMemcached(t)
	if got := talk(t, s.Addr, "set k 0 0 1\r\nx\r\n"); got != "STORED\r\n" {
		t.Fatalf("set: %q", got)
	}
	s.Flush(t)
	if got := talk(t, s.Addr, "get k\r\n"); got != "END\r\n" {
		t.Fatalf("after Flush: %q", got)
	}
	s.Kill(t)
	if _, err := net.Dial("tcp", s.Addr); err == nil {
		t.Fatal("the server listens after Kill")
	}
	s.Restart(t)
	if got := talk(t, s.Addr, "get k\r\n"); got != "END\r\n" {
		t.Fatalf("after Restart: %q", got)
	}
}

// talk sends a request on a new connection and returns the first piece of the answer.
func talk(t *testing.T, addr, request string) string {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	return exchange(t, conn, request)
}

func exchange(t *testing.T, conn net.Conn, request string) string {
	t.Helper()
	if _, err := io.WriteString(conn, request); err != nil {
		t.Fatal(err)
	}
	return receive(t, conn, patience)
}

func receive(t *testing.T, conn net.Conn, within time.Duration) string {
	t.Helper()
	conn.SetReadDeadline(time.Now().Add(within))
	buf := make([]byte, 1024)
	n, err := conn.Read(buf)
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
	return string(buf[:n])
}

func TestProxy(t *testing.T) {
	s := testserver.Memcached(t)
	p := testserver.NewProxy(t, s.Addr)
	conn, err := net.Dial("tcp", p.Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got := exchange(t, conn, "set proxied 0 0 1\r\n1\r\n"); got != "STORED\r\n" {
		t.Fatalf("through the proxy: %q", got)
	}

	p.StallReplies()
	if _, err := io.WriteString(conn, "set proxied 0 0 1\r\n2\r\n"); err != nil {
		t.Fatal(err)
	}
	if got := receive(t, conn, 50*time.Millisecond); got != "" {
		t.Errorf("stalled replies: got %q", got)
	}
	awaitHeld(t, p, "", "STORED\r\n")
	deadline := time.Now().Add(patience)
	for talk(t, s.Addr, "get proxied\r\n") != "VALUE proxied 0 1\r\n2\r\nEND\r\n" {
		if time.Now().After(deadline) {
			t.Fatal("the request did not reach the server")
		}
	}
	p.Resume(t)
	if got := receive(t, conn, patience); got != "STORED\r\n" {
		t.Errorf("after Resume: %q", got)
	}
	awaitHeld(t, p, "", "")

	p.Stall()
	if _, err := io.WriteString(conn, "version\r\n"); err != nil {
		t.Fatal(err)
	}
	awaitHeld(t, p, "version\r\n", "")
	p.Resume(t)
	if got := receive(t, conn, patience); !strings.HasPrefix(got, "VERSION") {
		t.Errorf("after Stall and Resume: %q", got)
	}

	p.Cut()
	conn.SetReadDeadline(time.Now().Add(patience))
	if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("after Cut: %v, want a closed connection", err)
	}
	if c, err := net.Dial("tcp", p.Addr); err == nil {
		c.Close()
		t.Error("after Cut: a new connection was accepted")
	}
	p.Resume(t)
	if got := talk(t, p.Addr, "get nothing\r\n"); got != "END\r\n" {
		t.Errorf("after Cut and Resume: %q", got)
	}
}

// awaitHeld waits until the proxy holds just this, each way.
func awaitHeld(t *testing.T, p *testserver.Proxy, requests, replies string) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		up, down := p.Held()
		if string(up) == requests && string(down) == replies {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the proxy holds %q and %q, want %q and %q", up, down, requests, replies)
		}
		runtime.Gosched()
	}
}

// TestServersDieWithTheProcess kills a test process and sees its server go.
func TestServersDieWithTheProcess(t *testing.T) {
	if os.Getenv("TESTSERVER_CHILD") == "1" {
		s := testserver.Memcached(t)
		os.Stdout.WriteString("addr=" + s.Addr + "\n")
		select {}
	}
	testserver.Memcached(t) // skips where there is none
	if os.Getenv("MVALVE_TEST_MEMCACHED") != "" {
		t.Skip("the shared server is not ours")
	}
	child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestServersDieWithTheProcess$")
	child.Env = append(os.Environ(), "TESTSERVER_CHILD=1")
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 256)
	n, err := out.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	addr, ok := strings.CutPrefix(strings.TrimSpace(string(buf[:n])), "addr=")
	if !ok {
		t.Fatalf("child said %q", buf[:n])
	}
	if got := talk(t, addr, "version\r\n"); !strings.HasPrefix(got, "VERSION") {
		t.Fatalf("child's server: %q", got)
	}
	if err := child.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = child.Wait() // it was killed
	deadline := time.Now().Add(patience)
	for {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			return
		}
		conn.Close()
		if time.Now().After(deadline) {
			t.Fatal("the server outlives its test process")
		}
	}
}
