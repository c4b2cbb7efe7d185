// Package queuetest is the suite that every queue.Store passes. A driver's test
// calls Run with a function that opens a fresh, empty store:
//
//	func TestStore(t *testing.T) {
//		queuetest.Run(t, func(t *testing.T) queue.Store { return open(t) })
//	}
//
// Optional interfaces (Registry, Meta, Admin, throttle.RuleStore, Corrupter,
// Damager) are tested where the store has them. A bug found in one driver becomes
// a case here.
package queuetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mvalve/mvalve/queue"
)

// Corrupter is implemented by stores under test that can damage a stored row:
// Corrupt changes one byte of the body of the row that ref names.
type Corrupter interface {
	Corrupt(t *testing.T, ref queue.Ref)
}

// Run runs the whole suite. open is called once per case, with that case's t;
// it must register its own cleanup. Run closes the store itself as well.
func Run(t *testing.T, open func(t *testing.T) queue.Store) {
	groups := []struct {
		name  string
		cases []testCase
	}{
		{"Put", putCases}, {"Settle", settleCases}, {"Lease", leaseCases},
		{"Find", findCases}, {"Admin", adminCases}, {"Rules", ruleCases}, {"Damage", damageCases},
	}
	for _, g := range groups {
		t.Run(g.name, func(t *testing.T) {
			for _, c := range g.cases {
				t.Run(c.name, func(t *testing.T) {
					f := newFixture(t, open(t))
					c.run(f)
				})
			}
		})
	}
}

type testCase struct {
	name string
	run  func(f *fixture)
}

// fixture is a store under test and a clock that only the case moves.
type fixture struct {
	*testing.T
	ctx   context.Context
	store queue.Store
	ids   queue.IDSource
	now   time.Time
}

func newFixture(t *testing.T, store queue.Store) *fixture {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute) // some cases make hundreds of commits
	t.Cleanup(cancel)
	now, err := store.Now(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	return &fixture{T: t, ctx: ctx, store: store, now: now.UTC().Truncate(time.Microsecond)}
}

func (f *fixture) pass(d time.Duration) { f.now = f.now.Add(d) }

func (f *fixture) id() queue.ID { return f.ids.New(f.now) }

// message returns a message of lane incoming for destination.
func (f *fixture) message(destination string) *queue.Message {
	id := f.id()
	return &queue.Message{
		ID: id, Destination: destination, Lane: queue.Incoming, EnqueuedAt: f.now,
		Body: []byte("body of " + id.String()),
	}
}

// timed returns a message of lane timed that is ready after d.
func (f *fixture) timed(destination string, d time.Duration) *queue.Message {
	m := f.message(destination)
	m.Lane, m.ReadyAt = queue.Timed, f.now.Add(d)
	return m
}

func (f *fixture) messages(destination string, n int) []*queue.Message {
	msgs := make([]*queue.Message, n)
	for i := range msgs {
		msgs[i] = f.message(destination)
	}
	return msgs
}

func (f *fixture) apply(c *queue.Change) queue.Outcome {
	f.Helper()
	out, err := f.store.Apply(f.ctx, f.now, c)
	if err != nil {
		f.Fatalf("Apply: %v", err)
	}
	return out
}

func (f *fixture) put(msgs ...*queue.Message) []queue.Ref {
	f.Helper()
	f.apply(&queue.Change{Token: f.id(), Put: msgs})
	return refsOf(msgs)
}

func refsOf(msgs []*queue.Message) []queue.Ref {
	refs := make([]queue.Ref, len(msgs))
	for i, m := range msgs {
		refs[i] = m.Ref()
	}
	return refs
}

func (f *fixture) leaseFor(d time.Duration, token queue.ID, refs ...queue.Ref) []queue.Leased {
	f.Helper()
	won, err := f.store.Lease(f.ctx, f.now, f.now.Add(d), token, refs)
	if err != nil {
		f.Fatalf("Lease: %v", err)
	}
	return won
}

// lease leases all of refs for a minute and fails if one was not won.
func (f *fixture) lease(refs ...queue.Ref) (queue.ID, []queue.Leased) {
	f.Helper()
	token := f.id()
	won := f.leaseFor(time.Minute, token, refs...)
	if len(won) != len(refs) {
		f.Fatalf("leased %d of %d rows", len(won), len(refs))
	}
	for _, l := range won {
		if l.Err != nil {
			f.Fatalf("leased %v: %v", l.Ref.ID, l.Err)
		}
	}
	return token, won
}

// settle ends one lease and reports whether it still stood.
func (f *fixture) settle(s queue.Settle) bool {
	f.Helper()
	return len(f.apply(&queue.Change{Settle: []queue.Settle{s}}).Lost) == 0
}

// scan returns all free rows of a lane that are due.
func (f *fixture) scan(table queue.Lane) []queue.Ref {
	f.Helper()
	var all []queue.Ref
	var cursor queue.Cursor
	for {
		refs, next, err := f.store.Scan(f.ctx, f.now, table, cursor, f.now, 100)
		if err != nil {
			f.Fatalf("Scan: %v", err)
		}
		all = append(all, refs...)
		if next == cursor {
			return all
		}
		cursor = next
	}
}

func (f *fixture) heads(q queue.HeadQuery) ([]queue.Ref, string) {
	f.Helper()
	refs, more, err := f.store.Heads(f.ctx, f.now, q)
	if err != nil {
		f.Fatalf("Heads: %v", err)
	}
	return refs, more
}

// sizes fails unless the lanes hold so many free and due rows.
func (f *fixture) sizes(emergency, timed, incoming int) {
	f.Helper()
	got := []int{len(f.scan(queue.Emergency)), len(f.scan(queue.Timed)), len(f.scan(queue.Incoming))}
	f.equal(got, []int{emergency, timed, incoming})
}

func (f *fixture) dead() []queue.Letter {
	f.Helper()
	admin, ok := f.store.(queue.Admin)
	if !ok {
		f.Skip("store has no Admin")
	}
	letters, err := admin.Peek(f.ctx, queue.Dead, "", queue.Cursor{}, 1000)
	if err != nil {
		f.Fatalf("Peek: %v", err)
	}
	return letters
}

func (f *fixture) equal(got, want any) {
	f.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		f.Fatalf("difference (-want +got):\n%s", diff)
	}
}

func (f *fixture) wantError(err, want error) {
	f.Helper()
	if !errors.Is(err, want) {
		f.Fatalf("error is %v, want %v", err, want)
	}
}

// sameMessage compares what must survive storage; a nil body equals an empty one.
func (f *fixture) sameMessage(got, want *queue.Message) {
	f.Helper()
	if !bytes.Equal(got.Body, want.Body) {
		f.Fatalf("body of %d bytes differs from the %d put", len(got.Body), len(want.Body))
	}
	g, w := *got, *want
	g.Body, w.Body = nil, nil
	f.equal(fmt.Sprintf("%+v", g), fmt.Sprintf("%+v", w))
}

func idsOf(refs []queue.Ref) []queue.ID {
	ids := make([]queue.ID, len(refs))
	for i := range refs {
		ids[i] = refs[i].ID
	}
	return ids
}

func destinations(refs []queue.Ref) []string {
	names := make([]string, len(refs))
	for i := range refs {
		names[i] = refs[i].Destination
	}
	return names
}
