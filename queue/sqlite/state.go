package sqlite

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"time"

	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/state"
)

const (
	maxKeyBytes   = 200
	maxValueBytes = 64 << 10
)

// stateStore keeps the values of a state.Store in q_state. It never forgets but
// by time to live, so that Entry.Lost is always zero.
type stateStore struct{ s *Store }

var _ state.Store = stateStore{}

// State returns the limiter state kept in the same file. Its writes share the
// commits of the queue. Closing it does nothing; it ends with the Store.
func (s *Store) State() state.Store { return stateStore{s} }

// Close implements state.Store.
func (stateStore) Close() error { return nil }

// Get implements state.Store. There is no time argument: expiry is judged by the
// clock of the machine, which is the back end's.
func (st stateStore) Get(ctx context.Context, keys []string) ([]state.Entry, []error) {
	entries := make([]state.Entry, len(keys))
	err := st.s.read(ctx, func(c *conn) error {
		return readState(c, time.Now(), keys, entries)
	})
	if err != nil {
		return nil, everyKey(keys, err)
	}
	return entries, nil
}

// readState fills entries, of the length of keys, with what is not expired.
func readState(c *conn, now time.Time, keys []string, entries []state.Entry) error {
	where := make(map[string]int, len(keys))
	for i, key := range keys {
		where[key] = i
	}
	for start := 0; start < len(keys); start += maxKeys {
		part := keys[start:min(start+maxKeys, len(keys))]
		size := keySize(len(part))
		args := make([]any, 0, size+1)
		for i := range size {
			args = append(args, part[min(i, len(part)-1)])
		}
		args = append(args, queue.Micros(now))
		err := c.query(context.Background(), c.text(opReadState, 0, size), args, func(row []driver.Value) error {
			if i, ok := where[textOf(row[0])]; ok {
				if entries[i].Data = bytesOf(row[1]); entries[i].Data == nil {
					entries[i].Data = []byte{} // damaged, not absent
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	for i, key := range keys { // a key asked for twice
		entries[i] = entries[where[key]]
	}
	return nil
}

// Update implements state.Store. All keys go into one commit, and as only one
// writer is inside at a time, no value changes between fn and its commit.
func (st stateStore) Update(ctx context.Context, now time.Time, keys []string, ttls []time.Duration, fn func(i int, old state.Entry) []byte) []error {
	var errs []error
	err := st.s.write(ctx, len(keys), func(c *conn, _ bool) error {
		errs = nil
		entries := make([]state.Entry, len(keys))
		if err := readState(c, now, keys, entries); err != nil {
			return err
		}
		last := make(map[string]int, len(keys)) // a key given twice sees its first result
		args := make([]any, 0, 3*len(keys))
		rows := 0
		for i, key := range keys {
			if k, twice := last[key]; twice {
				entries[i] = entries[k]
			}
			value := fn(i, entries[i])
			if value == nil {
				continue
			}
			if len(key) == 0 || len(key) > maxKeyBytes || len(value) > maxValueBytes {
				if errs == nil {
					errs = make([]error, len(keys))
				}
				errs[i] = fmt.Errorf("sqlite: state key of %d bytes with a value of %d: too large", len(key), len(value))
				continue
			}
			entries[i] = state.Entry{Data: value}
			last[key] = i
			args = append(args, key, value, queue.Micros(now.Add(ttls[i])))
			rows++
		}
		return writeState(c, args, rows)
	})
	if err != nil {
		return everyKey(keys, err)
	}
	return errs
}

func writeState(c *conn, args []any, rows int) error {
	for rows > 0 {
		n := insertSizes[0]
		for i := 1; n > rows; i++ {
			n = insertSizes[i]
		}
		if _, err := c.exec(c.text(opWriteState, 0, n), args[:3*n]...); err != nil {
			return err
		}
		args, rows = args[3*n:], rows-n
	}
	return nil
}

// Delete implements state.Store.
func (st stateStore) Delete(ctx context.Context, key string) error {
	err := st.s.write(ctx, 1, func(c *conn, _ bool) error {
		_, err := c.exec("DELETE FROM q_state WHERE key = ?", key)
		return err
	})
	return stateError(err)
}

// everyKey returns err, as an error of package state, once for every key.
func everyKey(keys []string, err error) []error {
	err = stateError(err)
	errs := make([]error, len(keys))
	for i := range errs {
		errs[i] = err
	}
	return errs
}

func stateError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, queue.ErrUnknown):
		return fmt.Errorf("%w: %w", state.ErrUnknown, err)
	}
	return fmt.Errorf("%w: %w", state.ErrUnavailable, err)
}
