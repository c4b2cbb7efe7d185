package stomp

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/queue/sqlite"
	"github.com/mvalve/mvalve/stomp/frame"
)

// file opens a new SQLite store.
func file(t *testing.T) queue.Store {
	t.Helper()
	s, err := sqlite.Open(t.Context(), sqlite.Config{Path: filepath.Join(t.TempDir(), "q.db")})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Init(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestTwoBrokers(t *testing.T) { // no message goes out twice, and consumers of one queue are spread over both
	store := file(t)
	a, z := startBroker(t, brokerConfig{store: store}), startBroker(t, brokerConfig{store: store})
	const n = 300
	consumers := []*client{a.connect(frame.V12), z.connect(frame.V12)}
	var mu sync.Mutex
	seen := make(map[string]int)
	from := make([]int, len(consumers))
	both := make(chan struct{}) // closed once each has got one
	var wg sync.WaitGroup
	for i, c := range consumers {
		c.subscribe("1", "/queue/shared", "client-individual", "prefetch-count:5")
		wg.Go(func() {
			for {
				f, err := c.read()
				if err != nil {
					return
				}
				if f.Command != frame.Message {
					continue
				}
				mu.Lock()
				seen[string(f.Body)]++
				if from[i]++; from[i] == 1 && from[1-i] > 0 {
					close(both)
				}
				mu.Unlock()
				select {
				case <-both: // until then it has its five and wants no more
				case <-t.Context().Done():
					return
				}
				c.frame("ACK", []string{"id:" + header(f, "ack")}, "")
			}
		})
	}
	producers := []*client{a.connect(frame.V12), z.connect(frame.V12)}
	for i := range n {
		producers[i%2].send("/queue/shared", fmt.Sprint(i))
	}
	eventually(t, "all acknowledged", func() bool {
		left, err := a.srv.countMessages("shared")
		return err == nil && left == 0
	})
	for _, c := range consumers {
		c.nc.Close()
	}
	wg.Wait()
	if len(seen) != n {
		t.Errorf("%d of %d messages", len(seen), n)
	}
	for body, times := range seen {
		if times != 1 {
			t.Errorf("message %s came %d times", body, times)
		}
	}
}

func TestReplyOverTwoBrokers(t *testing.T) {
	store := file(t)
	a, z := startBroker(t, brokerConfig{store: store}), startBroker(t, brokerConfig{store: store})
	asks, answers := a.connect(frame.V12), z.connect(frame.V12)
	answers.subscribe("1", "/queue/service", "auto")
	asks.frame("SEND", []string{"destination:/queue/service", "reply-to:/temp-queue/x"}, "question")
	answers.send(header(answers.message("question"), "reply-to"), "answer")
	asks.message("answer")
}

func TestStoredAsSent(t *testing.T) { // names mean nothing to the database; bodies and headers come back byte for byte
	b := startBroker(t, brokerConfig{store: file(t)})
	c := b.connect(frame.V12)
	for i, name := range []string{"x' OR '1'='1", "\"; DROP TABLE q_incoming; --", "a/b", "%", "Ünï"} {
		for _, body := range []string{"0", "", "\x00\xff\r\n"} {
			c.send("/queue/"+name, body, "message-id:../../etc/passwd", "h:'; --")
			c.subscribe(fmt.Sprint(i), "/queue/"+name, "client")
			m := c.message(body)
			if header(m, "h") != "'; --" || header(m, "destination") != "/queue/"+name {
				t.Errorf("got %s", show(m))
			}
			c.do("ACK", ackOf(frame.V12, m)...)
			c.do("UNSUBSCRIBE", "id:"+fmt.Sprint(i))
		}
	}
}

func TestReceiptedMessagesSurvive(t *testing.T) { // a RECEIPT is a promise: whatever way the server ends
	path := filepath.Join(t.TempDir(), "q.db")
	sent := 0
	for range 3 {
		store, err := sqlite.Open(t.Context(), sqlite.Config{Path: path})
		if err != nil {
			t.Fatal(err)
		}
		if err := store.Init(t.Context()); err != nil {
			t.Fatal(err)
		}
		b := startBroker(t, brokerConfig{store: store})
		c := b.connect(frame.V12)
		for range 20 {
			c.send("/queue/a", fmt.Sprint(sent))
			sent++
		}
		c.subscribe("1", "/queue/a", "client", "prefetch-count:3")
		c.expect(frame.Message) // out when the server goes
		shutDown(b, c)
		b.close()
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	}
	store, err := sqlite.Open(t.Context(), sqlite.Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	b := startBroker(t, brokerConfig{store: store})
	got := strings.Fields(left(b, "a"))
	if len(got) != sent {
		t.Errorf("%d of %d messages are left", len(got), sent)
	}
}

// shutDown shuts the server down while c is connected, and may have MESSAGEs to
// read before it is told.
func shutDown(b *broker, c *client) {
	b.t.Helper()
	done := make(chan error, 1)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	go func() { done <- b.srv.Shutdown(ctx) }()
	f, err := c.read()
	for err == nil && f.Command == frame.Message {
		f, err = c.read()
	}
	if err != nil || f.Command != frame.ErrorCommand || header(f, "message") != "server shutting down" {
		b.t.Errorf("got %s, %v; want to be told that the server goes", show(f), err)
	}
	c.closed()
	c.nc.Close()
	if err := <-done; err != nil {
		b.t.Errorf("Shutdown: %v", err)
	}
}

// panicking is an Authenticator with a bug.
type panicking struct{}

func (panicking) Authenticate(login, _ string) (Access, bool) {
	if login == "boom" {
		panic("boom")
	}
	return Full, true
}

func TestPanicEndsOneConnection(t *testing.T) {
	b := startBroker(t, brokerConfig{auth: panicking{}})
	good := b.connect(frame.V12)
	for range 5 { // the slots for authentication are given back
		c := b.dial()
		c.write("CONNECT\nlogin:boom\n\n\x00")
		c.fails("internal error")
	}
	good.send("/queue/a", "x")
	b.connect(frame.V12, "login:u").do("DISCONNECT")
}

func TestRetryAfterHoldsDestination(t *testing.T) { // NACK retry-after: the destination said "too many"
	b := startBroker(t, brokerConfig{store: file(t)})
	t.Run("others do not wait", func(t *testing.T) {
		c := b.connect(frame.V12)
		for _, body := range []string{"1", "2"} {
			c.send("/queue/slow", body)
		}
		c.subscribe("slow", "/queue/slow", "client-individual", "prefetch-count:1")
		c.do("NACK", "id:"+header(c.message("1"), "ack"), "retry-after:3600")
		c.send("/queue/other", "3")
		c.subscribe("other", "/queue/other", "auto")
		c.message("3")
		c.silent()
	})
	t.Run("it comes back", func(t *testing.T) {
		c := b.connect(frame.V12)
		c.send("/queue/soon", "4")
		c.subscribe("soon", "/queue/soon", "client-individual")
		m := c.message("4")
		start := time.Now()
		c.do("NACK", "id:"+header(m, "ack"), "retry-after:0.5")
		m = c.message("4")
		if took := time.Since(start); took < 450*time.Millisecond {
			t.Errorf("came back after %v", took)
		}
		if header(m, "x-delivery-count") != "1" { // the attempt does not count
			t.Errorf("got %s", show(m))
		}
	})
}
