package valve

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/throttle"
)

// tickLoop does what is due every half second: rules, leases that ran out,
// presence, the clock.
func (r *Reader) tickLoop() {
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for n := 1; ; n++ {
		select {
		case <-tick.C:
		case <-r.ctx.Done():
			return
		}
		ctx, cancel := context.WithTimeout(r.ctx, backEndTimeout)
		r.reloadRules(ctx)
		r.sweep()
		if n%2 == 0 {
			r.mu.Lock()
			r.x.ageEnded()
			r.mu.Unlock()
		}
		if n%int(presenceGap/(500*time.Millisecond)) == 0 {
			r.announce()
		}
		if n%maintainTicks == 0 {
			r.maintain(ctx)
		}
		if r.clock.due() {
			if err := r.clock.measure(ctx, r.store); err != nil && r.ctx.Err() == nil {
				r.log.Warn("clock not measured", "err", err)
			}
		}
		cancel()
	}
}

const (
	maintainTicks = 600 // five minutes
	keepStats     = 7 * 24 * time.Hour
	keepBatches   = time.Hour
	keepHolds     = 48 * time.Hour
)

// maintain removes what the pipe does not need any more.
func (r *Reader) maintain(ctx context.Context) {
	now := r.clock.Now()
	err := errors.Join(throttle.PruneRules(ctx, r.ruleStore, now), r.ruleStore.PruneHolds(ctx, now.Add(-keepHolds)))
	if admin, ok := r.store.(queue.Admin); ok {
		err = errors.Join(err, admin.Prune(ctx, now.Add(-keepStats), now.Add(-keepBatches)))
	}
	if err != nil && r.ctx.Err() == nil {
		r.log.Warn("old rows not removed", "err", err)
	}
}

// reloadRules makes changes of limits and holds effective.
func (r *Reader) reloadRules(ctx context.Context) {
	if err := r.rules.Reload(ctx, r.clock.Now()); err != nil && r.ctx.Err() == nil {
		// Rules may have been read all the same, and the holds not.
		r.log.Warn("limits not reloaded", "err", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.clock.Now()
	if v := r.rules.Version(); v != r.applied {
		r.applied = v
		for _, d := range r.x.dests {
			r.touch(d, now)
		}
	}
	for d := range r.onHold {
		delete(r.onHold, d)
		r.touch(d, now)
	}
	r.wakeUp()
}

// sweep forgets leases that ran out and gives back what nobody takes.
func (r *Reader) sweep() {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.clock.Now()
	for e := range r.leased {
		switch {
		case e.phase == out && !e.leaseUntil.After(now):
			e.sub.returned()
			e.dest.inFlight--
			delete(r.leased, e)
			r.x.forget(e)
			r.stats.LeaseLost++
			e.dest.more = true
			r.touch(e.dest, now)
		case e.phase == prepared && e.sub == nil && (e.leaseUntil.Sub(now) < r.cfg.Lease*3/4 ||
			len(r.peers) > 1 && now.Sub(e.heldSince) > heldTime):
			e.dest.held = remove(e.dest.held, e)
			r.giveBack(e)
		case e.phase == prepared && e.sub != nil:
			r.sweepMail(e, now)
		}
	}
	maps.DeleteFunc(r.reach, func(_ queue.ID, until time.Time) bool { return until.Before(now) })
	r.wakeUp()
}

// sweepMail takes an entry that its subscription did not fetch in time out of
// the mailbox: its permit has lapsed or half of its lease is over.
func (r *Reader) sweepMail(e *entry, now time.Time) {
	lapsed := e.permitted && now.After(e.permit.Until)
	stale := e.leaseUntil.Sub(now) < r.cfg.Lease/2
	if !lapsed && !stale {
		return
	}
	mail := remove(e.sub.box.mailbox, e)
	if len(mail) == len(e.sub.box.mailbox) {
		return // a caller has it in hand
	}
	e.sub.box.mailbox = mail
	e.sub.unassign()
	if stale {
		r.giveBack(e)
		return
	}
	r.lapse(e)
	r.hold(e)
	r.touch(e.dest, now)
}

// remove returns list without e.
func remove(list []*entry, e *entry) []*entry {
	if i := slices.Index(list, e); i >= 0 {
		return slices.Delete(list, i, i+1)
	}
	return list
}

// flushLoop writes the limiter's overdue reports.
func (r *Reader) flushLoop() {
	timer := time.NewTimer(time.Second)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-r.ctx.Done():
			return
		}
		ctx, cancel := context.WithTimeout(r.ctx, backEndTimeout)
		next := r.limiter.Flush(ctx, r.clock.Now())
		cancel()
		wait := 50 * time.Millisecond
		if !next.IsZero() {
			wait = min(max(next.Sub(r.clock.Now()), time.Millisecond), wait)
		}
		timer.Reset(wait)
	}
}
