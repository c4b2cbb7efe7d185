package valve

import (
	"context"
	"time"

	"github.com/mvalve/mvalve/queue"
)

const (
	passRows  = 1000        // groups per page of the destination pass
	passShare = 99          // the pass rests this many times as long as it worked
	passEvery = time.Second // least time between two passes
)

// passLoop runs the destination pass: it finds what the tail scan cannot know,
// with a small share of the time, or at full speed when a subscription is new.
func (r *Reader) passLoop() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-r.surveyor:
		case <-r.ctx.Done():
			return
		}
		began := time.Now()
		r.mu.Lock()
		asked := r.surveys
		r.mu.Unlock()
		if !r.idle() && r.pass(asked) {
			r.mu.Lock()
			r.surveyed = asked
			r.mu.Unlock()
		}
		timer.Reset(max(passEvery-time.Since(began), 10*time.Millisecond))
	}
}

// survey asks for a pass over all destinations at full speed. The mutex is held.
func (r *Reader) survey() {
	r.surveys++
	signal(r.surveyor)
}

// pass visits every destination once, at full speed if it is one of the surveys
// asked for; false: it could not, or a survey is wanted instead.
func (r *Reader) pass(asked int) bool {
	r.mu.Lock()
	fast := r.surveyed < asked
	r.mu.Unlock()
	after := ""
	for {
		ctx, cancel := context.WithTimeout(r.ctx, backEndTimeout)
		began := time.Now()
		refs, more, err := r.store.Heads(ctx, r.clock.Now(), queue.HeadQuery{After: after, Limit: passRows})
		cancel()
		if err != nil {
			if r.ctx.Err() == nil {
				r.log.Warn("destination pass", "err", err)
			}
			return false
		}
		r.noteHeads(refs)
		if more == "" {
			return true
		}
		after = more
		if !r.awaitRefills() {
			return false
		}
		if !fast && !r.rest(passShare*time.Since(began)) {
			return false
		}
	}
}

// manyWaiting is how many destinations wait for a refill at most before the pass
// waits for them, so that it never gathers all there are in memory.
const manyWaiting = 4096

// awaitRefills waits until few refills are queued; false: the reader ends.
func (r *Reader) awaitRefills() bool {
	for {
		r.mu.Lock()
		n := len(r.refills)
		r.mu.Unlock()
		if n <= manyWaiting {
			return true
		}
		if !sleep(r.ctx, 2*time.Millisecond) {
			return false
		}
	}
}

// rest waits for d; false: a survey is asked for, or the reader ends.
func (r *Reader) rest(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-r.surveyor:
		signal(r.surveyor) // for passLoop
		return false
	case <-r.ctx.Done():
		return false
	}
}

// noteHeads wants a refill of every destination whose head is not known.
func (r *Reader) noteHeads(refs []queue.Ref) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.clock.Now().Add(lookAhead).UnixMicro()
	for i := range refs {
		ref := &refs[i]
		if ref.ReadyAt > now || !r.wanted(ref.Destination) {
			continue
		}
		// A head that the tail scan met says nothing of what lies between it and
		// the newer rows, before the backlog was read once.
		if known := r.x.dests[ref.Destination]; r.x.seen(ref.ID) && (known == nil || !known.headAt.IsZero()) && !r.hides(ref, known) {
			continue
		}
		d := r.x.dest(ref.Destination)
		if len(d.ready) >= d.most() && before(&d.ready[len(d.ready)-1].ref, ref) < 0 {
			continue
		}
		r.wantRefill(d)
	}
}

// hides reports whether a head that is out here hides what is free behind it:
// leases of other readers run out there, and nothing else tells. The mutex is held.
func (r *Reader) hides(head *queue.Ref, d *destination) bool {
	e := r.x.known[head.ID]
	return e != nil && e.phase != waiting && d != nil && r.clock.Now().Sub(d.headAt) > r.cfg.Lease/4
}

// sleep waits for d or until ctx ends, which it reports as false.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// wantRefill queues a refill of d. The mutex is held.
func (r *Reader) wantRefill(d *destination) {
	if d.refill || r.closing {
		return
	}
	d.refill = true
	r.refills = append(r.refills, d)
	signal(r.refill)
}

func (r *Reader) refillLoop() {
	for {
		r.mu.Lock()
		var d *destination
		if len(r.refills) > 0 {
			d, r.refills[0] = r.refills[0], nil
			if r.refills = r.refills[1:]; len(r.refills) == 0 {
				r.refills = nil
			}
		}
		r.mu.Unlock()
		if d == nil {
			select {
			case <-r.refill:
				continue
			case <-r.ctx.Done():
				return
			}
		}
		ctx, cancel := context.WithTimeout(r.ctx, backEndTimeout)
		r.refillNow(ctx, d)
		cancel()
		if r.ctx.Err() != nil {
			return
		}
	}
}

// headEvery is how often a refill begins at the head of the backlog. In between
// it goes on behind the last reference: at the head lie rows that are out.
const headEvery = time.Second

// refillNow reads the head of d's backlog and brings its list up to date:
// unknown rows are added, and references whose rows others took are forgotten.
// A list that runs low soon after that is only continued.
func (r *Reader) refillNow(ctx context.Context, d *destination) {
	now := r.clock.Now()
	q := queue.HeadQuery{Destination: d.name}
	r.mu.Lock()
	d.pace(now)
	q.Limit = d.most()
	d.dropped, d.refill = false, true
	old := append([]*entry(nil), d.ready...)
	if now.Sub(d.headAt) < headEvery {
		q.Behind = d.end()
	}
	r.mu.Unlock()
	refs, _, err := r.store.Heads(ctx, now, q)
	r.mu.Lock()
	d.refill = false
	if err != nil {
		d.more = true
		r.mu.Unlock()
		if r.ctx.Err() == nil {
			r.log.Warn("refill", "destination", d.name, "err", err)
			sleep(r.ctx, retryPause)
		}
		return
	}
	if q.Behind == nil {
		d.headAt = now
	} else {
		old = nil // the answer says nothing of them
	}
	r.merge(d, old, refs, q.Limit, now)
	r.touch(d, now)
	r.mu.Unlock()
	r.wakeUp()
}

// merge replaces what the index knows of d's waiting rows by refs, the rows the
// store has at its head, at most limit per table. old is what the index knew before it asked.
func (r *Reader) merge(d *destination, old []*entry, refs []queue.Ref, limit int, now time.Time) {
	found := make(map[queue.ID]bool, len(refs))
	var rows [queue.Dead]int
	var last [queue.Dead]*queue.Ref // per table
	for i := range refs {
		found[refs[i].ID] = true
		rows[refs[i].Table]++
		last[refs[i].Table] = &refs[i]
	}
	full := false
	for _, n := range rows {
		full = full || n >= limit
	}
	stale := make(map[*entry]bool)
	for _, e := range old {
		table := e.ref.Table
		if e.phase == waiting && e.dest == d && !found[e.ref.ID] &&
			(rows[table] < limit || before(&e.ref, last[table]) < 0) {
			stale[e] = true
		}
	}
	if len(stale) > 0 {
		kept := d.ready[:0]
		for _, e := range d.ready {
			if stale[e] {
				r.x.total--
				r.x.forget(e)
				continue
			}
			kept = append(kept, e)
		}
		clear(d.ready[len(kept):])
		d.ready = kept
	}
	d.more = false
	if r.x.dests[d.name] != d {
		if r.x.dests[d.name] != nil {
			return // dropped and made anew meanwhile: the other one has its own refill
		}
		r.x.dests[d.name] = d
	}
	had := d.backlog() > 0
	for i := range refs {
		r.x.offer(refs[i], nil, now)
	}
	if !had && d.backlog() > 0 {
		d.readySince = now
	}
	d.more = full || d.dropped
}
