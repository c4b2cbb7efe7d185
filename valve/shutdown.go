package valve

import (
	"context"
	"time"

	"github.com/mvalve/mvalve/queue"
)

// Shutdown stops leasing, gives back what was not handed out, waits until the
// deliveries that are out have ended or ctx is done, and closes the reader.
// Blocked calls of Next return ErrClosed. It returns the context's error if
// deliveries were still out; their leases run out by themselves.
func (r *Reader) Shutdown(ctx context.Context) error {
	r.stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		r.mu.Lock()
		busy := len(r.leased)
		for _, n := range r.jobs {
			busy += n
		}
		r.mu.Unlock()
		if busy == 0 {
			return r.Close()
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			_ = r.Close()
			return ctx.Err()
		}
	}
}

// stop ends scheduling and gives back everything that no consumer has.
func (r *Reader) stop() {
	r.mu.Lock()
	r.closing = true
	var held []*entry
	for e := range r.leased {
		if e.phase == prepared && e.sub == nil {
			held = append(held, e)
		}
	}
	for _, e := range held {
		e.dest.held = nil
		r.giveBack(e)
	}
	subs := r.subscriptions()
	r.mu.Unlock()
	for _, s := range subs {
		_ = s.Close()
	}
	r.wakeUp()
}

// Close stops the reader at once. Leases of deliveries that are out run out by
// themselves; ending them returns ErrClosed. It is safe to call twice.
func (r *Reader) Close() error {
	r.stop()
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return nil
	}
	r.closed = true
	r.mu.Unlock()
	if r.cfg.Writer != nil {
		r.cfg.Writer.detach(r)
	}
	r.cancel()
	r.wg.Wait()
	r.settles.close()
	ctx, cancel := context.WithTimeout(context.Background(), lastCallTimeout)
	defer cancel()
	r.limiter.Drain(ctx, r.clock.Now())
	r.statlog.close()
	if r.bell != nil {
		r.bell.close()
	}
	r.leave()
	return nil
}

func (r *Reader) leave() {
	reg, ok := r.store.(queue.Registry)
	if !ok {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), lastCallTimeout)
	defer cancel()
	if err := reg.Leave(ctx, r.id); err != nil {
		r.log.Warn("presence not removed", "err", err)
	}
}

// Pending is what is left of a reader's destinations, in the whole store.
type Pending struct {
	Waiting, Leased int64
	// Empty says what the next known message waits for.
	Empty EmptyError
}

// Pending counts what is left of the destinations that Next serves, waiting and
// leased by anyone. It reads the whole backlog: ask once things are quiet.
func (r *Reader) Pending(ctx context.Context) (Pending, error) {
	var p Pending
	if admin, ok := r.store.(queue.Admin); ok {
		counts, err := admin.Count(ctx, r.clock.Now(), r.main.only)
		if err != nil {
			return p, err
		}
		for _, c := range counts {
			if c.Table != queue.Dead && r.main.match(c.Destination) {
				p.Waiting += c.Waiting
				p.Leased += c.Leased
			}
		}
	}
	p.Empty = *r.emptyError(r.main)
	return p, nil
}
