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
	"github.com/mvalve/mvalve/valve"
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
				from[i]++
				mu.Unlock()
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
	if from[0] == 0 || from[1] == 0 {
		t.Errorf("spread: %v", from)
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
		c.message("0") // out when the server goes
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		if err := b.srv.Shutdown(ctx); err != nil {
			t.Errorf("Shutdown: %v", err)
		}
		cancel()
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
	b := startBroker(t, brokerConfig{store: file(t), reader: valve.ReaderConfig{}})
	c := b.connect(frame.V12)
	for _, body := range []string{"1", "2"} {
		c.send("/queue/slow", body)
	}
	c.send("/queue/other", "3")
	c.subscribe("slow", "/queue/slow", "client-individual", "prefetch-count:1")
	m := c.message("1")
	start := time.Now()
	c.do("NACK", "id:"+header(m, "ack"), "retry-after:0.5")
	c.subscribe("other", "/queue/other", "auto")
	c.message("3") // others do not wait
	m = c.message("1")
	if took := time.Since(start); took < 450*time.Millisecond {
		t.Errorf("came back after %v", took)
	}
	if header(m, "x-delivery-count") != "1" { // the attempt does not count
		t.Errorf("got %s", show(m))
	}
}
