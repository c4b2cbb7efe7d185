package proof_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/mvalve/mvalve/stomp/frame"
)

// stompClient is one connection, for one goroutine.
type stompClient struct {
	nc     net.Conn
	frames *frame.Reader
	out    []byte // frames that are not written yet
}

// silence is how long a client waits for anything at all.
const silence = time.Minute

// dialSTOMP connects and waits for CONNECTED. The end of ctx closes the connection.
func dialSTOMP(ctx context.Context, address string, headers ...string) (*stompClient, error) {
	within, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	nc, err := new(net.Dialer).DialContext(within, "tcp", address)
	if err != nil {
		return nil, err
	}
	context.AfterFunc(ctx, func() { nc.Close() })
	c := &stompClient{nc: nc, frames: frame.NewReader(nc, frame.Limits{})}
	c.add("CONNECT", "", append(headers, "accept-version:1.2", "host:/")...)
	f, err := c.ask()
	if err == nil && f.Command != frame.Connected {
		err = fmt.Errorf("%v in place of CONNECTED", f.Command)
	}
	if err != nil {
		nc.Close()
		return nil, err
	}
	c.frames.SetVersion(frame.V12)
	return c, nil
}

// add makes a frame. The headers, NAME:VALUE, need no escapes.
func (c *stompClient) add(command, body string, headers ...string) {
	c.out = append(append(c.out, command...), '\n')
	for _, line := range headers {
		c.out = append(append(c.out, line...), '\n')
	}
	c.out = append(c.out, '\n')
	c.out = append(append(c.out, body...), 0)
}

func (c *stompClient) flush() error {
	if len(c.out) == 0 {
		return nil
	}
	if err := c.nc.SetWriteDeadline(time.Now().Add(silence)); err != nil {
		return err
	}
	_, err := c.nc.Write(c.out)
	c.out = c.out[:0]
	return err
}

// errorFrame is what the broker said in an ERROR.
type errorFrame struct{ message, text string }

func (e *errorFrame) Error() string { return "ERROR " + e.message + ": " + e.text }

// read returns the next frame, valid until the next call. ERROR is an error.
func (c *stompClient) read() (*frame.Frame, error) {
	if !c.frames.Buffered() {
		if err := c.nc.SetReadDeadline(time.Now().Add(silence)); err != nil {
			return nil, err
		}
	}
	f, err := c.frames.Read()
	if err != nil {
		return nil, err
	}
	if f.Command == frame.ErrorCommand {
		return nil, &errorFrame{header(f, "message"), strings.TrimSpace(string(f.Body[:min(len(f.Body), 300)]))}
	}
	return f, nil
}

// ask writes what was added and reads one frame.
func (c *stompClient) ask() (*frame.Frame, error) {
	if err := c.flush(); err != nil {
		return nil, err
	}
	return c.read()
}

// receipt asks and expects the RECEIPT named.
func (c *stompClient) receipt(id string) (*frame.Frame, error) {
	f, err := c.ask()
	if err == nil && (f.Command != frame.Receipt || header(f, "receipt-id") != id) {
		err = fmt.Errorf("%v %s in place of RECEIPT %s", f.Command, header(f, "receipt-id"), id)
	}
	return f, err
}

// leave disconnects in order and drops what comes before the last RECEIPT.
func (c *stompClient) leave() error {
	defer c.nc.Close()
	c.add("DISCONNECT", "", "receipt:bye")
	for f, err := c.ask(); ; f, err = c.read() {
		if err != nil {
			return err
		}
		if f.Command == frame.Receipt && header(f, "receipt-id") == "bye" {
			return nil
		}
	}
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

// count asks how many messages of a queue wait or are out.
func (c *stompClient) count(queue string) (int64, error) {
	c.add("SEND", "", "destination:/control/count-msgs/queue/"+queue, "receipt:count")
	f, err := c.receipt("count")
	if err != nil {
		return 0, err
	}
	text := header(f, "num-messages")
	if text == "" {
		return 0, errors.New("a RECEIPT without num-messages")
	}
	return numberBehind(text, ""), nil
}
