package sim

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/state"
	"github.com/mvalve/mvalve/throttle"
)

// world is one run: the pipe, the processes on it, and what happened.
type world struct {
	plan  *plan
	start time.Time
	bugs  defects // put in on purpose, to see that the oracle notices

	mu      sync.Mutex // holds for every effect, so that history is in its order
	db      *queue.Memory
	fast    *state.Memory
	durable *state.Memory
	rules   *throttle.MemoryRules
	offset  atomic.Int64 // of the back end's clock, ns
	history []event
	ids     map[queue.ID]int
	tokens  map[queue.ID]bool // batch tokens seen
	commits int64             // for Dirty and Foreign
	holds   int64             // holds stored
	seen    map[int]int       // dispatches so far per message
	uses    int               // for latencies that differ
	calls   int

	slots    []slot
	procs    int
	downTo   time.Time // the database does not answer before
	fastTo   time.Time
	fired    map[faultKind]int
	hung     int // deliveries whose lease was left to run out
	quiet    bool
	late     bool         // what takes effect was given up by its caller
	owed     atomic.Int32 // effects that are still to come after their callers gave up
	ending   bool
	overtime bool
	looks    int // of the oracle, for what waits in vain in spite of a limit
	wg       sync.WaitGroup
}

// slot is where one process at a time runs.
type slot struct {
	proc    *proc
	armed   []fault
	stallTo time.Time
	skew    time.Duration
}

func newWorld(p *plan) *world {
	w := &world{
		plan: p, start: time.Now(), db: queue.NewMemory(), fast: state.NewMemory(), durable: state.NewMemory(),
		rules: throttle.NewMemoryRules(), ids: make(map[queue.ID]int), tokens: make(map[queue.ID]bool),
		seen: make(map[int]int), slots: make([]slot, len(p.procs)), fired: make(map[faultKind]int),
	}
	w.offset.Store(int64(p.offset))
	if p.lone {
		w.fast = w.durable
	}
	return w
}

// now returns the back end's clock.
func (w *world) now() time.Time { return time.Now().Add(time.Duration(w.offset.Load())) }

// note appends to the history. The mutex is held.
func (w *world) note(e event) {
	e.at = time.Since(w.start)
	e.clock = w.now().UnixMicro()
	w.history = append(w.history, e)
}

func (w *world) tell(e event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.note(e)
}

// pass lets virtual time pass.
func pass(d time.Duration) {
	time.Sleep(d) //nolint:forbidigo // in a synctest bubble: nothing waits for real
}

// nap is pass until stop is closed, which it reports as false.
func nap(stop <-chan struct{}, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-stop:
		return false
	}
}

// onGrid returns how long to wait so that d passes and, where the plan has a grid,
// the next moment on it has come.
func (w *world) onGrid(d time.Duration) time.Duration {
	if w.plan.grid == 0 {
		return d
	}
	end := time.Since(w.start) + d
	return d + (w.plan.grid-end%w.plan.grid)%w.plan.grid
}

// run carries the plan out. It must be called in a synctest bubble.
func (w *world) run() {
	for _, r := range w.plan.rules {
		w.setLimit(r.pattern, r.limit)
	}
	for i := range w.slots {
		w.wg.Go(func() { w.open(i, 0) })
	}
	w.inject()
	w.produce()
	length := w.plan.load
	for _, f := range w.plan.faults {
		length = max(length, f.at+f.reach())
	}
	pass(time.Until(w.start.Add(length + 10*time.Millisecond)))
	w.calmDown()
	w.drain()
	w.finish()
}

// reach is how long a fault goes on at most, once it began.
func (f fault) reach() time.Duration {
	switch f.kind {
	case fStall, fDown, fFastDown, fPause, fCrash, fLater, fSlow:
		return f.dur
	}
	return 0
}

// produce starts the inserts of the plan.
func (w *world) produce() {
	for i := 0; i < len(w.plan.msgs); {
		j := i + 1
		for j < len(w.plan.msgs) && w.plan.msgs[j].group == w.plan.msgs[i].group {
			j++
		}
		from := i
		w.wg.Go(func() { w.insert(from, j) })
		i = j
	}
}

// insert inserts the messages [i, j) of the plan with one call.
func (w *world) insert(i, j int) {
	pass(w.plan.msgs[i].at)
	p := w.running(w.plan.msgs[i].proc)
	for tries := 0; p == nil && tries < 10; tries++ {
		pass(100 * time.Millisecond)
		p = w.running(w.plan.msgs[i].proc)
	}
	if p == nil {
		return
	}
	w.mu.Lock()
	writer := p.writer
	w.mu.Unlock()
	if writer == nil {
		return
	}
	var msgs []*queue.Message
	for n := i; n < j; n++ {
		m := &w.plan.msgs[n]
		msg := &queue.Message{
			Destination: m.dest, Lane: m.lane, Priority: queue.Level(m.level), Body: fmt.Appendf(nil, "m%d", n+1), Hold: m.hold,
		}
		if m.delay > 0 {
			msg.ReadyAt = writer.Now().Add(m.delay).Truncate(time.Microsecond)
		}
		if m.expires > 0 {
			msg.ExpiresAt = writer.Now().Add(m.expires).Truncate(time.Microsecond)
		}
		w.tell(event{kind: kAsked, proc: p.id, msg: n + 1, dest: m.dest, stamp: queue.Micros(msg.ReadyAt), expires: queue.Micros(msg.ExpiresAt)})
		msgs = append(msgs, msg)
	}
	err := writer.Insert(p.ctx, msgs...)
	for n := i; n < j; n++ {
		e := event{kind: kInserted, proc: p.id, msg: n + 1}
		if err != nil {
			e.kind, e.text = kRefused, err.Error()
		}
		w.tell(e)
	}
}

// running returns the process in a slot, nil if it is dead.
func (w *world) running(slot int) *proc {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.slots[slot].proc
}

// inject carries out or arms the faults of the plan at their times.
func (w *world) inject() {
	for _, f := range w.plan.faults {
		w.wg.Go(func() {
			pass(f.at)
			w.fault(f)
		})
	}
}

func (w *world) fault(f fault) {
	switch f.kind {
	case fLimit:
		w.fire(f)
		w.setLimit(f.dest, f.limit)
		return
	case fPause:
		w.fire(f)
		w.pause(f.dest, true)
		pass(f.dur)
		w.pause(f.dest, false)
		return
	case fStop:
		w.fire(f)
		w.restart(f.proc)
		return
	case fCrash:
		if f.phase == 2 {
			if p := w.running(f.proc); p != nil {
				w.fire(f)
				p.crash(f.dur)
			}
			return
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	s, until := &w.slots[f.proc], time.Now().Add(f.dur)
	switch f.kind {
	case fStall:
		s.stallTo = later(s.stallTo, until)
	case fDown:
		w.downTo = later(w.downTo, until)
	case fFastDown:
		w.fastTo = later(w.fastTo, until)
	case fWipe:
		if w.plan.lone {
			return // the database does not forget
		}
		w.fast.Wipe(w.lastUse())
	case fStep:
		w.offset.Add(int64(f.dur))
	case fSkew:
		s.skew = f.dur
		if f.phase == 0 {
			s.skew = -f.dur
		}
	default:
		s.armed = append(s.armed, f)
		return
	}
	w.fired[f.kind]++
	w.note(event{kind: kFault, text: f.String(), fault: &f})
}

// lastUse returns the time until which the cache may have been used, as its
// driver is told: now, or the last sign of life of a reader whose clock is ahead
// because the back end's went back. The mutex is held.
func (w *world) lastUse() time.Time {
	now := w.now()
	readers, err := w.db.Announce(context.Background(), now, now.Add(-time.Hour), queue.Presence{})
	if err != nil {
		panic(err)
	}
	last := now
	for _, r := range readers {
		if r.SeenAt.After(now.Add(100 * time.Millisecond)) {
			last = later(last, r.SeenAt.Add(10*time.Second))
		}
	}
	return last
}

func later(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

func (w *world) fire(f fault) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fired[f.kind]++
	w.note(event{kind: kFault, text: f.String(), fault: &f})
}

// take returns the fault that is armed for a call of m, if any. The mutex is held.
func (s *slot) take(m method) (fault, bool) {
	for i, f := range s.armed {
		if f.method == m {
			s.armed = slices.Delete(s.armed, i, i+1)
			return f, true
		}
	}
	return fault{}, false
}

func (w *world) adminRules() throttle.RuleStore { return &rulesOf{w: w} }

func (w *world) setLimit(pattern, text string) {
	var err error
	if text == "" {
		_, err = throttle.RemoveLimit(context.Background(), w.adminRules(), w.now(), pattern)
	} else {
		_, err = throttle.SetLimit(context.Background(), w.adminRules(), w.now(), pattern, mustLimit(text))
	}
	if err != nil {
		panic(err)
	}
}

func (w *world) pause(pattern string, on bool) {
	change := throttle.Resume
	if on {
		change = throttle.Pause
	}
	if _, err := change(context.Background(), w.adminRules(), w.now(), pattern); err != nil {
		panic(err)
	}
}

// finish ends all processes.
func (w *world) finish() {
	w.mu.Lock()
	w.ending = true
	w.note(event{kind: kEnd})
	var live []*proc
	for i := range w.slots {
		if p := w.slots[i].proc; p != nil {
			live = append(live, p)
		}
	}
	w.mu.Unlock()
	for _, p := range live {
		p.crash(0)
	}
	w.wg.Wait()
}
