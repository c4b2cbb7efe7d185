package stomp

import (
	"sync"
	"time"

	"github.com/mvalve/mvalve/stomp/frame"
	"github.com/mvalve/mvalve/valve"
)

// out is the outgoing side of a connection, guarded by conn.mu. Frames are
// appended to buf; a writer takes it whole and writes it at once.
type out struct {
	buf     []byte
	autos   []auto // deliveries to ack once they are written
	writing bool   // a writer is at work and will look at buf again
	dirtied bool   // in the dirty list of a publisher
	slow    bool   // did not read in time: topics do not wait for it again
	sealed  bool   // nothing is appended any more
	broken  bool   // nothing is written any more
	writes  int64  // for heart-beats
	put     uint64 // serial of the last MESSAGE of a queue in buf
	written uint64 // serial of the last one given to the socket
}

// auto is a delivery of an auto subscription in out.buf.
type auto struct {
	d   *valve.Delivery
	end int // of its frame, in buf
}

// buffers are passed around between busy connections; an idle one has none.
var buffers = sync.Pool{New: func() any { b := make([]byte, 0, 16<<10); return &b }}

const keepBuffer = 2 << 20 // larger ones are left to the garbage collector

// room makes sure that there is a buffer. The mutex is held.
func (c *conn) room() {
	if c.buf == nil {
		c.buf = (*buffers.Get().(*[]byte))[:0]
	}
}

func recycle(b []byte) {
	if cap(b) > 0 && cap(b) <= keepBuffer {
		b = b[:0]
		buffers.Put(&b)
	}
}

// kick starts a writer if there is something to write. The mutex is held.
func (c *conn) kick() {
	if len(c.buf) > 0 && !c.writing && !c.broken {
		c.writing = true
		c.wg.Go(c.write)
	}
}

// kickHere is kick for a goroutine that may wait for the socket: it writes itself.
func (c *conn) kickHere() {
	c.mu.Lock()
	if len(c.buf) == 0 || c.writing || c.broken {
		c.mu.Unlock()
		return
	}
	c.writing = true
	c.mu.Unlock()
	if c.writeOnce() {
		c.wg.Go(c.write) // what came meanwhile
	}
}

func (c *conn) write() {
	for c.writeOnce() {
	}
}

// writeOnce writes what is in the buffer; it reports whether there is more, and
// is the writer no longer if there is not.
func (c *conn) writeOnce() bool {
	c.mu.Lock()
	buf, autos, put := c.buf, c.autos, c.put
	c.buf, c.autos = nil, nil
	c.writes++
	c.slow = false
	if len(autos) > 0 {
		c.flying++ // until they are acked: the RECEIPT of a DISCONNECT waits for it
	}
	c.space.Broadcast()
	if c.broken {
		buf = nil
	}
	c.mu.Unlock()
	var n int
	var err error
	if len(buf) > 0 {
		_ = c.nc.SetWriteDeadline(time.Now().Add(c.srv.cfg.WriteTimeout))
		n, err = c.nc.Write(buf)
		c.srv.stats.BytesOut.Add(int64(n))
	}
	c.ackWritten(autos, n)
	recycle(buf)

	c.mu.Lock()
	defer c.mu.Unlock()
	c.written = put // a frame cut off counts as written: part of it may be there
	if err != nil {
		c.broken = true
		c.seal()
		c.interruptLocked(&failure{message: "write failed", detail: "the connection broke", cause: err})
	}
	if len(c.buf) > 0 && !c.broken {
		return true
	}
	c.writing = false
	c.space.Broadcast()
	return false
}

// ackWritten ends the deliveries of auto subscriptions: with success what is in
// the socket (S84), back to the pipe what is not.
func (c *conn) ackWritten(autos []auto, n int) {
	if len(autos) == 0 {
		return
	}
	ends := make([]valve.End, len(autos))
	acked := int64(0)
	for i, a := range autos {
		ends[i] = valve.End{Delivery: a.d, Verb: valve.EndRelease, Lazy: true}
		if a.end <= n {
			ends[i].Verb = valve.EndAck
			acked++
		}
	}
	c.srv.stats.Acked.Add(acked)
	c.srv.Reader.EndAsync(func(_ int, err error) {
		c.mu.Lock()
		c.flying--
		c.space.Broadcast()
		c.mu.Unlock()
		if err != nil {
			c.log.Warn("written messages not acknowledged: they will be delivered again", "messages", acked, "err", err)
		}
	}, ends...)
}

// seal ends appending. The mutex is held.
func (c *conn) seal() {
	c.sealed = true
	c.space.Broadcast()
}

// appendReceipt answers a frame that was processed (S114). The mutex is held.
func (c *conn) appendReceipt(f *frame.Frame, headers ...string) {
	id, ok := f.Get("receipt")
	if !ok || c.sealed {
		return
	}
	c.room()
	c.buf = frame.AppendCommand(c.buf, frame.Receipt)
	c.buf = frame.AppendHeaderBytes(c.buf, c.version, receiptID, id)
	for i := 0; i+1 < len(headers); i += 2 {
		c.buf = frame.AppendHeader(c.buf, c.version, headers[i], headers[i+1])
	}
	c.buf = frame.AppendBody(c.buf, nil)
}

var receiptID = []byte("receipt-id")

// receipt is appendReceipt for a frame that needs nothing else.
func (c *conn) receipt(f *frame.Frame, headers ...string) error {
	c.mu.Lock()
	c.appendReceipt(f, headers...)
	c.kick()
	c.mu.Unlock()
	return nil
}

// appendRaw appends frames made before.
func (c *conn) appendRaw(frames []byte) {
	if len(frames) > 0 && !c.sealed {
		c.room()
		c.buf = append(c.buf, frames...)
	}
}

// sendError is the last frame of a connection (S120).
func (c *conn) sendError(f *failure) {
	c.srv.stats.Errors.Add(1)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.sealed {
		return
	}
	c.room()
	if f.http {
		c.buf = append(c.buf, "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\nContent-Length: "...)
		body := f.detail + "\n"
		c.buf = append(c.buf, itoa(len(body))+"\r\n\r\n"+body...)
	} else {
		c.buf = appendError(c.buf, c.version, f)
	}
	c.seal()
	c.kick()
}

// appendError appends an ERROR frame (S121, S122).
func appendError(dst []byte, v frame.Version, f *failure) []byte {
	dst = frame.AppendCommand(dst, frame.ErrorCommand)
	dst = frame.AppendHeader(dst, v, "message", f.message)
	if f.receipt != "" {
		dst = frame.AppendHeader(dst, v, "receipt-id", f.receipt)
	}
	if f.versions {
		dst = frame.AppendHeader(dst, v, "version", versions)
	}
	dst = frame.AppendHeader(dst, v, "content-type", "text/plain")
	body := f.detail
	if f.about != frame.Invalid {
		body = f.about.String() + ": " + body
	}
	return frame.AppendBody(dst, []byte(body))
}
