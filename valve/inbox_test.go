package valve_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mvalve/mvalve/internal/checker"
	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/valve"
)

// countingStore counts the leases that are asked for.
type countingStore struct {
	*queue.Memory
	leases int
	refuse error // of the next Apply that puts
}

func (s *countingStore) Lease(ctx context.Context, now, until time.Time, token queue.ID, refs []queue.Ref) ([]queue.Leased, error) {
	s.leases += len(refs)
	return s.Memory.Lease(ctx, now, until, token, refs)
}

func (s *countingStore) Apply(ctx context.Context, now time.Time, c *queue.Change) (queue.Outcome, error) {
	if len(c.Put) > 0 && s.refuse != nil {
		err := s.refuse
		s.refuse = nil
		return queue.Outcome{}, err
	}
	return s.Memory.Apply(ctx, now, c)
}

// inbox opens an inbox with one exact subscription per name.
func (p *pipe) inbox(r *valve.Reader, credit int, names ...string) *valve.Inbox {
	p.t.Helper()
	box := r.NewInbox()
	for _, name := range names {
		if _, err := box.Subscribe(valve.Filter{Exact: name}, credit, name+" tag"); err != nil {
			p.t.Fatal(err)
		}
	}
	return box
}

// take reads n deliveries from box.
func (p *pipe) take(box *valve.Inbox, n int) []*valve.Delivery {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), time.Minute)
	defer cancel()
	got := make([]*valve.Delivery, 0, n)
	for len(got) < n {
		var err error
		if got, err = box.Next(ctx, got); err != nil {
			p.t.Fatalf("Next after %d of %d: %v", len(got), n, err)
		}
	}
	return got
}

// nothing fails if box has something within d.
func (p *pipe) nothing(box *valve.Inbox, d time.Duration) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), d)
	defer cancel()
	if got, err := box.Next(ctx, nil); !errors.Is(err, context.DeadlineExceeded) {
		p.t.Errorf("Next gave %d deliveries, %v", len(got), err)
	}
}

// end ends deliveries and waits; it returns how many leases were lost.
func (p *pipe) end(r *valve.Reader, verb valve.Verb, delay time.Duration, ds ...*valve.Delivery) int {
	p.t.Helper()
	ends := make([]valve.End, len(ds))
	for i, d := range ds {
		ends[i] = valve.End{Delivery: d, Verb: verb, Delay: delay, Reason: "test"}
	}
	type result struct {
		lost int
		err  error
	}
	done := make(chan result, 1)
	r.EndAsync(func(lost int, err error) { done <- result{lost, err} }, ends...)
	got := <-done
	if got.err != nil {
		p.t.Fatal(got.err)
	}
	return got.lost
}

func bodiesOf(ds []*valve.Delivery) []string {
	var out []string
	for _, d := range ds {
		out = append(out, string(d.Message.Body))
	}
	return out
}

func TestInboxServesItsSubscriptions(t *testing.T) {
	inPipe(t, func(t *testing.T, p *pipe) {
		p.insert(text("a", "a1"), text("b", "b1"), text("c", "c1"))
		r := p.reader(nil)
		defer r.Close()
		box := p.inbox(r, 10, "a", "b")
		got := map[string]any{}
		for _, d := range p.take(box, 2) {
			got[string(d.Message.Body)] = d.Subscription().Tag()
		}
		if want := map[string]any{"a1": "a tag", "b1": "b tag"}; !cmp.Equal(got, want) {
			t.Error(cmp.Diff(want, got))
		}
		p.nothing(box, time.Second)
		if _, err := box.Subscribe(valve.Filter{Globs: []string{"c*"}}, 1, "wild"); err != nil {
			t.Fatal(err)
		}
		if d := p.take(box, 1)[0]; d.Subscription().Tag() != "wild" {
			t.Errorf("c1 came for %v", d.Subscription().Tag())
		}
		done := make(chan error)
		go func() {
			_, err := box.Next(t.Context(), nil)
			done <- err
		}()
		synctest.Wait()
		_ = box.Close()
		if err := <-done; !errors.Is(err, valve.ErrClosed) {
			t.Errorf("Next of a closed inbox: %v", err)
		}
	})
}

func TestCreditBoundsWhatIsOut(t *testing.T) {
	inPipe(t, func(t *testing.T, p *pipe) {
		r := p.reader(nil)
		defer r.Close()
		box := p.inbox(r, 3, "a")
		for i := range 10 {
			p.insert(text("a", fmt.Sprint(i)))
		}
		first := p.take(box, 3)
		p.nothing(box, time.Second)
		p.end(r, valve.EndAck, 0, first[1])
		if got := bodiesOf(p.take(box, 1)); got[0] != "3" {
			t.Errorf("after an ack came %v", got)
		}
		if lost := p.end(r, valve.EndAck, 0, first[1]); lost != 1 {
			t.Errorf("a second ack lost %d leases, want 1", lost)
		}
		_ = box.Close()
	})
}

// A waiting subscriber gets a new message without a lease of its own; the order
// of the destination holds all the same.
func TestInsertLeasedForAWaitingSubscriber(t *testing.T) {
	inPipe(t, func(t *testing.T, p *pipe) {
		store := &countingStore{Memory: p.store}
		w, err := valve.NewWriter(t.Context(), store, valve.WriterConfig{})
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		insert := func(bodies ...string) {
			t.Helper()
			var msgs []*queue.Message
			for _, b := range bodies {
				msgs = append(msgs, text("a", b))
			}
			if err := w.Insert(t.Context(), msgs...); err != nil {
				t.Fatal(err)
			}
		}
		insert("old")
		r, err := valve.OpenReader(t.Context(), store, valve.ReaderConfig{Writer: w, Rules: p.rules, Address: "-"})
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		box := p.inbox(r, 4, "a")
		got := p.take(box, 1)
		if store.leases != 1 {
			t.Fatalf("%d leases for the message that waited, want 1", store.leases)
		}
		insert("1", "2")
		insert("3", "4", "5") // past the credit: 4 and 5 are stored free
		got = append(got, p.take(box, 3)...)
		if store.leases != 1 {
			t.Errorf("%d leases asked for, want only the first", store.leases)
		}
		p.end(r, valve.EndAck, 0, got...)
		got = append(got, p.take(box, 2)...)
		if want := []string{"old", "1", "2", "3", "4", "5"}; !cmp.Equal(bodiesOf(got), want) {
			t.Error(cmp.Diff(want, bodiesOf(got)))
		}
		p.end(r, valve.EndAck, 0, got[4:]...)
		store.refuse = queue.ErrRefused
		if err := w.Insert(t.Context(), text("a", "refused")); !errors.Is(err, queue.ErrRefused) {
			t.Errorf("Insert: %v", err)
		}
		p.nothing(box, time.Second)
		insert("6")
		if got := bodiesOf(p.take(box, 1)); got[0] != "6" {
			t.Errorf("after a refused insert came %v", got)
		}
		if s := r.Stats(); s.InFlight != 1 {
			t.Errorf("%d in flight, want 1", s.InFlight)
		}
	})
}

// Limits, holds and pauses bind new messages as much as those that waited.
func TestInsertLeasedObeysRules(t *testing.T) {
	inPipe(t, func(t *testing.T, p *pipe) {
		p.limit("a", "2/1s")
		r := p.reader(nil)
		defer r.Close()
		box := p.inbox(r, 100, "a")
		var stamps []int64
		for i := range 8 {
			p.insert(text("a", fmt.Sprint(i)))
		}
		for _, d := range p.take(box, 8) {
			stamps = append(stamps, d.DispatchedAt.UnixMicro())
		}
		if report := checker.Check("a", stamps, checker.Limit{Max: 2, Window: time.Second}); report.Above > 0 {
			t.Errorf("%+v", report)
		}
	})
}

func TestRoundRobinAmongSubscriptions(t *testing.T) {
	inPipe(t, func(t *testing.T, p *pipe) {
		r := p.reader(nil)
		defer r.Close()
		boxes := []*valve.Inbox{p.inbox(r, 100, "a"), p.inbox(r, 100, "a"), p.inbox(r, 1, "a")}
		for i := range 21 {
			p.insert(text("a", fmt.Sprint(i)))
		}
		for i, want := range []int{10, 10, 1} {
			if got := len(p.take(boxes[i], want)); got != want {
				t.Errorf("subscription %d got %d, want %d", i, got, want)
			}
			p.nothing(boxes[i], time.Millisecond)
		}
	})
}

func TestEndVerbs(t *testing.T) {
	inPipe(t, func(t *testing.T, p *pipe) {
		r := p.reader(nil)
		defer p.close(r)
		box := p.inbox(r, 10, "a", "b")
		p.insert(text("a", "x"))
		d := p.take(box, 1)[0]
		p.end(r, valve.EndRelease, 0, d)
		if d = p.take(box, 1)[0]; d.Attempt != 1 {
			t.Errorf("attempt %d after a release, want 1", d.Attempt)
		}
		p.end(r, valve.EndRetry, 0, d)
		if d = p.take(box, 1)[0]; d.Attempt != 2 {
			t.Errorf("attempt %d after a retry, want 2", d.Attempt)
		}
		p.end(r, valve.EndExtend, 5*time.Minute, d)
		pass(3 * time.Minute)
		began := r.Now()
		p.end(r, valve.EndThrottled, 10*time.Second, d)
		p.insert(text("a", "y"), text("b", "z"))
		if got := bodiesOf(p.take(box, 1)); got[0] != "z" {
			t.Errorf("%v came from a destination that holds", got)
		}
		d = p.take(box, 1)[0]
		if waited := d.DispatchedAt.Sub(began); waited < 10*time.Second || d.Attempt != 2 {
			t.Errorf("came after %v, attempt %d", waited, d.Attempt)
		}
		p.end(r, valve.EndReject, 0, d)
		if p.left(queue.Dead) != 1 {
			t.Error("not a dead letter")
		}
	})
}

func TestTransaction(t *testing.T) {
	inPipe(t, func(t *testing.T, p *pipe) {
		r := p.reader(func(cfg *valve.ReaderConfig) { cfg.Lease = 10 * time.Second })
		defer r.Close()
		box := p.inbox(r, 10, "a", "b")
		p.insert(text("a", "1"), text("a", "2"))
		got := p.take(box, 2)
		commit := func(msgs []*queue.Message, ends ...valve.End) error {
			t.Helper()
			done := make(chan error, 1)
			if err := r.CommitAsync(func(err error) { done <- err }, msgs, ends...); err != nil {
				return err
			}
			return <-done
		}
		if err := commit([]*queue.Message{text("b", "reply")}, valve.End{Delivery: got[0], Verb: valve.EndAck}); err != nil {
			t.Fatal(err)
		}
		if d := p.take(box, 1)[0]; string(d.Message.Body) != "reply" {
			t.Errorf("got %q", d.Message.Body)
		}
		if err := commit(nil, valve.End{Delivery: got[0], Verb: valve.EndAck}); !errors.Is(err, valve.ErrLeaseLost) {
			t.Errorf("ack of what was acked: %v", err)
		}
		// The lease is taken over in the store, as after a stall of this process.
		thief := queue.ID{15: 1}
		later := r.Now().Add(time.Minute)
		if won, err := p.store.Lease(t.Context(), later, later.Add(time.Minute), thief, []queue.Ref{refOf(got[1])}); err != nil || len(won) != 1 {
			t.Fatalf("takeover: %v, %v", won, err)
		}
		err := commit([]*queue.Message{text("b", "never")}, valve.End{Delivery: got[1], Verb: valve.EndAck})
		if !errors.Is(err, valve.ErrLeaseLost) {
			t.Errorf("commit with a lost lease: %v", err)
		}
		p.nothing(box, 5*time.Second)
	})
}

func refOf(d *valve.Delivery) queue.Ref { return d.Message.Ref() }

// Many subscriptions cost little and are served from the backlog.
func TestManySubscriptions(t *testing.T) {
	inPipe(t, func(t *testing.T, p *pipe) {
		const n = 5000
		var msgs []*queue.Message
		for i := range n {
			msgs = append(msgs, text(fmt.Sprintf("q%d", i), "x"))
		}
		p.insert(msgs...)
		r := p.reader(nil)
		defer p.close(r)
		box := r.NewInbox()
		for i := range n {
			if _, err := box.Subscribe(valve.Filter{Exact: fmt.Sprintf("q%d", i)}, 1, nil); err != nil {
				t.Fatal(err)
			}
		}
		p.end(r, valve.EndAck, 0, p.take(box, n)...)
		pass(5 * time.Second) // what refills are under way end
		if s := r.Stats(); s.Destinations > 0 || s.Indexed > 0 {
			t.Errorf("%d destinations and %d references are left in memory", s.Destinations, s.Indexed)
		}
	})
}

// lateStore shows a message to scans only once it has been let go, as if its
// transaction had been committed late.
type lateStore struct {
	*queue.Memory
	late sync.Map // of queue.ID
}

func (s *lateStore) Scan(ctx context.Context, now time.Time, lane queue.Lane, after queue.Cursor, upTo time.Time, n int) ([]queue.Ref, queue.Cursor, error) {
	refs, next, err := s.Memory.Scan(ctx, now, lane, after, upTo, n)
	refs = slices.DeleteFunc(refs, func(r queue.Ref) bool {
		_, late := s.late.Load(r.ID)
		return late
	})
	return refs, next, err
}

// Heads finds nothing: only the tail does here.
func (s *lateStore) Heads(context.Context, time.Time, queue.HeadQuery) ([]queue.Ref, string, error) {
	return nil, "", nil
}

// A commit behind the cursor is found by reading the last ids again, however
// much is committed meanwhile.
func TestLateCommitInACrowdedLane(t *testing.T) {
	for _, perTick := range []int{1, 100} {
		t.Run(fmt.Sprint(perTick), func(t *testing.T) {
			inPipe(t, func(t *testing.T, p *pipe) {
				store := &lateStore{Memory: p.store}
				r, err := valve.OpenReader(t.Context(), store, valve.ReaderConfig{Address: "-", Rules: p.rules})
				if err != nil {
					t.Fatal(err)
				}
				defer r.Close()
				box := r.NewInbox()
				if _, err := box.Subscribe(valve.Filter{}, 100_000, nil); err != nil {
					t.Fatal(err)
				}
				var lates []*queue.Message
				for tick := range 400 { // 4 s
					msgs := make([]*queue.Message, 0, perTick+1)
					for range perTick {
						msgs = append(msgs, text(fmt.Sprintf("d%d", tick%50), "x"))
					}
					if tick%100 == 50 {
						m := text("late", fmt.Sprint(tick))
						lates, msgs = append(lates, m), append(msgs, m)
						m.ID = (&queue.IDSource{}).New(p.w.Now())
						store.late.Store(m.ID, nil)
						time.AfterFunc(1900*time.Millisecond, func() { store.late.Delete(m.ID) })
					}
					p.insert(msgs...)
					pass(10 * time.Millisecond)
				}
				pass(3 * time.Second)
				got := p.take(box, 400*perTick+len(lates))
				found := 0
				for _, d := range got {
					if d.Message.Destination == "late" {
						found++
					}
				}
				if found != len(lates) {
					t.Errorf("found %d of %d late commits", found, len(lates))
				}
			})
		})
	}
}

func TestPrivateDestinations(t *testing.T) {
	inPipe(t, func(t *testing.T, p *pipe) {
		name := valve.PrivatePrefix + "s1.reply"
		p.insert(text(name, "private"), text("a", "public"))
		r := p.reader(nil)
		defer r.Close()
		all := r.NewInbox()
		for _, globs := range [][]string{nil, {"*"}, {"mval*"}} {
			if _, err := all.Subscribe(valve.Filter{Globs: globs}, 10, nil); err != nil {
				t.Fatal(err)
			}
		}
		if got := bodiesOf(p.take(all, 1)); got[0] != "public" {
			t.Errorf("got %v", got)
		}
		p.nothing(all, 3*time.Second)
		if got := bodiesOf(p.take(p.inbox(r, 1, name), 1)); got[0] != "private" {
			t.Errorf("got %v", got)
		}
	})
}

// A new subscription gets what waits for another one's credit.
func TestNewSubscriptionUnparks(t *testing.T) {
	inPipe(t, func(t *testing.T, p *pipe) {
		r := p.reader(nil)
		defer r.Close()
		full := p.inbox(r, 1, "a")
		p.insert(text("a", "1"), text("a", "2"), text("a", "3"))
		p.take(full, 1)
		p.nothing(full, time.Second)
		if got := bodiesOf(p.take(p.inbox(r, 1, "a"), 1)); got[0] != "2" {
			t.Errorf("got %v", got)
		}
		wild := r.NewInbox()
		if _, err := wild.Subscribe(valve.Filter{Globs: []string{"a*"}}, 1, nil); err != nil {
			t.Fatal(err)
		}
		if got := bodiesOf(p.take(wild, 1)); got[0] != "3" {
			t.Errorf("got %v", got)
		}
	})
}

// Subscriptions that do not take their large messages hold up no others.
func TestLargeMessagesOfSlowConsumers(t *testing.T) {
	inPipe(t, func(t *testing.T, p *pipe) {
		r := p.reader(nil)
		defer r.Close()
		for i := range 12 { // nobody takes these
			name := fmt.Sprintf("large%d", i)
			for range 8 {
				m := text(name, "")
				m.Body = make([]byte, 1<<20)
				p.insert(m)
			}
			p.inbox(r, 100, name)
		}
		pass(2 * time.Second)
		box := p.inbox(r, 100, "small")
		for i := range 300 {
			p.insert(text("small", fmt.Sprint(i)))
		}
		began := r.Now()
		for range 300 {
			p.end(r, valve.EndAck, 0, p.take(box, 1)...)
		}
		if took := r.Now().Sub(began); took > 5*time.Second {
			t.Errorf("took %v", took)
		}
	})
}
