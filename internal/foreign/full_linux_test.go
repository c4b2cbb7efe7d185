package foreign_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/go-stomp/stomp/v3"
)

// TestFullDisk: when ocamlmq could not write to its disk once, the thread that
// wrote ended for good, and the broker went on giving receipts for messages
// that it only had in memory.
//
// Here nobody gets a RECEIPT for what is not on disk, while there is no room and
// after; and when there is room again the same process stores messages again.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	t.Run("tmpfs", func(t *testing.T) {
		dir := t.TempDir()
		// In a mount namespace of its own nobody else sees the small disk, and it
		// goes with the process.
		mount := []string{"-rm", "sh", "-c", `mount -t tmpfs -o size=3m none "$0" && exec "$@"`, dir}
		if out, err := exec.Command("unshare", append(mount, "true")...).CombinedOutput(); err != nil {
			t.Skipf("no mount namespaces here: %v: %s", err, out)
		}
		b := newBroker(t, "sqlite:"+filepath.Join(dir, "mvalve.db"))
		b.program, b.args = "unshare", append(append(mount, command), b.args...)
		b.start()
		inside := fmt.Sprintf("/proc/%d/root%s", b.cmd.Process.Pid, dir)
		filler := filepath.Join(inside, "filler")
		fullDisk(t, b, inside,
			func() error { return writeUntilFull(filler) },
			func() error { return os.Remove(filler) })
	})
	t.Run("file size", func(t *testing.T) {
		if _, err := exec.LookPath("prlimit"); err != nil {
			t.Skip("no prlimit here")
		}
		dir := t.TempDir()
		b := serve(t, "sqlite:"+filepath.Join(dir, "mvalve.db"))
		limit := func(bytes string) func() error {
			return func() error {
				return exec.Command("prlimit", "--pid", fmt.Sprint(b.cmd.Process.Pid), "--fsize="+bytes+":").Run()
			}
		}
		fullDisk(t, b, dir, limit("600000"), limit("unlimited"))
	})
}

// writeUntilFull leaves no room beside the file.
func writeUntilFull(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	for block := make([]byte, 4096); err == nil; {
		_, err = f.Write(block)
	}
	if errors.Is(err, syscall.ENOSPC) {
		return nil
	}
	return err
}

// fullDisk sends until the broker refuses, and a while longer, then makes room
// and sends again. In the end another broker must find all that had a receipt in
// the files as they are at that moment: what a crash would leave.
func fullDisk(t *testing.T, b *broker, dir string, fill, free func() error) {
	sent := newLedger()
	b.tryPut(t, sent, "before")
	if sent.size() != 1 {
		t.Fatal("nothing is stored before the disk is full")
	}
	if err := fill(); err != nil {
		t.Fatal(err)
	}
	refused := 0
	for n := 0; refused < 10; n++ {
		if n == 2000 {
			t.Fatalf("only %d of %d messages were refused: the disk is not full", refused, n)
		}
		if err := b.tryPut(t, sent, fmt.Sprint(n, strings.Repeat(".", 8000))); err != nil {
			refused++
		}
	}
	t.Logf("%d receipts, then %d refused", sent.size(), refused)
	if err := free(); err != nil {
		t.Fatal(err)
	}
	b.await("messages are stored again", func() bool { return b.tryPut(t, sent, "after") == nil })
	for n := range 20 {
		if err := b.tryPut(t, sent, fmt.Sprint("after ", n)); err != nil {
			t.Errorf("after there was room again: %v", err)
		}
	}
	crashed := t.TempDir()
	if err := b.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"mvalve.db", "mvalve.db-wal"} {
		copyFile(t, filepath.Join(crashed, name), filepath.Join(dir, name))
	}
	b.kill()
	sent.check(t, serve(t, "sqlite:"+filepath.Join(crashed, "mvalve.db")), "a")
}

// tryPut sends a message over a connection of its own and notes it if its
// RECEIPT comes. Any other answer than an ERROR for it ends the test.
func (b *broker) tryPut(t *testing.T, sent *ledger, body string) error {
	t.Helper()
	c := b.dial(t, stomp.ConnOpt.RcvReceiptTimeout(patience))
	err := c.Send("/queue/a", "", []byte(body), stomp.SendOpt.Receipt)
	if err == nil {
		sent.add(body)
		c.close()
		return nil
	}
	refused, ok := errors.AsType[stomp.Error](err)
	if !ok || refused.Frame == nil {
		t.Fatalf("SEND was answered by %v, want RECEIPT or ERROR", err)
	}
	return err
}
