package stomp

import (
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/stomp/frame"
)

// hub knows who listens to which topic of this process. Its mutex is the last to
// be locked.
type hub struct {
	mu       sync.RWMutex
	exact    map[string]*listeners
	prefixes map[string]*listeners
	lengths  []int // of the prefixes, each once
}

type listeners struct{ subs []*subscription }

func (h *hub) init() {
	h.exact = make(map[string]*listeners)
	h.prefixes = make(map[string]*listeners)
}

// table returns where s is listed and under which name.
func (h *hub) table(s *subscription) (map[string]*listeners, string) {
	_, name := parseDestination(s.destination())
	if s.kind == topicPrefix {
		return h.prefixes, name
	}
	return h.exact, name
}

func (h *hub) add(s *subscription) {
	h.mu.Lock()
	defer h.mu.Unlock()
	table, name := h.table(s)
	l := table[name]
	if l == nil {
		l = new(listeners)
		table[name] = l
		if s.kind == topicPrefix {
			h.measure()
		}
	}
	s.index = int32(len(l.subs))
	l.subs = append(l.subs, s)
}

func (h *hub) remove(s *subscription) {
	h.mu.Lock()
	defer h.mu.Unlock()
	table, name := h.table(s)
	l := table[name]
	if l == nil || int(s.index) >= len(l.subs) || l.subs[s.index] != s {
		return
	}
	last := len(l.subs) - 1
	l.subs[s.index] = l.subs[last]
	l.subs[s.index].index = s.index
	l.subs[last] = nil
	l.subs = l.subs[:last]
	if last == 0 {
		delete(table, name)
		if s.kind == topicPrefix {
			h.measure()
		}
	}
}

// measure finds out which lengths prefixes have. The mutex is held.
func (h *hub) measure() {
	seen := make(map[int]bool)
	for p := range h.prefixes {
		seen[len(p)] = true
	}
	h.lengths = slices.Sorted(maps.Keys(seen))
}

// match appends who listens to the topic called name.
func (h *hub) match(name []byte, to []*subscription) []*subscription {
	h.mu.RLock()
	defer h.mu.RUnlock()
	if l := h.exact[string(name)]; l != nil {
		to = append(to, l.subs...)
	}
	for _, n := range h.lengths {
		if n > len(name) {
			break
		}
		if l := h.prefixes[string(name[:n])]; l != nil {
			to = append(to, l.subs...)
		}
	}
	return to
}

// topicMessage is a message to a topic, encoded once for all subscribers of a
// version: only the subscription header differs, and goes before it.
type topicMessage struct {
	f           *frame.Frame
	destination []byte
	token       []byte
	encoded     [frame.V12 + 1][2][]byte // by version, without and with ack header
}

func (t *topicMessage) reset(f *frame.Frame, destination []byte) {
	t.f, t.destination = f, destination
	for v := range t.encoded {
		for i := range t.encoded[v] {
			if cap(t.encoded[v][i]) > 64<<10 {
				t.encoded[v][i] = nil
			}
			t.encoded[v][i] = t.encoded[v][i][:0]
		}
	}
}

// frameFor returns all of the frame behind its subscription header.
func (t *topicMessage) frameFor(v frame.Version, ack bool) []byte {
	i := 0
	if ack && v == frame.V12 {
		i = 1
	}
	b := t.encoded[v][i]
	if len(b) > 0 {
		return b
	}
	b = frame.AppendHeaderBytes(b, v, []byte("destination"), t.destination)
	b = append(append(append(b, "message-id:"...), t.token...), '\n')
	if i == 1 {
		b = append(append(append(b, "ack:"...), t.token...), '\n')
	}
	for _, h := range t.f.Header {
		if !reserved(string(h.Name)) {
			b = frame.AppendHeaderBytes(b, v, h.Name, h.Value)
		}
	}
	b = frame.AppendBody(b, t.f.Body)
	t.encoded[v][i] = b
	return b
}

// publish gives a message to everybody who listens to its topic now.
func (c *conn) publish(f *frame.Frame, destination, name []byte) {
	c.srv.stats.Published.Add(1)
	c.matched = c.srv.hub.match(name, c.matched[:0])
	if len(c.matched) == 0 {
		return
	}
	t := &c.topic
	t.reset(f, destination)
	t.token = c.srv.appendToken(t.token[:0], queue.ID{}, c.srv.serial.Add(1))
	delivered := int64(0)
	for _, s := range c.matched {
		if c.publishTo(s, t) {
			delivered++
		}
	}
	c.srv.stats.TopicDelivered.Add(delivered)
	clear(c.matched)
	t.f, t.destination = nil, nil
}

// publishTo appends a topic's MESSAGE for one subscriber.
func (c *conn) publishTo(s *subscription, t *topicMessage) bool {
	to := s.c
	limit := c.srv.cfg.OutBuffer
	to.mu.Lock()
	defer to.mu.Unlock()
	if len(to.buf) > limit && !c.waitFor(to, limit) {
		return false
	}
	if s.closed || to.sealed {
		return false
	}
	to.room()
	to.buf = append(to.buf, "MESSAGE\n"...)
	if s.id() != "" {
		to.buf = frame.AppendHeader(to.buf, to.version, "subscription", s.id())
	}
	to.buf = append(to.buf, t.frameFor(to.version, s.mode != ackAuto)...)
	c.makeDirty(to)
	return true
}

// waitFor waits a little for a subscriber that does not keep up, once until it
// reads again; then its overflow policy applies. It reports whether there is room
// now. The subscriber's mutex is held.
func (c *conn) waitFor(to *conn, limit int) bool {
	cfg := &c.srv.cfg
	if !to.slow && cfg.TopicWait > 0 {
		to.slow = true // for all publishers
		to.kick()
		to.mu.Unlock()
		c.kickDirty()
		to.await(cfg.TopicWait, func() bool { return len(to.buf) <= limit || to.sealed })
		to.mu.Lock()
	}
	if len(to.buf) <= limit {
		return true
	}
	c.srv.stats.TopicDropped.Add(1)
	if cfg.TopicOverflow == OverflowClose {
		to.interruptLocked(refuse("too slow", "topic messages came faster than this connection read them"))
	}
	return false
}

// makeDirty notes that to has frames that no writer knows of: writers are started
// once for all frames that came together. to's mutex is held.
func (c *conn) makeDirty(to *conn) {
	const enough = 32 << 10
	if to.writing {
		return // looks again
	}
	if len(to.buf) >= enough {
		to.kick()
		return
	}
	if !to.dirtied {
		to.dirtied = true
		c.dirty = append(c.dirty, to)
	}
}

// kickDirty starts the writers that makeDirty noted.
func (c *conn) kickDirty() {
	for i, to := range c.dirty {
		to.mu.Lock()
		to.dirtied = false
		to.kick()
		to.mu.Unlock()
		c.dirty[i] = nil
	}
	c.dirty = c.dirty[:0]
}

// countSubscribers returns how many subscriptions of this process take what is
// sent to a destination.
func (s *Server) countSubscribers(topic bool, name string) int {
	if topic {
		return len(s.hub.match([]byte(name), nil))
	}
	n := 0
	destination := "/queue/" + name
	for _, c := range s.connections() {
		c.mu.Lock()
		for sub := range c.subs.all() {
			switch sub.kind {
			case queueName:
				if sub.destination() == destination {
					n++
				}
			case queuePrefix:
				if strings.HasPrefix(destination, sub.destination()[:len(sub.destination())-1]) {
					n++
				}
			case pipe:
				n++
			}
		}
		c.mu.Unlock()
	}
	return n
}
