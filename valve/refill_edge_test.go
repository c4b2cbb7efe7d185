package valve

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mvalve/mvalve/queue"
)

// headStore notes what Heads is asked, takes its time, and answers with rows or,
// for a pass, with pages without any.
type headStore struct {
	queue.Store
	rows  []queue.Ref
	pages int
	err   error

	mu      sync.Mutex
	takes   time.Duration
	queries []queue.HeadQuery
	began   []time.Time
}

func (s *headStore) Heads(ctx context.Context, _ time.Time, q queue.HeadQuery) ([]queue.Ref, string, error) {
	s.mu.Lock()
	s.queries, s.began = append(s.queries, q), append(s.began, time.Now())
	takes := s.takes
	s.mu.Unlock()
	sleep(ctx, takes)
	if s.err != nil {
		return nil, "", s.err
	}
	more := ""
	if q.Destination == "" && len(q.After) < s.pages-1 {
		more = q.After + "x"
	}
	return s.rows, more, nil
}

// offsets returns when the queries began, after the first.
func (s *headStore) offsets() []time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []time.Duration
	for _, at := range s.began {
		out = append(out, at.Sub(s.began[0]))
	}
	return out
}

// A pass rests 99 times as long as each page took; one that was asked for does
// not, and one that meets an error has to be done again.
func TestPassTakesOneHundredth(t *testing.T) {
	still(t, func(t *testing.T, r *Reader) {
		const page = 10 * time.Millisecond
		store := &headStore{takes: page, pages: 3}
		r.store = store
		for asked, want := range [][]time.Duration{{0, 100 * page, 200 * page}, {0, page, 2 * page}} {
			store.began, store.queries = nil, nil
			if !r.pass(asked) || !slices.Equal(store.offsets(), want) {
				t.Errorf("survey %d: pages began at %v, want %v", asked, store.offsets(), want)
			}
			for i, q := range store.queries {
				if q.After != "xxx"[:i] || q.Limit != passRows || q.Destination != "" {
					t.Errorf("page %d: %+v", i, q)
				}
			}
		}
		store.err = errors.New("away")
		if r.pass(1) {
			t.Error("a pass that failed counts")
		}
		store.err = nil
		signal(r.surveyor)
		if r.pass(0) {
			t.Error("a survey is wanted, and the slow pass goes on")
		}
	})
}

// A pass waits while more than 4,096 destinations wait for a refill.
func TestPassWaitsForRefills(t *testing.T) {
	still(t, func(t *testing.T, r *Reader) {
		began := time.Now()
		r.refills = make([]*destination, 4096)
		if !r.awaitRefills() || time.Since(began) > 0 {
			t.Errorf("with 4,096 it waits %v", time.Since(began))
		}
		r.refills = make([]*destination, 4097)
		done := make(chan bool)
		go func() { done <- r.awaitRefills() }()
		synctest.Wait()
		time.AfterFunc(time.Second, func() {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.refills = r.refills[1:]
		})
		if !<-done || time.Since(began) < time.Second || time.Since(began) > time.Second+2*time.Millisecond {
			t.Errorf("with 4,097 it waits %v", time.Since(began))
		}
	})
}

// Passes begin a second apart; a survey begins at once, and counts when it ended.
func TestPassLoop(t *testing.T) {
	still(t, func(t *testing.T, r *Reader) {
		store := &headStore{takes: 300 * time.Millisecond, pages: 1}
		r.store = store
		var cancel context.CancelFunc
		r.ctx, cancel = context.WithCancel(t.Context())
		r.wants(t, "", 1)
		if r.surveys != 1 || r.surveyed != 0 {
			t.Errorf("%d surveys wanted, %d done", r.surveys, r.surveyed)
		}
		<-r.surveyor
		done := make(chan struct{})
		go func() { r.passLoop(); close(done) }()
		sleep(t.Context(), 2500*time.Millisecond)
		if want := []time.Duration{0, time.Second, 2 * time.Second}; !slices.Equal(store.offsets(), want) {
			t.Errorf("passes at %v, want %v", store.offsets(), want)
		}
		surveyed := func() int {
			r.mu.Lock()
			defer r.mu.Unlock()
			return r.surveyed
		}
		if n := surveyed(); n != 1 {
			t.Errorf("%d surveys done", n)
		}
		r.mu.Lock()
		r.survey()
		r.mu.Unlock()
		sleep(t.Context(), 100*time.Millisecond)
		if n := len(store.offsets()); n != 4 || surveyed() != 1 {
			t.Errorf("%d passes, %d surveys done", n, surveyed())
		}
		store.mu.Lock()
		store.takes = 2 * time.Second
		store.mu.Unlock()
		sleep(t.Context(), 2500*time.Millisecond)
		if n := len(store.offsets()); n < 5 || surveyed() != 2 {
			t.Errorf("%d passes, %d surveys done", n, surveyed())
		}
		cancel()
		<-done
	})
}

// Heads that the index does not know make it read their destinations, if anybody
// wants them and they are due within a second.
func TestHeadsThatAreNotKnown(t *testing.T) {
	still(t, func(t *testing.T, r *Reader) {
		r.wants(t, "a", 1)
		d := r.x.dest("a")
		noted := func(ref queue.Ref) bool {
			d.refill, r.refills = false, nil
			r.noteHeads([]queue.Ref{ref})
			return len(r.refills) == 1 && d.refill
		}
		if !noted(row("a", 1)) {
			t.Error("an unknown head is not read")
		}
		if noted(row("b", 2)) || len(r.refills) > 0 {
			t.Error("a head that nobody wants is read")
		}
		if !noted(timed("a", 3, t0.Add(lookAhead))) || noted(timed("a", 3, t0.Add(lookAhead+time.Microsecond))) {
			t.Error("what is due within a second is read, and nothing later")
		}
		r.x.offer(row("a", 4), nil, t0)
		if !noted(row("a", 4)) {
			t.Error("a known head, and the backlog was never read from the head")
		}
		d.headAt = t0
		if noted(row("a", 4)) {
			t.Error("a known head is read again")
		}
		e := r.x.popReady(d)
		e.phase = out
		for since, want := range map[time.Duration]bool{r.cfg.Lease / 4: false, r.cfg.Lease/4 + 1: true} {
			if d.headAt = t0.Add(-since); noted(row("a", 4)) != want {
				t.Errorf("a head that is out, %v after the last look: read is %v", since, !want)
			}
		}
		for n := range headRefs {
			r.x.offer(row("a", 10+n), nil, t0)
		}
		if noted(row("a", 1000)) {
			t.Error("what is behind a full list is read")
		}
		if !noted(row("a", 2)) {
			t.Error("what is before the end of a full list is not read")
		}
		r.x.popReady(d)
		if !noted(row("a", 1000)) {
			t.Error("what is behind a list with room is not read")
		}
		r.closing = true
		if noted(row("a", 2)) {
			t.Error("a reader that ends reads")
		}
	})
}

// A refill begins at the head, and goes on behind the last reference for a
// second.
func TestWhereRefillsBegin(t *testing.T) {
	still(t, func(t *testing.T, r *Reader) {
		store := &headStore{}
		r.store = store
		d := r.backlogOf("a", 1, 2)
		refill := func(behind bool) {
			t.Helper()
			r.refillNow(t.Context(), d)
			q := store.queries[len(store.queries)-1]
			if q.Destination != "a" || q.Limit != d.most() || (q.Behind != nil) != behind || behind && q.Behind.ID != refID(2) {
				t.Errorf("%+v, want one behind the last: %v", q, behind)
			}
			if d.refill {
				t.Error("the refill is still under way")
			}
		}
		store.rows = []queue.Ref{row("a", 1), row("a", 2)}
		refill(false)
		refill(true)
		sleep(t.Context(), headEvery-1)
		refill(true)
		sleep(t.Context(), 1)
		refill(false)
		refill(true)
		store.err = errors.New("away")
		r.x.dests["a"] = d
		d.more = false
		began := time.Now()
		r.refillNow(t.Context(), d)
		if !d.more || time.Since(began) != retryPause {
			t.Errorf("after an error: more is %v, it rests for %v", d.more, time.Since(began))
		}
	})
}

// What the store answers replaces what the index knew: references that are not in
// the answer are gone, as far as it reaches, and what is unknown is added.
func TestMerge(t *testing.T) {
	for _, c := range []struct {
		what  string
		known []int
		rows  []int
		limit int
		since []int // known, but offered after the store was asked
		want  []int
		more  bool
	}{
		{"nothing new", []int{1, 2}, []int{1, 2}, 10, nil, []int{1, 2}, false},
		{"new ones", []int{2}, []int{1, 2, 3}, 10, nil, []int{1, 2, 3}, false},
		{"all taken", []int{1, 2}, nil, 10, nil, nil, false},
		{"one taken", []int{1, 2, 3}, []int{1, 3}, 10, nil, []int{1, 3}, false},
		{"the last taken, and the answer is all there is", []int{1, 2, 3}, []int{1, 2}, 3, nil, []int{1, 2}, false},
		{"behind the end of a full answer", []int{1, 2, 3}, []int{1, 2}, 2, nil, []int{1, 2, 3}, true},
		{"before the end of a full answer", []int{1, 2, 3}, []int{1, 3}, 2, nil, []int{1, 3}, true},
		{"come since", []int{1}, []int{2}, 10, []int{7}, []int{2, 7}, false},
	} {
		still(t, func(t *testing.T, r *Reader) {
			for _, n := range c.known {
				r.x.offer(row("a", n), nil, t0)
			}
			d := r.x.dest("a")
			old := slices.Clone(d.ready)
			for _, n := range c.since {
				r.x.offer(row("a", n), nil, t0)
			}
			var refs []queue.Ref
			for _, n := range c.rows {
				refs = append(refs, row("a", n))
			}
			now := t0.Add(time.Second)
			r.merge(d, old, refs, c.limit, now)
			if !slices.Equal(d.list(), c.want) || d.more != c.more {
				t.Errorf("%s: %v, more %v, want %v, %v", c.what, d.list(), d.more, c.want, c.more)
			}
			r.x.check(t)
			if len(r.x.known) != len(c.want) {
				t.Errorf("%s: %d are known", c.what, len(r.x.known))
			}
		})
	}
	still(t, func(t *testing.T, r *Reader) {
		d := r.x.dest("a")
		now := t0.Add(time.Second)
		r.merge(d, nil, nil, 1, now)
		if !d.readySince.IsZero() {
			t.Error("with nothing to wait it waits")
		}
		r.merge(d, nil, []queue.Ref{row("a", 1)}, 10, now)
		if !d.readySince.Equal(now) {
			t.Errorf("the first: ready since %v", d.readySince)
		}
		r.merge(d, d.ready, []queue.Ref{row("a", 1), row("a", 2)}, 10, now.Add(1))
		if !d.readySince.Equal(now) {
			t.Errorf("another one: ready since %v", d.readySince)
		}
		other := &destination{name: "a", heapPos: -1}
		r.x.dests["a"] = other
		d.more = true
		r.merge(d, nil, []queue.Ref{row("a", 9)}, 10, now)
		if d.more || len(other.ready) > 0 || r.x.seen(refID(9)) {
			t.Error("the refill of one that was forgotten fills another one")
		}
		delete(r.x.dests, "a")
		r.merge(d, nil, []queue.Ref{row("a", 9)}, 10, now)
		if r.x.dests["a"] != d {
			t.Error("what was forgotten meanwhile is not taken up again")
		}
	})
}

// A pass that takes longer than a second rests for ten milliseconds.
func TestPassLoopRests(t *testing.T) {
	still(t, func(t *testing.T, r *Reader) {
		const takes = 1500 * time.Millisecond
		store := &headStore{takes: takes, pages: 1}
		r.store = store
		var cancel context.CancelFunc
		r.ctx, cancel = context.WithCancel(t.Context())
		r.wants(t, "", 1)
		<-r.surveyor
		done := make(chan struct{})
		go func() { r.passLoop(); close(done) }()
		sleep(t.Context(), 4*time.Second)
		if want := []time.Duration{0, takes + 10*time.Millisecond, 2*takes + 20*time.Millisecond}; !slices.Equal(store.offsets(), want) {
			t.Errorf("passes at %v, want %v", store.offsets(), want)
		}
		cancel()
		<-done
	})
}

// An error of a pass or a refill is told, but not while the reader ends.
func TestErrorsOfReadingAreTold(t *testing.T) {
	for _, ending := range []bool{false, true} {
		still(t, func(t *testing.T, r *Reader) {
			var text bytes.Buffer
			r.log = slog.New(slog.NewTextHandler(&text, nil))
			r.store = &headStore{err: errors.New("away")}
			var cancel context.CancelFunc
			r.ctx, cancel = context.WithCancel(t.Context())
			defer cancel()
			if ending {
				cancel()
			}
			r.pass(0)
			r.refillNow(t.Context(), r.x.dest("a"))
			if n := strings.Count(text.String(), "away"); n != 2 && !ending || n != 0 && ending {
				t.Errorf("ending %v: logged %s", ending, &text)
			}
		})
	}
}
