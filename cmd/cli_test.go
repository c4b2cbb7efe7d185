// Package cmd_test runs the commands as processes, by the scripts in testdata.
package cmd_test

import (
	"database/sql"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	_ "modernc.org/sqlite" // the sql command of the scripts

	"github.com/mvalve/mvalve/cmd/internal/admin"
	"github.com/mvalve/mvalve/cmd/internal/bench"
	"github.com/mvalve/mvalve/cmd/internal/reader"
	"github.com/mvalve/mvalve/cmd/internal/serve"
	"github.com/mvalve/mvalve/cmd/internal/setup"
	"github.com/mvalve/mvalve/cmd/internal/writer"
	"github.com/mvalve/mvalve/internal/testserver"
)

type suite struct{ *testing.M }

func (s suite) Run() int {
	defer testserver.Stop()
	return s.M.Run()
}

func TestMain(m *testing.M) {
	testscript.Main(suite{m}, map[string]func(){
		"mvalve":        func() { setup.Main(admin.App(serve.Command(), bench.Command())) },
		"mvalve-writer": func() { setup.Main(writer.App()) },
		"mvalve-reader": func() { setup.Main(reader.App()) },
	})
}

func params(dir string, before func(*testscript.Env) error) testscript.Params {
	return testscript.Params{
		Dir:                 dir,
		RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			// Under the race detector every process would sleep for a second
			// before it ends.
			env.Setenv("GORACE", "atexit_sleep_ms=0")
			return before(env)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"code": code, "sql": execSQL, "until": until, "signal": signalCommand, "repeat": repeat,
			"address": addressCommand, "stomp": stompCommand, "get": getCommand,
		},
	}
}

// TestScripts runs what needs no server.
func TestScripts(t *testing.T) {
	testscript.Run(t, params("testdata", func(env *testscript.Env) error {
		receiver := newReceiver(filepath.Join(env.WorkDir, "requests"))
		env.Defer(receiver.Close)
		env.Setenv("RECEIVER", receiver.URL)
		return nil
	}))
}

// TestServers runs what needs MariaDB and memcached.
func TestServers(t *testing.T) {
	db := testserver.MariaDB(t)
	p := params("testdata/servers", func(env *testscript.Env) error {
		cache := testserver.OwnMemcached(t)
		env.Values[cacheKey{}] = cache
		own := db.NewDatabase(t)
		env.Setenv("MVALVE_QUEUE", own.URL)
		env.Setenv("DB", own.URL)
		env.Setenv("DB_PASSWORD", own.Config().Passwd)
		env.Setenv("DB_ADDRESS", own.Config().Addr)
		env.Setenv("DB_USER", own.Config().User)
		env.Setenv("MEMCACHED", cache.Addr)
		return nil
	})
	// memcached kill|restart|flush
	p.Cmds["memcached"] = func(ts *testscript.TestScript, neg bool, args []string) {
		cache := ts.Value(cacheKey{}).(*testserver.MemcachedServer)
		verbs := map[string]func(testing.TB){"kill": cache.Kill, "restart": cache.Restart, "flush": cache.Flush}
		if neg || len(args) != 1 || verbs[args[0]] == nil {
			ts.Fatalf("usage: memcached kill|restart|flush")
		}
		verbs[args[0]](t)
	}
	testscript.Run(t, p)
}

type cacheKey struct{}

// code runs a command and compares its exit code: code 65 mvalve-writer ...
func code(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: code NUMBER COMMAND [ARGUMENT...]")
	}
	err := ts.Exec(args[1], args[2:]...)
	got := 0
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		got = exit.ExitCode()
	case err != nil:
		ts.Fatalf("%v", err)
	}
	if strconv.Itoa(got) != args[0] {
		ts.Fatalf("exit code %d, want %s", got, args[0])
	}
	if text := ts.ReadFile("stderr"); got == 2 && strings.Count(text, "\n") != 1 {
		ts.Fatalf("a usage error is one line, not %q", text)
	}
}

// until runs a command over and over, for as long as patience lasts, until its
// output has a text: until TEXT COMMAND [ARGUMENT...]
func until(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: until TEXT COMMAND [ARGUMENT...]")
	}
	poll(ts, func() error {
		_ = ts.Exec(args[1], args[2:]...)
		if !strings.Contains(ts.ReadFile("stdout"), args[0]) {
			return fmt.Errorf("%q did not appear", args[0])
		}
		return nil
	})
}

// signalCommand sends a signal to the commands in the background: signal INT
func signalCommand(ts *testscript.TestScript, neg bool, args []string) {
	signals := map[string]syscall.Signal{"INT": syscall.SIGINT, "TERM": syscall.SIGTERM, "KILL": syscall.SIGKILL}
	if neg || len(args) != 1 || signals[args[0]] == 0 {
		ts.Fatalf("usage: signal INT|TERM|KILL")
	}
	for _, cmd := range ts.BackgroundCmds() {
		ts.Check(cmd.Process.Signal(signals[args[0]]))
	}
}

// repeat writes a line N times with {} replaced by the number: repeat N FILE LINE
func repeat(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: repeat N FILE LINE")
	}
	n, err := strconv.Atoi(args[0])
	ts.Check(err)
	var out strings.Builder
	for i := range n {
		out.WriteString(strings.ReplaceAll(args[2], "{}", strconv.Itoa(i)) + "\n")
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), []byte(out.String()), 0o600))
}

// execSQL changes a SQLite file: sql FILE STATEMENT
func execSQL(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: sql FILE STATEMENT")
	}
	db, err := sql.Open("sqlite", ts.MkAbs(args[0]))
	ts.Check(err)
	defer db.Close()
	_, err = db.Exec(args[1])
	ts.Check(err)
}

// newReceiver answers by the first word of the path and writes a line per
// request to a file: path, Idempotency-Key, headers To, Connection and
// Mvalve-Dispatched-At, body.
func newReceiver(log string) *httptest.Server {
	var mu sync.Mutex
	seen := make(map[string]bool)
	return httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		mu.Lock()
		first := !seen[r.URL.EscapedPath()]
		seen[r.URL.EscapedPath()] = true
		file, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err == nil {
			_, _ = io.WriteString(file, strings.Join([]string{
				r.URL.EscapedPath(), "key=" + r.Header.Get("Idempotency-Key"), "to=" + r.Header.Get("To"),
				"connection=" + r.Header.Get("Connection"), "dispatched=" + r.Header.Get(reader.DispatchedAt), "body=" + string(body),
			}, " ")+"\n")
			_ = file.Close()
		}
		mu.Unlock()
		switch verb, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/"); {
		case verb == "bad":
			w.WriteHeader(http.StatusUnprocessableEntity)
		case verb == "moved":
			http.Redirect(w, r, "/ok/elsewhere", http.StatusFound)
		case verb == "busy" && first:
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusTooManyRequests)
		case verb == "flaky" && first:
			w.WriteHeader(http.StatusInternalServerError)
		}
	}))
}
