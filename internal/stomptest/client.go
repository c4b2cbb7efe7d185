// Package stomptest is a STOMP 1.2 client for tests that drive a broker from
// outside, over a real socket.
package stomptest

import (
	"context"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/mvalve/mvalve/stomp/frame"
)

// dialTimeout bounds the making of a connection.
const dialTimeout = 10 * time.Second

// Client is one connection, for one goroutine.
type Client struct {
	net.Conn
	Frames *frame.Reader
	Out    []byte // frames that are not written yet

	silence time.Duration
}

// Dial connects and waits for CONNECTED; headers, NAME:VALUE, are added to CONNECT.
// silence is how long the client waits for anything at all. The end of ctx closes
// the connection.
func Dial(ctx context.Context, address string, silence time.Duration, headers ...string) (*Client, error) {
	within, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	nc, err := new(net.Dialer).DialContext(within, "tcp", address)
	if err != nil {
		return nil, err
	}
	context.AfterFunc(ctx, func() { nc.Close() })
	c := &Client{Conn: nc, Frames: frame.NewReader(nc, frame.Limits{}), silence: silence}
	c.Add("CONNECT", "", append(headers, "accept-version:1.2", "host:/")...)
	f, err := c.Ask()
	if err == nil && f.Command != frame.Connected {
		err = fmt.Errorf("%v in place of CONNECTED", f.Command)
	}
	if err != nil {
		nc.Close()
		return nil, err
	}
	c.Frames.SetVersion(frame.V12)
	return c, nil
}

// Add makes a frame, which Flush sends. The headers, NAME:VALUE, need no escapes.
func (c *Client) Add(command, body string, headers ...string) {
	c.Out = append(append(c.Out, command...), '\n')
	for _, line := range headers {
		c.Out = append(append(c.Out, line...), '\n')
	}
	c.Out = append(append(append(c.Out, '\n'), body...), 0)
}

// Flush sends what was added.
func (c *Client) Flush() error {
	if len(c.Out) == 0 {
		return nil
	}
	if err := c.SetWriteDeadline(time.Now().Add(c.silence)); err != nil {
		return err
	}
	_, err := c.Write(c.Out)
	c.Out = c.Out[:0]
	return err
}

// Error is what the broker said in an ERROR.
type Error struct{ Message, Text string }

func (e *Error) Error() string { return "ERROR " + e.Message + ": " + e.Text }

// Next returns the next frame, valid until the next call. ERROR is an *Error.
func (c *Client) Next() (*frame.Frame, error) {
	if !c.Frames.Buffered() {
		if err := c.SetReadDeadline(time.Now().Add(c.silence)); err != nil {
			return nil, err
		}
	}
	f, err := c.Frames.Read()
	if err != nil {
		return nil, err
	}
	if f.Command == frame.ErrorCommand {
		return nil, &Error{Header(f, "message"), strings.TrimSpace(string(f.Body[:min(len(f.Body), 300)]))}
	}
	return f, nil
}

// Ask sends what was added and returns the next frame.
func (c *Client) Ask() (*frame.Frame, error) {
	if err := c.Flush(); err != nil {
		return nil, err
	}
	return c.Next()
}

// Header returns a header of a frame, "" if there is none.
func Header(f *frame.Frame, name string) string {
	value, _ := f.Get(name)
	return string(value)
}

// MessageID returns the part of a MESSAGE's id that all its deliveries share: the
// id of the message in the pipe.
func MessageID(f *frame.Frame) string {
	const uuid = 36
	id := Header(f, "message-id")
	return id[:min(len(id), uuid)]
}
