package sqlite

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/valve"
)

const needle = "destination-needle"

// damagedIndex returns a file with n messages of which the first is found under
// another destination than it has: one letter of an index is wrong.
func damagedIndex(t *testing.T, n int) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "index.db")
	s := open(t, path)
	var ids queue.IDSource
	for i := range n {
		m := message(&ids, fmt.Sprintf("other-%d", i%3))
		if i == 0 {
			m.Destination = needle
		}
		m.Body = []byte("BODY OF A ROW")
		if err := put(t, s, m); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	file, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	hits := 0
	for page := range len(file) / 8192 {
		p := file[page*8192 : (page+1)*8192]
		if at := bytes.Index(p, []byte(needle)); at >= 0 && !bytes.Contains(p, []byte("BODY OF A ROW")) {
			p[at+len(needle)-1] = 'f'
			hits++
		}
	}
	if hits != 1 {
		t.Fatalf("the destination is in %d indexes", hits)
	}
	if err := os.WriteFile(path, file, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestDamageStaysWithItsCaller: calls that share a commit with one that meets
// damage do not notice.
func TestDamageStaysWithItsCaller(t *testing.T) {
	s := open(t, damagedIndex(t, 10))
	now := time.Now()
	token := new(queue.IDSource).New(now)
	refs, _, err := s.Scan(t.Context(), now, queue.Incoming, queue.Cursor{}, now, 100)
	if err != nil || len(refs) != 10 {
		t.Fatal(len(refs), err)
	}
	if _, err := s.Lease(t.Context(), now, now.Add(time.Minute), token, refs); err != nil {
		t.Fatal(err)
	}
	hold, held := make(chan struct{}), make(chan struct{})
	go func() {
		_ = s.write(context.Background(), 1, func(*conn, bool) error {
			close(held)
			<-hold
			return nil
		})
	}()
	<-held
	results := make(chan error, len(refs))
	for _, ref := range refs {
		go func() {
			_, err := s.Apply(context.Background(), now, &queue.Change{Settle: []queue.Settle{{Ref: ref, Verb: queue.Ack, Token: token}}})
			if ref.Destination == needle {
				if !errors.Is(err, queue.ErrRefused) {
					t.Errorf("ack of the row with a damaged index: %v", err)
				}
				err = nil
			}
			results <- err
		}()
	}
	for n := 0; n < len(refs); n, _ = s.w.waiting() { // all will be in one commit
		runtime.Gosched()
	}
	close(hold)
	for range refs {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
	if n := waiting(t, s); n != 0 {
		t.Errorf("%d rows are free", n)
	}
}

// TestReaderOfDamagedIndex: a reader serves everything but the row that its
// index misnames, and does not turn round and round at that.
func TestReaderOfDamagedIndex(t *testing.T) {
	const n = 40
	s := open(t, damagedIndex(t, n))
	r, err := valve.OpenReader(t.Context(), s, valve.ReaderConfig{Address: "-", Wait: 2 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	served := 0
	for deadline := time.Now().Add(time.Minute); ; {
		d, err := r.Next(t.Context())
		if errors.Is(err, valve.ErrEmpty) {
			if served >= n-1 || time.Now().After(deadline) {
				break
			}
			continue // the disk may need more than Wait for one commit
		}
		if err != nil {
			t.Fatal(err)
		}
		served++
		if err := d.Ack(t.Context()); err != nil && d.Message.Destination != needle {
			t.Error(err)
		}
	}
	if served < n-1 || served > n {
		t.Errorf("%d of %d messages served", served, n)
	}
	err = s.write(t.Context(), 1, func(*conn, bool) error {
		if c := s.w.commits; c > 3*n {
			t.Errorf("%d commits", c)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	// It would wait for the end of the lease of the one that it cannot end.
	leaving, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := r.Shutdown(leaving); err != nil {
		t.Log(err)
	}
}

// What is noticed beyond SQLite's own checks is told like what it notices itself.
func TestDamageIsToldWithItsRemedy(t *testing.T) {
	err := translate("/data/pipe.db", fmt.Errorf("lease: %w: 1 rows marked, 2 read", errDamaged))
	if !errors.Is(err, queue.ErrRefused) || !strings.Contains(err.Error(), "/data/pipe.db") || !strings.Contains(err.Error(), ".recover") {
		t.Error(err)
	}
}
