package bench

import (
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/mvalve/mvalve/stomp/frame"
)

// fakeBroker is a broker in memory that does what it is told to do wrong. It
// hands messages out as soon as it can and believes every ACK.
type fakeBroker struct {
	loseEvery   int // of the messages, counted from 1; 0: none
	doubleEvery int
	mute        int // after so many RECEIPTs none comes any more; 0: never

	mu       sync.Mutex
	sent     int
	receipts int
	queues   map[string]*fakeQueue
}

type fakeQueue struct {
	waiting [][]byte // bodies
	subs    []fakeSub
	turn    int
}

type fakeSub struct {
	conn *fakeConn
	id   string
}

type fakeConn struct {
	net.Conn
	mu      sync.Mutex
	version frame.Version
	out     []byte
}

func (b *fakeBroker) start(t *testing.T) (address string) {
	t.Helper()
	b.queues = make(map[string]*fakeQueue)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var conns sync.WaitGroup
	conns.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			conns.Go(func() { b.serve(&fakeConn{Conn: c}) })
		}
	})
	t.Cleanup(func() {
		ln.Close()
		conns.Wait()
	})
	return ln.Addr().String()
}

func (c *fakeConn) send(command frame.Command, body []byte, headers ...string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f := &frame.Frame{Command: command, Body: body}
	for i := 0; i < len(headers); i += 2 {
		f.Header = append(f.Header, frame.Field{Name: []byte(headers[i]), Value: []byte(headers[i+1])})
	}
	c.out = frame.Append(c.out[:0], c.version, f)
	_, _ = c.Write(c.out)
}

func (b *fakeBroker) serve(c *fakeConn) {
	defer c.Close()
	defer b.forget(c)
	frames := frame.NewReader(c, frame.Limits{})
	for {
		f, err := frames.Read()
		if err != nil {
			return
		}
		get := func(name string) string {
			v, _ := f.Get(name)
			return string(v)
		}
		switch f.Command {
		case frame.Connect:
			if get("login") == "wrong" {
				c.send(frame.ErrorCommand, []byte("who are you"), "message", "refused")
				return
			}
			c.version = frame.V12
			c.send(frame.Connected, nil, "version", "1.2")
			frames.SetVersion(frame.V12)
		case frame.Send:
			b.publish(get("destination"), string(f.Body))
		case frame.Subscribe:
			b.subscribe(get("destination"), fakeSub{c, get("id")}) // in effect before its RECEIPT
		}
		b.receipt(c, get("receipt"))
		if f.Command == frame.Disconnect {
			return
		}
	}
}

func (b *fakeBroker) receipt(c *fakeConn, id string) {
	if id == "" {
		return
	}
	b.mu.Lock()
	b.receipts++
	mute := b.mute > 0 && b.receipts > b.mute
	b.mu.Unlock()
	if !mute {
		c.send(frame.Receipt, nil, "receipt-id", id)
	}
}

func (b *fakeBroker) queue(name string) *fakeQueue {
	if b.queues[name] == nil {
		b.queues[name] = &fakeQueue{}
	}
	return b.queues[name]
}

func (b *fakeBroker) publish(destination, body string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.sent++
	times := 1
	if b.loseEvery > 0 && b.sent%b.loseEvery == 0 {
		times = 0
	}
	if b.doubleEvery > 0 && b.sent%b.doubleEvery == 0 {
		times = 2
	}
	q := b.queue(destination)
	for range times {
		switch {
		case strings.HasPrefix(destination, "/topic/"):
			for _, sub := range q.subs {
				b.deliver(sub, []byte(body))
			}
		case len(q.subs) > 0:
			q.turn++
			b.deliver(q.subs[q.turn%len(q.subs)], []byte(body))
		default:
			q.waiting = append(q.waiting, []byte(body))
		}
	}
}

func (b *fakeBroker) subscribe(destination string, sub fakeSub) {
	b.mu.Lock()
	defer b.mu.Unlock()
	q := b.queue(destination)
	q.subs = append(q.subs, sub)
	for _, body := range q.waiting {
		b.deliver(sub, body)
	}
	q.waiting = nil
}

func (b *fakeBroker) deliver(sub fakeSub, body []byte) {
	sub.conn.send(frame.Message, body, "subscription", sub.id, "ack", strconv.Itoa(b.sent))
}

func (b *fakeBroker) forget(c *fakeConn) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, q := range b.queues {
		var left []fakeSub
		for _, sub := range q.subs {
			if sub.conn != c {
				left = append(left, sub)
			}
		}
		q.subs = left
	}
}
