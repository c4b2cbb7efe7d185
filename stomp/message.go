package stomp

import (
	"context"
	"runtime/debug"
	"strings"
	"time"

	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/stomp/frame"
	"github.com/mvalve/mvalve/valve"
)

// pending is a message that is out at the client and not acknowledged. It is
// guarded by conn.mu.
type pending struct {
	d          *valve.Delivery
	s          *subscription
	serial     uint64
	prev, next *pending  // of the same subscription, in order of sending
	leased     time.Time // when its lease began or was last extended
	deadline   time.Time // its ack-timeout; zero: none
	tx         *tx       // the open transaction that ends it
	end        valve.End // and how
}

// deliver takes deliveries out of the inbox and puts them into the buffer until
// the connection ends. While the client does not read it waits.
func (c *conn) deliver(ctx context.Context, inbox *valve.Inbox) {
	defer func() {
		if p := recover(); p != nil {
			c.log.Error("panic", "panic", p, "stack", string(debug.Stack()))
			c.abandon()
		}
	}()
	batch := make([]*valve.Delivery, 0, 128)
	for {
		got, err := inbox.Next(ctx, batch[:0])
		if err != nil {
			if ctx.Err() == nil {
				c.interrupt(refuse("server shutting down", "the server stopped reading the pipe; connect again"))
			}
			return
		}
		c.putMessages(got)
		clear(got)
		c.kickHere()
	}
}

// putMessages sends deliveries, and gives back those that cannot be sent any more.
func (c *conn) putMessages(ds []*valve.Delivery) {
	back := c.appendMessages(ds)
	c.srv.stats.Delivered.Add(int64(len(ds) - len(back)))
	c.endInBackground(back)
}

// appendMessages appends the MESSAGE frames of deliveries, and returns how those
// end that were not sent.
func (c *conn) appendMessages(ds []*valve.Delivery) (back []valve.End) {
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, d := range ds {
		for len(c.buf) > c.srv.cfg.OutBuffer && !c.sealed && !c.ended {
			c.kick()
			c.space.Wait()
		}
		s := d.Subscription().Tag().(*subscription)
		switch {
		case c.sealed || c.ended || s.closed:
			back = append(back, valve.End{Delivery: d, Verb: valve.EndRelease})
		case s.kind != tempQueue && strings.HasPrefix(d.Message.Destination, tempPrefix):
			// A reply for another connection, caught by a pattern.
			back = append(back, valve.End{Delivery: d, Verb: valve.EndRetry, Delay: time.Second, Reason: "temporary queue of another connection"})
		default:
			c.putMessage(s, d, now)
		}
	}
	return back
}

// putMessage appends one MESSAGE. The mutex is held.
func (c *conn) putMessage(s *subscription, d *valve.Delivery, now time.Time) {
	serial := c.srv.serial.Add(1)
	c.room()
	c.buf = c.appendMessage(c.buf, s, d, serial)
	c.put = serial
	if s.mode == ackAuto {
		c.autos = append(c.autos, auto{d, len(c.buf)})
		return
	}
	p := &pending{d: d, s: s, serial: serial, leased: now, prev: s.tail}
	if s.tail == nil {
		s.head = p
	} else {
		s.tail.next = p
	}
	s.tail = p
	if c.pending == nil {
		c.pending = make(map[uint64]*pending)
	}
	c.pending[serial] = p
	if t := c.ackTimeout(d.Message); t > 0 {
		p.deadline = now.Add(t)
		c.watch(p.deadline)
	}
}

// appendMessage appends the MESSAGE frame of a delivery (S117, S118).
func (c *conn) appendMessage(b []byte, s *subscription, d *valve.Delivery, serial uint64) []byte {
	m, v := d.Message, c.version
	b = append(b, "MESSAGE\n"...)
	if s.id() != "" { // in 1.0, too (S73, I3)
		b = frame.AppendHeader(b, v, "subscription", s.id())
	}
	if s.kind == queueName || s.kind == tempQueue {
		b = frame.AppendHeader(b, v, "destination", s.destination())
	} else {
		b = frame.AppendHeader(b, v, "destination", "/queue/"+m.Destination)
	}
	b = append(b, "message-id:"...)
	at := len(b)
	b = c.srv.appendToken(b, m.ID, serial)
	end := len(b)
	b = append(b, '\n')
	if v == frame.V12 && s.mode != ackAuto {
		b = append(b, "ack:"...)
		b = append(b, b[at:end]...)
		b = append(b, '\n')
	}
	if d.Attempt > 1 {
		b = append(b, "redelivered:true\n"...)
	} else {
		b = append(b, "redelivered:false\n"...)
	}
	b = frame.AppendHeaderInt(b, "x-delivery-count", int64(d.Attempt))
	if _, ok := get(m.Headers, "timestamp"); !ok {
		b = frame.AppendHeaderInt(b, "timestamp", m.EnqueuedAt.UnixMilli())
	}
	for i := range m.Headers {
		if reserved(m.Headers[i].Name) {
			continue // from a writer that is no STOMP client
		}
		b = frame.AppendHeader(b, v, m.Headers[i].Name, m.Headers[i].Value)
	}
	return frame.AppendBody(b, m.Body)
}

// reserved reports whether a header of a MESSAGE is the server's (S71).
func reserved(name string) bool {
	switch name {
	case "destination", "message-id", "subscription", "ack", "redelivered", "x-delivery-count", "content-length", "receipt", "transaction":
		return true
	}
	return false
}

// get returns the first header called exactly name.
func get(h queue.Headers, name string) (string, bool) {
	for i := range h {
		if h[i].Name == name {
			return h[i].Value, true
		}
	}
	return "", false
}
