package stomp

import (
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/stomp/frame"
)

// control answers a SEND to /control/COMMAND in its RECEIPT.
func (c *conn) control(f *frame.Frame, command string) error {
	if c.access&Read == 0 {
		return refuse("access refused", "this user may not read")
	}
	switch {
	case strings.HasPrefix(command, "count-msgs/queue/"):
		n, err := c.srv.countMessages(strings.TrimPrefix(command, "count-msgs/queue/"))
		if err != nil {
			return &failure{message: "cannot count", detail: "the server's store did not answer; try again", cause: err}
		}
		return c.receipt(f, "num-messages", strconv.FormatInt(n, 10))
	case strings.HasPrefix(command, "count-subscribers/queue/"):
		n := c.srv.countSubscribers(false, strings.TrimPrefix(command, "count-subscribers/queue/"))
		return c.receipt(f, "num-subscribers", strconv.Itoa(n))
	case strings.HasPrefix(command, "count-subscribers/topic/"):
		n := c.srv.countSubscribers(true, strings.TrimPrefix(command, "count-subscribers/topic/"))
		return c.receipt(f, "num-subscribers", strconv.Itoa(n))
	}
	return refuse("unknown control command", "%s", destinationHelp)
}

// countMessages returns how many messages of a queue wait or are out, dead
// letters apart.
func (s *Server) countMessages(name string) (int64, error) {
	if s.Admin == nil {
		return 0, refuse("cannot count", "this server's store cannot count messages")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	counts, err := s.Admin.Count(ctx, s.Writer.Now(), name)
	if err != nil {
		return 0, err
	}
	n := int64(0)
	for _, count := range counts {
		if count.Table != queue.Dead {
			n += count.Waiting + count.Leased
		}
	}
	return n, nil
}
