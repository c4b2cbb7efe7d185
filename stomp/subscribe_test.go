package stomp

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mvalve/mvalve/stomp/frame"
)

func TestSubscribeRefused(t *testing.T) {
	b := startBroker(t, brokerConfig{config: Config{MaxSubscriptions: 2}})
	for _, tt := range []struct {
		what    string
		v       frame.Version
		headers []string
	}{
		{"no destination", frame.V10, []string{"id:1"}},                                                      // S72
		{"no destination", frame.V12, []string{"id:1"}},                                                      // S72
		{"no id", frame.V11, []string{"destination:/queue/a"}},                                               // S74
		{"no id", frame.V12, []string{"destination:/queue/a"}},                                               // S74
		{"bad ack mode", frame.V12, []string{"id:1", "destination:/queue/a", "ack:never"}},                   // S77
		{"bad ack mode", frame.V10, []string{"id:1", "destination:/queue/a", "ack:client-individual"}},       // S77
		{"unknown destination", frame.V12, []string{"id:1", "destination:/exchange/a"}},                      // S78
		{"unknown destination", frame.V12, []string{"id:1", "destination:/control/count-msgs/queue/a"}},      // S78
		{"selector", frame.V10, []string{"id:1", "destination:/queue/a", "selector:x = 1"}},                  // S79
		{"selector", frame.V12, []string{"id:1", "destination:/queue/a", "selector:x = 1"}},                  // S79
		{"browser", frame.V12, []string{"id:1", "destination:/queue/a", "browser:true"}},                     // S79
		{"topics are not stored", frame.V12, []string{"id:1", "destination:/topic/a", "durable:true"}},       // S79
		{"belongs to the connection", frame.V12, []string{"id:1", "destination:/queue/mvalve.temp.X.reply"}}, // nobody reads another's replies
	} {
		c := b.connect(tt.v)
		c.frame("SUBSCRIBE", append(tt.headers, "receipt:5"), "")
		if f := c.fails(tt.what); header(f, "receipt-id") != "5" {
			t.Errorf("got %s", show(f))
		}
	}
	c := b.connect(frame.V12)
	c.subscribe("1", "/queue/a", "auto")
	c.frame("SUBSCRIBE", []string{"id:1", "destination:/queue/b"}, "")
	c.fails("subscription exists") // S75
	c = b.connect(frame.V12)
	c.subscribe("1", "/queue/a", "auto") // ids are of the connection (S75)
	c.subscribe("2", "/queue/a", "auto") // S76
	c.frame("SUBSCRIBE", []string{"id:3", "destination:/queue/b"}, "")
	c.fails("too many subscriptions")
}

func TestUnsubscribe(t *testing.T) { // S80, S81
	b := startBroker(t, brokerConfig{})
	c := b.connect(frame.V10)
	c.do("SUBSCRIBE", "destination:/queue/a")
	c.frame("SEND", []string{"destination:/queue/a"}, "x")
	if m := c.message("x"); header(m, "subscription") != "" { // S73
		t.Errorf("got %s", show(m))
	}
	c.do("UNSUBSCRIBE", "destination:/queue/a")
	c.subscribe("id1", "/queue/a", "auto")
	c.frame("SEND", []string{"destination:/queue/a"}, "y")
	if m := c.message("y"); header(m, "subscription") != "id1" { // S73, I3
		t.Errorf("got %s", show(m))
	}
	c.do("UNSUBSCRIBE", "id:id1")
	for _, v := range []frame.Version{frame.V11, frame.V12} {
		c := b.connect(v)
		c.subscribe("1", "/queue/a", "auto")
		c.frame("UNSUBSCRIBE", []string{"destination:/queue/a"}, "")
		c.fails("no id")
		c = b.connect(v)
		c.frame("UNSUBSCRIBE", []string{"id:1"}, "")
		c.fails("no such subscription")
	}
}

func TestNothingAfterUnsubscribe(t *testing.T) { // S82, I4
	b := startBroker(t, brokerConfig{})
	producer, c := b.connect(frame.V12), b.connect(frame.V12)
	for range 20 {
		c.subscribe("1", "/queue/a", "auto")
		for i := range 20 {
			producer.frame("SEND", []string{"destination:/queue/a"}, fmt.Sprint(i))
		}
		c.frame("UNSUBSCRIBE", []string{"id:1", "receipt:1"}, "") // I4: its receipt is the subscription's id
		for f, err := c.read(); ; f, err = c.read() {
			if err != nil {
				t.Fatal(err)
			}
			if f.Command == frame.Receipt {
				break
			}
		}
	}
	producer.do("SEND", "destination:/queue/a")
	c.subscribe("2", "/queue/last", "auto")
	producer.send("/queue/last", "last")
	c.message("last")
}

func TestUnsubscribeGivesBack(t *testing.T) { // S83
	b := startBroker(t, brokerConfig{})
	c, other := b.connect(frame.V12), b.connect(frame.V12)
	c.send("/queue/a", "x")
	c.subscribe("1", "/queue/a", "client")
	m := c.message("x")
	c.do("UNSUBSCRIBE", "id:1")
	other.subscribe("1", "/queue/a", "client")
	again := other.message("x")
	if header(again, "redelivered") != "true" || header(again, "x-delivery-count") != "2" {
		t.Errorf("got %s", show(again))
	}
	c.do("ACK", "id:"+header(m, "ack")) // stale: succeeds, and acks nothing (S92)
	other.do("NACK", "id:"+header(again, "ack"), "x-delay:0")
	other.message("x")
	if n := b.srv.Stats().StaleAcks; n != 1 {
		t.Errorf("%d stale", n)
	}
}

func TestReceiptBeforeMessages(t *testing.T) { // I9
	b := startBroker(t, brokerConfig{})
	producer := b.connect(frame.V12)
	for i := range 50 {
		producer.send(fmt.Sprintf("/queue/%d", i), "x")
	}
	c := b.connect(frame.V12)
	for i := range 50 {
		c.frame("SUBSCRIBE", []string{fmt.Sprintf("id:%d", i), fmt.Sprintf("destination:/queue/%d", i), fmt.Sprintf("receipt:%d", i)}, "")
	}
	subscribed := make(map[string]bool)
	for range 100 {
		f, err := c.read()
		if err != nil {
			t.Fatal(err)
		}
		if f.Command == frame.Receipt {
			subscribed[header(f, "receipt-id")] = true
		} else if !subscribed[header(f, "subscription")] {
			t.Fatalf("before its RECEIPT: %s", show(f))
		}
	}
}

func TestPrefetch(t *testing.T) {
	b := startBroker(t, brokerConfig{config: Config{Prefetch: 3, MaxPrefetch: 5}})
	c := b.connect(frame.V12)
	for i := range 10 {
		c.send("/queue/a", fmt.Sprint(i))
	}
	c.send("/queue/last", "last")
	for _, tt := range []struct {
		headers []string
		want    int
	}{
		{nil, 3},
		{[]string{"prefetch-count:2"}, 2},
		{[]string{"activemq.prefetchSize:1"}, 1}, // I6, I8
		{[]string{"prefetch:4"}, 4},
		{[]string{"prefetch:1", "activemq.prefetchSize:4", "prefetch-count:2"}, 2},
		{[]string{"prefetch-count:0"}, 3}, // never none, never unlimited
		{[]string{"prefetch-count:-1"}, 3},
		{[]string{"prefetch-count:many"}, 3},
		{[]string{"prefetch-count:100"}, 5},
	} {
		c := b.connect(frame.V12)
		f := c.do("SUBSCRIBE", append([]string{"id:1", "destination:/queue/a", "ack:client-individual"}, tt.headers...)...)
		if got := header(f, "prefetch-count"); got != fmt.Sprint(tt.want) {
			t.Errorf("%v: prefetch-count %s, want %d", tt.headers, got, tt.want)
		}
		for range tt.want {
			c.expect(frame.Message)
		}
		c.subscribe("2", "/queue/last", "client-individual")
		c.message("last") // not another one of the first
		c.do("DISCONNECT")
		c.nc.Close()
	}
}

func TestRoundRobin(t *testing.T) {
	b := startBroker(t, brokerConfig{})
	consumers := []*client{b.connect(frame.V12), b.connect(frame.V12), b.connect(frame.V12)}
	for _, c := range consumers {
		c.subscribe("1", "/queue/a", "client", "prefetch-count:100")
	}
	producer := b.connect(frame.V12)
	for i := range 30 {
		producer.send("/queue/a", fmt.Sprint(i))
	}
	for i, c := range consumers {
		for n := range 10 {
			if _, err := c.read(); err != nil {
				t.Fatalf("consumer %d got only %d: %v", i, n, err)
			}
		}
	}
}

func TestAutoSubscriberDies(t *testing.T) { // S84: only what was written to its socket is gone
	b := startBroker(t, brokerConfig{config: Config{OutBuffer: 4 << 10, Linger: 50 * time.Millisecond}})
	producer := b.connect(frame.V12)
	const n, size = 400, 64 << 10
	for i := range n {
		producer.send("/queue/a", fmt.Sprintf("%d %s", i, strings.Repeat("x", size)))
	}
	dead := b.connect(frame.V12)
	dead.subscribe("1", "/queue/a", "auto") // and reads nothing: the socket takes a part only
	eventually(t, "some is written", func() bool { return b.srv.Stats().BytesOut > 10*size })
	dead.nc.Close()
	eventually(t, "it is gone", func() bool { return b.srv.Stats().Connections == 1 })

	c := b.connect(frame.V12)
	c.subscribe("1", "/queue/a", "auto")
	var got atomic.Int64
	reading := make(chan struct{})
	go func() {
		defer close(reading)
		for {
			if _, err := c.read(); err != nil {
				return // closed below
			}
			got.Add(1)
		}
	}()
	eventually(t, "nothing is left", func() bool {
		left, err := b.srv.countMessages("a")
		if err != nil {
			t.Fatal(err)
		}
		return left == 0
	})
	c.nc.Close()
	<-reading
	// Each was acknowledged once: by the one or by the other.
	if acked := int(b.srv.Stats().Acked); acked != n || got.Load() < n/4 {
		t.Errorf("%d of %d acked, %d came to the second subscriber", acked, n, got.Load())
	}
}

// What an auto subscriber got before its DISCONNECT is gone when that is confirmed.
func TestDisconnectWaitsForAutoAcks(t *testing.T) { // S84, S108
	b := startBroker(t, brokerConfig{})
	producer := b.connect(frame.V12)
	for range 20 {
		for i := range 10 {
			producer.send("/queue/a", fmt.Sprint(i))
		}
		c := b.connect(frame.V12)
		c.subscribe("1", "/queue/a", "auto")
		for range 10 {
			c.expect(frame.Message)
		}
		c.do("DISCONNECT")
		if left, err := b.srv.countMessages("a"); err != nil || left != 0 {
			t.Fatalf("%d messages left, %v", left, err)
		}
	}
}
