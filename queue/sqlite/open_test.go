package sqlite

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mvalve/mvalve/internal/sqlstore"
	"github.com/mvalve/mvalve/queue"
)

func message(ids *queue.IDSource, destination string) *queue.Message {
	now := time.Now()
	return &queue.Message{ID: ids.New(now), Destination: destination, Lane: queue.Incoming, EnqueuedAt: now, Body: []byte("body")}
}

func put(t testing.TB, s *Store, msgs ...*queue.Message) error {
	t.Helper()
	_, err := s.Apply(t.Context(), time.Now(), &queue.Change{Token: new(queue.IDSource).New(time.Now()), Put: msgs})
	return err
}

func waiting(t testing.TB, s *Store) int {
	t.Helper()
	refs, _, err := s.Scan(t.Context(), time.Now(), queue.Incoming, queue.Cursor{}, time.Now(), 100000)
	if err != nil {
		t.Fatal(err)
	}
	return len(refs)
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	garbage := filepath.Join(dir, "garbage.db")
	if err := os.WriteFile(garbage, []byte(strings.Repeat("not a database. ", 1000)), 0o600); err != nil {
		t.Fatal(err)
	}
	future := filepath.Join(dir, "future.db")
	s := open(t, future)
	if _, err := s.SetMeta(t.Context(), "schema", sqlstore.SchemaVersion, "7"); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]error{
		"":                               queue.ErrRefused,
		dir:                              queue.ErrRefused,
		garbage:                          queue.ErrRefused,
		filepath.Join(dir, "no", "x.db"): queue.ErrUnavailable,
		future:                           queue.ErrSchema,
	} {
		_, err := Open(t.Context(), Config{Path: path})
		if !errors.Is(err, want) {
			t.Errorf("Open(%q): %v, want %v", path, err, want)
		}
		if err != nil && path != "" && !strings.Contains(err.Error(), path) {
			t.Errorf("Open(%q): %v does not name the file", path, err)
		}
	}
	after, err := os.ReadFile(garbage)
	if err != nil || !strings.HasPrefix(string(after), "not a database. ") {
		t.Errorf("the foreign file was changed: %v", err)
	}
}

func TestOpenTwice(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a b?#%.db") // names that a URI would trip over
	first := open(t, path)
	if !first.Created() || first.Path() != path {
		t.Errorf("Created %v, Path %q", first.Created(), first.Path())
	}
	link := filepath.Join(dir, "link.db")
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	second := open(t, link)
	if first.pool != second.pool {
		t.Fatal("one file has two pools")
	}
	var ids queue.IDSource
	if err := put(t, first, message(&ids, "a")); err != nil {
		t.Fatal(err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if err := put(t, first, message(&ids, "a")); !errors.Is(err, queue.ErrClosed) {
		t.Errorf("put after Close: %v", err)
	}
	if err := put(t, second, message(&ids, "a")); err != nil {
		t.Fatal(err)
	}
	if err := second.Close(); err != nil {
		t.Fatal(err)
	}
	third := open(t, path)
	if n := waiting(t, third); n != 2 || third.Created() {
		t.Errorf("reopened with %d messages, Created %v", n, third.Created())
	}
}

// blockWriter holds the writer inside a transaction until release is called.
func blockWriter(t *testing.T, s *Store) (release func()) {
	t.Helper()
	entered, leave, done := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	go func() {
		done <- s.write(context.Background(), 1, func(*conn, bool) error {
			close(entered)
			<-leave
			return nil
		})
	}()
	<-entered
	return func() {
		close(leave)
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// queued waits until n requests wait for the writer.
func queued(t *testing.T, s *Store, n int) {
	t.Helper()
	deadline := time.After(time.Minute)
	poll := time.NewTicker(time.Millisecond)
	defer poll.Stop()
	for {
		got, _ := s.w.waiting()
		if got == n {
			return
		}
		select {
		case <-poll.C:
		case <-deadline:
			t.Fatalf("%d requests wait, want %d", got, n)
		}
	}
}

func TestSharedCommitIsolatesFailures(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "x.db"))
	var ids queue.IDSource
	taken := message(&ids, "taken")
	if err := put(t, s, taken); err != nil {
		t.Fatal(err)
	}
	before := commits(t, s)
	release := blockWriter(t, s)
	const callers = 10
	errs := make([]error, callers)
	done := make(chan struct{})
	for i := range callers {
		m := message(&ids, "a")
		if i == 4 {
			m.ID = taken.ID
		}
		go func() {
			errs[i] = put(t, s, m)
			done <- struct{}{}
		}()
	}
	queued(t, s, callers)
	release()
	for range callers {
		<-done
	}
	for i, err := range errs {
		if i == 4 && !errors.Is(err, queue.ErrDuplicate) || i != 4 && err != nil {
			t.Errorf("caller %d: %v", i, err)
		}
	}
	if n := waiting(t, s); n != callers {
		t.Errorf("%d messages, want %d", n, callers)
	}
	if got := commits(t, s) - before; got != 3 { // the first look, the blocked one, the batch
		t.Errorf("%d transactions, want 3", got)
	}
}

// commits returns the writer's counter as it stands in its own goroutine.
func commits(t *testing.T, s *Store) (n int) {
	t.Helper()
	err := s.write(t.Context(), 1, func(*conn, bool) error {
		n = s.w.commits
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestWithdrawnRequestIsNotDone(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "x.db"))
	var ids queue.IDSource
	release := blockWriter(t, s)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := s.Apply(ctx, time.Now(), &queue.Change{Token: ids.New(time.Now()), Put: []*queue.Message{message(&ids, "a")}})
		done <- err
	}()
	queued(t, s, 1)
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("withdrawn: %v", err)
	}
	release()
	if n := waiting(t, s); n != 0 {
		t.Errorf("a withdrawn request left %d messages", n)
	}
}

func TestLogIsTruncated(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "x.db"))
	var ids queue.IDSource
	big := message(&ids, "a")
	big.Body = make([]byte, 1<<20)
	if err := put(t, s, big); err != nil {
		t.Fatal(err)
	}
	size := func() int64 {
		info, err := os.Stat(s.Path() + "-wal")
		if err != nil {
			t.Fatal(err)
		}
		return info.Size()
	}
	if size() < 1<<20 {
		t.Fatalf("log has %d bytes, the test needs a longer one", size())
	}
	release := blockWriter(t, s) // the field belongs to the writer's goroutine
	s.w.walLimit, s.w.unsaved = 1<<19, walCommits-1
	release()
	for range 2 { // the second is served after the log was truncated
		if err := s.Init(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if n := size(); n >= 1<<20 {
		t.Errorf("log still has %d bytes", n)
	}
	if n := waiting(t, s); n != 1 {
		t.Errorf("%d messages after truncation", n)
	}
}
