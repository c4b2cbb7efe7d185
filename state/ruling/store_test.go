package ruling

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/state"
)

// flakyMeta is a Meta that can be cut off.
type flakyMeta struct {
	meta queue.Meta
	down atomic.Bool
}

func (f *flakyMeta) Meta(ctx context.Context, key string) (string, error) {
	if f.down.Load() {
		return "", queue.ErrUnavailable
	}
	return f.meta.Meta(ctx, key)
}

func (f *flakyMeta) SetMeta(ctx context.Context, key, old, value string) (string, error) {
	return f.meta.SetMeta(ctx, key, old, value)
}

// change makes want the ruling after before.
func change(ctx context.Context, p *queue.Memory, old string, want, before Ruling) (Ruling, error) {
	next, err := Next(ctx, p, want, before)
	if err != nil {
		return Ruling{}, err
	}
	return Set(ctx, p, old, next)
}

// follower returns a limiter of p whose stores are in memory and told apart by epoch.
func follower(t *testing.T, p *queue.Memory) (*Store, *flakyMeta) {
	t.Helper()
	first, err := change(t.Context(), p, "", Ruling{Scheme: Queue}, Ruling{})
	if err != nil {
		t.Fatal(err)
	}
	meta := &flakyMeta{meta: p}
	l := &Store{
		meta: meta, now: p.Now, stands: first, store: state.NewMemory(), checked: time.Now(),
		open: func(context.Context, Ruling) (state.Store, error) { return state.NewMemory(), nil },
	}
	return l, meta
}

func put(l *Store, value string) error {
	errs := l.Update(context.Background(), time.Now(), []string{"k"}, []time.Duration{time.Hour},
		func(int, state.Entry) []byte { return []byte(value) })
	return errors.Join(errs...)
}

func get(t *testing.T, l *Store) state.Entry {
	t.Helper()
	entries, errs := l.Get(t.Context(), []string{"k"})
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	return entries[0]
}

func TestStoreFollowsTheRuling(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := queue.NewMemory()
		l, _ := follower(t, p)
		if err := put(l, "v"); err != nil {
			t.Fatal(err)
		}
		if e := get(t, l); string(e.Data) != "v" || !e.Lost.IsZero() {
			t.Fatalf("%+v", e)
		}
		moved := time.Now()
		if _, err := change(t.Context(), p, stored(t, p), Ruling{Scheme: Queue}, l.stands); err != nil {
			t.Fatal(err)
		}
		<-time.After(recheckAfter + time.Millisecond) // in the bubble this takes no time
		if err := put(l, "w"); !errors.Is(err, state.ErrUnavailable) {
			t.Fatalf("counted while others may still use the old store: %v", err)
		}
		<-time.After(settle)
		e := get(t, l)
		if e.Data != nil || e.Lost.Sub(moved) < settle || e.Lost.Sub(moved) > settle+time.Second {
			t.Fatalf("after the move: %q, lost %v after it", e.Data, e.Lost.Sub(moved))
		}
		if err := put(l, "w"); err != nil {
			t.Fatal(err)
		}
		if e := get(t, l); string(e.Data) != "w" {
			t.Fatalf("%+v", e)
		}
	})
}

func stored(t *testing.T, p *queue.Memory) string {
	t.Helper()
	text, err := p.Meta(t.Context(), Key)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestStoreDoesNotTrustAnOldRuling(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := queue.NewMemory()
		l, meta := follower(t, p)
		meta.down.Store(true)
		<-time.After(recheckAfter + time.Millisecond)
		if err := put(l, "v"); err != nil {
			t.Fatalf("a ruling read half a second ago: %v", err)
		}
		<-time.After(trustFor)
		if err := put(l, "v"); !errors.Is(err, state.ErrUnavailable) {
			t.Fatalf("a ruling read two seconds ago still counts: %v", err)
		}
		meta.down.Store(false)
		if err := put(l, "v"); err != nil {
			t.Fatalf("the queue is back: %v", err)
		}
	})
}

// The first reader of a pipe settles where its limits are counted; later ones
// find the same, and are told where to look if that is not the database.
func TestDefault(t *testing.T) {
	p, durable := queue.NewMemory(), state.NewMemory()
	for range 2 {
		s, err := Default(t.Context(), p, durable)
		if err != nil {
			t.Fatal(err)
		}
		if r := s.(*Store).stands; r.Scheme != Queue || r.Epoch != 1 {
			t.Errorf("%+v", r)
		}
	}
	first, text, err := Read(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := change(t.Context(), p, text, Ruling{Scheme: Memcached, Servers: []string{"cache:1"}}, first); err != nil {
		t.Fatal(err)
	}
	if _, err := Default(t.Context(), p, durable); !errors.Is(err, queue.ErrRefused) || !strings.Contains(err.Error(), "memcached://cache:1") {
		t.Errorf("counted elsewhere: %v", err)
	}
	if _, err := p.SetMeta(t.Context(), Key, stored(t, p), "{"); err != nil {
		t.Fatal(err)
	}
	if _, err := Default(t.Context(), p, durable); !errors.Is(err, queue.ErrSchema) {
		t.Errorf("damaged: %v", err)
	}
}
