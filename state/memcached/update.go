package memcached

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/bradfitz/gomemcache/memcache"

	"github.com/mvalve/mvalve/state"
)

// maxRounds is how often a key is read and written before ErrConflict. Of those
// who change one key at the same time one succeeds in each round.
const maxRounds = 16

// writers is how many connections one Update uses per server: the client sends
// one request at a time on each. More gain nothing on a local network.
const writers = 8

// Update implements [state.Store]. fn runs on the caller's goroutine.
func (s *Store) Update(ctx context.Context, now time.Time, keys []string, ttls []time.Duration, fn func(i int, old state.Entry) []byte) []error {
	ctx, done := s.begin(ctx)
	defer done()
	var errs []error
	pending := make([]int, len(keys))
	for i := range keys {
		pending[i] = i
	}
	for round := 0; ; round++ {
		var changes []*change
		for i, v := range s.readSome(ctx, keys, pending, now) {
			if v.err != nil {
				errs = setError(errs, len(keys), i, v.err)
				continue
			}
			data := fn(i, v.entry)
			if data == nil {
				continue
			}
			if len(data) > maxValue {
				errs = setError(errs, len(keys), i, fmt.Errorf("memcached: value of %d bytes, at most %d are allowed", len(data), maxValue))
				continue
			}
			changes = append(changes, newChange(i, v, s.valueKey(keys[i]), data, ttlSeconds(now, ttls[i])))
		}
		s.write(ctx, changes)
		s.confirm(ctx, changes)
		pending = pending[:0]
		for _, c := range changes {
			switch {
			case c.conflict && round+1 < maxRounds:
				pending = append(pending, c.i)
			case c.conflict:
				errs = setError(errs, len(keys), c.i, fmt.Errorf("%w: memcached %s", state.ErrConflict, c.srv.name))
			case c.err != nil:
				errs = setError(errs, len(keys), c.i, c.err)
			}
		}
		if len(pending) == 0 {
			return errs
		}
		backoff(ctx, round)
	}
}

// readSome yields index and value of the keys asked for, in order.
func (s *Store) readSome(ctx context.Context, keys []string, indices []int, now time.Time) func(func(int, value) bool) {
	values := s.readAll(ctx, keys, indices, now)
	return func(yield func(int, value) bool) {
		for _, i := range indices {
			if !yield(i, values[i]) {
				return
			}
		}
	}
}

// backoff spreads those who met at a key. The next read notices the end of ctx.
func backoff(ctx context.Context, round int) {
	if round == 0 {
		return
	}
	t := time.NewTimer(rand.N(min(50*time.Microsecond<<round, 2*time.Millisecond)))
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// change is the write of one key in one round.
type change struct {
	i    int
	srv  *server
	snap *snapshot
	item *memcache.Item
	add  bool

	// The outcome: conflict asks for another round, else err nil is success.
	conflict bool
	err      error
}

func newChange(i int, v value, name string, data []byte, expiration int32) *change {
	stored := make([]byte, 0, nonceSize+len(data))
	stored = binary.BigEndian.AppendUint64(stored, v.snap.marker.nonce)
	stored = append(stored, data...)
	c := &change{i: i, srv: v.snap.srv, snap: v.snap, add: v.item == nil}
	c.item = &memcache.Item{Key: name, Value: stored, Expiration: expiration}
	if v.item != nil {
		c.item.CasID = v.item.CasID
	}
	return c
}

// send writes the item and notes how it went.
func (c *change) send(ctx context.Context, l *link) {
	if ctx.Err() != nil {
		c.err = c.srv.writeError("write", &dialError{context.Cause(ctx)})
		return
	}
	err := l.do(ctx, func(client *memcache.Client) error {
		if c.add {
			return client.Add(c.item)
		}
		return client.CompareAndSwap(c.item)
	})
	if c.conflict = others(err); !c.conflict {
		c.err = c.srv.writeError("write", err)
	}
}

// write sends all changes, a few at a time per server, and notes their outcome.
func (s *Store) write(ctx context.Context, changes []*change) {
	if len(changes) == 1 {
		sendAll(ctx, changes)
		return
	}
	byServer := make(map[*server][]*change, len(s.servers))
	for _, c := range changes {
		byServer[c.srv] = append(byServer[c.srv], c)
	}
	var wg sync.WaitGroup
	for srv, mine := range byServer {
		n := min(len(mine), writers, cap(srv.slots))
		for w := range n {
			wg.Go(func() { sendAll(ctx, mine[w*len(mine)/n:(w+1)*len(mine)/n]) })
		}
	}
	wg.Wait()
}

// sendAll sends changes of one server one after the other on one link.
func sendAll(ctx context.Context, changes []*change) {
	srv := changes[0].srv
	l, err := srv.acquire(ctx)
	if err != nil {
		for _, c := range changes {
			c.err = srv.writeError("write", err)
		}
		return
	}
	defer srv.release(l)
	for _, c := range changes {
		c.send(ctx, l)
	}
}

// confirm applies rule 2 of marker.go to the changes that succeeded and need it.
func (s *Store) confirm(ctx context.Context, changes []*change) {
	needed := make(map[*server][]*change)
	for _, c := range changes {
		if c.conflict || c.err != nil {
			continue
		}
		if c.add || c.srv.dials.Load() != c.snap.dials {
			needed[c.srv] = append(needed[c.srv], c)
		}
	}
	for srv, mine := range needed {
		now, err := s.read(ctx, srv, nil)
		for _, c := range mine {
			switch {
			case err != nil:
				// Not wrapped: err says "unavailable", but this key was written.
				c.err = fmt.Errorf("%w: look after a write: %s", state.ErrUnknown, err.Error())
			case now.marker.nonce != c.snap.marker.nonce:
				c.conflict = true
			}
		}
	}
}
