package valve_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/state"
	"github.com/mvalve/mvalve/throttle"
	"github.com/mvalve/mvalve/valve"
)

// countedState counts updates, and lets time go on where they do not end.
type countedState struct {
	*state.Memory
	updates atomic.Int64
}

func (s *countedState) Update(ctx context.Context, now time.Time, keys []string, ttls []time.Duration, fn func(int, state.Entry) []byte) []error {
	if s.updates.Add(1) > 1000 {
		pass(10 * time.Millisecond)
	}
	return s.Memory.Update(ctx, now, keys, ttls, fn)
}

// slowLease is a store whose next lease takes a while.
type slowLease struct {
	*queue.Memory
	next atomic.Int64
}

func (s *slowLease) Lease(ctx context.Context, now, until time.Time, token queue.ID, refs []queue.Ref) ([]queue.Leased, error) {
	pass(time.Duration(s.next.Swap(0)))
	return s.Memory.Lease(ctx, now, until, token, refs)
}

// With Bypass an emergency whose permit lapsed while it was leased still does not
// wait for the limit, nor is the limiter asked all the time.
func TestBypassAfterALapsedPermit(t *testing.T) {
	inPipe(t, func(t *testing.T, p *pipe) {
		p.limit("d", "1/1m")
		store, counted := &slowLease{Memory: p.store}, &countedState{Memory: p.state}
		r := p.open(store, valve.ReaderConfig{
			Writer: p.w, Rules: p.rules, State: counted, Durable: p.state, Address: "-", Wait: time.Minute, Emergency: valve.Bypass,
		})
		defer p.close(r)
		p.insert(text("d", "1"))
		p.ack(p.next(r))
		store.next.Store(int64(3 * time.Second))
		m := text("d", "2")
		m.Lane = queue.Emergency
		start := p.w.Now()
		p.insert(m)
		d := p.next(r)
		if took := d.DispatchedAt.Sub(start); took < 3*time.Second || took > 5*time.Second {
			t.Errorf("after %v", took)
		}
		if n := counted.updates.Load(); n > 100 {
			t.Errorf("%d updates of the limiter's state", n)
		}
		p.ack(d)
	})
}

// Stores that are too slow for permits are told in the log.
func TestSlowStoresAreTold(t *testing.T) {
	inPipe(t, func(t *testing.T, p *pipe) {
		p.limit("d", "1000/1s")
		var log bytes.Buffer
		store, start := &slowLease{Memory: p.store}, time.Now()
		r := p.open(store, valve.ReaderConfig{
			Writer: p.w, Rules: p.rules, State: p.state, Durable: p.state, Address: "-", Wait: time.Minute,
			Logger: slog.New(slog.NewTextHandler(&log, nil)),
		})
		for range 24 {
			store.next.Store(int64(150 * time.Millisecond))
			p.insert(text("d", "x"))
			p.ack(p.next(r))
			pass(time.Second)
		}
		p.close(r)
		if n := strings.Count(log.String(), "too slow for limits"); n != 2 {
			t.Fatalf("told %d times:\n%s", n, &log)
		}
		var at string
		if _, err := fmt.Sscanf(log.String(), "time=%s", &at); err != nil {
			t.Fatal(err)
		}
		if first, err := time.Parse(time.RFC3339, at); err != nil || first.Sub(start) < 10*time.Second {
			t.Errorf("told at %v, %v; a store may hang for a moment", at, err)
		}
	})
}

// unreadRules cannot be read while away is set.
type unreadRules struct {
	throttle.RuleStore
	away atomic.Bool
}

func (u *unreadRules) RulesVersion(ctx context.Context) (int64, error) {
	if u.away.Load() {
		return 0, queue.ErrUnavailable
	}
	return u.RuleStore.RulesVersion(ctx)
}

// A reader that is told that its limit has changed, and cannot read the new one,
// asks now and then.
func TestStaleLimitThatCannotBeRead(t *testing.T) {
	inPipe(t, func(t *testing.T, p *pipe) {
		p.limit("d", "1/10s")
		rules, counted := &unreadRules{RuleStore: p.rules}, &countedState{Memory: p.state}
		r := p.open(p.store, valve.ReaderConfig{Writer: p.w, Rules: rules, State: counted, Durable: p.state, Address: "-", Wait: time.Minute})
		defer p.close(r)
		rules.away.Store(true)
		p.limit("d", "2/10s")
		other := p.reader(nil)
		p.insert(text("d", "1"))
		p.ack(p.next(other))
		p.close(other)
		before := counted.updates.Load()
		p.insert(text("d", "2"))
		go func() {
			pass(2 * time.Second)
			rules.away.Store(false)
		}()
		start := p.w.Now()
		d := p.next(r)
		if took := d.DispatchedAt.Sub(start); took < 2*time.Second || took > 3*time.Second {
			t.Errorf("after %v", took)
		}
		if n := counted.updates.Load() - before; n < 2 || n > 100 {
			t.Errorf("%d updates of the limiter's state", n)
		}
		p.ack(d)
	})
}
