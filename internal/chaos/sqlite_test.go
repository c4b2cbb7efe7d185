package chaos_test

import (
	"bufio"
	"context"
	"database/sql"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// runHolder is a foreign process, such as a person with a shell, that holds the
// write lock of the SQLite file until its input ends.
func runHolder() int {
	ctx := context.Background()
	path := strings.TrimPrefix(os.Getenv(queueVariable), "sqlite:")
	db, err := sql.Open("sqlite", "file:"+path+"?_txlock=immediate&_pragma=busy_timeout(1000)")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer db.Close()
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return exitUnavailable
	}
	defer tx.Rollback()
	fmt.Println("held")
	_, _ = bufio.NewReader(os.Stdin).ReadString('\n')
	return 0
}

// hold takes the write lock of the SQLite file in another process and returns
// how to give it back. ok is false if it did not get it.
func (h *harness) hold(t *testing.T) (undo func(), ok bool) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), roleVariable+"="+holderRole, queueVariable+"="+h.queue)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, _ := bufio.NewReader(out).ReadString('\n')
	return func() { in.Close(); _ = cmd.Wait() }, line == "held\n"
}
