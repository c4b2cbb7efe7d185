package stomp

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/stomp/frame"
	"github.com/mvalve/mvalve/valve"
)

// three sends three messages to a new queue and receives them.
func three(b *broker, c *client, queue, ack string) []*frame.Frame {
	c.t.Helper()
	for _, body := range []string{"m1", "m2", "m3"} {
		c.send("/queue/"+queue, body)
	}
	c.subscribe("s"+queue, "/queue/"+queue, ack)
	return []*frame.Frame{c.message("m1"), c.message("m2"), c.message("m3")}
}

// ackOf returns the headers with which a version acknowledges m.
func ackOf(v frame.Version, m *frame.Frame) []string {
	switch v {
	case frame.V12:
		return []string{"id:" + header(m, "ack")}
	case frame.V11:
		return []string{"message-id:" + header(m, "message-id"), "subscription:" + header(m, "subscription")}
	}
	return []string{"message-id:" + header(m, "message-id")}
}

// left returns what a new subscriber finds in a queue.
func left(b *broker, queue string) string {
	b.t.Helper()
	c := b.connect(frame.V12)
	defer c.nc.Close()
	n, err := b.srv.countMessages(queue)
	if err != nil {
		b.t.Fatal(err)
	}
	c.subscribe("1", "/queue/"+queue, "auto")
	var bodies []string
	for range n {
		bodies = append(bodies, string(c.expect(frame.Message).Body))
	}
	return strings.Join(bodies, " ")
}

func TestAckModes(t *testing.T) {
	b := startBroker(t, brokerConfig{})
	for _, tt := range []struct {
		name, ack string
		v         frame.Version
		acked     int
		want      string
	}{
		{"S86 cumulative", "client", frame.V12, 1, "m3"},
		{"S86 cumulative in 1.1", "client", frame.V11, 1, "m3"},
		{"S87 per message in 1.0", "client", frame.V10, 1, "m1 m3"},
		{"S88 individual", "client-individual", frame.V12, 2, "m1 m2"},
		{"S88 individual in 1.1", "client-individual", frame.V11, 2, "m1 m2"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := b.connect(tt.v)
			c.t = t
			name := strings.ReplaceAll(t.Name(), "/", ".")
			ms := three(b, c, name, tt.ack)
			if _, ok := ms[0].Get("ack"); ok != (tt.v == frame.V12) { // S118
				t.Errorf("got %s", show(ms[0]))
			}
			if header(ms[0], "message-id") == header(ms[1], "message-id") { // S117
				t.Errorf("same message-id")
			}
			c.do("ACK", ackOf(tt.v, ms[tt.acked])...)
			c.do("DISCONNECT") // S85, S109: the others go elsewhere
			if got := left(b, name); got != tt.want {
				t.Errorf("left: %q, want %q", got, tt.want)
			}
		})
	}
}

func TestCumulativeIsPerSubscription(t *testing.T) { // S86, S76
	b := startBroker(t, brokerConfig{})
	c := b.connect(frame.V12)
	three(b, c, "a", "client")
	ms := three(b, c, "b", "client")
	c.do("ACK", ackOf(frame.V12, ms[2])...)
	c.nc.Close() // S85: without a word
	eventually(t, "given back", func() bool { return b.srv.Stats().Connections == 0 })
	if a, bb := left(b, "a"), left(b, "b"); a != "m1 m2 m3" || bb != "" {
		t.Errorf("left: a %q, b %q", a, bb)
	}
}

func TestAckHeaders(t *testing.T) {
	b := startBroker(t, brokerConfig{})
	for _, command := range []string{"ACK", "NACK"} {
		for _, tt := range []struct {
			what    string
			v       frame.Version
			headers []string
		}{
			{"message-id", frame.V10, []string{"x:y"}},                                   // S89
			{"message-id", frame.V11, []string{"subscription:s"}},                        // S90
			{"no subscription", frame.V11, []string{"message-id:x"}},                     // S90
			{"value of the MESSAGE's ack header", frame.V12, []string{"subscription:s"}}, // S91
			{"unknown message", frame.V12, []string{"id:bogus"}},                         // S92
			{"unknown message", frame.V12, []string{"id:01942f3e-6c00-7000-8000-000000000001-1-zzzz"}},
			{"unknown message", frame.V11, []string{"message-id:1", "subscription:s"}},
			{"no such transaction", frame.V12, []string{"id:x", "transaction:t"}}, // S93
		} {
			if command == "NACK" && tt.v == frame.V10 {
				continue
			}
			c := b.connect(tt.v)
			c.frame(command, append(tt.headers, "receipt:3"), "")
			if f := c.fails(tt.what); header(f, "receipt-id") != "3" {
				t.Errorf("got %s", show(f))
			}
		}
	}
	c := b.connect(frame.V10)
	c.frame("NACK", []string{"message-id:1"}, "")
	c.fails("does not exist in STOMP 1.0") // S94

	c = b.connect(frame.V11)
	ms := three(b, c, "q", "client")
	c.frame("ACK", []string{"message-id:" + header(ms[0], "message-id"), "subscription:other"}, "")
	c.fails("wrong subscription") // S90

	c = b.connect(frame.V12)
	ms = three(b, c, "r", "client")
	c.frame("NACK", []string{"id:" + header(ms[0], "message-id"), "x-delay:0"}, "") // I6: the message-id as id
	c.message("m1")
	c.frame("NACK", []string{"message-id:" + header(ms[1], "ack"), "x-delay:0"}, "") // the other version's header
	c.message("m2")
}

func TestStaleAck(t *testing.T) { // S92
	b := startBroker(t, brokerConfig{})
	c, other := b.connect(frame.V12), b.connect(frame.V12)
	ms := three(b, c, "a", "client-individual")
	c.do("ACK", ackOf(frame.V12, ms[0])...)
	c.do("ACK", ackOf(frame.V12, ms[0])...)     // twice
	other.do("ACK", ackOf(frame.V12, ms[1])...) // another connection's
	if n := b.srv.Stats().StaleAcks; n != 2 {
		t.Errorf("%d stale", n)
	}
	c.do("DISCONNECT")
	if got := left(b, "a"); got != "m2 m3" {
		t.Errorf("left: %q", got)
	}
}

// held acknowledges messages, and makes sure that they were c's until then.
func held(b *broker, c *client, ms ...*frame.Frame) {
	c.t.Helper()
	before := b.srv.Stats()
	for _, m := range ms {
		c.do("ACK", ackOf(c.v, m)...)
	}
	if after := b.srv.Stats(); after.StaleAcks != before.StaleAcks || after.Acked != before.Acked+int64(len(ms)) {
		c.t.Errorf("stats %+v, before %+v", after, before)
	}
}

func TestNack(t *testing.T) { // S95, S96
	b := startBroker(t, brokerConfig{reader: valve.ReaderConfig{RetryMin: 150 * time.Millisecond}})
	t.Run("back-off", func(t *testing.T) {
		c := b.connect(frame.V12)
		ms := three(b, c, "n1", "client-individual")
		start := time.Now()
		c.do("NACK", ackOf(frame.V12, ms[1])...)
		m := c.message("m2")
		if took := time.Since(start); took < 100*time.Millisecond {
			t.Errorf("came back after %v", took)
		}
		if header(m, "redelivered") != "true" || header(m, "x-delivery-count") != "2" || header(m, "message-id") == header(ms[1], "message-id") {
			t.Errorf("got %s", show(m))
		}
		held(b, c, ms[0], ms[2]) // individual: the others are not touched (S96)
	})
	t.Run("cumulative", func(t *testing.T) {
		c := b.connect(frame.V11)
		ms := three(b, c, "n2", "client")
		c.do("NACK", append(ackOf(frame.V11, ms[1]), "x-delay:0")...)
		for range 2 { // m1 and m2 (S96), in any order
			if m := c.expect(frame.Message); string(m.Body) == "m3" || header(m, "redelivered") != "true" {
				t.Errorf("got %s", show(m))
			}
		}
		held(b, c, ms[2])
	})
	t.Run("x-delay", func(t *testing.T) {
		c := b.connect(frame.V12)
		ms := three(b, c, "n3", "client")
		start := time.Now()
		c.do("NACK", append(ackOf(frame.V12, ms[0]), "x-delay:400")...)
		c.message("m1")
		if took := time.Since(start); took < 390*time.Millisecond {
			t.Errorf("came back after %v", took)
		}
	})
	t.Run("requeue false", func(t *testing.T) {
		c := b.connect(frame.V12)
		ms := three(b, c, "n4", "client")
		c.do("NACK", append(ackOf(frame.V12, ms[0]), "requeue:false")...)
		c.send("/queue/n4", "m4")
		c.message("m4")
		dead, err := b.srv.Admin.Peek(t.Context(), queue.Dead, "n4", queue.Cursor{}, 10)
		if err != nil || len(dead) != 1 || string(dead[0].Message.Body) != "m1" || !strings.Contains(dead[0].Reason, "NACK") {
			t.Errorf("dead letters: %v, %v", dead, err)
		}
	})
	t.Run("bad", func(t *testing.T) {
		for _, h := range []string{"requeue:maybe", "x-delay:soon", "retry-after:-1"} {
			c := b.connect(frame.V12)
			ms := three(b, c, "n5"+h, "client")
			c.frame("NACK", append(ackOf(frame.V12, ms[0]), h), "")
			c.fails("bad " + strings.Split(h, ":")[0])
		}
	})
}

func TestMaxAttempts(t *testing.T) { // a poison message does not loop
	b := startBroker(t, brokerConfig{reader: valve.ReaderConfig{MaxAttempts: 3}})
	c := b.connect(frame.V12)
	c.send("/queue/a", "poison")
	c.subscribe("1", "/queue/a", "client")
	for i := range 3 {
		m := c.message("poison")
		if header(m, "x-delivery-count") != fmt.Sprint(i+1) {
			t.Errorf("got %s", show(m))
		}
		c.do("NACK", "id:"+header(m, "ack"), "x-delay:0")
	}
	dead, err := b.srv.Admin.Peek(t.Context(), queue.Dead, "a", queue.Cursor{}, 10)
	if err != nil || len(dead) != 1 || string(dead[0].Message.Body) != "poison" {
		t.Errorf("dead letters: %v, %v", dead, err)
	}
	c.send("/queue/a", "next")
	c.message("next")
}

func TestAckTimeout(t *testing.T) {
	virtually(t, brokerConfig{config: Config{MaxAckTimeout: time.Minute}}, func(t *testing.T, b *broker) {
		slow, other := b.connect(frame.V12), b.connect(frame.V12)
		slow.send("/queue/a", "x", "ack-timeout:0.5")
		slow.subscribe("1", "/queue/a", "client", "prefetch-count:1")
		m := slow.message("x")
		other.subscribe("1", "/queue/a", "client")
		slow.do("UNSUBSCRIBE", "id:1") // takes it back at once
		again := other.message("x")
		slow.subscribe("1", "/queue/a", "client")
		other.do("UNSUBSCRIBE", "id:1")
		third := slow.message("x")
		start := time.Now()
		fourth := slow.message("x") // timed out: the same subscriber is ready again
		if took := time.Since(start); took < 500*time.Millisecond || took > 600*time.Millisecond {
			t.Errorf("timed out after %v", took)
		}
		if header(fourth, "redelivered") != "true" || header(fourth, "x-delivery-count") != "4" {
			t.Errorf("got %s", show(fourth))
		}
		for _, late := range []*frame.Frame{m, again, third} { // S92: a late ACK is nobody else's
			slow.do("ACK", ackOf(frame.V12, late)...)
		}
		slow.do("ACK", ackOf(frame.V12, fourth)...)
		slow.silentFor(time.Minute)
		if s := b.srv.Stats(); s.AckTimeouts != 1 || s.StaleAcks != 3 {
			t.Errorf("stats %+v", s)
		}
		if got := left(b, "a"); got != "" {
			t.Errorf("left: %q", got)
		}
	})
}

func TestAckTimeoutOfServer(t *testing.T) {
	b := startBroker(t, brokerConfig{config: Config{AckTimeout: 100 * time.Millisecond}})
	c := b.connect(frame.V12)
	c.send("/queue/a", "x")
	c.subscribe("1", "/queue/a", "client")
	c.message("x")
	if m := c.message("x"); header(m, "redelivered") != "true" {
		t.Errorf("got %s", show(m))
	}
}

func TestLeasesAreKept(t *testing.T) { // a slow but live subscriber keeps its message beyond the lease
	const lease = 30 * time.Second
	virtually(t, brokerConfig{reader: valve.ReaderConfig{Lease: lease}, config: Config{Lease: lease}}, func(t *testing.T, b *broker) {
		c, other := b.connect(frame.V12), b.connect(frame.V12)
		c.send("/queue/a", "x")
		c.subscribe("1", "/queue/a", "client")
		m := c.message("x")
		other.subscribe("1", "/queue/a", "client")
		other.silentFor(10 * lease) // not delivered twice
		c.do("ACK", ackOf(frame.V12, m)...)
		if n := b.srv.Stats().StaleAcks; n != 0 {
			t.Error("the lease was lost")
		}
	})
}

func TestReceiptsOfAcks(t *testing.T) { // S114, S115: many at once, in order
	b := startBroker(t, brokerConfig{})
	c := b.connect(frame.V12)
	const n = 300
	var wire strings.Builder
	for i := range n {
		fmt.Fprintf(&wire, "SEND\ndestination:/queue/a\nreceipt:s%d\n\n%d\x00", i, i)
	}
	c.write(wire.String())
	for i := range n {
		if f := c.expect(frame.Receipt); header(f, "receipt-id") != fmt.Sprintf("s%d", i) {
			t.Fatalf("got %s", show(f))
		}
	}
	c.subscribe("1", "/queue/a", "client-individual", "prefetch-count:1000")
	wire.Reset()
	for i := range n {
		m := c.message(fmt.Sprint(i))
		fmt.Fprintf(&wire, "ACK\nid:%s\nreceipt:a%d\n\n\x00", header(m, "ack"), i)
	}
	c.write(wire.String())
	for i := range n {
		if f := c.expect(frame.Receipt); header(f, "receipt-id") != fmt.Sprintf("a%d", i) {
			t.Fatalf("got %s", show(f))
		}
	}
	if got := left(b, "a"); got != "" {
		t.Errorf("left: %q", got)
	}
}
