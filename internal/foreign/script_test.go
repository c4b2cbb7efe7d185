package foreign_test

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mvalve/mvalve/internal/foreign"
	"github.com/mvalve/mvalve/internal/testserver/locate"
)

// The scripts of testdata are the clients. Each runs the same list of checks, as
// far as its library can, and says "ok CHECK" or "not ok CHECK: why" for each.
// With "restart" it asks for a crash of the broker, and goes on when a line comes
// back.
var scripts = []struct {
	name   string
	find   func() (locate.Program, error)
	file   string
	args   func(b *broker) []string
	checks []string
}{
	{"stompjs over WebSocket", foreign.Node, "client.cjs", func(b *broker) []string { return []string{"ws://" + b.web + "/stomp"} }, allChecks},
	{"stompjs over TCP", foreign.Node, "client.cjs", func(b *broker) []string { return []string{"tcp://" + b.addr} }, allChecks},
	{"stomp.py 1.2", foreign.Python, "client.py", func(b *broker) []string { return append(hostPort(b), "1.2") }, allChecks},
	{"stomp.py 1.1", foreign.Python, "client.py", func(b *broker) []string { return append(hostPort(b), "1.1") }, allChecks},
	{"Net::Stomp", foreign.Perl, "client.pl", hostPort, []string{
		"login", "receipt", "auto", "client", "abort", "commit", "headers", "bodies", "prefetch", "reply", "topic", "idle", "restart",
	}},
}

var allChecks = []string{
	"login", "receipt", "auto", "client", "individual", "nack", "abort", "commit",
	"headers", "bodies", "prefetch", "reply", "topic", "heart-beat", "restart",
}

func hostPort(b *broker) []string { return strings.Split(b.addr, ":") }

func TestScripts(t *testing.T) {
	for _, s := range scripts {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			program := find(t, s.find)
			b := serve(t, sqliteURL(t), "--users", usersFile(t))
			runScript(t, b, program, s.file, s.args(b), s.checks)
		})
	}
}

// TestScriptsMariaDB has the same clients on brokers over MariaDB, side by side on
// one pipe: what is on the way for one outlives the crash of another's.
func TestScriptsMariaDB(t *testing.T) {
	t.Parallel()
	url := mariadbURL(t)
	for _, s := range scripts[1:] {
		if s.name == "stomp.py 1.1" {
			continue
		}
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			program := find(t, s.find)
			b := serve(t, url, "--users", usersFile(t))
			runScript(t, b, program, s.file, s.args(b), s.checks)
			b.stop(os.Interrupt)
		})
	}
}

// runScript runs a client to its end and compares what it checked.
func runScript(t *testing.T, b *broker, program locate.Program, file string, args, checks []string) {
	t.Helper()
	cmd := exec.Command(program.Path, append([]string{filepath.Join("testdata", file)}, args...)...)
	cmd.Env = append(append(os.Environ(), program.Env...), "CLIENT_LOGIN="+login, "CLIENT_PASSCODE="+passcode)
	cmd.SysProcAttr = dieWithParent()
	var stderr strings.Builder
	cmd.Stderr = &stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	cut := time.AfterFunc(4*patience, func() { _ = cmd.Process.Kill() })
	defer cut.Stop()
	passed := followScript(t, b, stdout, stdin)
	if err := cmd.Wait(); err != nil {
		t.Errorf("%s: %v: %s", file, err, stderr.String())
	}
	if diff := cmp.Diff(checks, passed); diff != "" {
		t.Errorf("checks that passed (-want +got):\n%s%s", diff, stderr.String())
	}
}

// followScript reads what a client prints and restarts the broker when it asks.
func followScript(t *testing.T, b *broker, stdout io.Reader, stdin io.Writer) []string {
	t.Helper()
	var passed []string
	lines := bufio.NewScanner(stdout)
	for begin := time.Now(); lines.Scan(); begin = time.Now() {
		line := lines.Text()
		switch check, ok := strings.CutPrefix(line, "ok "); {
		case ok:
			passed = append(passed, check)
			t.Logf("%s (%v)", line, time.Since(begin).Round(time.Millisecond))
		case line == "restart":
			b.restart()
			fmt.Fprintln(stdin, "restarted")
		default:
			t.Error(line)
		}
	}
	return passed
}
