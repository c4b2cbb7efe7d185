package sim

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"time"

	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/valve"
)

// proc is one process: its own view of the stores, a writer, a reader.
type proc struct {
	w      *world
	slot   int
	id     int
	dead   chan struct{} // closed when it dies
	once   sync.Once
	ctx    context.Context // of its consumers and producers
	cancel context.CancelFunc
	dice   dice // guarded by w.mu
	told   int64
	phase  int // what it is doing, guarded by w.mu

	writer *valve.Writer
	reader *valve.Reader
	wg     sync.WaitGroup // consumers
}

// maxAttempts is ReaderConfig.MaxAttempts.
const maxAttempts = 6

// open starts a process in a slot after a while, unless the run ends.
func (w *world) open(slot int, after time.Duration) {
	pass(after)
	for {
		w.mu.Lock()
		if w.ending || w.slots[slot].proc != nil {
			w.mu.Unlock()
			return
		}
		w.procs++
		p := &proc{w: w, slot: slot, id: w.procs, dead: make(chan struct{}), dice: newDice(w.plan.seed, uint64(1000+w.procs))}
		p.ctx, p.cancel = context.WithCancel(context.Background())
		w.slots[slot].proc = p
		w.mu.Unlock()
		ok := p.connect()
		if ok && !p.isDead() {
			p.consume()
			return
		}
		p.crash(-1)
		p.close() // what was opened after the crash
		pass(50 * time.Millisecond)
	}
}

// What a process is doing when it measures the clock.
const (
	opensWriter = iota
	opensReader
	works
)

// enter notes what the process does from now on.
func (p *proc) enter(phase int) {
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	p.phase = phase
}

// connect opens the valve's parts, which may fail.
func (p *proc) connect() bool {
	pp, plan := &p.w.plan.procs[p.slot], p.w.plan
	store := p.queue()
	if pp.writer {
		w, err := valve.NewWriter(p.ctx, store, valve.WriterConfig{})
		if err != nil {
			return false
		}
		p.w.mu.Lock()
		p.writer = w
		p.w.mu.Unlock()
	}
	if pp.reader {
		cfg := valve.ReaderConfig{
			Writer: p.writer, Rules: &rulesOf{w: p.w, p: p}, State: &stateOf{p: p, inner: p.w.fast, fast: true},
			Durable: &stateOf{p: p, inner: p.w.durable}, Lease: plan.lease, RetryMin: 50 * time.Millisecond, RetryMax: 400 * time.Millisecond,
			MaxAttempts: maxAttempts, IndexCap: plan.cap, Address: "-",
		}
		if plan.lone {
			cfg.State = cfg.Durable
		}
		if plan.bypass {
			cfg.Emergency = valve.Bypass
		}
		if pp.style == 0 {
			cfg.Destinations = pp.dests
		}
		p.enter(opensReader)
		r, err := valve.OpenReader(p.ctx, store, cfg)
		if err != nil {
			return false
		}
		p.w.mu.Lock()
		p.reader = r
		p.w.mu.Unlock()
	}
	p.enter(works)
	p.w.tell(event{kind: kStart, proc: p.id, text: "slot " + strconv.Itoa(p.slot)})
	return true
}

// crash ends the process at once: nothing it does takes effect from now on. The
// next one starts after a while; a negative one leaves that to the caller.
func (p *proc) crash(after time.Duration) {
	p.once.Do(func() {
		p.w.mu.Lock()
		close(p.dead)
		p.cancel()
		if p.w.slots[p.slot].proc == p {
			p.w.slots[p.slot].proc = nil
		}
		if !p.w.ending && after >= 0 {
			p.w.note(event{kind: kCrash, proc: p.id})
		}
		p.w.mu.Unlock()
		p.w.wg.Go(p.close)
		if after >= 0 {
			p.w.wg.Go(func() { p.w.open(p.slot, after) })
		}
	})
}

// close ends the goroutines of a dead process.
func (p *proc) close() {
	p.w.mu.Lock()
	reader, writer := p.reader, p.writer
	p.w.mu.Unlock()
	if reader != nil {
		_ = reader.Close()
	}
	if writer != nil {
		_ = writer.Close()
	}
	p.wg.Wait()
}

func (p *proc) isDead() bool {
	select {
	case <-p.dead:
		return true
	default:
		return false
	}
}

// restart ends the process of a slot in order and starts another one.
func (w *world) restart(slot int) {
	p := w.running(slot)
	if p == nil || p.isDead() {
		return
	}
	w.mu.Lock()
	reader, writer := p.reader, p.writer
	w.mu.Unlock()
	if reader == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	_ = reader.Shutdown(ctx)
	if writer != nil {
		_ = writer.Close()
	}
	if !p.isDead() {
		w.tell(event{kind: kStop, proc: p.id})
	}
	p.crash(10 * time.Millisecond)
}

// consume starts the consumers of the process.
func (p *proc) consume() {
	pp := &p.w.plan.procs[p.slot]
	if p.reader == nil {
		return
	}
	switch pp.style {
	case 0:
		for i := range pp.consumers {
			p.wg.Go(func() { p.take(i, p.reader.Next) })
		}
	case 1:
		for i := range pp.consumers {
			s, err := p.reader.Subscribe(valve.Filter{Globs: pp.dests}, 1+i)
			if err != nil {
				return
			}
			p.wg.Go(func() { p.take(i, s.Next) })
		}
	case 2:
		p.takeInbox(pp)
	}
}

// take is a consumer: one message after the other.
func (p *proc) take(who int, next func(context.Context) (*valve.Delivery, error)) {
	for {
		p.w.tell(event{kind: kWaits, proc: p.id, who: who})
		d, err := next(p.ctx)
		if p.isDead() {
			return
		}
		p.w.tell(event{kind: kServed, proc: p.id, who: who})
		if err != nil {
			if !errors.Is(err, valve.ErrClosed) && p.ctx.Err() == nil {
				p.w.tell(event{kind: kEndFailed, proc: p.id, text: "Next: " + err.Error()})
			}
			return
		}
		p.work(p.received(d, who))
	}
}

// takeInbox is one consumer of several subscriptions that works on many
// messages at once.
func (p *proc) takeInbox(pp *procPlan) {
	box := p.reader.NewInbox()
	dests := pp.dests
	if dests == nil {
		if _, err := box.Subscribe(valve.Filter{}, 2*pp.consumers, nil); err != nil {
			return
		}
	}
	for _, name := range dests {
		if _, err := box.Subscribe(valve.Filter{Exact: name}, pp.consumers, nil); err != nil {
			return
		}
	}
	p.wg.Go(func() {
		for {
			p.w.tell(event{kind: kWaits, proc: p.id})
			got, err := box.Next(p.ctx, make([]*valve.Delivery, 0, 4))
			if p.isDead() || err != nil {
				return
			}
			p.w.tell(event{kind: kServed, proc: p.id})
			for _, d := range got {
				g := p.received(d, 0)
				p.wg.Go(func() { p.work(g) })
			}
		}
	})
}

// received notes a delivery and draws its fate.
func (p *proc) received(d *valve.Delivery, who int) handed {
	n, _ := strconv.Atoi(string(d.Message.Body[1:]))
	w := p.w
	w.mu.Lock()
	defer w.mu.Unlock()
	m := d.Message
	w.seen[n]++
	g := handed{d: d, msg: n, serial: w.seen[n]}
	w.note(event{
		kind: kDispatch, proc: p.id, who: who, msg: n, dest: m.Destination, table: m.Table(), stamp: d.DispatchedAt.UnixMicro(), attempt: d.Attempt,
		serial: g.serial,
	})
	if fates := w.plan.msgs[n-1].fates; g.serial <= len(fates) {
		g.fate = fates[g.serial-1]
	}
	return g
}

// handed is a delivery, the number of its message, how many deliveries there were of
// that with this one, and its fate.
type handed struct {
	d           *valve.Delivery
	msg, serial int
	fate        fate
}

// work does with a delivery what its fate says.
func (p *proc) work(g handed) {
	f := &g.fate
	if wait := p.w.onGrid(f.work); wait > 0 && !nap(p.dead, wait) {
		return
	}
	switch f.verb {
	case doHang:
		p.w.mu.Lock()
		p.w.hung++
		p.w.mu.Unlock()
		return
	case doLate:
		if !nap(p.dead, p.w.plan.lease+f.delay) {
			return
		}
	case doExtend:
		p.ended(&g, queue.Extend, g.d.Extend(p.ctx, p.w.plan.lease+f.delay))
		if !nap(p.dead, p.w.plan.lease/2+f.delay) {
			return
		}
		f.verb = [...]int{doAck, doNack, doRelease, doReject}[g.msg%4] // what is extended ends in every way
	}
	if p.isDead() {
		return
	}
	p.endIt(&g)
}

func (p *proc) endIt(g *handed) {
	d, f := g.d, &g.fate
	for range 3 {
		verb := verbOf(f.verb)
		e := event{kind: kEnds, proc: p.id, msg: g.msg, dest: d.Message.Destination, serial: g.serial, attempt: d.Attempt, verb: verb}
		if f.verb == doThrottled {
			e.text, e.until = throttledText, f.delay.Microseconds()
		}
		p.w.tell(e)
		var err error
		switch f.verb {
		case doNack:
			err = d.Nack(p.ctx, f.delay, "nacked")
		case doThrottled:
			err = d.Throttled(p.ctx, f.delay)
		case doReject:
			err = d.Reject(p.ctx, "rejected")
		case doRelease:
			err = d.Release(p.ctx)
		default:
			err = d.Ack(p.ctx)
		}
		p.ended(g, verb, err)
		if err == nil || errors.Is(err, valve.ErrLeaseLost) || !nap(p.dead, 20*time.Millisecond) {
			return
		}
		if f.change && errors.Is(err, queue.ErrUnknown) {
			f.verb = map[queue.Verb]int{queue.Ack: [...]int{doNack, doRelease}[g.msg%2]}[verb] // else an ack
		}
	}
}

// verbOf returns what ends a delivery with a fate.
func verbOf(fate int) queue.Verb {
	switch fate {
	case doNack:
		return queue.Retry
	case doThrottled, doRelease:
		return queue.Release
	case doReject:
		return queue.Kill
	}
	return queue.Ack
}

// ended notes what ending a delivery said.
func (p *proc) ended(g *handed, verb queue.Verb, err error) {
	if p.isDead() {
		return
	}
	e := event{kind: kConfirmed, proc: p.id, msg: g.msg, serial: g.serial, verb: verb}
	if err != nil {
		e.kind, e.text = kEndFailed, err.Error()
	}
	p.w.tell(e)
}
