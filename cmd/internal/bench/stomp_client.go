package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/mvalve/mvalve/stomp/frame"
)

// target is the broker under load and how to talk to it.
type target struct {
	address  string
	login    string
	passcode string
	host     string
	headers  []string // NAME:VALUE lines added to SEND and SUBSCRIBE
	prefix   string   // of destinations, behind /queue/ and /topic/
	prefetch int
	size     int // bytes of a body
}

const (
	connectTime = 10 * time.Second
	goodbye     = "bye" // receipt of DISCONNECT
	readyID     = "ready"
)

// client is one connection: frames are read by one goroutine, and written by
// one at a time. A frame is written whole by one call, so that hangUp may be
// called beside the one that writes.
type client struct {
	conn    net.Conn
	frames  *frame.Reader
	version frame.Version
	out     []byte // frames that are not written yet
}

// dial connects and logs in. The end of ctx closes the connection.
func (t *target) dial(ctx context.Context) (*client, error) {
	within, cancel := context.WithTimeout(ctx, connectTime)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(within, "tcp", t.address)
	if err != nil {
		return nil, err
	}
	context.AfterFunc(ctx, func() { _ = conn.Close() })
	c := &client{conn: conn, frames: frame.NewReader(conn, frame.Limits{Body: max(16<<20, 2*t.size)})}
	c.out = append(c.out, "CONNECT\naccept-version:1.0,1.1,1.2\nheart-beat:0,0\nhost:"+t.host...)
	if t.login != "" {
		c.out = append(c.out, "\nlogin:"+t.login+"\npasscode:"+t.passcode...)
	}
	c.out = append(c.out, "\n\n\x00"...)
	if err := conn.SetDeadline(time.Now().Add(connectTime)); err != nil {
		return nil, err
	}
	if err := c.flush(); err != nil {
		return nil, err
	}
	f, err := c.read()
	if err != nil {
		return nil, fmt.Errorf("log in: %w", err)
	}
	if f.Command != frame.Connected {
		return nil, fmt.Errorf("log in: the broker answered %v, not CONNECTED", f.Command)
	}
	c.version = frame.V10
	switch version, _ := f.Get("version"); string(version) {
	case "1.1":
		c.version = frame.V11
	case "1.2":
		c.version = frame.V12
	}
	c.frames.SetVersion(c.version)
	return c, conn.SetDeadline(time.Time{})
}

// read returns the next frame, valid until the next call. A frame ERROR is an error.
func (c *client) read() (*frame.Frame, error) {
	f, err := c.frames.Read()
	if err != nil {
		return nil, err
	}
	if f.Command == frame.ErrorCommand {
		message, _ := f.Get("message")
		text := strings.TrimSpace(string(message) + ": " + string(f.Body[:min(len(f.Body), 300)]))
		return nil, fmt.Errorf("the broker says ERROR: %s", text)
	}
	return f, nil
}

func (c *client) flush() error {
	if len(c.out) == 0 {
		return nil
	}
	_, err := c.conn.Write(c.out)
	c.out = c.out[:0]
	return err
}

// subscribe asks for a destination. It may be called beside the goroutine that
// reads and writes. The prefetch is named as RabbitMQ, ActiveMQ and ocamlmq call it.
func (c *client) subscribe(t *target, destination, id, ack, receipt string) error {
	text := frame.AppendHeader([]byte("SUBSCRIBE\n"), c.version, "destination", destination)
	text = append(text, "id:"+id+"\nack:"+ack+"\nreceipt:"+receipt+"\n"...)
	for _, name := range []string{"prefetch-count:", "activemq.prefetchSize:", "prefetch:"} {
		text = strconv.AppendInt(append(text, name...), int64(t.prefetch), 10)
		text = append(text, '\n')
	}
	for _, line := range t.headers {
		text = append(append(text, line...), '\n')
	}
	_, err := c.conn.Write(append(text, "\n\x00"...))
	return err
}

// hangUp asks for the end; the reading goroutine sees the RECEIPT goodbye.
func (c *client) hangUp() error {
	_, err := c.conn.Write([]byte("DISCONNECT\nreceipt:" + goodbye + "\n\n\x00"))
	return err
}

// leave disconnects in order: what was written before has been dealt with.
func (c *client) leave() error {
	err := c.hangUp()
	for err == nil {
		var f *frame.Frame
		if f, err = c.read(); err == nil && isGoodbye(f) {
			break
		}
	}
	_ = c.conn.Close()
	return err
}

func isGoodbye(f *frame.Frame) bool {
	id, _ := f.Get("receipt-id")
	return f.Command == frame.Receipt && string(id) == goodbye
}

var (
	errNoAck  = errors.New("a MESSAGE without the header that its ACK needs")
	messageID = []byte("message-id")
	idName    = []byte("id")
	subName   = []byte("subscription")
)

// appendAck acknowledges a MESSAGE in the way of the version.
func (c *client) appendAck(f *frame.Frame) error {
	c.out = append(c.out, "ACK\n"...)
	if c.version == frame.V12 {
		id, ok := f.Get("ack")
		if !ok {
			return errNoAck
		}
		c.out = frame.AppendHeaderBytes(c.out, c.version, idName, id)
	} else {
		id, ok := f.Get("message-id")
		if !ok {
			return errNoAck
		}
		c.out = frame.AppendHeaderBytes(c.out, c.version, messageID, id)
		if sub, ok := f.Get("subscription"); ok {
			c.out = frame.AppendHeaderBytes(c.out, c.version, subName, sub)
		}
	}
	c.out = append(c.out, "\n\x00"...)
	return nil
}

// Bodies begin with the number of the message and when it was made, in
// nanoseconds since the start of the process, both as 16 hexadecimal digits.
const (
	digits  = 16
	minSize = 2 * digits
)

var began = time.Now()

func sinceBegan() int64 { return int64(time.Since(began)) }

func putHex(dst []byte, v uint64) {
	for i := digits - 1; i >= 0; i-- {
		dst[i] = "0123456789abcdef"[v&15]
		v >>= 4
	}
}

var errBody = errors.New("a MESSAGE whose body this load generator did not make")

func readHex(text []byte) (v uint64, err error) {
	for _, b := range text[:digits] {
		at := bytes.IndexByte([]byte("0123456789abcdef"), b)
		if at < 0 {
			return 0, errBody
		}
		v = v<<4 | uint64(at)
	}
	return v, nil
}

// readBody returns the number of a message and when it was made.
func readBody(body []byte) (number uint64, made int64, err error) {
	if len(body) < minSize {
		return 0, 0, errBody
	}
	number, err = readHex(body)
	if err != nil {
		return 0, 0, err
	}
	at, err := readHex(body[digits:])
	return number, int64(at), err
}
