package cmd_test

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// The commands of the scripts that talk to mvalve serve try for ten seconds, so
// that a server may still be starting.
const patience = 10 * time.Second

// freePort sets a variable to an address that is free now: freeport NAME
func freePort(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: freeport NAME")
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	ts.Setenv(args[0], ln.Addr().String())
	ts.Check(ln.Close())
}

// stompCommand writes a file, in which ^@ stands for NUL, to a server and reads
// until what came matches all expressions, or with ! until the server closes,
// when none may match: stomp ADDRESS FILE REGEXP...
func stompCommand(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 3 {
		ts.Fatalf("usage: stomp ADDRESS FILE REGEXP...")
	}
	deadline := time.Now().Add(patience)
	conn, err := net.Dial("tcp", args[0])
	for err != nil && time.Now().Before(deadline) {
		conn, err = net.Dial("tcp", args[0])
	}
	ts.Check(err)
	defer conn.Close()
	ts.Check(conn.SetDeadline(deadline))
	_, err = io.WriteString(conn, strings.ReplaceAll(ts.ReadFile(args[1]), "^@\n", "\x00"))
	ts.Check(err)
	var got bytes.Buffer
	part := make([]byte, 4096)
	for {
		n, err := conn.Read(part)
		got.Write(part[:n])
		missing := ""
		for _, text := range args[2:] {
			found := regexp.MustCompile(text).Match(got.Bytes())
			if found && neg {
				ts.Fatalf("%q matches %s", got.Bytes(), text)
			}
			if !found {
				missing = text
			}
		}
		if missing == "" {
			return
		}
		if err != nil {
			if neg {
				return
			}
			ts.Fatalf("%v: %q does not match %s", err, got.Bytes(), missing)
		}
	}
}

// getCommand asks until the answer has the status: get STATUS URL
func getCommand(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: get STATUS URL")
	}
	last := ""
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		answer, err := http.Get(args[1])
		if err != nil {
			last = err.Error()
			continue
		}
		answer.Body.Close()
		if last = fmt.Sprint(answer.StatusCode); last == args[0] {
			return
		}
	}
	ts.Fatalf("get %s: %s, want %s", args[1], last, args[0])
}
