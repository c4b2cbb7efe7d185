package stomp

// room is the memory of the server for long bodies that are still arriving and
// for open transactions, as one connection uses it (frame.Room).
type room struct{ c *conn }

// Reserve waits until others have used less than Config.MaxArriving. It fails
// rather than wait for ever: two connections may wait for each other.
func (r room) Reserve(n int) error {
	c := r.c
	c.mu.Lock()
	c.paused++
	c.mu.Unlock()
	ok := c.srv.arriving.acquireFor(n, c.srv.cfg.ArrivingWait)
	c.mu.Lock()
	c.paused--
	c.mu.Unlock()
	if !ok {
		return refuse("too much under way", "long bodies and open transactions of all connections fill the memory set aside for them; "+
			"send it again later, or raise the server's limit --max-arriving (%d bytes)", c.srv.cfg.MaxArriving)
	}
	return nil
}

// Release gives n bytes back.
func (r room) Release(n int) { r.c.srv.arriving.release(n) }
