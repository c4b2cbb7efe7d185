//go:build unix

package sqlite

import (
	"context"
	"database/sql/driver"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/state"
	"github.com/mvalve/mvalve/throttle"
)

// facts are what a store holds, by name: messages as row, sums of statistics,
// limiter state, holds, rules and meta values.
type facts map[string]any

// row is what must be true of a stored message.
type row struct {
	owner      string // the worker
	table      queue.Lane
	lane       queue.Lane
	attempts   int
	readyAt    int64
	token      queue.ID
	leaseUntil int64
	reason     string
	sum        uint32 // over what never changes
}

func rowOf(m *queue.Message, table queue.Lane, reason string) row {
	text := fmt.Sprintf("%q %d %q %d %d %v", m.Destination, m.Priority, m.Headers, queue.Micros(m.ExpiresAt),
		queue.Micros(m.EnqueuedAt), m.Hold)
	_, owner, _ := strings.Cut(m.Destination, "of ")
	return row{owner, table, m.Lane, m.Attempts, queue.Micros(m.ReadyAt), m.LeaseToken, queue.Micros(m.LeaseUntil), reason,
		crc32.Update(crc32.ChecksumIEEE([]byte(text)), crc32.IEEETable, m.Body)}
}

func fact(id queue.ID) string { return "message " + id.String() }

// examine reads all facts out of a store, past its own ways of reading where
// those leave something out.
func examine(t testing.TB, s *Store) facts {
	t.Helper()
	f := make(facts)
	ctx := context.Background()
	for table := queue.Emergency; table <= queue.Dead; table++ {
		letters, err := s.Peek(ctx, table, "", queue.Cursor{}, 1<<30)
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range letters {
			if l.Err != nil {
				t.Errorf("%v: %v", table, l.Err)
			}
			if f[fact(l.Message.ID)] != nil {
				t.Errorf("message %v is there twice", l.Message.ID)
			}
			f[fact(l.Message.ID)] = rowOf(l.Message, table, l.Reason)
		}
	}
	stats, err := s.Stats(ctx, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	for _, st := range stats {
		f["stat "+st.Action+" "+st.Destination] = st.Count
	}
	rules, _, err := s.LoadRules(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rules {
		f["rule "+r.Pattern] = r.Limit.Max
	}
	holds, err := s.LoadHolds(ctx, time.Time{}, time.UnixMicro(1))
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range holds {
		f["hold "+h.Destination] = queue.Micros(h.Until)
	}
	err = s.read(ctx, func(c *conn) error {
		err := c.query(ctx, "SELECT key, value FROM q_state", nil, func(row []driver.Value) error {
			f["state "+textOf(row[0])] = int64(binary.BigEndian.Uint64(bytesOf(row[1])))
			return nil
		})
		if err != nil {
			return err
		}
		return c.query(ctx, "SELECT name, value FROM q_meta WHERE name <> 'schema'", nil, func(row []driver.Value) error {
			f["meta "+textOf(row[0])] = textOf(row[1])
			return nil
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// step is one call of the store: between begin and done, moments of the disk, its
// outcome is open; from done on its caller has its receipt.
type step struct {
	begin, done int
	change      facts // a nil value: gone
}

// worker is one caller. Nobody else touches its messages.
type worker struct {
	name  string
	d     *disk
	s     *Store
	r     *rand.Rand
	ids   queue.IDSource
	facts facts // as it knows them
	steps []step
	err   error
}

// own returns the facts of base that belong to the worker.
func (w *worker) own(base facts) facts {
	f := make(facts)
	for k, v := range base {
		r, _ := v.(row)
		if r.owner == w.name || strings.HasSuffix(k, " "+w.name) {
			f[k] = v
		}
	}
	return f
}

// do carries out one step.
func (w *worker) do(change facts, run func(ctx context.Context) error) bool {
	st := step{begin: w.d.now(), change: change}
	if w.err = run(context.Background()); w.err != nil {
		return false
	}
	st.done = w.d.now()
	w.steps = append(w.steps, st)
	w.facts.apply(change)
	return true
}

func (f facts) apply(change facts) {
	for k, v := range change {
		if v == nil {
			delete(f, k)
		} else {
			f[k] = v
		}
	}
}

// work does n steps at random.
func (w *worker) work(n int) {
	for range n {
		free, held, dead := w.rows()
		switch k := w.r.IntN(20); {
		case k < 7:
			w.change(1+w.r.IntN(12), nil)
		case k < 11 && len(free) > 0:
			w.lease(pick(w.r, free, 15))
		case k < 16 && len(held) > 0:
			w.change(w.r.IntN(3), pick(w.r, held, 15))
		case k < 17 && len(dead) > 0:
			w.redrive(pick(w.r, dead, 5))
		case k < 18:
			w.count()
		default:
			w.edit()
		}
		if w.err != nil {
			return
		}
	}
}

// rows returns the worker's messages that are free, leased and dead, sorted.
func (w *worker) rows() (free, held, dead []string) {
	for _, k := range slices.Sorted(maps.Keys(w.facts)) {
		r, ok := w.facts[k].(row)
		switch {
		case !ok:
		case r.table == queue.Dead:
			dead = append(dead, k)
		case r.leaseUntil != 0:
			held = append(held, k)
		default:
			free = append(free, k)
		}
	}
	return free, held, dead
}

func pick(r *rand.Rand, from []string, most int) []string {
	from = slices.Clone(from)
	r.Shuffle(len(from), func(i, j int) { from[i], from[j] = from[j], from[i] })
	return from[:min(len(from), 1+r.IntN(most))]
}

func (w *worker) message() *queue.Message {
	now := queue.Time(queue.Micros(time.Now()))
	m := &queue.Message{
		ID: w.ids.New(now), Destination: fmt.Sprintf("%d of %s", w.r.IntN(3), w.name), Lane: queue.Lane(1 + w.r.IntN(3)),
		Priority: queue.Level(w.r.IntN(10)), EnqueuedAt: now, Body: make([]byte, w.r.IntN(1<<w.r.IntN(14))),
	}
	if w.r.IntN(40) == 0 { // overflow pages
		m.Body = make([]byte, 30_000+w.r.IntN(50_000))
	}
	for i := range m.Body {
		m.Body[i] = byte(w.r.Uint32())
	}
	if m.Lane == queue.Timed {
		m.ReadyAt = now.Add(time.Duration(w.r.IntN(1000)) * time.Second)
	}
	if w.r.IntN(3) == 0 {
		m.Headers = queue.Headers{{Name: "n", Value: strings.Repeat("v", w.r.IntN(300))}}
	}
	if w.r.IntN(5) == 0 { // inserted with its lease
		m.Attempts, m.LeaseToken, m.LeaseUntil = 1, w.ids.New(now), now.Add(time.Hour)
	}
	return m
}

// change puts n messages and settles others, in one transaction with their
// statistics.
func (w *worker) change(n int, settle []string) {
	c := &queue.Change{Token: w.ids.New(time.Now()), Strict: w.r.IntN(4) == 0}
	effect := make(facts)
	for range n {
		m := w.message()
		c.Put = append(c.Put, m)
		effect[fact(m.ID)] = rowOf(m, m.Table(), "")
	}
	for _, k := range settle {
		old := w.facts[k].(row)
		s := queue.Settle{Ref: refOf(k, old), Verb: queue.Verb(1 + w.r.IntN(5)), Token: old.token}
		after := old
		after.token, after.leaseUntil = queue.ID{}, 0
		at := queue.Time(queue.Micros(time.Now().Add(time.Duration(w.r.IntN(5000)) * time.Second)))
		switch s.Verb {
		case queue.Ack:
			effect[k] = nil
			c.Settle = append(c.Settle, s)
			continue
		case queue.Retry:
			s.At, after.table, after.readyAt = at, queue.Timed, queue.Micros(at)
		case queue.Release:
			after.attempts--
		case queue.Extend:
			s.At, after.token, after.leaseUntil = at, old.token, max(old.leaseUntil, queue.Micros(at))
		case queue.Kill:
			s.Reason, after.table, after.reason = "cut "+w.name, queue.Dead, "cut "+w.name
		}
		effect[k] = after
		c.Settle = append(c.Settle, s)
	}
	for action, n := range map[string]int{"enqueue": len(c.Put), "settle": len(c.Settle)} {
		if n > 0 {
			c.Log = append(c.Log, queue.Stat{Action: action, Destination: w.name, Count: int64(n), At: time.Now()})
			effect["stat "+action+" "+w.name] = w.number("stat "+action+" "+w.name) + int64(n)
		}
	}
	w.do(effect, func(ctx context.Context) error {
		out, err := w.s.Apply(ctx, time.Now(), c)
		if err == nil && len(out.Lost) > 0 {
			err = fmt.Errorf("%d leases lost", len(out.Lost))
		}
		return err
	})
}

func refOf(key string, r row) queue.Ref {
	id, err := queue.ParseID(strings.TrimPrefix(key, "message "))
	if err != nil {
		panic(err)
	}
	return queue.Ref{ID: id, Table: r.table, Lane: r.lane, ReadyAt: r.readyAt}
}

func (w *worker) number(key string) int64 {
	n, _ := w.facts[key].(int64)
	return n
}

func (w *worker) lease(keys []string) {
	now := time.Now()
	token, until := w.ids.New(now), now.Add(time.Hour)
	effect := make(facts)
	var refs []queue.Ref
	for _, k := range keys {
		r := w.facts[k].(row)
		refs = append(refs, refOf(k, r))
		r.attempts++
		r.token, r.leaseUntil = token, queue.Micros(until)
		effect[k] = r
	}
	w.do(effect, func(ctx context.Context) error {
		won, err := w.s.Lease(ctx, now, until, token, refs)
		if err == nil && len(won) != len(refs) {
			err = fmt.Errorf("leased %d of %d", len(won), len(refs))
		}
		return err
	})
}

// redrive moves dead letters back to their lanes.
func (w *worker) redrive(keys []string) {
	now := queue.Time(queue.Micros(time.Now()))
	effect := make(facts)
	mv := queue.Move{From: queue.Dead}
	for _, k := range keys {
		r := w.facts[k].(row)
		mv.IDs = append(mv.IDs, refOf(k, r).ID)
		r.table, r.attempts, r.readyAt, r.reason = r.lane, 0, 0, ""
		if r.lane == queue.Timed {
			r.readyAt = queue.Micros(now)
		}
		effect[k] = r
	}
	w.do(effect, func(ctx context.Context) error {
		n, err := w.s.Move(ctx, now, mv)
		if err == nil && n != int64(len(keys)) {
			err = fmt.Errorf("moved %d of %d", n, len(keys))
		}
		return err
	})
}

// count raises a value of the limiter state that nobody may ever see fall.
func (w *worker) count() {
	key := "state " + w.name
	n := w.number(key) + 1
	w.do(facts{key: n}, func(ctx context.Context) error {
		errs := w.s.State().Update(ctx, time.Now(), []string{w.name}, []time.Duration{time.Hour}, func(int, state.Entry) []byte {
			return binary.BigEndian.AppendUint64(nil, uint64(n))
		})
		if errs != nil {
			return errs[0]
		}
		return nil
	})
}

// edit sets a hold, a rule or a meta value.
func (w *worker) edit() {
	now := time.Now()
	switch w.r.IntN(3) {
	case 0:
		key := "hold " + w.name
		until := max(queue.Micros(now), w.number(key)+1)
		w.do(facts{key: until}, func(ctx context.Context) error {
			return w.s.PutHold(ctx, now, throttle.Hold{Destination: w.name, Until: queue.Time(until)})
		})
	case 1:
		key := "rule " + w.name
		n := w.number(key) + 1
		w.do(facts{key: n}, func(ctx context.Context) error {
			limit := &throttle.Limit{Max: n, Interval: time.Second}
			_, err := w.s.PutRule(ctx, now, throttle.Rule{Pattern: w.name, Limit: limit}, false)
			return err
		})
	case 2:
		key := "meta " + w.name
		old, _ := w.facts[key].(string)
		value := fmt.Sprint(w.r.Uint64())
		w.do(facts{key: value}, func(ctx context.Context) error {
			got, err := w.s.SetMeta(ctx, w.name, old, value)
			if err == nil && got != value {
				err = fmt.Errorf("meta is %q", got)
			}
			return err
		})
	}
}

// expect returns what must be there after a cut: all that was receipted then, and
// of each worker's step under way all or nothing; got decides which.
func expect(base facts, workers []*worker, cut int, got facts) facts {
	want := maps.Clone(base)
	for _, w := range workers {
		for _, st := range w.steps {
			if st.done <= cut || st.begin < cut && st.happened(want, got) {
				want.apply(st.change)
			}
		}
	}
	return want
}

// happened reports whether the first trace of a step is there.
func (st *step) happened(before, got facts) bool {
	for _, k := range slices.Sorted(maps.Keys(st.change)) {
		if before[k] != st.change[k] {
			return got[k] == st.change[k]
		}
	}
	return false
}

// compare returns how got differs from want, at most ten lines.
func compare(want, got facts) (lines []string) {
	for _, k := range slices.Sorted(maps.Keys(want)) {
		if got[k] != want[k] && len(lines) < 10 {
			lines = append(lines, fmt.Sprintf("%s is %+v, want %+v", k, got[k], want[k]))
		}
	}
	for _, k := range slices.Sorted(maps.Keys(got)) {
		if _, known := want[k]; !known && len(lines) < 10 {
			lines = append(lines, fmt.Sprintf("%s is %+v, which nobody put there", k, got[k]))
		}
	}
	return lines
}

// integrity returns what SQLite finds wrong with its file.
func integrity(s *Store) (faults []string, err error) {
	err = s.write(context.Background(), 1, func(c *conn, _ bool) error {
		faults = nil
		return c.query(context.Background(), "PRAGMA integrity_check", nil, func(row []driver.Value) error {
			if text := textOf(row[0]); text != "ok" {
				faults = append(faults, text)
			}
			return nil
		})
	})
	return faults, err
}
