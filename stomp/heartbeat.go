package stomp

import "time"

// agreed returns the interval of one direction: the longer one of the server's and
// the client's, in milliseconds; 0 if the client has none (S58, S59).
func (c *conn) agreed(client int64) time.Duration {
	if client == 0 {
		return 0
	}
	return max(c.srv.cfg.HeartBeat, time.Duration(client)*time.Millisecond)
}

// startBeats starts the timers of both directions; they know nothing of each
// other. sends and wants are the client's, in milliseconds. The mutex is held.
func (c *conn) startBeats(sends, wants int64) {
	if interval := c.agreed(wants); interval > 0 { // S59
		// Looking every two fifths of the interval, something is sent at least
		// every four fifths of it.
		interval = interval * 2 / 5
		seen := c.writes
		c.beats = time.AfterFunc(interval, func() {
			c.mu.Lock()
			defer c.mu.Unlock()
			if c.sealed {
				return
			}
			if c.writes == seen && len(c.buf) == 0 && !c.writing {
				// An end of line of its own, never inside a frame (S60, S64): buf
				// holds whole frames.
				c.room()
				c.buf = append(c.buf, '\n')
				c.kick()
			}
			seen = c.writes
			c.beats.Reset(interval)
		})
	}
	if interval := c.agreed(sends); interval > 0 { // S58
		c.listen(interval)
	}
}

// listen ends the connection when the client was silent for two to three
// intervals (S62, S63).
func (c *conn) listen(interval time.Duration) {
	seen, silent := c.reads.Load(), 0
	c.listening = time.AfterFunc(interval, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.sealed || c.ending != nil {
			return
		}
		switch now := c.reads.Load(); {
		case now != seen:
			seen, silent = now, 0
		case c.paused > 0:
			silent = 0 // it is us who do not read
		default:
			silent++
		}
		if silent >= 2 {
			c.srv.stats.HeartBeatTimeouts.Add(1)
			c.interruptLocked(refuse("heart-beat missing", "nothing came for more than %v although a heart-beat was promised every %v", 2*interval, interval))
			return
		}
		c.listening.Reset(interval)
	})
}
