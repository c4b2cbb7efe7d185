package stomp

import (
	"context"
	"time"

	"github.com/mvalve/mvalve/queue"
)

// A temporary queue /temp-queue/NAME belongs to one connection. In the pipe it is
// the destination mvalve.temp.SESSION.NAME, so that a reply finds it from any
// process on the same database.

// tempName returns the pipe's name of a temporary queue of this connection.
func (c *conn) tempName(name string) string { return tempPrefix + c.session + "." + name }

// replyQueue returns the pipe's name of the temporary queue that a reply-to
// names, and subscribes the connection to it unless it did so itself.
func (c *conn) replyQueue(name string) (string, error) {
	const dir = "/temp-queue/"
	global := c.tempName(name)
	if err := queue.CheckDestination(global); err != nil {
		return "", refuse("bad reply-to", "the name of the temporary queue is too long")
	}
	c.mu.Lock()
	listens := c.temps[global] != nil
	c.mu.Unlock()
	if listens {
		return global, nil
	}
	both := dir + name
	s := &subscription{c: c, text: both + both, idLen: uint32(len(both)), kind: tempQueue, automatic: true}
	return global, c.subscribeQueue(s, c.srv.cfg.Prefetch, nil)
}

// rememberTemp notes a temporary queue to purge, and who listens to it if s is not
// nil. The mutex is held.
func (c *conn) rememberTemp(global string, s *subscription) {
	if c.temps == nil {
		c.temps = make(map[string]*subscription)
	}
	if s != nil || c.temps[global] == nil {
		c.temps[global] = s
	}
}

// forgetTemp notes that s listens no longer. The mutex is held.
func (c *conn) forgetTemp(s *subscription) {
	_, name := parseDestination(s.destination())
	if global := c.tempName(name); c.temps[global] == s {
		c.temps[global] = nil
	}
}

func (c *conn) hasTemps() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.temps) > 0
}

// purgeTemps deletes what is left in the connection's temporary queues.
func (c *conn) purgeTemps() {
	admin := c.srv.Admin
	if admin == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for name := range c.temps {
		for lane := queue.Emergency; lane <= queue.Dead; lane++ {
			if _, err := admin.Move(ctx, c.srv.Writer.Now(), queue.Move{From: lane, Destination: name, Purge: true}); err != nil {
				c.log.Warn("temporary queue not purged", "destination", name, "err", err)
				return
			}
		}
	}
}
