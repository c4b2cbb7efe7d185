package bench

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/mvalve/mvalve/stomp/frame"
)

// consumer takes the messages of one subscription. One goroutine reads and
// writes; the acknowledgements of what came with one read leave with one write.
type consumer struct {
	*client
	acks      bool
	ready     chan struct{} // closed by the RECEIPT for SUBSCRIBE
	once      sync.Once
	delivered atomic.Int64 // messages whose acknowledgement was written
	got       []uint64     // their numbers; read when work has returned
	lag       histogram    // SEND to here while measured
	run       *load
}

// newConsumer connects; subscribe starts the deliveries.
func (l *load) newConsumer(ctx context.Context, acks bool) (*consumer, error) {
	c, err := l.target.dial(ctx)
	if err != nil {
		return nil, err
	}
	return &consumer{client: c, acks: acks, ready: make(chan struct{}), run: l, got: make([]uint64, 0, 1<<16)}, nil
}

func (c *consumer) subscribe(destination string) error {
	ack := "auto"
	if c.acks {
		ack = "client-individual"
	}
	return c.client.subscribe(c.run.target, destination, "1", ack, readyID)
}

// work takes messages until the RECEIPT that hangUp asks for.
func (c *consumer) work() error {
	n, now := int64(0), int64(0)
	measured := false
	for {
		f, err := c.read()
		if err != nil {
			return err
		}
		if now == 0 {
			now, measured = sinceBegan(), c.run.measured.Load()
		}
		switch f.Command {
		case frame.Message:
			made, err := c.message(f)
			if err != nil {
				return err
			}
			if measured {
				c.lag.add(now - made)
			}
			n++
		case frame.Receipt:
			if isGoodbye(f) {
				return c.flush()
			}
			c.once.Do(func() { close(c.ready) })
		default:
			return fmt.Errorf("%v on a connection that only consumes", f.Command)
		}
		if c.frames.Buffered() {
			continue
		}
		if err := c.flush(); err != nil {
			return err
		}
		c.delivered.Add(n)
		n, now = 0, 0
	}
}

func (c *consumer) message(f *frame.Frame) (made int64, err error) {
	number, made, err := readBody(f.Body)
	if err != nil {
		return 0, err
	}
	c.got = append(c.got, number)
	if c.acks {
		err = c.appendAck(f)
	}
	return made, err
}

// batch is what one producer sent: numbers first to first+count-1.
type batch struct{ first, count uint64 }

// verdict is what became of messages that were sent.
type verdict struct{ sent, lost, twice, foreign int64 }

// judge compares what was sent, in batches that begin at multiples of 1<<32,
// with what arrived.
func judge(sent []batch, consumers []*consumer) verdict {
	var v verdict
	seen := make(map[uint64][]uint64) // by the upper half of the number: a bit each
	for _, b := range sent {
		v.sent += int64(b.count)
		seen[b.first>>32] = make([]uint64, b.count/64+1)
	}
	arrived := int64(0)
	for _, c := range consumers {
		for _, number := range c.got {
			bits, at := seen[number>>32], number&(1<<32-1)
			switch {
			case at/64 >= uint64(len(bits)):
				v.foreign++
			case bits[at/64]&(1<<(at%64)) != 0:
				v.twice++
			default:
				bits[at/64] |= 1 << (at % 64)
				arrived++
			}
		}
	}
	v.lost = v.sent - arrived
	return v
}
