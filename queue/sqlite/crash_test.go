package sqlite

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/mvalve/mvalve/queue"
)

// ledger puts batches of 20 until it is killed, and prints the number of
// messages that are committed after each.
func ledger(path string) error {
	s, err := Open(context.Background(), Config{Path: path})
	if err != nil {
		return err
	}
	var ids queue.IDSource
	for n := 20; ; n += 20 {
		now := time.Now()
		_, err := s.Apply(context.Background(), now, &queue.Change{Token: ids.New(now), Put: benchMessages(&ids, 20, 3)})
		if err != nil {
			return err
		}
		fmt.Println(n)
	}
}

// TestKilledWriterLosesNothing kills a process in the middle of its work; what
// it was told to be committed must be there, batches whole, and the file usable.
func TestKilledWriterLosesNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "crash.db")
	s := open(t, path) // another process that goes on
	before := 0
	for round := range 5 {
		p := startChild(t, path, -1)
		committed := 0
		lines := bufio.NewScanner(p.out)
		for committed < 200+round*20 && lines.Scan() {
			if _, err := fmt.Sscan(lines.Text(), &committed); err != nil {
				t.Fatal(err)
			}
		}
		if err := p.cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		for lines.Scan() { // what it said before it died
			_, _ = fmt.Sscan(lines.Text(), &committed)
		}
		_ = p.cmd.Wait()
		after := waiting(t, s)
		if got := after - before; got < committed || got > committed+20 || got%20 != 0 {
			t.Errorf("round %d: %d messages, %d were committed", round, got, committed)
		}
		before = after
	}
	var ids queue.IDSource
	if err := put(t, s, message(&ids, "a")); err != nil {
		t.Fatal(err)
	}
}

// TestDiskFull: a clear error, what was there stays, and writing goes on when
// there is room again.
func TestDiskFull(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "full.db"))
	var ids queue.IDSource
	room := func(pages int) {
		err := s.write(t.Context(), 1, func(c *conn, _ bool) error {
			_, err := c.queryInt(fmt.Sprintf("PRAGMA max_page_count=%d", pages))
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := put(t, s, message(&ids, "a")); err != nil {
		t.Fatal(err)
	}
	room(100)
	big := message(&ids, "a")
	big.Body = make([]byte, 4<<20)
	err := put(t, s, message(&ids, "a"), big)
	if !errors.Is(err, queue.ErrRefused) {
		t.Errorf("full disk: %v", err)
	}
	if n := waiting(t, s); n != 1 {
		t.Errorf("%d messages after the refusal, want 1", n)
	}
	room(1 << 30)
	if err := put(t, s, big); err != nil {
		t.Error(err)
	}
}
