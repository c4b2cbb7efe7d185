package throttle

import (
	"context"
	"time"
)

// note is what became of a permit: used at used, or given back (used 0).
type note struct {
	permit    stamp
	used, era int64
}

// guess is a write of unknown outcome: if the value still has its nonce, it was
// carried out and is undone; else its permits count as used.
type guess struct {
	nonce  uint64
	stamps []stamp
	before ring
}

// notes are the facts about one destination that are not in the store yet.
type notes struct {
	limit Limit
	list  []note
	guess *guess
	due   int64 // µs: write then (0: when convenient)
	until int64 // µs: of no use afterwards
	fresh bool  // a permit came back: its reader asks again at once, and takes the notes along
}

const (
	// maxReportDelay bounds how long a report that matters waits.
	maxReportDelay = 250_000
	// flushEarly lets reports that are due soon share a write.
	flushEarly = 20_000
	flushBatch = 256
	// freshTime is how long a permit that came back is left to the next request.
	freshTime = 10_000
	// minReportShare: slack below 1/200 of the window is not worth a write.
	minReportShare = 200
)

// Dispatched implements Taker.
func (l *Limiter) Dispatched(p Permit, at time.Time) {
	if p.from == nil {
		return
	}
	if at.Before(p.At) || at.After(p.Until) {
		l.log.Error("dispatched outside the time of the permit", "destination", p.dest,
			"at", p.At, "until", p.Until, "dispatched", at)
	}
	l.note(p, note{p.stamp(), at.UnixMicro(), p.from.era}, at.UnixMicro())
}

// Return implements Taker.
func (l *Limiter) Return(p Permit) {
	if p.from != nil {
		l.note(p, note{p.stamp(), 0, p.from.era}, p.At.UnixMicro())
	}
}

func (p Permit) stamp() stamp {
	return stamp{p.At.UnixMicro(), p.Until.Sub(p.At).Microseconds()}
}

func (l *Limiter) note(p Permit, n note, at int64) {
	limit := p.from.limit
	delay := min(int64(limit.Interval/time.Microsecond)/4, maxReportDelay)
	force := limit.slack()*minReportShare > limit.window() && p.from.crowded
	if n.used == 0 {
		force = p.from.crowded
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	d := l.pending[p.dest]
	if d == nil {
		d = &notes{limit: limit}
		l.pending[p.dest] = d
	}
	d.limit = limit
	d.list = append(d.list, n)
	d.fresh = d.fresh || n.used == 0
	d.until = max(d.until, at+limit.window()+limit.easy()+p.from.hold)
	if force && (d.due == 0 || at+delay < d.due) {
		d.due = at + delay
	}
	l.schedule(d)
	if d.fresh {
		l.nextDue = 1 // the next Flush shall see it, and wait a moment
	}
}

// schedule makes Flush look at d in time.
func (l *Limiter) schedule(d *notes) {
	at := d.until
	if d.due != 0 {
		at = min(at, d.due)
	}
	if l.nextDue == 0 || at < l.nextDue {
		l.nextDue = at
	}
}

// claim takes the notes of a destination out, to be written.
func (l *Limiter) claim(dest string) *notes {
	l.mu.Lock()
	defer l.mu.Unlock()
	d := l.pending[dest]
	delete(l.pending, dest)
	return d
}

// settleNotes applies the job's notes to r and reports whether r changed.
func (j *job) settleNotes(r *ring) bool {
	d := j.notes
	if d == nil {
		return false
	}
	changed := false
	if g := d.guess; g != nil && g.nonce == r.nonce {
		changed = true
		for _, p := range g.stamps {
			r.giveBack(p)
		}
		r.tat, r.closed, r.closer, r.hold = g.before.tat, g.before.closed, g.before.closer, g.before.hold
	}
	for _, n := range d.list {
		if n.era != r.era {
			continue
		}
		changed = true
		if n.used == 0 {
			r.giveBack(n.permit)
		} else {
			r.report(n.permit, n.used)
		}
	}
	return changed
}

// settle forgets the notes of a job that was carried out. Notes of a job that
// found newer rules, or wrote nothing, are kept if they may still matter.
func (l *Limiter) settle(j *job) {
	if j.notes != nil && j.stale {
		l.restore(j, false)
	}
}

// restore puts the notes of a failed job back. With unknown they may have been
// applied: a second time a report could meet another permit, whose latest moment
// became the same once the first one was reported. They are forgotten, and count
// as used at their latest, which is safe.
func (l *Limiter) restore(j *job, unknown bool) {
	d := j.notes
	if d == nil {
		d = &notes{limit: j.limit, until: j.now + j.limit.window() + j.limit.easy()}
	}
	if unknown && j.written {
		d.list, d.guess = nil, nil
		if len(j.stamps) > 0 {
			d.guess = &guess{nonce: j.nonce, stamps: append([]stamp(nil), j.stamps...), before: j.before}
		}
	}
	if len(d.list) == 0 && d.guess == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if d.due != 0 {
		d.due = max(d.due, j.now+flushEarly) // not at once again
	}
	if newer := l.pending[j.dest]; newer != nil {
		newer.list = append(d.list, newer.list...)
		newer.until = max(newer.until, d.until)
		if newer.guess == nil {
			newer.guess = d.guess
		}
		if d.due != 0 && (newer.due == 0 || d.due < newer.due) {
			newer.due = d.due
		}
		d = newer
	}
	l.pending[j.dest] = d
	l.schedule(d)
}

// Flush writes the reports that are due and returns when to call it next (zero:
// whenever something was dispatched; calling every 50 ms does). Reports it
// cannot write are tried again; they only cost throughput, never the limit.
func (l *Limiter) Flush(ctx context.Context, now time.Time) (next time.Time) {
	l.flush(ctx, now, false)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.nextDue == 0 {
		return time.Time{}
	}
	return time.UnixMicro(max(l.nextDue, now.UnixMicro()+1000)).UTC()
}

// Drain writes all reports: what a reader does last.
func (l *Limiter) Drain(ctx context.Context, now time.Time) { l.flush(ctx, now, true) }

func (l *Limiter) flush(ctx context.Context, now time.Time, all bool) {
	t := now.UnixMicro()
	var jobs []*job
	l.mu.Lock()
	if all || l.nextDue != 0 && l.nextDue <= t {
		l.nextDue = 0
		for dest, d := range l.pending {
			switch {
			case d.until < t:
				delete(l.pending, dest)
			case d.fresh && !all:
				// A write beside the request it races with would only hide the
				// free slot from it.
				d.fresh = false
				d.due = max(d.due, t+flushEarly+freshTime)
				l.schedule(d)
			case all || d.due != 0 && d.due <= t+flushEarly:
				delete(l.pending, dest)
				jobs = append(jobs, l.newNotesJob(dest, d, t))
			default:
				l.schedule(d)
			}
		}
	}
	l.mu.Unlock()
	for len(jobs) > 0 {
		n := min(len(jobs), flushBatch)
		l.update(ctx, now, jobs[:n:n])
		jobs = jobs[n:]
	}
}

func (l *Limiter) newNotesJob(dest string, d *notes, now int64) *job {
	return &job{
		limiter: l, grant: new(Grant), dest: dest, key: l.key(dest), store: l.store(d.limit),
		limit: d.limit, ttl: ttl(d.limit) + ttlRoom, now: now, nonce: l.random(), notes: d,
	}
}
