package proof_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/mvalve/mvalve/internal/stomptest"
	"github.com/mvalve/mvalve/stomp/frame"
)

// stompClient is one connection, for one goroutine.
type stompClient struct{ *stomptest.Client }

// silence is how long a client waits for anything at all.
const silence = time.Minute

// dialSTOMP connects and waits for CONNECTED. The end of ctx closes the connection.
func dialSTOMP(ctx context.Context, address string, headers ...string) (*stompClient, error) {
	c, err := stomptest.Dial(ctx, address, silence, headers...)
	if err != nil {
		return nil, err
	}
	return &stompClient{c}, nil
}

// receipt asks and expects the RECEIPT named.
func (c *stompClient) receipt(id string) (*frame.Frame, error) {
	f, err := c.Ask()
	if err == nil && (f.Command != frame.Receipt || stomptest.Header(f, "receipt-id") != id) {
		err = fmt.Errorf("%v %s in place of RECEIPT %s", f.Command, stomptest.Header(f, "receipt-id"), id)
	}
	return f, err
}

// leave disconnects in order and drops what comes before the last RECEIPT.
func (c *stompClient) leave() error {
	defer c.Close()
	c.Add("DISCONNECT", "", "receipt:bye")
	for f, err := c.Ask(); ; f, err = c.Next() {
		if err != nil {
			return err
		}
		if f.Command == frame.Receipt && stomptest.Header(f, "receipt-id") == "bye" {
			return nil
		}
	}
}

// count asks how many messages of a queue wait or are out.
func (c *stompClient) count(queue string) (int64, error) {
	c.Add("SEND", "", "destination:/control/count-msgs/queue/"+queue, "receipt:count")
	f, err := c.receipt("count")
	if err != nil {
		return 0, err
	}
	text := stomptest.Header(f, "num-messages")
	if text == "" {
		return 0, errors.New("a RECEIPT without num-messages")
	}
	return numberBehind(text, ""), nil
}
