package state

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"time"
)

// Memory is a Store in the memory of one process. The zero value is ready. It
// never forgets but by TTL, unless Wipe is called, and its TTL runs by the
// latest now that any Update was given.
type Memory struct {
	// Fault, if not nil, is asked before every access to a key whether it
	// fails: for tests of what stands on a Store. An error is what the caller
	// gets for this key; with apply an Update is carried out nevertheless
	// (ErrUnknown). It is called under the store's lock. Set it before use.
	Fault func(key string, update bool) (apply bool, err error)

	mu     sync.Mutex
	values map[string]memoryValue
	now    time.Time
	lost   time.Time
	purge  int // size at which expired values are removed next
}

type memoryValue struct {
	data    []byte
	expires time.Time
}

// NewMemory returns an empty Memory.
func NewMemory() *Memory { return &Memory{} }

// Get implements Store.
func (m *Memory) Get(ctx context.Context, keys []string) ([]Entry, []error) {
	entries := make([]Entry, len(keys))
	var errs []error
	m.mu.Lock()
	defer m.mu.Unlock()
	for i, key := range keys {
		if err := m.fault(ctx, key); err != nil {
			errs = setError(errs, len(keys), i, err)
			continue
		}
		entries[i] = m.entry(key)
		entries[i].Data = bytes.Clone(entries[i].Data)
	}
	return entries, errs
}

// Update implements Store. fn runs once per key, under the store's lock.
func (m *Memory) Update(ctx context.Context, now time.Time, keys []string, ttls []time.Duration, fn func(i int, old Entry) []byte) []error {
	var errs []error
	m.mu.Lock()
	defer m.mu.Unlock()
	if now.After(m.now) {
		m.now = now
	}
	for i, key := range keys {
		apply, err := true, ctxError(ctx)
		if err != nil {
			apply = false
		} else if m.Fault != nil {
			if apply, err = m.Fault(key, true); err == nil {
				apply = true
			}
		}
		if err != nil {
			errs = setError(errs, len(keys), i, err)
		}
		if !apply {
			continue
		}
		if data := fn(i, m.entry(key)); data != nil {
			m.put(key, memoryValue{bytes.Clone(data), m.now.Add(ttls[i])})
		}
	}
	return errs
}

// Delete implements Store.
func (m *Memory) Delete(ctx context.Context, key string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.fault(ctx, key); err != nil {
		return err
	}
	delete(m.values, key)
	return nil
}

// Close implements Store; the values stay.
func (m *Memory) Close() error { return nil }

// Wipe forgets everything, as a cache does that restarts at now: absent entries
// say Lost from then on.
func (m *Memory) Wipe(now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.values, m.lost = nil, now
}

func (m *Memory) fault(ctx context.Context, key string) error {
	if err := ctxError(ctx); err != nil {
		return err
	}
	if m.Fault == nil {
		return nil
	}
	_, err := m.Fault(key, false)
	return err
}

func (m *Memory) entry(key string) Entry {
	v, ok := m.values[key]
	if !ok || !v.expires.After(m.now) {
		return Entry{Lost: m.lost}
	}
	return Entry{Data: v.data}
}

// put stores v, and looks for expired values whenever their number may have doubled.
func (m *Memory) put(key string, v memoryValue) {
	if m.values == nil {
		m.values = make(map[string]memoryValue)
	}
	m.values[key] = v
	if len(m.values) < max(m.purge, 1024) {
		return
	}
	for k, v := range m.values {
		if !v.expires.After(m.now) {
			delete(m.values, k)
		}
	}
	m.purge = 2 * len(m.values)
}

func setError(errs []error, n, i int, err error) []error {
	if errs == nil {
		errs = make([]error, n)
	}
	errs[i] = err
	return errs
}

// ctxError returns why ctx ended as ErrUnavailable: nothing was done.
func ctxError(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return nil
}
