package sqlite

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mvalve/mvalve/queue"
)

// TestDamagedFile flips bits anywhere in a database file, and zeroes whole
// pages. Whatever is hit, nothing that was changed is served, no call panics or
// hangs, and what the store cannot do it says with an error that tells the file
// and what to do about it.
func TestDamagedFile(t *testing.T) {
	sound := filepath.Join(t.TempDir(), "sound.db")
	want := fill(t, sound, 60)
	file, err := os.ReadFile(sound)
	if err != nil {
		t.Fatal(err)
	}
	rounds := 100
	switch {
	case os.Getenv("MVALVE_PROOF") == "long":
		rounds = 2_000
	case raceDetector:
		rounds = 8
	}
	var told damage
	for seed := range rounds {
		r := rand.New(rand.NewPCG(uint64(seed), 815))
		damaged := bytes.Clone(file)
		what := ""
		if r.IntN(8) == 0 {
			page := r.IntN(len(file) / 8192)
			clear(damaged[page*8192 : (page+1)*8192])
			what = fmt.Sprintf("page %d is zero", page)
		} else {
			for range 1 + r.IntN(3)*r.IntN(3) {
				bit := r.IntN(8 * len(file))
				damaged[bit/8] ^= 1 << (bit % 8)
				what += fmt.Sprintf("bit %d of byte %d (page %d) ", bit%8, bit/8, bit/8/8192)
			}
		}
		path := filepath.Join(t.TempDir(), "damaged.db")
		if err := os.WriteFile(path, damaged, 0o600); err != nil {
			t.Fatal(err)
		}
		told.take(t, path, what, want)
		if t.Failed() {
			return
		}
	}
	if told.served == 0 || told.missing+told.messages+told.refused+told.failed == 0 {
		t.Errorf("nothing was served, or nothing was hit: %+v", told)
	}
	t.Logf("%d files: %d refused to open, %d with calls that failed, %d messages told to be damaged, %d served unchanged, %d not found",
		rounds, told.refused, told.failed, told.messages, told.served, told.missing)
}

// damage is what TestDamagedFile met.
type damage struct{ refused, failed, messages, served, missing int }

// fill puts n messages of a few destinations into a new file.
func fill(t *testing.T, path string, n int) map[queue.ID]*queue.Message {
	t.Helper()
	s, err := Open(t.Context(), Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	want := make(map[queue.ID]*queue.Message)
	var ids queue.IDSource
	now := queue.Time(queue.Micros(time.Now()))
	for i := range n {
		m := &queue.Message{
			ID: ids.New(now), Destination: fmt.Sprint("destination ", i%5), Lane: queue.Lane(1 + i%3), EnqueuedAt: now,
			Headers: queue.Headers{{Name: "n", Value: fmt.Sprint(i)}}, Body: bytes.Repeat([]byte{byte(i)}, i*i*5),
		}
		if m.Lane == queue.Timed {
			m.ReadyAt = now
		}
		if err := put(t, s, m); err != nil {
			t.Fatal(err)
		}
		want[m.ID] = m
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return want
}

// take does with a damaged file what a reader does: finds, leases, acks.
func (d *damage) take(t *testing.T, path, what string, want map[queue.ID]*queue.Message) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute) // up to 120 commits
	defer cancel()
	check := func(call string, err error) {
		if err == nil {
			return
		}
		d.failed++
		text := err.Error()
		if !errors.Is(err, queue.ErrRefused) && !errors.Is(err, queue.ErrSchema) && !errors.Is(err, queue.ErrUnavailable) ||
			!strings.Contains(text, path) {
			t.Errorf("%s: %s: %v", what, call, err)
		}
	}
	s, err := Open(ctx, Config{Path: path, Readers: 1})
	if err != nil {
		d.refused++
		check("Open", err)
		return
	}
	defer s.Close()
	refs := make(map[queue.ID]queue.Ref)
	now := time.Now()
	for table := queue.Emergency; table <= queue.Incoming; table++ {
		found, _, err := s.Scan(ctx, now, table, queue.Cursor{}, now.Add(time.Hour), 1000)
		check("Scan", err)
		for _, ref := range found {
			refs[ref.ID] = ref
		}
	}
	for i := range 5 {
		found, _, err := s.Heads(ctx, now, queue.HeadQuery{Destination: fmt.Sprint("destination ", i), Limit: 1000})
		check("Heads", err)
		for _, ref := range found {
			refs[ref.ID] = ref
		}
	}
	_, _, err = s.Heads(ctx, now, queue.HeadQuery{Limit: 1000})
	check("Heads of all", err)
	token := new(queue.IDSource).New(now)
	served := 0
	for _, ref := range refs { // one by one: what fails with one must not hide others
		won, err := s.Lease(ctx, now, now.Add(time.Minute), token, []queue.Ref{ref})
		check("Lease", err)
		for _, l := range won {
			verb := queue.Ack
			if l.Err != nil {
				d.messages++
				verb = queue.Kill
			} else if served++; !same(l.Message, want[l.Message.ID]) || l.Message.Destination != ref.Destination {
				t.Errorf("%s: served %+v, found as %+v", what, l.Message, ref)
			}
			_, err := s.Apply(ctx, now, &queue.Change{Settle: []queue.Settle{{Ref: l.Ref, Verb: verb, Token: token, Reason: "damaged"}}})
			check("settle", err)
		}
	}
	d.served += served
	d.missing += len(want) - served
}

// same reports whether a message is what was put, but for its lease.
func same(got, put *queue.Message) bool {
	return put != nil && got.Destination == put.Destination && got.Lane == put.Lane && got.Priority == put.Priority &&
		bytes.Equal(got.Body, put.Body) && fmt.Sprint(got.Headers) == fmt.Sprint(put.Headers) &&
		got.EnqueuedAt.Equal(put.EnqueuedAt) && got.ExpiresAt.Equal(put.ExpiresAt) && got.Hold == put.Hold
}
