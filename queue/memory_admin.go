package queue

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"
)

// Announce implements Registry.
func (m *Memory) Announce(ctx context.Context, now, since time.Time, p Presence) ([]Presence, error) {
	if err := m.enter(ctx); err != nil {
		return nil, err
	}
	defer m.mu.Unlock()
	if !p.ID.IsZero() {
		p.SeenAt, p.Started = Time(Micros(now)), Time(Micros(p.Started))
		m.readers[p.ID] = p
	}
	var seen []Presence
	for id, r := range m.readers {
		if r.SeenAt.Before(now.Add(-time.Hour)) {
			delete(m.readers, id)
		} else if !r.SeenAt.Before(since) {
			seen = append(seen, r)
		}
	}
	slices.SortFunc(seen, func(a, b Presence) int { return a.ID.Compare(b.ID) })
	return seen, nil
}

// Leave implements Registry.
func (m *Memory) Leave(ctx context.Context, id ID) error {
	if err := m.enter(ctx); err != nil {
		return err
	}
	defer m.mu.Unlock()
	delete(m.readers, id)
	return nil
}

// Meta implements Meta.
func (m *Memory) Meta(ctx context.Context, key string) (string, error) {
	if err := m.enter(ctx); err != nil {
		return "", err
	}
	defer m.mu.Unlock()
	return m.meta[key], nil
}

// SetMeta implements Meta.
func (m *Memory) SetMeta(ctx context.Context, key, old, value string) (string, error) {
	if err := m.enter(ctx); err != nil {
		return "", err
	}
	defer m.mu.Unlock()
	if m.meta[key] == old {
		m.meta[key] = value
	}
	return m.meta[key], nil
}

// Count implements Admin.
func (m *Memory) Count(ctx context.Context, now time.Time, destination string) ([]Count, error) {
	if err := m.enter(ctx); err != nil {
		return nil, err
	}
	defer m.mu.Unlock()
	var counts []Count
	for table := Emergency; table <= Dead; table++ {
		t := m.tables[table]
		for name, d := range t.dests {
			if destination == "" || destination == name {
				counts = append(counts, t.count(name, d.items, Micros(now)))
			}
		}
	}
	slices.SortFunc(counts, func(a, b Count) int {
		return cmp.Or(cmp.Compare(a.Destination, b.Destination), cmp.Compare(a.Table, b.Table))
	})
	return counts, nil
}

func (t *memTable) count(destination string, rows []*row, now int64) Count {
	c := Count{Destination: destination, Table: t.lane}
	first := slices.MinFunc(rows, t.byKey.compare)
	c.Oldest = first.msg.EnqueuedAt
	if t.lane == Timed {
		c.NextReady = first.msg.ReadyAt
	}
	for _, r := range rows {
		if r.free(now) {
			c.Waiting++
		} else {
			c.Leased++
		}
	}
	return c
}

// Peek implements Admin.
func (m *Memory) Peek(ctx context.Context, table Lane, destination string, after Cursor, n int) ([]Letter, error) {
	if table < Emergency || table > Dead {
		return nil, fmt.Errorf("%w: peek into table %v", ErrInvalid, table)
	}
	if err := m.enter(ctx); err != nil {
		return nil, err
	}
	defer m.mu.Unlock()
	t := m.tables[table]
	var letters []Letter
	for _, r := range t.byKey.items[t.after(after, true):] {
		if len(letters) >= n {
			break
		}
		if destination != "" && r.msg.Destination != destination {
			continue
		}
		msg, err := r.message()
		letters = append(letters, Letter{Message: msg, Table: table, DeadAt: r.deadAt, Reason: r.reason, Err: err})
	}
	return letters, nil
}

// Check reports, wrapping ErrInvalid, why no store can carry out mv.
func (mv *Move) Check() error {
	switch {
	case mv.From < Emergency || mv.From > Dead:
		return fmt.Errorf("%w: move from table %v", ErrInvalid, mv.From)
	case mv.From != Dead && !mv.Purge:
		return fmt.Errorf("%w: only dead letters can be moved back; lane %v can only be purged", ErrInvalid, mv.From)
	case mv.Limit < 0:
		return fmt.Errorf("%w: move limit %d is negative", ErrInvalid, mv.Limit)
	}
	return nil
}

// Move implements Admin.
func (m *Memory) Move(ctx context.Context, now time.Time, mv Move) (int64, error) {
	if err := mv.Check(); err != nil {
		return 0, err
	}
	if err := m.enter(ctx); err != nil {
		return 0, err
	}
	defer m.mu.Unlock()
	t := m.tables[mv.From]
	var moved int64
	for _, r := range slices.Clone(t.byKey.items) {
		switch {
		case mv.Limit > 0 && moved == int64(mv.Limit):
			return moved, nil
		case mv.Destination != "" && r.msg.Destination != mv.Destination,
			mv.IDs != nil && !slices.Contains(mv.IDs, r.msg.ID),
			!r.free(Micros(now)):
			continue
		}
		moved++
		t.remove(r)
		if mv.Purge {
			continue
		}
		r.msg.Attempts, r.msg.ReadyAt, r.deadAt, r.reason = 0, time.Time{}, time.Time{}, ""
		if r.msg.Lane == Timed {
			r.msg.ReadyAt = Time(Micros(now))
		}
		m.tables[r.msg.Lane].put(r)
	}
	return moved, nil
}

// Stats implements Admin.
func (m *Memory) Stats(ctx context.Context, since time.Time) ([]Stat, error) {
	if err := m.enter(ctx); err != nil {
		return nil, err
	}
	defer m.mu.Unlock()
	type key struct{ action, destination string }
	sums := make(map[key]int64)
	for _, s := range m.stats {
		if !s.At.Before(since) {
			sums[key{s.Action, s.Destination}] += s.Count
		}
	}
	var stats []Stat
	for k, n := range sums {
		stats = append(stats, Stat{Action: k.action, Destination: k.destination, Count: n})
	}
	slices.SortFunc(stats, func(a, b Stat) int {
		return cmp.Or(cmp.Compare(a.Action, b.Action), cmp.Compare(a.Destination, b.Destination))
	})
	return stats, nil
}

// Prune implements Admin.
func (m *Memory) Prune(ctx context.Context, logs, batches time.Time) error {
	if err := m.enter(ctx); err != nil {
		return err
	}
	defer m.mu.Unlock()
	m.stats = slices.DeleteFunc(m.stats, func(s Stat) bool { return s.At.Before(logs) })
	for token, at := range m.batches {
		if at.Before(batches) {
			delete(m.batches, token)
		}
	}
	return nil
}
