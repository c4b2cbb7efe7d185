package stomp

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/mvalve/mvalve/stomp/frame"
	"github.com/mvalve/mvalve/valve"
)

// mode is how the messages of a subscription are acknowledged.
type mode uint8

const (
	ackAuto       mode = iota // S84
	ackClient                 // cumulative; in 1.0 per message (S86, S87)
	ackIndividual             // S88
)

// subscription is one SUBSCRIBE. There may be a million: it has no goroutine, no
// timer and no map. Fields are constant or guarded by conn.mu.
type subscription struct {
	c          *conn
	v          *valve.Subscription // nil for topics
	text       string              // id and destination: one string takes less memory
	head, tail *pending            // out and not acknowledged, oldest first
	idLen      uint32
	index      int32 // in its topic's list; guarded by hub.mu
	kind       kind
	mode       mode
	closed     bool
	automatic  bool // made by a reply-to
}

// id returns the id the client gave, "" if none (S73).
func (s *subscription) id() string { return s.text[:s.idLen] }

// destination returns the destination as the client wrote it.
func (s *subscription) destination() string { return s.text[s.idLen:] }

// key is how the subscription is found again (S80).
func (s *subscription) key() string {
	if s.idLen == 0 {
		return s.text
	}
	return s.id()
}

// subscribe handles SUBSCRIBE.
func (c *conn) subscribe(f *frame.Frame) error {
	if c.access&Read == 0 {
		return refuse("access refused", "this user may not subscribe")
	}
	s, err := c.newSubscription(f)
	if err != nil {
		return err
	}
	prefetch := c.prefetch(f)
	c.mu.Lock()
	old := c.subs.get(s.key())
	full := c.subs.n >= c.srv.cfg.MaxSubscriptions
	byReply := c.subs.get(s.destination())
	c.mu.Unlock()
	if byReply != nil && byReply.automatic && s.kind == tempQueue {
		c.drop(byReply) // the client takes over what reply-to had opened
		old = nil
	}
	switch {
	case old != nil:
		return refuse("subscription exists", "a subscription %.100q is open on this connection; UNSUBSCRIBE it or choose another id", s.key()) // S75
	case full:
		return refuse("too many subscriptions", "a connection may have %d; the server's limit is --max-subscriptions", c.srv.cfg.MaxSubscriptions)
	}
	if s.kind == topicName || s.kind == topicPrefix {
		// Under one lock, so that the RECEIPT is in the buffer before the first
		// MESSAGE (I9), and what is published after the RECEIPT arrived comes.
		c.mu.Lock()
		c.remember(s)
		c.srv.hub.add(s)
		c.appendReceipt(f)
		c.kick()
		c.mu.Unlock()
		return nil
	}
	return c.subscribeQueue(s, prefetch, f)
}

// newSubscription reads a SUBSCRIBE.
func (c *conn) newSubscription(f *frame.Frame) (*subscription, error) {
	destination, ok := f.Get("destination")
	if !ok {
		return nil, refuse("no destination", "SUBSCRIBE needs a destination header: %s", destinationHelp) // S72
	}
	id, ok := f.Get("id")
	if !ok && c.version > frame.V10 {
		return nil, refuse("no id", "SUBSCRIBE needs an id header that is unique on the connection") // S74
	}
	s := &subscription{c: c, text: string(id) + string(destination), idLen: uint32(len(id))}
	var name []byte
	switch s.kind, name = parseDestination(destination); s.kind {
	case noDestination, control:
		return nil, refuse("unknown destination", "%s", destinationHelp) // S78
	case queueName, queuePrefix:
		if strings.HasPrefix(string(name), tempPrefix) {
			return nil, refuse("access refused", "a temporary queue belongs to the connection that made it")
		}
	}
	ack, _ := f.Get("ack")
	switch string(ack) {
	case "", "auto":
	case "client":
		s.mode = ackClient
		if c.version == frame.V10 {
			s.mode = ackIndividual // S87: 1.0 acknowledges message by message
		}
	case "client-individual":
		s.mode = ackIndividual
		if c.version > frame.V10 {
			break
		}
		fallthrough
	default:
		return nil, refuse("bad ack mode", "ack %.30q; use auto, client or (from STOMP 1.1) client-individual", ack) // S77
	}
	return s, unsupported(f, s.kind)
}

// unsupported refuses what would silently be ignored otherwise (S79).
func unsupported(f *frame.Frame, k kind) error {
	for _, name := range []string{"selector", "browser", "activemq.subscriptionName", "durable-subscription-name", "durable-subscriber-name"} {
		if v, ok := f.Get(name); ok && string(v) != "false" {
			return refuse("unsupported header", "%s is not supported: subscribe to a queue of its own for what shall be selected or kept", name)
		}
	}
	if v, _ := f.Get("durable"); string(v) == "true" && (k == topicName || k == topicPrefix) {
		return refuse("unsupported header", "durable: topics are not stored; use a /queue/ for messages that must wait for their subscriber")
	}
	return nil
}

// prefetch returns how many messages may be out. Names of other brokers count
// too; what is no positive number means the default.
func (c *conn) prefetch(f *frame.Frame) int {
	for _, name := range []string{"prefetch-count", "activemq.prefetchSize", "prefetch"} {
		v, ok := f.Get(name)
		if !ok {
			continue
		}
		if n, err := strconv.Atoi(string(v)); err == nil && n > 0 {
			return min(n, c.srv.cfg.MaxPrefetch)
		}
		break
	}
	return c.srv.cfg.Prefetch
}

// remember registers s. The mutex is held.
func (c *conn) remember(s *subscription) {
	c.subs.put(s)
	c.srv.stats.Subscriptions.Add(1)
}

// subscribeQueue opens s in the valve. f is the SUBSCRIBE to answer, nil for none.
func (c *conn) subscribeQueue(s *subscription, prefetch int, f *frame.Frame) error {
	filter := valve.Filter{}
	switch _, name := parseDestination(s.destination()); s.kind {
	case queueName:
		filter.Exact = name
	case queuePrefix:
		filter.Globs = []string{prefixGlob(name)}
	case tempQueue:
		filter.Exact = c.tempName(name)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.inbox == nil {
		c.inbox = c.srv.Reader.NewInbox()
		ctx, cancel := context.WithCancel(context.Background())
		c.cancel = cancel
		inbox := c.inbox
		c.wg.Go(func() { c.deliver(ctx, inbox) })
	}
	// A message that comes at once waits for the mutex, and the RECEIPT is in the
	// buffer before it (I9).
	v, err := c.inbox.Subscribe(filter, prefetch, s)
	if err != nil {
		return &failure{message: "cannot subscribe", detail: "the destination is not a valid name, or the server is being stopped", cause: err, about: frame.Subscribe}
	}
	s.v = v
	c.remember(s)
	if s.kind == tempQueue {
		c.rememberTemp(filter.Exact, s)
	}
	if f != nil {
		c.appendReceipt(f, "prefetch-count", strconv.Itoa(prefetch))
		c.kick()
	}
	return nil
}

// unsubscribe handles UNSUBSCRIBE.
func (c *conn) unsubscribe(f *frame.Frame) error {
	id, ok := f.Get("id")
	if !ok && c.version > frame.V10 {
		return refuse("no id", "UNSUBSCRIBE needs the id header of its SUBSCRIBE") // S81
	}
	if !ok {
		if id, ok = f.Get("destination"); !ok {
			return refuse("no id", "UNSUBSCRIBE needs the id or destination header of its SUBSCRIBE") // S80
		}
	}
	c.mu.Lock()
	s := c.subs.get(string(id))
	c.mu.Unlock()
	if s == nil {
		return refuse("no such subscription", "there is no subscription %.100q on this connection", id) // S81
	}
	c.ackBatch() // acknowledgements before it count
	c.drop(s)
	return c.receipt(f)
}

// drop ends s: no MESSAGE of it is sent any more (S82), and what was not
// acknowledged goes back at once (S83).
func (c *conn) drop(s *subscription) {
	if s.v == nil {
		c.srv.hub.remove(s)
	} else {
		_ = s.v.Close()
	}
	c.mu.Lock()
	s.closed = true
	c.subs.remove(s.key())
	if s.kind == tempQueue {
		c.forgetTemp(s)
	}
	var ends []valve.End
	for p := s.head; p != nil; {
		next := p.next
		if p.tx != nil {
			p.tx.lost = true // its COMMIT fails: the messages go elsewhere
		}
		ends = append(ends, valve.End{Delivery: p.d, Verb: valve.EndRetry, Reason: "subscription ended"})
		c.remove(p)
		p = next
	}
	c.mu.Unlock()
	c.srv.stats.Subscriptions.Add(-1)
	c.endInBackground(ends)
}

// endInBackground ends deliveries that nobody waits for.
func (c *conn) endInBackground(ends []valve.End) {
	if len(ends) == 0 {
		return
	}
	c.mu.Lock()
	c.flying++
	c.mu.Unlock()
	c.srv.Reader.EndAsync(func(_ int, err error) {
		c.mu.Lock()
		c.flying--
		c.space.Broadcast()
		c.mu.Unlock()
		if err != nil && !errors.Is(err, valve.ErrClosed) {
			c.log.Warn("messages not given back: their leases run out", "messages", len(ends), "err", err)
		}
	}, ends...)
}

// giveBack ends all subscriptions at the end of the connection (S85, S109).
func (c *conn) giveBack() {
	c.mu.Lock()
	c.ended = true
	inbox, cancel := c.inbox, c.cancel
	subs := c.subs
	c.subs = subTable{}
	ends := make([]valve.End, 0, len(c.pending))
	for _, serial := range slices.Sorted(maps.Keys(c.pending)) { // in the order of sending
		p := c.pending[serial]
		verb := valve.EndRetry // the client may have seen it: the attempt counts
		if c.broken && p.serial > c.written {
			verb = valve.EndRelease
		}
		ends = append(ends, valve.End{Delivery: p.d, Verb: verb, Reason: "connection ended"})
	}
	c.pending = nil
	for s := range subs.all() {
		s.closed, s.head, s.tail = true, nil, nil
	}
	c.space.Broadcast()
	c.mu.Unlock()
	for s := range subs.all() {
		if s.v == nil {
			c.srv.hub.remove(s)
		}
	}
	c.srv.stats.Subscriptions.Add(-int64(subs.n))
	c.endInBackground(ends)
	if inbox != nil {
		cancel() // first: an inbox that ends by itself is an error to tell
		_ = inbox.Close()
	}
}
