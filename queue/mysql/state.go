package mysql

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"time"

	"github.com/mvalve/mvalve/internal/sqlstore"
	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/state"
)

// stateStore is the state.Store in q_state. It never forgets but by TTL, which
// runs by the latest now that any Update of this process was given.
type stateStore struct {
	s   *Store
	now atomic.Int64
}

// State returns the state.Store in q_state, on the connections of s. Closing it
// does nothing; it ends with s.
func (s *Store) State() state.Store { return &s.state }

// stateSizes are the row counts for which writes to q_state are prepared.
var stateSizes = []int{64, 16, 4, 1}

// stateRow is a row of q_state; version 0 means that there is none.
type stateRow struct {
	data    []byte // nil when there is none or it has expired
	version int64
}

// Get implements state.Store.
func (t *stateStore) Get(ctx context.Context, keys []string) ([]state.Entry, []error) {
	entries := make([]state.Entry, len(keys))
	var found map[string]stateRow
	for start := 0; start < len(keys); start += maxKeys {
		part := keys[start:min(start+maxKeys, len(keys))]
		err := t.s.retry(ctx, "state get", func(*attempt) error {
			var err error
			found, err = t.read(ctx, t.s.auto(), part, "")
			return err
		})
		if err != nil {
			errs := make([]error, len(keys))
			for i := range errs {
				errs[i] = stateError(err)
			}
			return make([]state.Entry, len(keys)), errs
		}
		for i, key := range part {
			entries[start+i].Data = found[key].data
		}
	}
	return entries, nil
}

func (t *stateStore) read(ctx context.Context, r runner, keys []string, lock string) (map[string]stateRow, error) {
	size := paddedSize(len(keys))
	text := cached.get("state"+lock, queue.LaneUnset, size, func() string {
		return "SELECT `key`, value, version, expires_at FROM q_state FORCE INDEX (PRIMARY) WHERE `key` IN (" + repeat("?", size) + ")" + lock
	})
	args := make([]any, size)
	for i := range args {
		args[i] = keys[min(i, len(keys)-1)]
	}
	found := make(map[string]stateRow, len(keys))
	now := t.now.Load()
	err := r.query(ctx, text, args, func(rows *sql.Rows) error {
		var key string
		var row stateRow
		var expires int64
		if err := rows.Scan(&key, &row.data, &row.version, &expires); err != nil {
			return err
		}
		if expires <= now {
			row.data = nil
		}
		found[key] = row
		return nil
	})
	return found, err
}

// Update implements state.Store. Keys are written in order, at most maxKeys in
// one transaction, each only while its row has the version that fn's old value
// had. A first attempt reads without locks; when others were faster, the next
// one locks what it reads, and still writes conditionally. Every write draws its
// version at random: after a lost answer the version tells whether it was made.
func (t *stateStore) Update(ctx context.Context, now time.Time, keys []string, ttls []time.Duration, fn func(int, state.Entry) []byte) []error {
	for {
		latest := t.now.Load()
		if micros := queue.Micros(now); micros <= latest || t.now.CompareAndSwap(latest, micros) {
			break
		}
	}
	order := make([]int, len(keys))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(keys[a], keys[b]) })
	u := &stateUpdate{t: t, ctx: ctx, now: now, keys: keys, ttls: ttls, fn: fn}
	for len(order) > 0 {
		part := make([]int, 0, min(len(order), maxKeys))
		var later []int // a key named twice sees its first update
		for i, k := range order {
			switch {
			case len(part) == maxKeys:
				later = append(later, order[i:]...)
			case len(part) > 0 && keys[part[len(part)-1]] == keys[k]:
				later = append(later, k)
				continue
			default:
				part = append(part, k)
				continue
			}
			break
		}
		u.run(part)
		order = later
	}
	return u.errs
}

// stateUpdate is one call of Update.
type stateUpdate struct {
	t    *stateStore
	ctx  context.Context
	now  time.Time
	keys []string
	ttls []time.Duration
	fn   func(int, state.Entry) []byte
	errs []error
}

// stateWrite is what one attempt wants to write under a key.
type stateWrite struct {
	index    int
	data     []byte
	was, new int64 // versions; was 0: no row
}

func (u *stateUpdate) fail(i int, err error) {
	if u.errs == nil {
		u.errs = make([]error, len(u.keys))
	}
	u.errs[i] = err
}

// run updates the keys of part, sorted and distinct.
func (u *stateUpdate) run(part []int) {
	doubtful := make(map[int][]stateWrite) // attempts whose answer was lost
	err := u.t.s.retry(u.ctx, "state update", func(a *attempt) error {
		if len(part) == 0 {
			return nil
		}
		var writes []stateWrite
		attempt := func(r runner, lock string) error {
			var err error
			if writes, err = u.prepare(r, part, lock, doubtful); err != nil {
				return err
			}
			part = part[:0]
			for i := range writes {
				part = append(part, writes[i].index)
			}
			return nil
		}
		var err error
		a.unknown = false
		if a.careful {
			err = u.t.s.transact(u.ctx, a, func(r runner) error {
				if err := attempt(r, " FOR UPDATE"); err != nil {
					return err
				}
				return u.write(r, writes)
			})
		} else if err = attempt(u.t.s.auto(), ""); err == nil {
			err = u.commit(a, writes)
		}
		if errors.Is(err, errConflict) {
			a.careful = true
		}
		if a.unknown {
			for _, w := range writes {
				doubtful[w.index] = append(doubtful[w.index], w)
			}
		}
		a.unknown = len(doubtful) > 0
		return err
	})
	if err != nil {
		for _, i := range part {
			u.fail(i, stateError(err))
		}
	}
}

// prepare reads the keys of part and asks fn what to write. Keys that a doubtful
// attempt turns out to have written are done; where others have written since,
// nobody can tell any more.
func (u *stateUpdate) prepare(r runner, part []int, lock string, doubtful map[int][]stateWrite) ([]stateWrite, error) {
	names := make([]string, len(part))
	for k, i := range part {
		names[k] = u.keys[i]
	}
	found, err := u.t.read(u.ctx, r, names, lock)
	if err != nil {
		return nil, err
	}
	writes := make([]stateWrite, 0, len(part))
	for _, i := range part {
		row := found[u.keys[i]]
		done, changed := settleDoubt(doubtful[i], row.version)
		switch {
		case done:
			delete(doubtful, i)
			continue
		case changed:
			delete(doubtful, i)
			u.fail(i, fmt.Errorf("%w: mysql %s: written by others since the answer was lost", state.ErrUnknown, u.t.s.address))
			continue
		}
		if data := u.fn(i, state.Entry{Data: row.data}); data != nil {
			writes = append(writes, stateWrite{index: i, data: data, was: row.version, new: 1 + rand.Int64N(1<<62)})
		}
	}
	return writes, nil
}

// settleDoubt compares the version that stands with what doubtful attempts
// wanted: done if one of them made it, changed if something else happened. While
// the version is the old one, an attempt may still be carried out: it stays in
// doubt, and the conditional write lets one of the two happen.
func settleDoubt(attempts []stateWrite, version int64) (done, changed bool) {
	for _, w := range attempts {
		if w.new == version {
			return true, false
		}
		changed = changed || w.was != version
	}
	return false, changed
}

// commit writes in a transaction; a single key needs no more than its statement.
func (u *stateUpdate) commit(a *attempt, writes []stateWrite) error {
	switch len(writes) {
	case 0:
		return nil
	case 1:
		err := u.write(u.t.s.auto(), writes)
		a.unknown = a.unknown || err != nil && faultOf(err) == faultLost
		return err
	}
	return u.t.s.transact(u.ctx, a, func(r runner) error { return u.write(r, writes) })
}

// write makes all writes or fails with errConflict; the caller rolls back then.
func (u *stateUpdate) write(r runner, writes []stateWrite) error {
	if len(writes) == 1 && writes[0].was != 0 {
		w := writes[0]
		n, err := r.exec(u.ctx, "UPDATE q_state SET value = ?, was = version, version = ?, expires_at = ? WHERE `key` = ? AND version = ?",
			w.data, w.new, u.expires(w), u.keys[w.index], w.was)
		if err == nil && n != 1 {
			return errConflict
		}
		return err
	}
	var fresh, old []stateWrite
	for _, w := range writes {
		if w.was == 0 {
			fresh = append(fresh, w)
		} else {
			old = append(old, w)
		}
	}
	if err := u.writeRows(r, old, 2, replaceState); err != nil {
		return err
	}
	err := u.writeRows(r, fresh, 1, "")
	if code(err) == codeDuplicate {
		return errConflict
	}
	return err
}

func (u *stateUpdate) expires(w stateWrite) int64 { return queue.Micros(u.now.Add(u.ttls[w.index])) }

// replaceState writes a row only over the version it was read with. The server
// counts 2 for a row it changed and 1 for one it left alone or had to make.
const replaceState = " ON DUPLICATE KEY UPDATE value = IF(version = VALUES(was), VALUES(value), value), " +
	"expires_at = IF(version = VALUES(was), VALUES(expires_at), expires_at), " +
	"version = IF(version = VALUES(was), VALUES(version), version)"

func (u *stateUpdate) writeRows(r runner, writes []stateWrite, each int, rest string) error {
	for start, size := range sqlstore.Batches(len(writes), stateSizes) {
		text := cached.get("put state"+rest, queue.LaneUnset, size, func() string {
			return "INSERT INTO q_state (`key`, value, version, was, expires_at) VALUES " + repeat("(?, ?, ?, ?, ?)", size) + rest
		})
		args := make([]any, 0, 5*size)
		for _, w := range writes[start : start+size] {
			args = append(args, u.keys[w.index], w.data, w.new, w.was, u.expires(w))
		}
		n, err := r.exec(u.ctx, text, args...)
		if err != nil {
			return err
		}
		if n != int64(each*size) {
			return errConflict
		}
	}
	return nil
}

// Delete implements state.Store.
func (t *stateStore) Delete(ctx context.Context, key string) error {
	err := t.s.retry(ctx, "state delete", func(*attempt) error {
		_, err := t.s.auto().exec(ctx, "DELETE FROM q_state WHERE `key` = ?", key)
		return err
	})
	if err != nil {
		return stateError(err)
	}
	return nil
}

// Close implements state.Store; the connections stay with the queue.Store.
func (t *stateStore) Close() error { return nil }

// stateError gives an error of retry its meaning for the port state.
func stateError(err error) error {
	kind := state.ErrUnavailable
	switch {
	case errors.Is(err, queue.ErrUnknown):
		kind = state.ErrUnknown
	case faultOf(err) == faultConflict:
		kind = state.ErrConflict
	}
	return fmt.Errorf("%w: %w", kind, err)
}
