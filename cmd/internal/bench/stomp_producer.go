package bench

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync/atomic"

	"golang.org/x/time/rate"

	"github.com/mvalve/mvalve/stomp/frame"
)

// producer sends messages over one connection with a number of them in flight:
// sent, and their RECEIPT not yet here. One goroutine writes and reads, so that
// what came with one read leaves with one write.
type producer struct {
	*client
	first     uint64 // number of the first message
	next      uint64 // how many were made
	most      uint64 // how many to make
	stop      atomic.Bool
	ended     chan struct{} // closed when work has returned
	confirmed atomic.Int64  // messages whose RECEIPT arrived
	lag       histogram     // SEND to RECEIPT while measured
	run       *load

	slots []slot // of messages in flight
	free  []int
	frame []byte // a whole frame but for receipt and numbers
	body  int    // where in frame the body starts
	head  int    // where in frame the receipt goes
}

type slot struct {
	receipt uint64
	made    int64
}

// newProducer connects. Messages bear the numbers from first on.
func (l *load) newProducer(ctx context.Context, destination string, first uint64, inFlight int) (*producer, error) {
	c, err := l.target.dial(ctx)
	if err != nil {
		return nil, err
	}
	p := &producer{client: c, first: first, most: 1 << 32, run: l, slots: make([]slot, inFlight), ended: make(chan struct{})}
	for i := range p.slots {
		p.free = append(p.free, i)
	}
	p.frame, p.head, p.body = l.target.template(c.version, destination, "persistent:true")
	return p, nil
}

// template is a SEND frame with its body; head is where more headers may be put.
func (t *target) template(v frame.Version, destination string, more ...string) (text []byte, head, body int) {
	text = append(text, "SEND\n"...)
	text = frame.AppendHeader(text, v, "destination", destination)
	for _, line := range slices.Concat(more, t.headers) {
		text = append(text, line+"\n"...)
	}
	text = append(text, "content-length:"+strconv.Itoa(t.size)+"\n"...)
	head = len(text)
	text = append(text, '\n')
	body = len(text)
	for range t.size {
		text = append(text, byte('0'+rand.IntN(75))) // a body that no compression makes small
	}
	return append(text, 0), head, body
}

// one appends the next message to out.
func (p *producer) one(now int64) {
	at := p.free[len(p.free)-1]
	p.free = p.free[:len(p.free)-1]
	// A receipt names the slot and never comes again.
	receipt := p.next*uint64(len(p.slots)) + uint64(at)
	p.slots[at] = slot{receipt + 1, now}
	putHex(p.frame[p.body:], p.first+p.next)
	putHex(p.frame[p.body+digits:], uint64(now))
	p.out = append(p.out, p.frame[:p.head]...)
	p.out = append(p.out, "receipt:"...)
	p.out = strconv.AppendUint(p.out, receipt, 10)
	p.out = append(p.out, '\n')
	p.out = append(p.out, p.frame[p.head:]...)
	p.next++
}

// work sends as fast as RECEIPTs come until stop or most; it returns when all
// RECEIPTs are here.
func (p *producer) work() error {
	defer close(p.ended)
	for {
		now := sinceBegan()
		for len(p.free) > 0 && p.next < p.most && !p.stop.Load() {
			p.one(now)
		}
		if len(p.free) == len(p.slots) {
			return nil
		}
		if err := p.flush(); err != nil {
			return err
		}
		if err := p.take(); err != nil {
			return err
		}
	}
}

// take reads RECEIPTs: at least one, and all that came with it.
func (p *producer) take() error {
	n := int64(0)
	now, measured := int64(0), p.run.measured.Load()
	for {
		f, err := p.read()
		if err != nil {
			return err
		}
		if now == 0 {
			now = sinceBegan()
		}
		made, err := p.receipt(f)
		if err != nil {
			return err
		}
		if measured {
			p.lag.add(now - made)
		}
		n++
		if !p.frames.Buffered() {
			p.confirmed.Add(n)
			return nil
		}
	}
}

// receipt frees the slot of a RECEIPT and returns when its message was made.
func (p *producer) receipt(f *frame.Frame) (made int64, err error) {
	id, _ := f.Get("receipt-id")
	if f.Command != frame.Receipt {
		return 0, fmt.Errorf("%v on a connection that only sends", f.Command)
	}
	number, ok := decimal(id)
	at := int(number % uint64(len(p.slots)))
	if !ok || p.slots[at].receipt != number+1 {
		return 0, fmt.Errorf("RECEIPT %.40q was not asked for, or came twice", id)
	}
	p.slots[at].receipt = 0
	p.free = append(p.free, at)
	return p.slots[at].made, nil
}

func decimal(text []byte) (v uint64, ok bool) {
	for _, b := range text {
		if b < '0' || b > '9' {
			return 0, false
		}
		v = v*10 + uint64(b-'0')
	}
	return v, len(text) > 0
}

// pacer sends messages at a rate, each with a write of its own, whatever the
// RECEIPTs do. One goroutine writes, another reads.
type pacer struct {
	*client
	sent      uint64
	confirmed uint64
}

// work sends perSecond messages until ending is done; it returns when all
// RECEIPTs are here.
func (p *pacer) work(ending context.Context, t *target, destination string, perSecond int) error {
	text, head, body := t.template(p.version, destination, "persistent:true")
	limiter := rate.NewLimiter(rate.Limit(perSecond), 3) // makes up for a timer that was late
	read := make(chan error, 1)
	go func() { read <- p.count() }()
	for limiter.Wait(ending) == nil {
		putHex(text[body:], p.sent)
		p.out = append(p.out, text[:head]...)
		p.out = strconv.AppendUint(append(p.out, "receipt:"...), p.sent, 10)
		p.out = append(append(p.out, '\n'), text[head:]...)
		p.sent++
		putHex(p.out[len(p.out)-len(text)+body+digits:], uint64(sinceBegan()))
		if err := p.flush(); err != nil {
			break // the other goroutine knows why
		}
	}
	if err := p.hangUp(); err != nil {
		return errors.Join(err, <-read)
	}
	if err := <-read; err != nil {
		return err
	}
	if p.confirmed != p.sent {
		return fmt.Errorf("%d RECEIPTs for %d messages", p.confirmed, p.sent)
	}
	return nil
}

func (p *pacer) count() error {
	for {
		f, err := p.read()
		if err != nil || isGoodbye(f) {
			return err
		}
		p.confirmed++
	}
}
