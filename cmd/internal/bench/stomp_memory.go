package bench

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/mvalve/mvalve/stomp/frame"
)

// perConnection is how many subscriptions a connection of the memory cases has.
const perConnection = 1000

// memorySubscriptions measures what the broker keeps per idle subscription.
func (b *stompBench) memorySubscriptions(ctx context.Context, name string) error {
	return b.load(ctx, func(ctx context.Context, l *load) error {
		n := b.c.Int("number")
		empty, err := b.broker.memory(ctx)
		if err != nil {
			return err
		}
		clients := make([]*client, (n+perConnection-1)/perConnection)
		for i := range clients {
			if clients[i], err = b.target.dial(ctx); err != nil {
				return err
			}
		}
		connected, err := b.broker.memory(ctx)
		if err != nil {
			return err
		}
		queue := b.newQueue("m")
		for i := range n {
			c := clients[i/perConnection]
			c.appendPlainSubscribe(queue+"-"+strconv.Itoa(i), strconv.Itoa(i), i%perConnection == perConnection-1 || i == n-1)
		}
		for _, c := range clients {
			if err := c.flush(); err != nil {
				return err
			}
			if f, err := c.read(); err != nil || f.Command != frame.Receipt {
				return fmt.Errorf("%v in place of RECEIPT: %w", f, err)
			}
		}
		// Busy connections borrow buffers, and give them back when they are idle.
		if err := wait(ctx, 3*time.Second); err != nil {
			return err
		}
		subscribed, err := b.broker.memory(ctx)
		if err != nil {
			return err
		}
		if err := b.heapProfile(ctx, name); err != nil {
			return err
		}
		b.noteMemory(name, "per connection", connected.minus(empty), len(clients), goal{})
		b.noteMemory(name, "per subscription", subscribed.minus(connected), n, atMost(300))
		for _, c := range clients {
			if err := c.leave(); err != nil {
				return err
			}
		}
		return nil
	})
}

func (c *client) appendPlainSubscribe(destination, id string, receipt bool) {
	c.out = append(c.out, "SUBSCRIBE\n"...)
	c.out = frame.AppendHeader(c.out, c.version, "destination", destination)
	c.out = append(c.out, "id:"+id+"\nack:auto\n"...)
	if receipt {
		c.out = append(c.out, "receipt:"+readyID+"\n"...)
	}
	c.out = append(c.out, "\n\x00"...)
}

// memoryQueues measures what the broker keeps per queue that has one message and
// no subscriber, and empties the queues.
func (b *stompBench) memoryQueues(ctx context.Context, name string) error {
	return b.load(ctx, func(ctx context.Context, l *load) error {
		n := b.c.Int("number")
		c, err := b.target.dial(ctx)
		if err != nil {
			return err
		}
		before, err := b.broker.memory(ctx)
		if err != nil {
			return err
		}
		queue := b.newQueue("m") + "-"
		if err := c.sendEach(b.target, queue, n); err != nil {
			return err
		}
		after, err := b.broker.memory(ctx)
		if err != nil {
			return err
		}
		if err := b.heapProfile(ctx, name); err != nil {
			return err
		}
		b.noteMemory(name, "per queue", after.minus(before), n, goal{})
		v := verdict{}
		for first := 0; first < n; first += perConnection {
			if err := b.takeEach(ctx, queue, first, min(first+perConnection, n), &v); err != nil {
				return err
			}
		}
		return b.noteVerdict(name, v, 0)
	})
}

// sendEach sends one message to each of n queues, 100 in flight.
func (c *client) sendEach(t *target, queue string, n int) error {
	waiting := 0
	for i := range n {
		text, head, body := t.template(c.version, queue+strconv.Itoa(i), "persistent:true", "receipt:"+strconv.Itoa(i))
		_ = head
		putHex(text[body:], uint64(i))
		putHex(text[body+digits:], uint64(sinceBegan()))
		c.out = append(c.out, text...)
		waiting++
		if waiting < inFlight && i < n-1 {
			continue
		}
		if err := c.flush(); err != nil {
			return err
		}
		for more := true; more && waiting > 0; more = c.frames.Buffered() || i == n-1 {
			if f, err := c.read(); err != nil || f.Command != frame.Receipt {
				return fmt.Errorf("no RECEIPT: %w", err)
			}
			waiting--
		}
	}
	return nil
}

// takeEach takes one message of each queue from first to before end.
func (b *stompBench) takeEach(ctx context.Context, queue string, first, end int, v *verdict) error {
	c, err := b.target.dial(ctx)
	if err != nil {
		return err
	}
	for i := first; i < end; i++ {
		c.appendPlainSubscribe(queue+strconv.Itoa(i), strconv.Itoa(i), false)
	}
	if err := c.flush(); err != nil {
		return err
	}
	seen := make(map[uint64]bool, end-first)
	for len(seen) < end-first {
		f, err := c.read()
		if err != nil {
			return err
		}
		number, _, err := readBody(f.Body)
		if err != nil || f.Command != frame.Message {
			return fmt.Errorf("%v in place of MESSAGE: %w", f.Command, err)
		}
		if seen[number] {
			v.twice++
		}
		seen[number] = true
	}
	v.sent += int64(end - first)
	return c.leave()
}

func (b *stompBench) noteMemory(name, what string, m memory, n int, g goal) {
	if m.resident != 0 {
		b.note(name, "resident "+what, "bytes", float64(m.resident)/float64(n), goal{})
	}
	if m.heap != 0 {
		b.note(name, "live heap "+what, "bytes", float64(m.heap)/float64(n), g)
	}
}
