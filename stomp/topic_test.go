package stomp

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/mvalve/mvalve/stomp/frame"
)

func TestTopics(t *testing.T) {
	b := startBroker(t, brokerConfig{})
	p := b.connect(frame.V12)
	p.send("/topic/a.b", "before anybody listens")
	subs := map[string]*client{}
	for name, destination := range map[string]string{"exact": "/topic/a.b", "prefix": "/topic/a.*", "all": "/topic/*", "other": "/topic/a", "otherprefix": "/topic/b*"} {
		subs[name] = b.connect(frame.V11)
		subs[name].subscribe("id:1", destination, "auto")
	}
	p.subscribe("own", "/topic/a.b", "auto") // the sender gets its own
	p.frame("SEND", []string{"destination:/topic/a.b", "colour:blue", "content-type:text/x", "message-id:spoof", "receipt:1"}, "hello")
	f := p.message("hello")
	if header(f, "subscription") != "own" || header(f, "destination") != "/topic/a.b" || header(f, "colour") != "blue" || header(f, "content-type") != "text/x" || header(f, "message-id") == "spoof" {
		t.Errorf("got %s", show(f))
	}
	if _, ok := f.Get("receipt"); ok { // S71
		t.Errorf("got %s", show(f))
	}
	p.expect(frame.Receipt)
	for _, name := range []string{"exact", "prefix", "all"} {
		m := subs[name].message("hello")
		if header(m, "subscription") != "id:1" { // S24: escaped, and back
			t.Errorf("got %s", show(m))
		}
		subs[name].nothingElse()
	}
	subs["other"].nothingElse()
	subs["otherprefix"].nothingElse()
	for name := range subs {
		subs[name].do("UNSUBSCRIBE", "id:id\\c1")
	}
	p.send("/topic/a.b", "again")
	p.message("again")
	subs["all"].nothingElse() // S82
	if l := len(b.srv.hub.prefixes) + len(b.srv.hub.lengths); l != 0 {
		t.Errorf("%d prefixes left", l)
	}
}

func TestTopicAcks(t *testing.T) { // S119
	b := startBroker(t, brokerConfig{})
	p, c := b.connect(frame.V12), b.connect(frame.V12)
	c.subscribe("1", "/topic/a", "client-individual")
	c.subscribe("2", "/topic/a", "client")
	p.send("/topic/a", "x")
	for range 2 {
		m := c.message("x")
		if header(m, "ack") == "" { // S118
			t.Errorf("got %s", show(m))
		}
		c.frame("ACK", append(ackOf(frame.V12, m), "receipt:"+header(m, "subscription")), "")
	}
	c.expect(frame.Receipt)
	c.expect(frame.Receipt)
}

func TestTopicOfAllVersions(t *testing.T) { // S24, S26
	b := startBroker(t, brokerConfig{})
	clients := map[frame.Version]*client{}
	for _, v := range []frame.Version{frame.V10, frame.V11, frame.V12} {
		clients[v] = b.connect(v)
		clients[v].subscribe("1", "/topic/a", "auto")
	}
	p := b.connect(frame.V12)
	p.send("/topic/a", "x", `h:a\cb\nc`)
	for v, want := range map[frame.Version]string{frame.V10: "a:b?c", frame.V11: "a:b\nc", frame.V12: "a:b\nc"} {
		if got := header(clients[v].message("x"), "h"); got != want {
			t.Errorf("%v: %q, want %q", v, got, want)
		}
	}
}

func TestTopicOverflow(t *testing.T) {
	const wait, n = 5 * time.Second, 40
	for _, policy := range []Overflow{OverflowDrop, OverflowClose} {
		virtually(t, brokerConfig{config: Config{OutBuffer: 64 << 10, TopicOverflow: policy, TopicWait: wait}}, func(t *testing.T, b *broker) {
			stuck, healthy, p := b.connect(frame.V12), b.connect(frame.V12), b.connect(frame.V12)
			stuck.subscribe("1", "/topic/a", "auto")
			healthy.subscribe("1", "/topic/a", "auto")
			publish := func() time.Duration { // each message fills a buffer
				received := make(chan int)
				go func() {
					got := 0
					for range n {
						if f, err := healthy.read(); err == nil && f.Command == frame.Message {
							got++
						}
					}
					received <- got
				}()
				start := time.Now()
				for range n {
					p.send("/topic/a", strings.Repeat("x", 64<<10))
				}
				took := time.Since(start)
				if got := <-received; got != n {
					t.Errorf("policy %d: the healthy subscriber got %d of %d", policy, got, n)
				}
				return took
			}
			if took := publish(); took != wait { // once for all messages
				t.Errorf("a stuck subscriber held the publisher up for %v", took)
			}
			dropped := b.srv.Stats().TopicDropped
			if policy == OverflowClose {
				if dropped == 0 {
					t.Error("nothing was counted as dropped")
				}
				stuck.expect(frame.Message)
				stuck.expect(frame.Message)
				stuck.fails("too slow")
				return
			}
			if dropped != n-2 { // one is in the pipe, one in the buffer
				t.Errorf("%d of %d counted as dropped", dropped, n)
			}
			stuck.expect(frame.Message)
			if took := publish(); took != wait { // it has read: once more
				t.Errorf("a subscriber that read and is stuck again held the publisher up for %v", took)
			}
			if took := publish(); took != 0 {
				t.Errorf("a subscriber known to be stuck held the publisher up for %v", took)
			}
			if b.srv.Stats().Connections != 3 {
				t.Error("the stuck one was closed")
			}
		})
	}
}

func TestTempQueues(t *testing.T) {
	b := startBroker(t, brokerConfig{})
	client, service := b.connect(frame.V12), b.connect(frame.V12)
	service.subscribe("1", "/queue/service", "client")
	client.frame("SEND", []string{"destination:/queue/service", "reply-to:/temp-queue/answers", "correlation-id:7"}, "question")
	q := service.message("question")
	to := header(q, "reply-to")
	if !strings.HasPrefix(to, "/queue/"+tempPrefix) || header(q, "correlation-id") != "7" {
		t.Fatalf("got %s", show(q))
	}
	service.send(to, "answer", "correlation-id:7")
	a := client.message("answer")
	if header(a, "destination") != "/temp-queue/answers" || header(a, "subscription") != "/temp-queue/answers" || header(a, "correlation-id") != "7" {
		t.Errorf("got %s", show(a))
	}

	// The client may subscribe itself, in any mode (the name stays its own).
	client.subscribe("mine", "/temp-queue/answers", "client")
	client.frame("SEND", []string{"destination:/queue/service", "reply-to:/temp-queue/answers"}, "q2")
	service.do("ACK", ackOf(frame.V12, q)...)
	q2 := service.message("q2")
	if header(q2, "reply-to") != to {
		t.Errorf("got %s", show(q2))
	}
	service.send(to, "third")
	m := client.message("third")
	if header(m, "subscription") != "mine" || header(m, "destination") != "/temp-queue/answers" || header(m, "ack") == "" {
		t.Errorf("got %s", show(m))
	}
	service.send(to, "unread")
	name := strings.TrimPrefix(to, "/queue/")
	client.message("unread")
	client.do("UNSUBSCRIBE", "id:mine")

	// A catch-all subscriber gets no answers, even if nobody else wants them.
	thief := b.connect(frame.V12)
	thief.subscribe("1", "/pipe", "auto")
	service.send(to, "for nobody")
	service.send("/queue/unclaimed", "for anybody")
	thief.message("for anybody") // and nothing before it
	thief.do("DISCONNECT")
	thief.nc.Close()
	client.nc.Close()
	eventually(t, "purged", func() bool {
		n, err := b.srv.countMessages(name)
		return err == nil && n == 0 && b.srv.Stats().Connections == 1
	})
}

func TestControl(t *testing.T) {
	b := startBroker(t, brokerConfig{})
	c := b.connect(frame.V10)
	ask := func(command, name string) string {
		t.Helper()
		return header(c.do("SEND", "destination:/control/"+command), name)
	}
	for i := range 5 {
		c.send("/queue/a/b", fmt.Sprint(i))
	}
	if n := ask("count-msgs/queue/a/b", "num-messages"); n != "5" {
		t.Errorf("%s messages", n)
	}
	for i, destination := range []string{"/queue/a/b", "/queue/a*", "/pipe", "/queue/other"} {
		o := b.connect(frame.V12)
		o.subscribe(fmt.Sprint(i), destination, "client")
	}
	if n := ask("count-subscribers/queue/a/b", "num-subscribers"); n != "3" {
		t.Errorf("%s subscribers", n)
	}
	if n := ask("count-msgs/queue/a/b", "num-messages"); n != "5" { // those that are out count
		t.Errorf("%s messages", n)
	}
	for i, destination := range []string{"/topic/x", "/topic/x*", "/topic/y"} {
		o := b.connect(frame.V12)
		o.subscribe(fmt.Sprint(i), destination, "auto")
	}
	if n := ask("count-subscribers/topic/x", "num-subscribers"); n != "2" {
		t.Errorf("%s subscribers", n)
	}
	c.frame("SEND", []string{"destination:/control/count-msgs/queue/a"}, "") // without receipt nobody is told
	c.nothingElse()
}

func TestLastFramesArrive(t *testing.T) { // S108, S110, S113, S116
	b := startBroker(t, brokerConfig{})
	for range 20 {
		c := b.connect(frame.V12)
		c.write("SEND\ndestination:/queue/a\nreceipt:1\n\nx\x00DISCONNECT\nreceipt:bye\n\n\x00SEND\ndestination:/queue/a\nreceipt:2\n\nnever\x00")
		if f := c.expect(frame.Receipt); header(f, "receipt-id") != "1" {
			t.Errorf("got %s", show(f))
		}
		if f := c.expect(frame.Receipt); header(f, "receipt-id") != "bye" {
			t.Errorf("got %s", show(f))
		}
		c.closed()
		// An ERROR is readable although the client goes on sending.
		c = b.connect(frame.V12)
		c.write("JUMP\n\n\x00" + strings.Repeat("SEND\ndestination:/queue/a\n\nnever\x00", 2000))
		c.fails("unknown command")
	}
	if n, err := b.srv.countMessages("a"); err != nil || n != 20 { // S110
		t.Errorf("%d messages, %v", n, err)
	}
}

func TestSubscribedWhenReceipted(t *testing.T) { // what is published after the RECEIPT of SUBSCRIBE arrives
	b := startBroker(t, brokerConfig{})
	p, c := b.connect(frame.V12), b.connect(frame.V12)
	for i := range 200 {
		c.subscribe(fmt.Sprint(i), fmt.Sprintf("/topic/%d", i), "auto")
		p.frame("SEND", []string{fmt.Sprintf("destination:/topic/%d", i)}, "x")
		c.message("x")
	}
}
