package bench

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/mvalve/mvalve/stomp/frame"
)

const (
	// lead is how many messages the publisher of a topic may be ahead of its
	// slowest subscriber: a topic stores nothing, so that a publisher that just
	// runs measures how fast a broker drops.
	lead  = 512
	burst = 32 // messages per write of the publisher
	// lull is after how long without progress the publisher sends on: what was
	// dropped shows by the number of the next message.
	lull = time.Second
	// patience is how long after the end nothing may arrive before what is
	// missing counts as lost.
	patience = 15 * time.Second
)

// subscriber takes the messages of a topic, which come in order.
type subscriber struct {
	*client
	ready     chan struct{} // closed by the RECEIPT for SUBSCRIBE
	last      atomic.Uint64 // number of the last message
	delivered atomic.Int64
	lost      int64 // numbers left out; read when work has returned
	twice     int64
}

// work takes messages until goodbye and tells moved after every read.
func (s *subscriber) work(moved chan<- struct{}) error {
	last, n := uint64(0), int64(0)
	for {
		f, err := s.read()
		switch {
		case err != nil:
			return err
		case isGoodbye(f):
			return nil
		case f.Command == frame.Receipt:
			close(s.ready)
		case f.Command != frame.Message:
			return fmt.Errorf("%v on a connection that only consumes", f.Command)
		default:
			number, _, err := readBody(f.Body)
			if err != nil {
				return err
			}
			if number > last {
				s.lost += int64(number - last - 1)
				last = number
			} else {
				s.twice++
			}
			n++
		}
		if s.frames.Buffered() {
			continue
		}
		s.last.Store(last)
		s.delivered.Add(n)
		n = 0
		select {
		case moved <- struct{}{}:
		default:
		}
	}
}

// topic is a publisher and its subscribers.
type topic struct {
	publisher   *client
	subscribers []*subscriber
	moved       chan struct{}
	sent        uint64
}

func (l *load) newTopic(ctx context.Context, destination string, n int) (*topic, error) {
	t := &topic{moved: make(chan struct{}, 1)}
	for i := range n {
		c, err := l.target.dial(ctx)
		if err != nil {
			return nil, fmt.Errorf("subscriber %d: %w", i+1, err)
		}
		s := &subscriber{client: c, ready: make(chan struct{})}
		if err := s.subscribe(l.target, destination, "1", "auto", readyID); err != nil {
			return nil, err
		}
		t.subscribers = append(t.subscribers, s)
		l.start(func() error { return s.work(t.moved) })
	}
	for _, s := range t.subscribers {
		select {
		case <-s.ready:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(stall):
			return nil, fmt.Errorf("no RECEIPT for SUBSCRIBE within %v", stall)
		}
	}
	var err error
	t.publisher, err = l.target.dial(ctx)
	return t, err
}

// slowest returns the number that every subscriber has seen.
func (t *topic) slowest() uint64 {
	n := t.sent
	for _, s := range t.subscribers {
		n = min(n, s.last.Load())
	}
	return n
}

// publish sends until ending is done, never more than lead ahead.
func (t *topic) publish(ctx, ending context.Context, target *target, destination string) error {
	text, _, body := target.template(t.publisher.version, destination)
	timer := time.NewTimer(lull)
	defer timer.Stop()
	for ending.Err() == nil {
		room := int64(lead) - int64(t.sent-t.slowest())
		if room <= 0 {
			timer.Reset(lull)
			select {
			case <-t.moved:
				continue
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-timer.C:
				room = 1
			}
		}
		for range min(room, burst) {
			t.sent++
			putHex(text[body:], t.sent)
			putHex(text[body+digits:], uint64(sinceBegan()))
			t.publisher.out = append(t.publisher.out, text...)
		}
		if err := t.publisher.flush(); err != nil {
			return err
		}
	}
	return t.publisher.leave()
}

func (t *topic) delivered() (n int64) {
	for _, s := range t.subscribers {
		n += s.delivered.Load()
	}
	return n
}

func topicCase(subscribers, least int) func(*stompBench, context.Context, string) error {
	return func(b *stompBench, ctx context.Context, name string) error {
		return b.load(ctx, func(ctx context.Context, l *load) error {
			return b.topic(ctx, l, name, subscribers, least)
		})
	}
}

func (b *stompBench) topic(ctx context.Context, l *load, name string, subscribers, least int) error {
	b.queues++
	destination := fmt.Sprintf("/topic/%s%s-%d", b.target.prefix, name, b.queues)
	t, err := l.newTopic(ctx, destination, subscribers)
	if err != nil {
		return err
	}
	ending, stop := context.WithCancel(ctx)
	defer stop()
	published := make(chan struct{})
	l.start(func() error {
		defer close(published)
		return t.publish(ctx, ending, b.target, destination)
	})
	measured, used, err := b.measureLoad(ctx, l, name, t.delivered)
	if err != nil {
		return err
	}
	stop()
	select {
	case <-published:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	b.note(name, "deliveries", "msg/s", measured.perSecond(), atLeast(float64(least)))
	b.noteUse(name, used)
	verdict, err := l.endTopic(ctx, t)
	if err != nil {
		return err
	}
	return b.noteVerdict(name, verdict, 0)
}

// endTopic waits for the last message to reach everybody, or until nothing more
// arrives.
func (l *load) endTopic(ctx context.Context, t *topic) (verdict, error) {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for waiting := true; waiting && t.slowest() < t.sent; {
		select {
		case <-t.moved:
			timer.Reset(patience)
		case <-timer.C:
			waiting = false
		case <-ctx.Done():
			return verdict{}, context.Cause(ctx)
		}
	}
	for _, s := range t.subscribers {
		if err := s.hangUp(); err != nil {
			return verdict{}, err
		}
	}
	if err := l.finish(ctx); err != nil {
		return verdict{}, err
	}
	var v verdict
	for _, s := range t.subscribers {
		v.lost += s.lost + int64(t.sent-s.last.Load())
		v.twice += s.twice
	}
	return v, nil
}
