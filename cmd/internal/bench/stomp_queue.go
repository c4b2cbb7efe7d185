package bench

import (
	"context"
	"time"
)

const inFlight = 100

func sendCase(connections, inFlight, least int) func(*stompBench, context.Context, string) error {
	return func(b *stompBench, ctx context.Context, name string) error {
		return b.load(ctx, func(ctx context.Context, l *load) error {
			return b.send(ctx, l, name, connections, inFlight, least)
		})
	}
}

// send measures SEND to RECEIPT, then takes everything out and judges it.
func (b *stompBench) send(ctx context.Context, l *load, name string, connections, inFlight, least int) error {
	queue := b.newQueue(name)
	producers, err := l.producers(ctx, connections, inFlight, func(int) string { return queue })
	if err != nil {
		return err
	}
	lags := make([]*histogram, len(producers))
	for i, p := range producers {
		lags[i] = &p.lag
		l.start(p.work)
	}
	measured, used, err := b.measureLoad(ctx, l, name, confirmed(producers), lags...)
	if err != nil {
		return err
	}
	for _, p := range producers {
		p.stop.Store(true)
	}
	if err := l.end(ctx, nil); err != nil {
		return err
	}
	b.note(name, "", "msg/s", measured.perSecond(), atLeast(float64(least)))
	b.noteLags(name, "receipt", goal{}, goal{}, lags...)
	b.noteUse(name, used)
	sent, total := batches(producers)
	verdict, err := l.empty(ctx, queue, sent, total)
	if err != nil {
		return err
	}
	return b.noteVerdict(name, verdict, 0)
}

func drainCase(consumers, least int) func(*stompBench, context.Context, string) error {
	return func(b *stompBench, ctx context.Context, name string) error {
		return b.load(ctx, func(ctx context.Context, l *load) error {
			return b.drain(ctx, l, name, consumers, least)
		})
	}
}

// drain measures from SUBSCRIBE until all acknowledgements are confirmed, by the
// RECEIPT of DISCONNECT.
func (b *stompBench) drain(ctx context.Context, l *load, name string, consumers, least int) error {
	queue := b.newQueue(name)
	producers, err := l.fill(ctx, queue, b.c.Int("backlog"))
	if err != nil {
		return err
	}
	sent, total := batches(producers)
	all, err := l.consumers(ctx, consumers, true)
	if err != nil {
		return err
	}
	stop := b.watch(ctx, name, time.Second, delivered(all))
	start := time.Now()
	for _, c := range all {
		if err := c.subscribe(queue); err != nil {
			return err
		}
	}
	if err := l.end(ctx, l.await(ctx, "messages delivered", total, delivered(all)), all...); err != nil {
		return err
	}
	took := time.Since(start)
	b.note(name, "", "msg/s", float64(total)/took.Seconds(), atLeast(float64(least)))
	b.noteUse(name, stop())
	leftOver, err := l.leftOver(ctx, queue)
	if err != nil {
		return err
	}
	return b.noteVerdict(name, judge(sent, all), leftOver)
}

func pairsCase(pairs, least int) func(*stompBench, context.Context, string) error {
	return func(b *stompBench, ctx context.Context, name string) error {
		return b.load(ctx, func(ctx context.Context, l *load) error {
			return b.pairs(ctx, l, name, pairs, least)
		})
	}
}

// pairs measures deliveries while producers send as fast as RECEIPTs come.
func (b *stompBench) pairs(ctx context.Context, l *load, name string, pairs, least int) error {
	queues := make([]string, pairs)
	for i := range queues {
		queues[i] = b.newQueue(name)
	}
	queue := func(i int) string { return queues[i] }
	consumers, err := l.consumers(ctx, pairs, true)
	if err != nil {
		return err
	}
	for i, c := range consumers {
		if err := c.subscribe(queue(i)); err != nil {
			return err
		}
	}
	if err := subscribed(ctx, consumers); err != nil {
		return err
	}
	producers, err := l.producers(ctx, pairs, inFlight, queue)
	if err != nil {
		return err
	}
	var lags []*histogram
	for i, p := range producers {
		lags = append(lags, &consumers[i].lag)
		l.start(p.work)
	}
	measured, used, err := b.measureLoad(ctx, l, name, delivered(consumers), lags...)
	if err != nil {
		return err
	}
	for _, p := range producers {
		p.stop.Store(true)
	}
	if err := l.arrive(ctx, producers, consumers); err != nil {
		return err
	}
	b.note(name, "", "msg/s", measured.perSecond(), atLeast(float64(least)))
	b.noteLags(name, "delivery", goal{}, goal{}, lags...)
	b.noteUse(name, used)
	leftOver, err := l.leftOver(ctx, queue(0))
	if err != nil {
		return err
	}
	sent, _ := batches(producers)
	return b.noteVerdict(name, judge(sent, consumers), leftOver)
}

// arrive waits until everything that the stopped producers sent is confirmed and
// delivered, and ends the consumers.
func (l *load) arrive(ctx context.Context, producers []*producer, consumers []*consumer) error {
	for _, p := range producers {
		select {
		case <-p.ended:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	_, total := batches(producers)
	return l.end(ctx, l.await(ctx, "messages delivered", total, delivered(consumers)), consumers...)
}

// pace is the load of the case latency, in messages per second.
const pace = 1000

// latency measures SEND to MESSAGE at a low load.
func (b *stompBench) latency(ctx context.Context, name string) error {
	return b.load(ctx, func(ctx context.Context, l *load) error {
		queue := b.newQueue(name)
		consumers, err := l.consumers(ctx, 1, true)
		if err != nil {
			return err
		}
		if err := consumers[0].subscribe(queue); err != nil {
			return err
		}
		if err := subscribed(ctx, consumers); err != nil {
			return err
		}
		c, err := b.target.dial(ctx)
		if err != nil {
			return err
		}
		p := &pacer{client: c}
		ending, stop := context.WithCancel(ctx)
		defer stop()
		ended := make(chan struct{})
		l.start(func() error {
			defer close(ended)
			return p.work(ending, b.target, queue, pace)
		})
		measured, used, err := b.measureLoad(ctx, l, name, delivered(consumers), &consumers[0].lag)
		if err != nil {
			return err
		}
		stop()
		select {
		case <-ended:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if err := l.end(ctx, l.await(ctx, "messages delivered", int64(p.sent), delivered(consumers)), consumers...); err != nil {
			return err
		}
		b.note(name, "load", "msg/s", measured.perSecond(), goal{})
		b.noteLags(name, "delivery", atMost(0.3), atMost(1), &consumers[0].lag)
		b.noteUse(name, used)
		return b.noteVerdict(name, judge([]batch{{0, p.sent}}, consumers), 0)
	})
}
