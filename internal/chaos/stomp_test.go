package chaos_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/mvalve/mvalve/internal/stomptest"
	"github.com/mvalve/mvalve/stomp/frame"
)

// silence is how long a client of a broker waits for anything at all before it
// connects again.
const silence = 15 * time.Second

// door is a broker as its clients see it: they connect again whatever happens.
type door struct {
	name    string // of the broker's slot
	address string
	ledger  *ledger
	orders  chan *order
	given   atomic.Int64 // orders it was given and has no RECEIPT for
	unsure  atomic.Int64 // Unix µs: when it last lost a connection with SENDs that may be stored yet
}

// unsureFor is how long a broker may still be storing what it took from a
// connection that ended.
const unsureFor = 10 * time.Second

// order gives the door an order if it has room for one.
func (d *door) order(o *order) bool {
	d.given.Add(1)
	select {
	case d.orders <- o:
		return true
	default:
		d.given.Add(-1)
		return false
	}
}

// producing reports whether the door has something on its way, or had a moment ago.
func (d *door) producing() bool {
	return d.given.Load() > 0 || time.Since(time.UnixMicro(d.unsure.Load())) < unsureFor
}

// keep runs a client's work on one connection after the other until ctx ends.
func (d *door) keep(ctx context.Context, work func(context.Context, *stomptest.Client) error) {
	for ctx.Err() == nil {
		c, err := stomptest.Dial(ctx, d.address, silence)
		if err == nil {
			err = work(ctx, c)
			c.Close()
		}
		if err != nil && ctx.Err() == nil {
			measure(20 * time.Millisecond)
		}
	}
}

// produce sends what is ordered, with receipts. What has none when the connection
// ends is not sent again: it may be stored or not. It returns when orders is closed.
func (d *door) produce(ctx context.Context, c *stomptest.Client) error {
	flying := 0 // taken from orders, RECEIPTs that may come
	defer func() {
		if flying > 0 {
			d.unsure.Store(time.Now().UnixMicro())
			d.given.Add(int64(-flying))
		}
	}()
	for {
		select {
		case <-ctx.Done():
			return nil
		case o, ok := <-d.orders:
			if !ok {
				<-ctx.Done()
				return nil
			}
			d.put(c, o)
			flying++
		}
		for len(d.orders) > 0 && flying < 10 {
			if o, ok := <-d.orders; ok {
				d.put(c, o)
				flying++
			}
		}
		if err := c.Flush(); err != nil {
			return err
		}
		for flying > 0 {
			f, err := c.Next()
			if err != nil {
				return err
			}
			d.ledger.commit(stomptest.Header(f, "receipt-id"), "")
			flying--
			d.given.Add(-1)
		}
	}
}

func (d *door) put(c *stomptest.Client, o *order) {
	d.ledger.send(key(o.body), d.name)
	headers := []string{"destination:/queue/" + o.destination, "receipt:" + key(o.body), fmt.Sprintf("priority:%d", o.priority)}
	if o.delay > 0 {
		headers = append(headers, fmt.Sprintf("AMQ_SCHEDULED_DELAY:%d", o.delay.Milliseconds()))
	}
	c.Add("SEND", o.body, headers...)
}

// consume takes messages of a destination in an ack mode, with a RECEIPT for each
// ACK. One in twenty is refused instead.
func (d *door) consume(destination, mode string) func(context.Context, *stomptest.Client) error {
	return func(_ context.Context, c *stomptest.Client) error {
		held := make(map[string][]*delivery) // by receipt
		c.Add("SUBSCRIBE", "", "destination:"+destination, "id:0", "ack:"+mode, "prefetch-count:20")
		serial := 0
		for {
			if !c.Frames.Buffered() && len(c.Out) > 0 {
				if err := c.Flush(); err != nil {
					return err
				}
			}
			f, err := c.Next()
			if err != nil {
				return err
			}
			if f.Command == frame.Receipt {
				receipt, now := stomptest.Header(f, "receipt-id"), time.Now().UnixMicro()
				d.ledger.change(func() {
					for _, one := range held[receipt] {
						one.acked = now
					}
				})
				delete(held, receipt)
				continue
			}
			one := &delivery{process: d.name, unsure: true}
			if one.attempt, err = strconv.Atoi(stomptest.Header(f, "x-delivery-count")); err != nil {
				return err
			}
			id := stomptest.MessageID(f)
			d.ledger.delivered(id, key(string(f.Body)), one)
			if rand.N(20) == 0 {
				d.ledger.change(func() { one.back = true })
				c.Add("NACK", "", "id:"+stomptest.Header(f, "ack"), "x-delay:30")
				continue
			}
			d.ledger.change(func() { one.began = true })
			serial++
			receipt := fmt.Sprint(serial)
			held[receipt] = []*delivery{one}
			c.Add("ACK", "", "id:"+stomptest.Header(f, "ack"), "receipt:"+receipt)
		}
	}
}

// key is the part of a body that names the message; what follows fills it up.
func key(body string) string {
	name, _, _ := strings.Cut(body, " ")
	return name
}
