package cmd_test

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// The commands of the scripts that wait for something try for so long, every
// pause: processes that start beside them need the processors, too.
const (
	patience = time.Minute
	pause    = 20 * time.Millisecond
)

// poll tries until there is no error.
func poll(ts *testscript.TestScript, try func() error) {
	deadline := time.Now().Add(patience)
	for {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("after %v: %v", patience, err)
		}
		<-time.After(pause)
	}
}

// addressCommand sets a variable to the address that a server in the background
// says it listens on, once its output in FILE has it: address NAME FILE STOMP|HTTP
func addressCommand(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: address NAME FILE STOMP|HTTP")
	}
	said := regexp.MustCompile(args[2] + ` on (127\.0\.0\.1:\d+)\b.*\n`) // a whole line
	poll(ts, func() error {
		text, err := os.ReadFile(ts.MkAbs(args[1]))
		if err != nil {
			return err
		}
		found := said.FindSubmatch(text)
		if found == nil {
			return fmt.Errorf("no address in %q", text)
		}
		ts.Setenv(args[0], string(found[1]))
		return nil
	})
}

// stompCommand writes a file, in which ^@ stands for NUL, to a server and reads
// until what came matches all expressions, or with ! until the server closes,
// when none may match: stomp ADDRESS FILE REGEXP...
func stompCommand(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 3 {
		ts.Fatalf("usage: stomp ADDRESS FILE REGEXP...")
	}
	conn, err := net.Dial("tcp", args[0])
	ts.Check(err)
	defer conn.Close()
	ts.Check(conn.SetDeadline(time.Now().Add(patience)))
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
	poll(ts, func() error {
		answer, err := http.Get(args[1])
		if err != nil {
			return err
		}
		answer.Body.Close()
		if got := fmt.Sprint(answer.StatusCode); got != args[0] {
			return fmt.Errorf("get %s: %s, want %s", args[1], got, args[0])
		}
		return nil
	})
}
