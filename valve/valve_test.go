package valve_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mvalve/mvalve/internal/checker"
	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/state"
	"github.com/mvalve/mvalve/throttle"
	"github.com/mvalve/mvalve/valve"
)

// pass lets virtual time pass.
func pass(d time.Duration) {
	time.Sleep(d) //nolint:forbidigo // in a synctest bubble: nothing waits for real
}

// pipe is a pipe in memory, in virtual time.
type pipe struct {
	t     *testing.T
	store *queue.Memory
	rules throttle.RuleStore
	state *state.Memory
	w     *valve.Writer
}

// inPipe runs test in virtual time with an empty pipe.
func inPipe(t *testing.T, test func(t *testing.T, p *pipe)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		p := &pipe{t: t, store: queue.NewMemory(), rules: throttle.NewMemoryRules(), state: state.NewMemory()}
		var err error
		if p.w, err = valve.NewWriter(t.Context(), p.store, valve.WriterConfig{}); err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := p.w.Close(); err != nil {
				t.Error(err)
			}
		}()
		test(t, p)
	})
}

// reader opens a reader on the pipe; change may adapt its configuration.
func (p *pipe) reader(change func(*valve.ReaderConfig)) *valve.Reader {
	p.t.Helper()
	cfg := valve.ReaderConfig{Writer: p.w, Rules: p.rules, State: p.state, Durable: p.state, Address: "-", Wait: time.Minute}
	if change != nil {
		change(&cfg)
	}
	return p.open(p.store, cfg)
}

// readerOn opens a reader that reaches the pipe through store.
func (p *pipe) readerOn(store queue.Store, lease time.Duration) *valve.Reader {
	p.t.Helper()
	return p.open(store, valve.ReaderConfig{Rules: p.rules, State: p.state, Durable: p.state, Address: "-", Lease: lease})
}

func (p *pipe) open(store queue.Store, cfg valve.ReaderConfig) *valve.Reader {
	p.t.Helper()
	r, err := valve.OpenReader(p.t.Context(), store, cfg)
	if err != nil {
		p.t.Fatal(err)
	}
	return r
}

func (p *pipe) close(r *valve.Reader) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := r.Shutdown(ctx); err != nil {
		p.t.Errorf("Shutdown: %v", err)
	}
}

func (p *pipe) insert(msgs ...*queue.Message) {
	p.t.Helper()
	if err := p.w.Insert(p.t.Context(), msgs...); err != nil {
		p.t.Fatal(err)
	}
}

func (p *pipe) limit(pattern, limit string) {
	p.t.Helper()
	l, err := throttle.ParseLimit(limit)
	if err != nil {
		p.t.Fatal(err)
	}
	if _, err := throttle.SetLimit(p.t.Context(), p.rules, p.w.Now(), pattern, l); err != nil {
		p.t.Fatal(err)
	}
}

func (p *pipe) next(r *valve.Reader) *valve.Delivery {
	p.t.Helper()
	d, err := r.Next(p.t.Context())
	if err != nil {
		p.t.Fatalf("Next: %v", err)
	}
	return d
}

func (p *pipe) ack(d *valve.Delivery) {
	p.t.Helper()
	if err := d.Ack(p.t.Context()); err != nil {
		p.t.Fatalf("Ack: %v", err)
	}
}

// bodies takes n messages, acks them and returns their bodies.
func (p *pipe) bodies(r *valve.Reader, n int) []string {
	p.t.Helper()
	var got []string
	for range n {
		d := p.next(r)
		got = append(got, string(d.Message.Body))
		p.ack(d)
	}
	return got
}

// left counts the rows of a table.
func (p *pipe) left(table queue.Lane) int64 {
	p.t.Helper()
	counts, err := p.store.Count(p.t.Context(), p.w.Now(), "")
	if err != nil {
		p.t.Fatal(err)
	}
	var n int64
	for _, c := range counts {
		if c.Table == table {
			n += c.Waiting + c.Leased
		}
	}
	return n
}

func text(destination, body string) *queue.Message {
	return &queue.Message{Destination: destination, Body: []byte(body)}
}

func TestLanesAndPriorities(t *testing.T) {
	inPipe(t, func(t *testing.T, p *pipe) {
		low, high := text("a", "low"), text("a", "high")
		low.Priority, high.Priority = queue.Level(0), queue.Level(9)
		urgent := text("a", "urgent")
		urgent.Lane = queue.Emergency
		timed := text("a", "timed")
		timed.Lane = queue.Timed
		p.insert(low, text("a", "1"), text("a", "2"), high, timed, urgent)
		r := p.reader(nil)
		defer p.close(r)
		want := []string{"urgent", "timed", "high", "1", "2", "low"}
		if diff := cmp.Diff(want, p.bodies(r, len(want))); diff != "" {
			t.Error(diff)
		}
		if n := p.left(queue.Incoming) + p.left(queue.Timed) + p.left(queue.Emergency); n != 0 {
			t.Errorf("%d rows left after all were acked", n)
		}
	})
}

func TestOrderBeyondTheIndex(t *testing.T) {
	inPipe(t, func(t *testing.T, p *pipe) {
		var want []string
		for i := range 3000 {
			want = append(want, fmt.Sprint(i))
			p.insert(text("a", want[i]))
		}
		r := p.reader(nil)
		defer p.close(r)
		if diff := cmp.Diff(want, p.bodies(r, len(want))); diff != "" {
			t.Error(diff)
		}
	})
}

func TestNextWaitsForInsert(t *testing.T) {
	inPipe(t, func(t *testing.T, p *pipe) {
		for _, attached := range []bool{true, false} {
			r := p.reader(func(c *valve.ReaderConfig) {
				if !attached {
					c.Writer = nil
				}
			})
			time.AfterFunc(10*time.Second, func() { p.insert(text("a", "late")) })
			start := time.Now()
			p.ack(p.next(r))
			waited := time.Since(start) - 10*time.Second
			if waited < 0 || attached && waited > time.Millisecond || waited > 60*time.Millisecond {
				t.Errorf("attached=%v: message came %v after its insert", attached, waited)
			}
			p.close(r)
		}
	})
}

func TestEmptySaysWhy(t *testing.T) {
	inPipe(t, func(t *testing.T, p *pipe) {
		r := p.reader(func(c *valve.ReaderConfig) { c.Wait = time.Second })
		defer p.close(r)
		_, err := r.Next(t.Context())
		var empty *valve.EmptyError
		if !errors.As(err, &empty) || !errors.Is(err, valve.ErrEmpty) || empty.Why != "" {
			t.Fatalf("Next on an empty pipe: %v", err)
		}
		p.limit("a", "1/1m")
		p.insert(text("a", "1"), text("a", "2"))
		pass(2 * time.Second)
		p.ack(p.next(r))
		_, err = r.Next(t.Context())
		if !errors.As(err, &empty) || empty.Why != "limit" || empty.Destination != "a" {
			t.Fatalf("Next on a throttled pipe: %v", err)
		}
		if in := empty.Next.Sub(r.Now()); in < 55*time.Second || in > time.Minute {
			t.Errorf("next in %v; want a little less than a minute", in)
		}
	})
}

// consume takes messages with n goroutines until the context ends and logs the
// stamps per destination.
func (p *pipe) consume(ctx context.Context, r *valve.Reader, n int, log chan<- [2]any) {
	for range n {
		go func() {
			for d, err := range r.All(ctx) {
				if err != nil {
					p.t.Errorf("All: %v", err)
					return
				}
				log <- [2]any{d.Message.Destination, d.DispatchedAt.UnixMicro()}
				if err := d.Ack(context.Background()); err != nil {
					p.t.Errorf("Ack: %v", err)
				}
			}
		}()
	}
}

func TestLimitsAreExact(t *testing.T) {
	cases := []struct {
		limit    string
		readers  int
		duration time.Duration
		use      float64
	}{
		{"1/1.4s", 1, time.Minute, 0.99},
		{"1/1.4s", 4, time.Minute, 0.99},
		{"10/100ms", 1, 10 * time.Second, 0.90},
		{"10/100ms", 4, 10 * time.Second, 0.90},
		{"10/1s", 8, 30 * time.Second, 0.99},
		{"1000/1s", 1, 10 * time.Second, 0.99},
		{"1000/1s", 4, 10 * time.Second, 0.99},
		{"5/10m", 2, 41 * time.Minute, 0.99}, // counted in the durable store
	}
	for _, c := range cases {
		t.Run(fmt.Sprintf("%s by %d", c.limit, c.readers), func(t *testing.T) {
			inPipe(t, func(t *testing.T, p *pipe) { exact(t, p, c.limit, c.readers, c.duration, c.use) })
		})
	}
}

func exact(t *testing.T, p *pipe, limit string, readers int, duration time.Duration, use float64) {
	p.limit("*", limit)
	l, _ := throttle.ParseLimit(limit)
	backlog := int(l.Max)*int(duration/l.Interval) + 2*int(l.Max)
	for n := 0; n < backlog; n += 500 {
		var batch []*queue.Message
		for range min(500, backlog-n) {
			batch = append(batch, text("d", "x"))
		}
		p.insert(batch...)
	}
	ctx, cancel := context.WithTimeout(t.Context(), duration)
	defer cancel()
	log := make(chan [2]any, backlog+1)
	for range readers {
		r := p.reader(func(c *valve.ReaderConfig) { c.Wait = 0; c.Writer = nil })
		defer p.close(r)
		p.consume(ctx, r, 32, log)
	}
	<-ctx.Done()
	synctest.Wait()
	var stamps []int64
	for len(log) > 0 {
		stamps = append(stamps, (<-log)[1].(int64))
	}
	report := checker.Check("d", stamps, checker.Limit{Max: int(l.Max), Window: l.Interval})
	if report.Above != 0 {
		t.Errorf("%d windows above %s, worst %d", report.Above, limit, report.Worst)
	}
	if report.Used < use {
		t.Errorf("used %.4f of %s with %d messages; want %.2f", report.Used, limit, report.Count, use)
	}
	t.Logf("%s by %d readers: %d messages, worst window %d, used %.4f", limit, readers, report.Count, report.Worst, report.Used)
}

func TestThrottledRowsAreNotTouched(t *testing.T) {
	inPipe(t, func(t *testing.T, p *pipe) {
		p.limit("hot", "1/1h")
		for range 20 {
			var batch []*queue.Message
			for range 100 {
				batch = append(batch, text("hot", "x"))
			}
			p.insert(batch...)
		}
		r := p.reader(nil)
		defer p.close(r)
		p.ack(p.next(r))
		p.insert(text("cold", "now"))
		start := time.Now()
		d := p.next(r)
		if d.Message.Destination != "cold" || time.Since(start) > 5*time.Millisecond {
			t.Errorf("got %s after %v", d.Message.Destination, time.Since(start))
		}
		p.ack(d)
		letters, err := p.store.Peek(t.Context(), queue.Incoming, "hot", queue.Cursor{}, 5000)
		if err != nil {
			t.Fatal(err)
		}
		if len(letters) != 1999 {
			t.Errorf("%d hot rows wait; want 1999", len(letters))
		}
		for _, l := range letters {
			if l.Message.Attempts != 0 || !l.Message.LeaseUntil.IsZero() {
				t.Fatalf("row %v was touched: %+v", l.Message.ID, l.Message)
			}
		}
	})
}

func TestRetryBackoffAndDeadLetter(t *testing.T) {
	inPipe(t, func(t *testing.T, p *pipe) {
		r := p.reader(func(c *valve.ReaderConfig) { c.MaxAttempts = 4; c.Wait = time.Hour })
		defer p.close(r)
		m := text("a", "x")
		m.Lane = queue.Emergency
		p.insert(m)
		want := []time.Duration{0, time.Second, 2 * time.Second, 4 * time.Second}
		for i, w := range want {
			start := time.Now()
			d := p.next(r)
			waited := time.Since(start)
			if d.Attempt != i+1 || d.Message.Lane != queue.Emergency {
				t.Fatalf("attempt %d in lane %v; want %d in emergency", d.Attempt, d.Message.Lane, i+1)
			}
			if waited < w*8/10 || waited > w*12/10+10*time.Millisecond {
				t.Errorf("attempt %d after %v; want about %v", d.Attempt, waited, w)
			}
			if err := d.Nack(t.Context(), -1, "no answer"); err != nil {
				t.Fatal(err)
			}
		}
		if n := p.left(queue.Dead); n != 1 {
			t.Errorf("%d dead letters; want 1", n)
		}
		if n := p.left(queue.Timed) + p.left(queue.Emergency); n != 0 {
			t.Errorf("%d rows left in the lanes", n)
		}
	})
}

func TestThrottledHoldsTheDestinationForAllReaders(t *testing.T) {
	inPipe(t, func(t *testing.T, p *pipe) {
		a, b := p.reader(nil), p.reader(func(c *valve.ReaderConfig) { c.Wait = 5 * time.Second; c.Writer = nil })
		defer p.close(a)
		defer p.close(b)
		p.insert(text("x", "1"))
		d := p.next(a)
		if err := d.Throttled(t.Context(), 30*time.Second); err != nil {
			t.Fatal(err)
		}
		p.insert(text("x", "2"))
		pass(time.Second)
		if _, err := b.Next(t.Context()); !errors.Is(err, valve.ErrEmpty) {
			t.Fatalf("the other reader got %v within the hold", err)
		}
		start := time.Now()
		again := p.next(a)
		if waited := time.Since(start); waited < 23*time.Second || waited > 25*time.Second {
			t.Errorf("dispatched after another %v; want about 24s", waited)
		}
		if string(again.Message.Body) != "1" || again.Attempt != 1 {
			t.Errorf("got %q attempt %d; want 1 in its place, attempt not counted", again.Message.Body, again.Attempt)
		}
		p.ack(again)
	})
}

func TestLeaseRunsOut(t *testing.T) {
	inPipe(t, func(t *testing.T, p *pipe) {
		r := p.reader(func(c *valve.ReaderConfig) { c.Lease = 10 * time.Second })
		defer p.close(r)
		p.insert(text("a", "x"))
		first := p.next(r)
		start := time.Now()
		second := p.next(r)
		if waited := time.Since(start); waited < 10*time.Second || waited > 13*time.Second {
			t.Errorf("handed out again after %v; want about 10s", waited)
		}
		if second.Attempt != 2 {
			t.Errorf("attempt %d; want 2", second.Attempt)
		}
		if err := first.Ack(t.Context()); !errors.Is(err, valve.ErrLeaseLost) {
			t.Errorf("late Ack: %v; want ErrLeaseLost", err)
		}
		if err := second.Extend(t.Context(), time.Minute); err != nil {
			t.Fatal(err)
		}
		pass(30 * time.Second)
		p.ack(second)
		if err := second.Ack(t.Context()); !errors.Is(err, valve.ErrLeaseLost) {
			t.Errorf("second Ack: %v; want ErrLeaseLost", err)
		}
	})
}

func TestExpiredIsNotDispatched(t *testing.T) {
	inPipe(t, func(t *testing.T, p *pipe) {
		p.limit("a", "1/10s")
		m := text("a", "short-lived")
		m.ExpiresAt = p.w.Now().Add(5 * time.Second)
		p.insert(text("a", "1"), m, text("a", "2"))
		r := p.reader(nil)
		defer p.close(r)
		start := time.Now()
		if diff := cmp.Diff([]string{"1", "2"}, p.bodies(r, 2)); diff != "" {
			t.Error(diff)
		}
		if took := time.Since(start); took > 11*time.Second {
			t.Errorf("the expired message cost a permit: took %v", took)
		}
		if n := p.left(queue.Dead); n != 1 {
			t.Errorf("%d dead letters; want 1", n)
		}
	})
}

// The historic test of one message that passes and 31 that are throttled at
// 1/1.4s and then arrive one by one.
func TestSeedThrottle(t *testing.T) {
	inPipe(t, func(t *testing.T, p *pipe) {
		p.limit("*", "1/1.4s")
		for i := range 32 {
			p.insert(text("d", fmt.Sprint(i)))
		}
		r := p.reader(nil)
		defer p.close(r)
		var last time.Time
		for i := range 32 {
			d := p.next(r)
			if string(d.Message.Body) != fmt.Sprint(i) {
				t.Fatalf("message %s at place %d", d.Message.Body, i)
			}
			gap := d.DispatchedAt.Sub(last)
			if i > 0 && (gap < 1400*time.Millisecond || gap > 1415*time.Millisecond) {
				t.Errorf("gap %v before message %d; want 1.4s", gap, i)
			}
			last = d.DispatchedAt
			p.ack(d)
		}
	})
}

// The historic test of a series spaced by X-Mvalve-Duration: 3.
func TestSeedDurationSpacesASeries(t *testing.T) {
	inPipe(t, func(t *testing.T, p *pipe) {
		var readers []*valve.Reader
		for range 3 {
			r := p.reader(nil)
			defer p.close(r)
			readers = append(readers, r)
		}
		inserted := p.w.Now()
		for i := range 5 {
			m := text("d", fmt.Sprint(i))
			m.Headers = queue.Headers{{Name: valve.HeaderDuration, Value: "3"}}
			p.insert(m)
		}
		last := inserted
		got := make(chan *valve.Delivery)
		for _, r := range readers {
			go func() {
				for d := range r.All(t.Context()) {
					got <- d
				}
			}()
		}
		for i := range 5 {
			d := <-got
			gap := d.DispatchedAt.Sub(last)
			if gap < 3*time.Second || gap > 3200*time.Millisecond {
				t.Errorf("gap %v before message %d; want 3s", gap, i)
			}
			last = d.DispatchedAt
			p.ack(d)
		}
	})
}

// A message that spaces a series begins a job of its own: the scheduler must not
// look for room in the job that takes what is before it, for ever.
func TestSeriesBehindOthers(t *testing.T) {
	inPipe(t, func(t *testing.T, p *pipe) {
		spaced := text("a", "spaced")
		spaced.Hold = time.Second
		p.insert(text("a", "first"), spaced, text("a", "last"))
		r := p.reader(nil)
		defer p.close(r)
		s, err := r.Subscribe(valve.Filter{}, 4)
		if err != nil {
			t.Fatal(err)
		}
		got := make(map[string]bool)
		for range 3 {
			d, err := s.Next(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			got[string(d.Message.Body)] = true
			p.ack(d)
		}
		if diff := cmp.Diff(map[string]bool{"first": true, "spaced": true, "last": true}, got); diff != "" {
			t.Error(diff)
		}
	})
}

// The historic test of the statistics: enqueue and dequeue are counted.
func TestSeedStatslog(t *testing.T) {
	inPipe(t, func(t *testing.T, p *pipe) {
		start := p.w.Now().Truncate(time.Second)
		p.insert(text("a", "1"), text("a", "2"), text("b", "3"))
		r := p.reader(func(c *valve.ReaderConfig) { c.Destinations = []string{"a"} })
		p.bodies(r, 2)
		p.close(r)
		pass(2 * time.Second)
		stats, err := p.store.Stats(t.Context(), start)
		if err != nil {
			t.Fatal(err)
		}
		got := make(map[string]int64)
		for _, s := range stats {
			got[s.Action+" "+s.Destination] = s.Count
		}
		want := map[string]int64{"enqueue a": 2, "enqueue b": 1, "dequeue a": 2, "ack a": 2}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	})
}

// A permit that nobody fetched in time costs a message of a series no second wait.
func TestMissedPermitOfASeries(t *testing.T) {
	inPipe(t, func(t *testing.T, p *pipe) {
		r := p.reader(nil)
		defer p.close(r)
		s, err := r.Subscribe(valve.Filter{Globs: []string{"d"}}, 10)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			m := text("d", "x")
			m.Headers = queue.Headers{{Name: valve.HeaderDuration, Value: "5"}}
			p.insert(m)
		}
		pass(17000 * time.Millisecond) // prepared since 5 s after the insert, and not fetched
		start := time.Now()
		for i, want := range []time.Duration{0, 5 * time.Second} {
			d, err := s.Next(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if late := time.Since(start) - want; late < 0 || late > 200*time.Millisecond {
				t.Errorf("message %d came %v after the first call; want %v", i, time.Since(start), want)
			}
			p.ack(d)
		}
	})
}

func TestEmergencyHoldsAndDrops(t *testing.T) {
	for _, drop := range []bool{false, true} {
		t.Run(fmt.Sprint("drop=", drop), func(t *testing.T) {
			inPipe(t, func(t *testing.T, p *pipe) {
				r := p.reader(func(c *valve.ReaderConfig) {
					if drop {
						c.OnEmergency = valve.DropOthers
					}
				})
				defer p.close(r)
				urgent := text("d", "fire")
				urgent.Headers = queue.Headers{{Name: valve.HeaderEmergency, Value: "1"}, {Name: valve.HeaderDuration, Value: "20"}}
				p.insert(text("d", "old"))
				pass(time.Millisecond)
				p.insert(urgent)
				start := time.Now()
				if got := p.bodies(r, 1)[0]; got != "fire" {
					t.Fatalf("got %q first", got)
				}
				pass(time.Second)
				p.insert(text("d", "new"), text("other", "free"))
				if got := p.bodies(r, 1)[0]; got != "free" {
					t.Fatalf("got %q; other destinations must not wait", got)
				}
				want := "old"
				if drop {
					want = "new"
				}
				if got := p.bodies(r, 1)[0]; got != want {
					t.Errorf("got %q after the hold; want %q", got, want)
				}
				if took := time.Since(start); took < 20*time.Second || took > 21*time.Second {
					t.Errorf("held for %v; want 20s", took)
				}
				pass(time.Millisecond) // what is superseded ends in a commit of its own
				if n := p.left(queue.Dead); drop && n != 1 || !drop && n != 0 {
					t.Errorf("%d dead letters with drop=%v", n, drop)
				}
			})
		})
	}
}

// What lies ready in a subscription when its destination is held, paused or
// superseded does not go.
func TestPreparedMessagesObeyHolds(t *testing.T) {
	inPipe(t, func(t *testing.T, p *pipe) {
		r := p.reader(nil)
		defer p.close(r)
		s, err := r.Subscribe(valve.Filter{Globs: []string{"d"}}, 100)
		if err != nil {
			t.Fatal(err)
		}
		next := func() string {
			t.Helper()
			d, err := s.Next(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			p.ack(d)
			return string(d.Message.Body)
		}
		alarm := text("d", "alarm")
		alarm.Lane, alarm.Hold = queue.Emergency, 10*time.Second
		p.insert(text("d", "1"), alarm)
		start := time.Now()
		if got := next(); got != "alarm" {
			t.Fatalf("got %q first", got)
		}
		if got := next(); got != "1" || time.Since(start) < 10*time.Second {
			t.Errorf("got %q %v after the alarm; want 1 after 10s", got, time.Since(start))
		}
		p.insert(text("d", "2"))
		synctest.Wait() // prepared
		if _, err := throttle.Pause(t.Context(), p.rules, p.w.Now(), "d"); err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(30*time.Second, func() {
			if _, err := throttle.Resume(t.Context(), p.rules, p.w.Now(), "d"); err != nil {
				t.Error(err)
			}
		})
		pass(time.Second)
		start = time.Now()
		if got := next(); got != "2" || time.Since(start) < 29*time.Second {
			t.Errorf("got %q %v after the pause; want 2 once it ended", got, time.Since(start))
		}
	})
}

// An emergency that bypasses the limit is charged all the same: while the limiter's
// store does not answer it waits, and does not ask without pause.
func TestBypassWithoutLimiter(t *testing.T) {
	inPipe(t, func(t *testing.T, p *pipe) {
		var asked atomic.Int64
		var down atomic.Bool
		down.Store(true)
		p.state.Fault = func(string, bool) (bool, error) {
			if asked.Add(1); down.Load() {
				return false, state.ErrUnavailable
			}
			return true, nil
		}
		p.limit("d", "1/1s")
		r := p.reader(func(c *valve.ReaderConfig) { c.Emergency = valve.Bypass })
		defer p.close(r)
		alarm := text("d", "alarm")
		alarm.Lane = queue.Emergency
		p.insert(alarm)
		time.AfterFunc(time.Second, func() { down.Store(false) })
		start := time.Now()
		p.ack(p.next(r))
		if took := time.Since(start); asked.Load() > 10 || took > 1500*time.Millisecond {
			t.Errorf("came after %v and %d tries", took, asked.Load())
		}
	})
}

// What lies ready without a permit when its destination gets a limit obeys it.
func TestPreparedMessagesObeyNewLimit(t *testing.T) {
	inPipe(t, func(t *testing.T, p *pipe) {
		for range 20 {
			p.insert(text("d", "x"))
		}
		r := p.reader(nil)
		defer p.close(r)
		s, err := r.Subscribe(valve.Filter{}, 20)
		if err != nil {
			t.Fatal(err)
		}
		pass(time.Second) // they lie ready
		p.limit("d", "2/1s")
		pass(time.Second)
		var stamps []int64
		for range 6 {
			d, err := s.Next(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			stamps = append(stamps, d.DispatchedAt.UnixMicro())
			p.ack(d)
		}
		if c := checker.Check("d", stamps, checker.Limit{Max: 2, Window: time.Second}); c.Above > 0 {
			t.Errorf("%d of 2 in a window: %v", c.Worst, stamps)
		}
	})
}

// A message of another process that is due before the next poll is found by it, even
// if the reader has seen later ones.
func TestDueBeforeTheNextPoll(t *testing.T) {
	inPipe(t, func(t *testing.T, p *pipe) {
		r := p.reader(func(c *valve.ReaderConfig) { c.Writer = nil })
		defer p.close(r)
		timed := func(body string, delay time.Duration) {
			m := text("d", body)
			m.ReadyAt = p.w.Now().Add(delay)
			p.insert(m)
		}
		for range 10 {
			timed("later", 1900*time.Millisecond)
			pass(1217 * time.Millisecond) // seen, and nothing came for a while
			start := time.Now()
			timed("soon", 3*time.Millisecond)
			d := p.next(r)
			if took := time.Since(start); string(d.Message.Body) != "soon" || took > 60*time.Millisecond {
				t.Errorf("%q came after %v", d.Message.Body, took)
			}
			p.ack(d)
			p.bodies(r, 1)
		}
	})
}

// lateHeads is a store whose first destination pass fails.
type lateHeads struct {
	*queue.Memory
	failed atomic.Bool
}

func (l *lateHeads) Heads(ctx context.Context, now time.Time, q queue.HeadQuery) ([]queue.Ref, string, error) {
	if q.Destination == "" && !l.failed.Swap(true) {
		return nil, "", queue.ErrUnavailable
	}
	return l.Memory.Heads(ctx, now, q)
}

// The best row of a backlog may be new, and the worst: what lies between them is
// found all the same.
func TestBacklogBehindNewRows(t *testing.T) {
	inPipe(t, func(t *testing.T, p *pipe) {
		p.insert(text("a", "middle"))
		pass(10 * time.Second) // older than what the tail scan reads
		high, low := text("a", "high"), text("a", "low")
		high.Priority, low.Priority = queue.Level(9), queue.Level(0)
		p.insert(high, low)
		if _, err := throttle.Pause(t.Context(), p.rules, p.w.Now(), "a"); err != nil {
			t.Fatal(err)
		}
		r, err := valve.OpenReader(t.Context(), &lateHeads{Memory: p.store}, valve.ReaderConfig{Rules: p.rules, State: p.state, Address: "-"})
		if err != nil {
			t.Fatal(err)
		}
		defer p.close(r)
		time.AfterFunc(5*time.Second, func() {
			if _, err := throttle.Resume(t.Context(), p.rules, p.w.Now(), "a"); err != nil {
				t.Error(err)
			}
		})
		if diff := cmp.Diff([]string{"high", "middle", "low"}, p.bodies(r, 3)); diff != "" {
			t.Error(diff)
		}
	})
}

// failingHolds is a rule store that fails to tell the holds while fail is set.
type failingHolds struct {
	throttle.RuleStore
	fail atomic.Bool
}

func (f *failingHolds) LoadHolds(ctx context.Context, now, since time.Time) ([]throttle.Hold, error) {
	if f.fail.Load() {
		return nil, queue.ErrUnavailable
	}
	return f.RuleStore.LoadHolds(ctx, now, since)
}

// Rules that were read count, even if the holds could not be read right after them.
func TestRulesWithoutHolds(t *testing.T) {
	inPipe(t, func(t *testing.T, p *pipe) {
		store := &failingHolds{RuleStore: p.rules}
		r := p.reader(func(c *valve.ReaderConfig) { c.Rules, c.Wait = store, 5*time.Second })
		defer p.close(r)
		p.insert(text("d", "first"))
		first := p.next(r) // is out, so that the reader remembers the destination
		store.fail.Store(true)
		if _, err := throttle.Pause(t.Context(), p.rules, p.w.Now(), "d"); err != nil {
			t.Fatal(err)
		}
		pass(2 * time.Second)
		store.fail.Store(false)
		pass(2 * time.Second)
		p.insert(text("d", "second"))
		if d, err := r.Next(t.Context()); !errors.Is(err, valve.ErrEmpty) {
			t.Errorf("Next of a paused destination: %v, %v", d, err)
		}
		p.ack(first)
	})
}

// A message that spaces a series passes the hold that it set itself, and no other.
func TestPreparedSeriesObeysOtherHolds(t *testing.T) {
	inPipe(t, func(t *testing.T, p *pipe) {
		r := p.reader(nil)
		defer p.close(r)
		s, err := r.Subscribe(valve.Filter{}, 100)
		if err != nil {
			t.Fatal(err)
		}
		next := func() *valve.Delivery {
			t.Helper()
			d, err := s.Next(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			return d
		}
		for _, what := range []string{"throttled", "paused"} {
			p.insert(text(what, "first"))
			first := next()
			series := text(what, "series")
			series.Hold = 10 * time.Second
			p.insert(series)
			pass(time.Second) // it lies ready
			start := time.Now()
			if what == "paused" {
				p.ack(first)
				if _, err := throttle.Pause(t.Context(), p.rules, p.w.Now(), what); err != nil {
					t.Fatal(err)
				}
				pass(time.Second)
				time.AfterFunc(19*time.Second, func() {
					if _, err := throttle.Resume(t.Context(), p.rules, p.w.Now(), what); err != nil {
						t.Error(err)
					}
				})
			} else if err := first.Throttled(t.Context(), 20*time.Second); err != nil {
				t.Fatal(err)
			}
			d := next()
			if took := time.Since(start); took < 20*time.Second {
				t.Errorf("%s: %q came after %v, want 20s", what, d.Message.Body, took)
			}
			p.ack(d)
			if what == "throttled" {
				p.ack(next())
			}
		}
	})
}

func TestSlowDestinationLeavesWorkersToOthers(t *testing.T) {
	inPipe(t, func(t *testing.T, p *pipe) {
		r := p.reader(func(c *valve.ReaderConfig) { c.Wait = 0 })
		defer p.close(r)
		for i := range 200 {
			p.insert(text("slow", "x"), text(fmt.Sprint("quick", i%3), "x"))
		}
		ctx, cancel := context.WithCancel(t.Context())
		quick := make(chan struct{}, 1000)
		for range 16 {
			go func() {
				for d := range r.All(ctx) {
					if d.Message.Destination == "slow" {
						pass(30 * time.Second)
					} else {
						quick <- struct{}{}
					}
					_ = d.Ack(context.Background())
				}
			}()
		}
		pass(time.Second)
		if n := len(quick); n != 200 {
			t.Errorf("%d quick messages in the first second; want all 200", n)
		}
		cancel()
		pass(time.Minute)
	})
}

func TestShutdownGivesBack(t *testing.T) {
	inPipe(t, func(t *testing.T, p *pipe) {
		p.insert(text("a", "1"), text("a", "2"), text("a", "3"))
		r := p.reader(nil)
		s, err := r.Subscribe(valve.Filter{Globs: []string{"a"}}, 10)
		if err != nil {
			t.Fatal(err)
		}
		d, err := s.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(time.Second, func() { _ = d.Ack(context.Background()) })
		p.close(r)
		counts, err := p.store.Count(t.Context(), p.w.Now(), "a")
		if err != nil {
			t.Fatal(err)
		}
		if len(counts) != 1 || counts[0].Waiting != 2 || counts[0].Leased != 0 {
			t.Errorf("after shutdown: %+v; want 2 waiting, none leased", counts)
		}
	})
}
