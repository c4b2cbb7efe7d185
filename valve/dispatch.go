package valve

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/throttle"
)

// errWentBack says that a prepared message went back instead of out.
var errWentBack = errors.New("valve: prepared message went back")

// dispatch turns a prepared entry into a delivery at its permit's time. It
// returns errWentBack when the entry could not be handed out any more.
func (r *Reader) dispatch(ctx context.Context, e *entry) (*Delivery, error) {
	if e.limited {
		if err := r.waitUntil(ctx, e.permit.At); err != nil {
			r.takeBack(e)
			return nil, err
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	d, err := r.handOut(e, r.clock.Now().Truncate(time.Microsecond))
	if err != nil {
		r.wakeUp()
	}
	return d, err
}

// handOut makes e a delivery now, unless it must not go any more: then it goes
// back, and errWentBack or ErrClosed says so. The mutex is held.
func (r *Reader) handOut(e *entry, now time.Time) (*Delivery, error) {
	switch {
	case r.closing:
		e.sub.returned()
		r.giveBack(e)
		return nil, ErrClosed
	case e.limited && now.After(e.permit.Until):
		r.lapse(e)
		e.sub.returned()
		r.hold(e)
		r.touch(e.dest, now)
		return nil, errWentBack
	case r.blocked(e, now), now.Add(r.cfg.Lease / 2).After(e.leaseUntil),
		e.ref.ExpiresAt != 0 && e.ref.ExpiresAt <= now.UnixMicro():
		e.sub.returned()
		r.giveBack(e)
		return nil, errWentBack
	}
	if e.limited {
		r.limiter.Dispatched(e.permit, now)
		e.permitted = false
	}
	r.stopAhead(e)
	e.phase = out
	r.stats.Dispatched++
	r.count(actionDequeue, e.dest.name)
	if r.log.Enabled(r.ctx, slog.LevelDebug) {
		// Before anybody has the message: of a process that is killed, the log
		// holds at least what was dispatched.
		r.log.Debug("dispatched", "message_id", e.message.ID, "destination", e.dest.name, "attempt", e.ref.Attempts, "dispatched_at", now)
	}
	return &Delivery{Message: e.message, DispatchedAt: now, Attempt: e.ref.Attempts, entry: e, reader: r}, nil
}

// blocked reports whether e, prepared a while ago, must not go any more: its
// destination was paused or held, or it was superseded. The mutex is held.
func (r *Reader) blocked(e *entry, now time.Time) bool {
	r.refresh(e.dest)
	if e.dest.rule.Paused || !e.limited && e.dest.rule.Limit.Max > 0 {
		return true // the second: a limit came while it lay ready without a permit
	}
	h, ok := r.rules.Hold(e.dest.name)
	if !ok {
		return false
	}
	superseded := e.ref.Lane != queue.Emergency && e.ref.EnqueuedAt < queue.Micros(h.SupersededBefore)
	return superseded && !e.set(h) || e.waits(h).After(now)
}

// lapse gives a permit back whose time has passed. The mutex is held.
func (r *Reader) lapse(e *entry) {
	r.unused(e.dest, e.permit)
	e.permitted = false
	r.stats.Lapsed++
}

// unused gives a permit back. Asking again makes sense at once: the next request
// takes the note along that frees its slot. The mutex is held.
func (r *Reader) unused(d *destination, p throttle.Permit) {
	r.limiter.Return(p)
	d.returned++
	d.notBefore = time.Time{}
}

// waitUntil returns when the pipe's clock shows at, or the context's error. Timers
// go by this machine's clock, which may run a little faster.
func (r *Reader) waitUntil(ctx context.Context, at time.Time) error {
	for {
		wait := at.Sub(r.clock.Now())
		if wait <= 0 {
			return nil
		}
		if !sleep(ctx, wait) {
			return ctx.Err()
		}
	}
}
