package stomp

import (
	"context"
	"errors"
	"testing"

	"github.com/mvalve/mvalve/stomp/frame"
)

func TestEndToEnd(t *testing.T) {
	b := startBroker(t, brokerConfig{})
	for _, v := range []frame.Version{frame.V10, frame.V11, frame.V12} {
		t.Run(v.String(), func(t *testing.T) {
			c := b.connect(v)
			c.t = t
			c.send("/queue/a", "one", "colour:blue")
			c.subscribe("s", "/queue/a", "client")
			m := c.message("one")
			if header(m, "colour") != "blue" || header(m, "destination") != "/queue/a" || header(m, "subscription") != "s" {
				t.Errorf("headers of %s", show(m))
			}
			c.do("ACK", "id:"+header(m, "message-id"), "message-id:"+header(m, "message-id"), "subscription:s")
			c.do("UNSUBSCRIBE", "id:s")
			c.do("DISCONNECT")
			c.closed()
		})
	}
}

func TestShutdown(t *testing.T) {
	b := startBroker(t, brokerConfig{})
	c := b.connect(frame.V12)
	c.send("/queue/a", "one")
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- b.srv.Shutdown(ctx) }()
	c.fails("shutting down")
	c.nc.Close()
	if err := <-done; err != nil {
		t.Errorf("Shutdown: %v", err)
	}
	if err := <-b.served; !errors.Is(err, ErrServerClosed) {
		t.Errorf("Serve: %v", err)
	}
	if b.srv.Stats().Connections != 0 {
		t.Errorf("stats %+v", b.srv.Stats())
	}
}
