package stomp

import (
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/stomp/frame"
	"github.com/mvalve/mvalve/valve"
)

// ackBatch is the ACKs and NACKs that came together: one call of EndAsync.
type ackBatch struct {
	c        *conn
	ends     []valve.End
	acked    int64
	receipts []byte
	first    string
	ended    bool // committed; guarded by conn.mu
	done     func(int, error)
}

var ackBatches sync.Pool

func newAckBatch(c *conn) *ackBatch {
	b, ok := ackBatches.Get().(*ackBatch)
	if !ok {
		b = new(ackBatch)
		b.done = b.committed // one closure for the life of the batch
	}
	b.c = c
	return b
}

// ack handles ACK and NACK.
func (c *conn) ack(f *frame.Frame, nack bool) error {
	token, subscription, err := c.ackHeaders(f)
	if err != nil {
		return err
	}
	_, asked := f.Get("receipt")
	end := valve.End{Verb: valve.EndAck, Lazy: !asked}
	if nack {
		if end, err = nackEnd(f); err != nil {
			return err
		}
	}
	var t *tx
	if name, ok := f.Get("transaction"); ok {
		if t, err = c.openTx(string(name)); err != nil {
			return err
		}
		if end.Verb == valve.EndThrottled {
			return refuse("unsupported header", "retry-after is not possible in a transaction") // holds are not transactional
		}
	}
	b := c.acks
	if b == nil {
		b = newAckBatch(c)
		c.acks = b
	}
	before := len(b.ends)
	b.ends, err = c.collect(b.ends, token, subscription, end, t)
	if err != nil {
		return err
	}
	if t != nil {
		return c.receipt(f)
	}
	if nack {
		c.srv.stats.Nacked.Add(int64(len(b.ends) - before))
	} else {
		b.acked += int64(len(b.ends) - before)
	}
	if id, ok := f.Get("receipt"); ok {
		if len(b.receipts) == 0 {
			b.first = string(id)
		}
		b.receipts = frame.AppendCommand(b.receipts, frame.Receipt)
		b.receipts = frame.AppendHeaderBytes(b.receipts, c.version, receiptID, id)
		b.receipts = frame.AppendBody(b.receipts, nil)
	}
	return nil
}

// ackHeaders returns which message an ACK or NACK is about. message-id and ack
// have the same value here, so that either is taken in every version (I6).
func (c *conn) ackHeaders(f *frame.Frame) (token, subscription []byte, err error) {
	own, other := "message-id", "id"
	if c.version == frame.V12 {
		own, other = other, own
	}
	token, ok := f.Get(own)
	if !ok {
		token, ok = f.Get(other)
	}
	if !ok && c.version == frame.V12 {
		return nil, nil, refuse("no id", "it needs an id header with the value of the MESSAGE's ack header") // S91
	}
	if !ok {
		return nil, nil, refuse("no message-id", "it needs the message-id header of the MESSAGE") // S89
	}
	subscription, ok = f.Get("subscription")
	if !ok && c.version == frame.V11 {
		return nil, nil, refuse("no subscription", "it needs the subscription header of the MESSAGE besides message-id") // S90
	}
	if c.version != frame.V11 {
		subscription = nil
	}
	return token, subscription, nil
}

// nackEnd returns what a NACK asks for (S95): the message is tried again after the
// pipe's back-off or x-delay milliseconds, its whole destination waits retry-after
// seconds, or requeue:false makes it a dead letter.
func nackEnd(f *frame.Frame) (valve.End, error) {
	end := valve.End{Verb: valve.EndRetry, Delay: -1, Reason: "refused by the consumer (NACK)"}
	if v, ok := f.Get("requeue"); ok {
		keep, err := strconv.ParseBool(string(v))
		if err != nil {
			return end, refuse("bad requeue", "requeue %.20q; use true or false", v)
		}
		if !keep {
			end.Verb = valve.EndReject
			return end, nil
		}
	}
	if v, ok := f.Get("retry-after"); ok {
		d, err := seconds("retry-after", string(v))
		if err != nil {
			return end, err
		}
		end.Verb, end.Delay = valve.EndThrottled, d
		return end, nil
	}
	if v, ok := f.Get("x-delay"); ok {
		ms, err := number("x-delay", string(v))
		if err != nil {
			return end, err
		}
		end.Delay = time.Duration(min(ms, maxDelay.Milliseconds())) * time.Millisecond
	}
	return end, nil
}

// collect appends the endings of the messages that an ACK or NACK covers; in a
// transaction it only notes them.
func (c *conn) collect(ends []valve.End, token, subscription []byte, end valve.End, t *tx) ([]valve.End, error) {
	id, serial, issued := c.srv.parseToken(token)
	if !issued {
		return ends, refuse("unknown message", "this server sent no message %.80q; repeat the message-id of the MESSAGE", token) // S92
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.pending[serial]
	if p == nil || p.d.Message.ID != id {
		// Acknowledged already, timed out, given back, or of a topic: nobody
		// else's delivery is touched.
		if id != (queue.ID{}) {
			c.srv.stats.StaleAcks.Add(1)
			if t != nil {
				t.lost = true
			}
		}
		return ends, nil
	}
	if subscription != nil && string(subscription) != p.s.id() {
		return ends, refuse("wrong subscription", "message %s was sent to subscription %.100q", token, p.s.id()) // S90
	}
	first := p
	if p.s.mode == ackClient { // S86, S96
		first = p.s.head
	}
	for q := first; ; {
		next := q.next
		switch {
		case q.tx != nil && q == p:
			return ends, refuse("message in transaction", "message %s is acknowledged in an open transaction", token)
		case q.tx != nil:
		case t != nil:
			if err := t.add(c, 0); err != nil {
				return ends, err
			}
			q.tx, q.end = t, end
			q.end.Delivery = q.d
			t.acks = append(t.acks, q)
		default:
			end.Delivery = q.d
			ends = append(ends, end)
			c.remove(q)
		}
		if q == p {
			return ends, nil
		}
		q = next
	}
}

// remove forgets p. The mutex is held.
func (c *conn) remove(p *pending) {
	delete(c.pending, p.serial)
	if p.prev == nil {
		p.s.head = p.next
	} else {
		p.prev.next = p.next
	}
	if p.next == nil {
		p.s.tail = p.prev
	} else {
		p.next.prev = p.prev
	}
	p.prev, p.next = nil, nil
}

// ackBatch passes the collected endings on.
func (c *conn) ackBatch() {
	b := c.acks
	if b == nil {
		return
	}
	c.acks = nil
	c.mu.Lock()
	c.ackOrder = append(c.ackOrder, b)
	c.flying++
	c.mu.Unlock()
	c.srv.Reader.EndAsync(b.done, b.ends...)
}

// committed is called once the endings are on disk, or failed.
func (b *ackBatch) committed(lost int, err error) {
	c := b.c
	c.srv.stats.StaleAcks.Add(int64(lost))
	c.srv.stats.Acked.Add(max(b.acked-int64(lost), 0))
	c.mu.Lock()
	defer c.mu.Unlock()
	b.ended = true
	if err != nil {
		c.interruptLocked(&failure{
			message: "acknowledgement failed", detail: "the server's store did not take it; the messages will be delivered again",
			receipt: b.first, cause: err, about: frame.Ack,
		})
		b.receipts = b.receipts[:0]
	}
	// Batches may be committed in another order than they were made in.
	for len(c.ackOrder) > 0 && c.ackOrder[0].ended {
		first := c.ackOrder[0]
		c.ackOrder = c.ackOrder[1:]
		c.flying--
		c.appendRaw(first.receipts)
		first.recycle()
	}
	if len(c.ackOrder) == 0 {
		c.ackOrder = nil
	}
	c.space.Broadcast()
	c.kick()
}

func (b *ackBatch) recycle() {
	clear(b.ends)
	b.c, b.ends, b.acked, b.receipts, b.first, b.ended = nil, b.ends[:0], 0, b.receipts[:0], "", false
	ackBatches.Put(b)
}

// ackTimeout returns how long a message may be out; 0 is for ever.
func (c *conn) ackTimeout(m *queue.Message) time.Duration {
	if v, ok := get(m.Headers, "ack-timeout"); ok {
		if d, err := seconds("ack-timeout", strings.TrimSpace(v)); err == nil && d > 0 {
			return min(d, c.srv.cfg.MaxAckTimeout)
		}
	}
	return max(c.srv.cfg.AckTimeout, 0)
}

// watch sees to it that the connection is looked at when at has come. The mutex is held.
func (c *conn) watch(at time.Time) {
	if !c.ackNext.IsZero() && !at.Before(c.ackNext) {
		return
	}
	c.ackNext = at
	wait := max(time.Until(at), time.Millisecond)
	if c.ackTimer == nil {
		c.ackTimer = time.AfterFunc(wait, c.checkAcks)
		return
	}
	c.ackTimer.Reset(wait)
}

// checkAcks takes messages back that were out too long.
func (c *conn) checkAcks() {
	now := time.Now()
	var ends []valve.End
	var next time.Time
	c.mu.Lock()
	for _, p := range c.pending {
		switch {
		case p.deadline.IsZero():
		case !p.deadline.After(now):
			if p.tx != nil {
				p.tx.lost = true
			}
			c.remove(p)
			ends = append(ends, valve.End{Delivery: p.d, Verb: valve.EndRetry, Reason: "no ACK within the ack-timeout"})
		case next.IsZero() || p.deadline.Before(next):
			next = p.deadline
		}
	}
	c.ackNext = time.Time{}
	if !next.IsZero() && !c.ended {
		c.watch(next)
	}
	c.mu.Unlock()
	c.srv.stats.AckTimeouts.Add(int64(len(ends)))
	c.endInBackground(ends)
}

// extend appends extensions for the leases of what has been out for a while.
func (c *conn) extend(now time.Time, ends []valve.End) []valve.End {
	lease := c.srv.cfg.Lease
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range c.pending {
		if now.Sub(p.leased) >= lease/4 {
			p.leased = now
			ends = append(ends, valve.End{Delivery: p.d, Verb: valve.EndExtend, Delay: lease})
		}
	}
	for _, a := range c.autos {
		ends = append(ends, valve.End{Delivery: a.d, Verb: valve.EndExtend, Delay: lease})
	}
	return ends
}
