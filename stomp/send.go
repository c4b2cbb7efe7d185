package stomp

import (
	"bytes"
	"errors"
	"slices"
	"sync"

	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/stomp/frame"
)

// sendBatch is the SENDs to queues that came together: one Insert.
type sendBatch struct {
	c        *conn
	messages []*queue.Message
	bytes    int
	receipts []byte // RECEIPT frames to send once they are on disk
	upTo     []int  // length of receipts after each message
	first    string // receipt asked for first, for an ERROR
	done     func(error)
}

var sendBatches sync.Pool

func newSendBatch(c *conn) *sendBatch {
	b, ok := sendBatches.Get().(*sendBatch)
	if !ok {
		b = new(sendBatch)
		b.done = b.committed // one closure for the life of the batch
	}
	b.c = c
	return b
}

// send handles SEND.
func (c *conn) send(f *frame.Frame) error {
	destination, ok := f.Get("destination")
	if !ok {
		return refuse("no destination", "SEND needs a destination header: %s", destinationHelp) // S67
	}
	kind, rest := parseDestination(destination)
	if c.access&Write == 0 && kind != control {
		return refuse("access refused", "this user may not send")
	}
	if name, ok := f.Get("transaction"); ok {
		return c.sendInTx(f, string(name), destination)
	}
	switch kind {
	case topicName:
		c.publish(f, destination, rest)
		return c.receiptOrKick(f)
	case control:
		return c.control(f, string(rest))
	default:
		m, err := c.queueMessage(f, destination)
		if err != nil {
			return err
		}
		return c.enqueue(m, f)
	}
}

// receiptOrKick sends the RECEIPT of a frame to a topic without waking the
// writer for each of many.
func (c *conn) receiptOrKick(f *frame.Frame) error {
	if _, ok := f.Get("receipt"); !ok {
		return nil
	}
	c.mu.Lock()
	c.appendReceipt(f)
	c.makeDirty(c)
	c.mu.Unlock()
	return nil
}

// enqueue adds m to the batch of SENDs that came together.
func (c *conn) enqueue(m *queue.Message, f *frame.Frame) error {
	b := c.sends
	if b == nil {
		b = newSendBatch(c)
		c.sends = b
	}
	b.messages = append(b.messages, m)
	b.bytes += m.Size()
	if id, ok := f.Get("receipt"); ok {
		if len(b.receipts) == 0 {
			b.first = string(id)
		}
		b.receipts = frame.AppendCommand(b.receipts, frame.Receipt)
		b.receipts = frame.AppendHeaderBytes(b.receipts, c.version, receiptID, id)
		b.receipts = frame.AppendBody(b.receipts, nil)
	}
	b.upTo = append(b.upTo, len(b.receipts))
	return nil
}

// sendBatch passes the collected SENDs to the writer.
func (c *conn) sendBatch() error {
	b := c.sends
	if b == nil {
		return nil
	}
	c.sends = nil
	c.mu.Lock()
	c.flying += len(b.messages)
	c.flyBytes += b.bytes
	c.paused++
	c.mu.Unlock()
	c.srv.budget.acquire(b.bytes)
	c.mu.Lock()
	c.paused--
	c.mu.Unlock()
	if err := c.srv.Writer.InsertAsync(b.done, b.messages...); err != nil {
		if len(b.messages) > 1 && errors.Is(err, queue.ErrInvalid) {
			return c.sendSingly(b)
		}
		b.landed(nil)
		f := insertFailure(err)
		f.receipt = b.first
		b.recycle()
		return f
	}
	return nil
}

// sendSingly inserts what a bad message among them kept from being inserted
// together, up to that one.
func (c *conn) sendSingly(b *sendBatch) error {
	b.landed(nil)
	from := 0
	for i, m := range b.messages {
		one := newSendBatch(c)
		one.messages, one.bytes = append(one.messages, m), m.Size()
		one.receipts = append(one.receipts, b.receipts[from:b.upTo[i]]...)
		one.upTo = append(one.upTo, len(one.receipts))
		from = b.upTo[i]
		if f, err := frame.NewReader(bytes.NewReader(one.receipts), frame.Limits{}).Read(); err == nil {
			id, _ := f.Get("receipt-id")
			one.first = string(id)
		}
		c.sends = one
		if err := c.sendBatch(); err != nil {
			return err
		}
	}
	return nil
}

// insertFailure says what the client is told about a failed Insert.
func insertFailure(err error) *failure {
	f := &failure{message: "message not stored", detail: "the server's store did not take the message; send it again", cause: err, about: frame.Send}
	if errors.Is(err, queue.ErrInvalid) || errors.Is(err, queue.ErrDuplicate) {
		f.detail = err.Error()
	}
	return f
}

// committed is called once the messages are on disk, or were not stored.
func (b *sendBatch) committed(err error) {
	c := b.c
	if err == nil {
		c.srv.stats.Received.Add(int64(len(b.messages)))
		b.landed(b.receipts)
		b.recycle()
		return
	}
	f := insertFailure(err)
	f.receipt = b.first
	c.interrupt(f)
	b.landed(nil)
	b.recycle()
}

// landed gives back what was taken for messages on the way to disk, and sends
// their receipts with it: who waits for the one finds the other in the buffer.
func (b *sendBatch) landed(receipts []byte) {
	c := b.c
	c.srv.budget.release(b.bytes)
	c.mu.Lock()
	c.flying -= len(b.messages)
	c.flyBytes -= b.bytes
	c.appendRaw(receipts)
	c.kick()
	c.space.Broadcast()
	c.mu.Unlock()
}

func (b *sendBatch) recycle() {
	clear(b.messages)
	b.c, b.messages, b.bytes, b.receipts, b.first, b.upTo = nil, b.messages[:0], 0, b.receipts[:0], "", b.upTo[:0]
	if cap(b.receipts) <= 64<<10 {
		sendBatches.Put(b)
	}
}

// queueMessage makes the message of a SEND to a queue.
func (c *conn) queueMessage(f *frame.Frame, destination []byte) (*queue.Message, error) {
	kind, name := parseDestination(destination)
	m := new(queue.Message)
	switch kind {
	case queueName:
		m.Destination = c.intern(name)
	case tempQueue:
		m.Destination = c.tempName(string(name))
		c.mu.Lock()
		c.rememberTemp(m.Destination, nil)
		c.mu.Unlock()
	case pipe: // named by X-Mvalve-Destination
	case queuePrefix, topicPrefix:
		return nil, refuse("pattern as destination", "a name that ends in * stands for many and only SUBSCRIBE takes it")
	default:
		return nil, refuse("unknown destination", "%s", destinationHelp)
	}
	if err := c.fill(m, f); err != nil {
		return nil, err
	}
	if m.Destination == "" {
		return nil, refuse("no destination", "SEND to /pipe needs a header %s with the name of the queue", headerDestination)
	}
	if f.OwnBody() {
		m.Body = f.Body
	} else {
		m.Body = bytes.Clone(f.Body)
	}
	if err := m.Validate(0); err != nil {
		return nil, refuse("invalid message", "%v", err)
	}
	return m, nil
}

// intern returns name as a string; a producer often sends to one queue again.
func (c *conn) intern(name []byte) string {
	if c.lastName != string(name) {
		c.lastName = string(name)
	}
	return c.lastName
}

// fill sets headers, priority and times of m from a SEND. All header text of a
// message is one string.
func (c *conn) fill(m *queue.Message, f *frame.Frame) error {
	o := sendOptions{c: c, m: m}
	size, count := 0, 0
	kept := c.kept[:0]
	for i := range f.Header {
		h := f.Header[i]
		keep, err := o.header(&h)
		if err != nil {
			return err
		}
		if keep {
			kept = append(kept, h)
			size += len(h.Name) + len(h.Value)
			count++
		}
	}
	if err := o.apply(); err != nil {
		return err
	}
	if count > 0 {
		text := slices.Grow(c.text[:0], size)
		for _, h := range kept {
			text = append(append(text, h.Name...), h.Value...)
		}
		all := string(text)
		c.text = text
		m.Headers = make(queue.Headers, count)
		for i, h := range kept {
			m.Headers[i].Name, all = all[:len(h.Name)], all[len(h.Name):]
			m.Headers[i].Value, all = all[:len(h.Value)], all[len(h.Value):]
		}
	}
	c.kept = kept[:0]
	if cap(c.text) > 64<<10 {
		c.text = nil
	}
	return nil
}
