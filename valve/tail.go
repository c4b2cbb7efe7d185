package valve

import (
	"context"
	"time"

	"github.com/mvalve/mvalve/queue"
)

const (
	scanRows     = 1000                   // rows per scan
	pollBusy     = 5 * time.Millisecond   // while messages came lately
	pollIdle     = 50 * time.Millisecond  // else
	pollLinger   = time.Second            // how long "lately" is
	pollGap      = time.Millisecond       // least time between two polls, whatever rings
	rereadEvery  = 500 * time.Millisecond // how often the last ids are read again
	rereadSpan   = 2 * time.Second        // because commits come out of id order
	lookAhead    = time.Second            // timed messages known before they are due
	handoverSoon = 2 * time.Second        // later timed messages are found by the look-ahead
)

// lanes are the tables that are scanned.
var lanes = [...]queue.Lane{queue.Emergency, queue.Timed, queue.Incoming}

// tail follows the end of the lanes.
type tail struct {
	cursor  [queue.Incoming + 1]queue.Cursor
	scanned [queue.Incoming + 1]time.Time // when the lane was scanned last
	reread  time.Time                     // when the last ids were read again
	found   time.Time                     // when a scan last found something
	dirty   int64
	missed  bool // the last scan failed, whatever the store said of news

	// Of a store that tells what others commit, as seen before the last scan
	// and before the last ids were read again.
	foreign, foreignRead int64

	// A lane where much happens is read again once at each of these ages.
	crowded [queue.Incoming + 1]bool
	again   [queue.Incoming + 1][len(rereadAges)]queue.ID
}

// rereadAges are when the ids of a crowded lane are read again: most commits that
// came out of order are there at the first.
var rereadAges = [...]time.Duration{rereadEvery, rereadSpan}

// rest sets t to begin with the last ids: what is older is found by the pass that
// a new subscription starts.
func (t *tail) rest(now time.Time) {
	back := now.Add(-rereadSpan)
	*t = tail{dirty: -1, foreign: -1, foreignRead: -1}
	for _, lane := range lanes {
		t.cursor[lane], t.scanned[lane] = queue.Cursor{ID: queue.MinID(back)}, now
	}
	t.cursor[queue.Timed] = queue.Cursor{ReadyAt: back.UnixMicro()}
}

// idle reports whether nobody is subscribed.
func (r *Reader) idle() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.exact) == 0 && len(r.wild) == 0
}

// tailLoop polls the lanes: often while messages come, rarely when idle, at once
// when the doorbell rings.
func (r *Reader) tailLoop() {
	t := &tail{}
	t.rest(r.clock.Now())
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		ring := false
		select {
		case <-timer.C:
		case <-r.rung:
			ring = true
		case <-r.ctx.Done():
			return
		}
		began := time.Now()
		wait := r.poll(t, ring)
		if rest := pollGap - time.Since(began); ring && rest > 0 {
			wait = max(rest, min(wait, pollBusy))
		}
		timer.Reset(wait)
	}
}

// poll scans once and returns when to poll again.
func (r *Reader) poll(t *tail, ring bool) time.Duration {
	ctx, cancel := context.WithTimeout(r.ctx, backEndTimeout)
	defer cancel()
	now := r.clock.Now()
	if r.idle() {
		t.rest(now)
		return pollIdle
	}
	reread := now.Sub(t.reread) >= rereadEvery
	look, again := r.news(ctx, t, ring, reread)
	if t.missed {
		look, again = true, true
	}
	if !look && !reread {
		return r.pollAfter(t, now)
	}
	found := false
	for _, lane := range lanes {
		if !look && lane != queue.Timed {
			continue // what becomes due there moves with the clock
		}
		n, err := r.scanLane(ctx, t, lane, now, again || reread && lane == queue.Timed || ring && lane == queue.Timed)
		if err != nil {
			if r.ctx.Err() == nil {
				r.log.Warn("scan", "lane", lane.String(), "err", err)
			}
			t.missed = true
			return retryPause
		}
		found = found || n
	}
	t.missed = false
	if reread {
		t.reread = now
	}
	if found || ring && look {
		t.found = now
	}
	r.wakeUp()
	return r.pollAfter(t, now)
}

func (r *Reader) pollAfter(t *tail, now time.Time) time.Duration {
	if now.Sub(t.found) < pollLinger {
		return pollBusy
	}
	return pollIdle
}

// news says whether the lanes are to be looked at, and whether from a while back,
// which is due when reread is set.
func (r *Reader) news(ctx context.Context, t *tail, ring, reread bool) (look, again bool) {
	if store, ok := r.store.(queue.ForeignChecker); ok && r.cfg.Writer != nil {
		if v, err := store.Foreign(ctx); err == nil {
			again = reread && v != t.foreignRead
			look = again || v != t.foreign
			t.foreign = v
			if again {
				t.foreignRead = v
			}
			return look, again
		}
	}
	return reread || r.dirty(ctx, t, ring), reread
}

// dirty asks the store whether anybody committed since the last scan; stores
// that cannot tell are scanned.
func (r *Reader) dirty(ctx context.Context, t *tail, ring bool) bool {
	checker, ok := r.store.(queue.DirtyChecker)
	if !ok {
		return true
	}
	v, err := checker.Dirty(ctx)
	changed := err != nil || v != t.dirty
	t.dirty = v
	return changed || ring
}

// scanLane reads what is new in one lane, and with again what may have been
// committed late. It reports whether it found a message that was not known.
func (r *Reader) scanLane(ctx context.Context, t *tail, lane queue.Lane, now time.Time, again bool) (bool, error) {
	cur := &t.cursor[lane]
	clampCursor(cur, lane, t.scanned[lane])
	from := *cur
	found := false
	switch back := now.Add(-rereadSpan); {
	case !again:
	case lane == queue.Timed:
		from = queue.Cursor{ReadyAt: min(cur.ReadyAt, back.UnixMicro())}
	case t.crowded[lane]:
		var err error
		if found, err = r.rereadCrowded(ctx, t, lane, now); err != nil {
			return found, err
		}
	default:
		if id := queue.MinID(back); id.Compare(cur.ID) < 0 {
			from = queue.Cursor{ID: id}
		}
	}
	n, more, err := r.scanTo(ctx, lane, now, from, cur, queue.ID{})
	if err == nil {
		t.scanned[lane] = now
	}
	if again && lane != queue.Timed && !t.crowded[lane] && n > crowd {
		t.crowded[lane] = true
		for i, age := range rereadAges {
			t.again[lane][i] = queue.MinID(now.Add(-age))
		}
	}
	return found || more, err
}

// crowd is how many rows within rereadSpan make a lane crowded.
const crowd = 4000

// rereadCrowded reads again what has reached one of rereadAges since it was last
// called.
func (r *Reader) rereadCrowded(ctx context.Context, t *tail, lane queue.Lane, now time.Time) (bool, error) {
	found, rows := false, 0
	for i, age := range rereadAges {
		from, end := queue.Cursor{ID: t.again[lane][i]}, queue.MinID(now.Add(-age))
		if end.Compare(from.ID) <= 0 {
			continue
		}
		n, news, err := r.scanTo(ctx, lane, now, from, nil, end)
		found, rows = found || news, rows+n
		if err != nil {
			return found, err
		}
		t.again[lane][i] = end
	}
	t.crowded[lane] = rows > crowd/8
	return found, nil
}

// scanTo offers the rows of a lane behind from, up to the end of the page that
// passes end (zero: all), and moves cur, if not nil, behind them. It returns how
// many free rows there were and whether any was not known.
func (r *Reader) scanTo(ctx context.Context, lane queue.Lane, now time.Time, from queue.Cursor, cur *queue.Cursor, end queue.ID) (rows int, found bool, err error) {
	for {
		refs, next, err := r.store.Scan(ctx, now, lane, from, now.Add(lookAhead), scanRows)
		if err != nil {
			return rows, found, err
		}
		rows += len(refs)
		if r.offerAll(refs) {
			found = true
		}
		moved := next != from
		from = next
		if cur != nil && after(next, *cur) {
			*cur = next
		}
		if !moved || ctx.Err() != nil || !end.IsZero() && next.ID.Compare(end) >= 0 {
			return rows, found, ctx.Err()
		}
	}
}

func after(a, b queue.Cursor) bool {
	if a.ReadyAt != b.ReadyAt {
		return a.ReadyAt > b.ReadyAt
	}
	return a.ID.Compare(b.ID) > 0
}

// clampCursor keeps the cursor from passing the time of the last scan: what is
// inserted later must come behind it.
func clampCursor(cur *queue.Cursor, lane queue.Lane, now time.Time) {
	if lane == queue.Timed {
		if cur.ReadyAt > now.UnixMicro() {
			*cur = queue.Cursor{ReadyAt: now.UnixMicro()}
		}
		return
	}
	if id := queue.MinID(now); cur.ID.Compare(id) > 0 {
		cur.ID = id
	}
}

// offerAll adds references to the index and reports whether any was new.
func (r *Reader) offerAll(refs []queue.Ref) bool {
	if len(refs) == 0 {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.clock.Now()
	found := false
	for i := range refs {
		if r.x.seen(refs[i].ID) || !r.wanted(refs[i].Destination) {
			continue
		}
		found = true
		if d := r.x.offer(refs[i], nil, now); d != nil {
			r.added(d, now)
		}
	}
	return found
}

// handover takes what the writer of this process committed.
func (r *Reader) handover(messages []*queue.Message) {
	if len(messages) == 0 {
		return
	}
	r.mu.Lock()
	now := r.clock.Now()
	for _, m := range messages {
		if !m.LeaseToken.IsZero() {
			r.reserved(m)
			continue
		}
		if !r.wanted(m.Destination) || m.ReadyAt.Sub(now) > handoverSoon && !m.ReadyAt.IsZero() {
			continue
		}
		if d := r.x.offer(m.Ref(), nil, now); d != nil {
			r.added(d, now)
		}
	}
	r.mu.Unlock()
	r.wakeUp()
}
