package chaos_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/mvalve/mvalve/stomp/frame"
)

// conn is one STOMP connection, for one goroutine.
type conn struct {
	net.Conn
	frames *frame.Reader
	out    []byte // frames that are not written yet
}

// silence is how long a client of a broker waits for anything at all before it
// connects again.
const silence = 15 * time.Second

// dial connects and waits for CONNECTED. The end of ctx closes the connection.
func dial(ctx context.Context, address string) (*conn, error) {
	within, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	nc, err := new(net.Dialer).DialContext(within, "tcp", address)
	if err != nil {
		return nil, err
	}
	context.AfterFunc(ctx, func() { nc.Close() })
	c := &conn{Conn: nc, frames: frame.NewReader(nc, frame.Limits{})}
	c.add("CONNECT", "", "accept-version:1.2", "host:/")
	if err := c.flush(); err != nil {
		nc.Close()
		return nil, err
	}
	if f, err := c.read(); err != nil || f.Command != frame.Connected {
		nc.Close()
		return nil, fmt.Errorf("no CONNECTED: %w", err)
	}
	c.frames.SetVersion(frame.V12)
	return c, nil
}

// add makes a frame. The headers, NAME:VALUE, need no escapes.
func (c *conn) add(command, body string, headers ...string) {
	c.out = append(append(c.out, command...), '\n')
	for _, line := range headers {
		c.out = append(append(c.out, line...), '\n')
	}
	c.out = append(append(append(c.out, '\n'), body...), 0)
}

func (c *conn) flush() error {
	if err := c.SetWriteDeadline(time.Now().Add(silence)); err != nil {
		return err
	}
	_, err := c.Write(c.out)
	c.out = c.out[:0]
	return err
}

// read returns the next frame, valid until the next call. ERROR is an error.
func (c *conn) read() (*frame.Frame, error) {
	if !c.frames.Buffered() {
		if err := c.SetReadDeadline(time.Now().Add(silence)); err != nil {
			return nil, err
		}
	}
	f, err := c.frames.Read()
	if err == nil && f.Command == frame.ErrorCommand {
		err = errors.New("ERROR " + header(f, "message"))
	}
	return f, err
}

func header(f *frame.Frame, name string) string {
	value, _ := f.Get(name)
	return string(value)
}

// messageID is the part of a MESSAGE's id that all its deliveries share.
func messageID(f *frame.Frame) string {
	const uuid = 36
	id := header(f, "message-id")
	return id[:min(len(id), uuid)]
}

// door is a broker as its clients see it: they connect again whatever happens.
type door struct {
	name    string // of the broker's slot
	address string
	ledger  *ledger
	orders  chan *order
	flying  atomic.Int64 // SENDs whose RECEIPT may come
}

// keep runs a client's work on one connection after the other until ctx ends.
func (d *door) keep(ctx context.Context, work func(context.Context, *conn) error) {
	for ctx.Err() == nil {
		c, err := dial(ctx, d.address)
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
func (d *door) produce(ctx context.Context, c *conn) error {
	defer d.flying.Store(0)
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
		}
		n := 1
		for len(d.orders) > 0 && n < 10 {
			if o, ok := <-d.orders; ok {
				d.put(c, o)
				n++
			}
		}
		if err := c.flush(); err != nil {
			return err
		}
		d.flying.Store(int64(n))
		for range n {
			f, err := c.read()
			if err != nil {
				return err
			}
			d.ledger.commit(header(f, "receipt-id"), "")
			d.flying.Add(-1)
		}
	}
}

func (d *door) put(c *conn, o *order) {
	d.ledger.send(key(o.body), d.name)
	headers := []string{"destination:/queue/" + o.destination, "receipt:" + key(o.body), fmt.Sprintf("priority:%d", o.priority)}
	if o.delay > 0 {
		headers = append(headers, fmt.Sprintf("AMQ_SCHEDULED_DELAY:%d", o.delay.Milliseconds()))
	}
	c.add("SEND", o.body, headers...)
}

// consume takes messages of a destination in an ack mode, with a RECEIPT for each
// ACK. One in twenty is refused instead.
func (d *door) consume(destination, mode string) func(context.Context, *conn) error {
	return func(_ context.Context, c *conn) error {
		held := make(map[string][]*delivery) // by receipt
		c.add("SUBSCRIBE", "", "destination:"+destination, "id:0", "ack:"+mode, "prefetch-count:20")
		serial := 0
		for {
			if !c.frames.Buffered() && len(c.out) > 0 {
				if err := c.flush(); err != nil {
					return err
				}
			}
			f, err := c.read()
			if err != nil {
				return err
			}
			if f.Command == frame.Receipt {
				receipt, now := header(f, "receipt-id"), time.Now().UnixMicro()
				d.ledger.change(func() {
					for _, one := range held[receipt] {
						one.acked = now
					}
				})
				delete(held, receipt)
				continue
			}
			one := &delivery{process: d.name, unsure: true}
			if one.attempt, err = strconv.Atoi(header(f, "x-delivery-count")); err != nil {
				return err
			}
			id := messageID(f)
			d.ledger.delivered(id, key(string(f.Body)), one)
			if rand.N(20) == 0 {
				d.ledger.change(func() { one.back = true })
				c.add("NACK", "", "id:"+header(f, "ack"), "x-delay:30")
				continue
			}
			d.ledger.change(func() { one.began = true })
			serial++
			receipt := fmt.Sprint(serial)
			held[receipt] = []*delivery{one}
			c.add("ACK", "", "id:"+header(f, "ack"), "receipt:"+receipt)
		}
	}
}

// key is the part of a body that names the message; what follows fills it up.
func key(body string) string {
	name, _, _ := strings.Cut(body, " ")
	return name
}
