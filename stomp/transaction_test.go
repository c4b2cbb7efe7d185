package stomp

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/stomp/frame"
)

func TestTransactionCommits(t *testing.T) { // S100, S101, S102, S105, S106
	b := startBroker(t, brokerConfig{})
	for _, v := range []frame.Version{frame.V10, frame.V11, frame.V12} {
		c, other := b.connect(v), b.connect(frame.V12)
		in, out := "in"+v.String(), "out"+v.String()
		c.send("/queue/"+in, "request")
		c.subscribe("s", "/queue/"+in, "client")
		m := c.message("request")
		other.subscribe("o", "/queue/"+out, "auto")
		other.subscribe("t", "/topic/"+out, "auto")
		nothingOut := func() { // nothing but what is sent now
			t.Helper()
			b.connect(frame.V12).send("/queue/"+out, "last")
			other.message("last")
			other.nothingElse()
		}
		for range 2 { // the id can be used again (S105)
			c.do("BEGIN", "transaction:t1")
			c.send("/queue/"+out, "answer", "transaction:t1", "colour:blue") // its RECEIPT comes now (S106)
			c.send("/topic/"+out, "news", "transaction:t1")
			c.do("ACK", append(ackOf(v, m), "transaction:t1")...)
			nothingOut() // S100
			if v == frame.V10 {
				break
			}
			c.do("ABORT", "transaction:t1") // S101
		}
		if v != frame.V10 {
			nothingOut()
			c.do("BEGIN", "transaction:t1")
			c.send("/queue/"+out, "answer", "transaction:t1", "colour:blue")
			c.send("/topic/"+out, "news", "transaction:t1")
			c.do("ACK", append(ackOf(v, m), "transaction:t1")...)
		}
		c.do("COMMIT", "transaction:t1")
		got := map[string]string{}
		for range 2 {
			f := other.expect(frame.Message)
			got[string(f.Body)] = header(f, "colour")
			if _, ok := f.Get("transaction"); ok { // S71
				t.Errorf("got %s", show(f))
			}
		}
		if got["answer"] != "blue" || len(got) != 2 {
			t.Errorf("got %v", got)
		}
		c.do("DISCONNECT")
		if l := left(b, in); l != "" {
			t.Errorf("left: %q", l)
		}
		other.do("DISCONNECT")
	}
}

func TestTransactionRefused(t *testing.T) {
	b := startBroker(t, brokerConfig{config: Config{MaxTransactions: 2, MaxTransactionFrames: 2, MaxTransactionBytes: 10_000}})
	for _, v := range []frame.Version{frame.V10, frame.V12} {
		for _, command := range []string{"BEGIN", "COMMIT", "ABORT"} {
			c := b.connect(v)
			c.frame(command, []string{"receipt:1"}, "")
			c.fails("no transaction") // S98
		}
		for _, command := range []string{"COMMIT", "ABORT", "SEND"} {
			c := b.connect(v)
			c.frame(command, []string{"transaction:x", "destination:/queue/a", "receipt:1"}, "")
			if f := c.fails("no such transaction"); header(f, "receipt-id") != "1" { // S103
				t.Errorf("got %s", show(f))
			}
		}
		c := b.connect(v)
		c.do("BEGIN", "transaction:1")
		b.connect(v).do("BEGIN", "transaction:1") // ids are of the connection
		c.frame("BEGIN", []string{"transaction:1"}, "")
		c.fails("transaction exists") // S99

		c = b.connect(v) // S107
		c.do("BEGIN", "transaction:1")
		c.do("BEGIN", "transaction:2")
		c.frame("BEGIN", []string{"transaction:3"}, "")
		c.fails("too many transactions")
		c = b.connect(v)
		c.do("BEGIN", "transaction:1")
		for range 3 {
			c.frame("SEND", []string{"transaction:1", "destination:/queue/a"}, "x")
		}
		c.fails("transaction too big")
		c = b.connect(v)
		c.do("BEGIN", "transaction:1")
		c.frame("SEND", []string{"transaction:1", "destination:/queue/a"}, strings.Repeat("x", 12_000))
		c.fails("transaction too big")
	}
	if got := left(b, "a"); got != "" {
		t.Errorf("left: %q", got)
	}
}

func TestTransactionAborts(t *testing.T) { // S104
	b := startBroker(t, brokerConfig{})
	for _, how := range []string{"DISCONNECT", "close"} {
		c := b.connect(frame.V12)
		ms := three(b, c, how, "client")
		c.do("BEGIN", "transaction:1")
		c.send("/queue/"+how, "never", "transaction:1")
		c.do("ACK", append(ackOf(frame.V12, ms[1]), "transaction:1")...) // m1, too: it is cumulative
		if how == "DISCONNECT" {
			c.do("DISCONNECT")
		}
		c.nc.Close()
		eventually(t, "it is gone", func() bool { return b.srv.Stats().Connections == 0 })
		if got := left(b, how); got != "m1 m2 m3" {
			t.Errorf("left: %q", got)
		}
		eventually(t, "it is gone", func() bool { return b.srv.Stats().Connections == 0 })
	}
}

func TestTransactionFailsWhole(t *testing.T) { // S102
	b := startBroker(t, brokerConfig{})
	c := b.connect(frame.V12)
	ms := three(b, c, "a", "client-individual")
	c.do("BEGIN", "transaction:1")
	c.send("/queue/out", "never", "transaction:1")
	c.do("ACK", append(ackOf(frame.V12, ms[0]), "transaction:1")...)
	c.do("ACK", append(ackOf(frame.V12, ms[1]), "transaction:1")...)
	c.do("UNSUBSCRIBE", "id:sa") // takes the messages back
	c.frame("COMMIT", []string{"transaction:1", "receipt:9"}, "")
	if f := c.fails("taken back"); header(f, "receipt-id") != "9" {
		t.Errorf("got %s", show(f))
	}
	if out, a := left(b, "out"), left(b, "a"); out != "" || a != "m1 m2 m3" {
		t.Errorf("left: out %q, a %q", out, a)
	}

	c = b.connect(frame.V12) // one bad message
	c.do("BEGIN", "transaction:1")
	c.send("/queue/out", "never", "transaction:1")
	c.send("/queue/out", "bad", "transaction:1", "X-Mvalve-Duration:bad")
	c.frame("COMMIT", []string{"transaction:1"}, "")
	c.fails("nothing of it was carried out")
	if out := left(b, "out"); out != "" {
		t.Errorf("left: %q", out)
	}

	c = b.connect(frame.V12) // an acknowledgement is in one transaction or in none
	ms = three(b, c, "b", "client-individual")
	c.do("BEGIN", "transaction:1")
	c.do("ACK", append(ackOf(frame.V12, ms[0]), "transaction:1")...)
	c.frame("ACK", ackOf(frame.V12, ms[0]), "")
	c.fails("open transaction")
}

func TestTransactionOfNacks(t *testing.T) { // S101
	b := startBroker(t, brokerConfig{})
	c := b.connect(frame.V12)
	ms := three(b, c, "a", "client-individual")
	c.do("BEGIN", "transaction:1")
	c.do("NACK", append(ackOf(frame.V12, ms[0]), "transaction:1", "requeue:false")...)
	c.do("NACK", append(ackOf(frame.V12, ms[1]), "transaction:1", "x-delay:0")...)
	c.silent()
	c.frame("COMMIT", []string{"transaction:1", "receipt:c"}, "")
	got := map[frame.Command]string{}
	for range 2 {
		f, err := c.read()
		if err != nil {
			t.Fatal(err)
		}
		got[f.Command] = string(f.Body)
	}
	if got[frame.Message] != "m2" || len(got) != 2 {
		t.Errorf("got %q", got)
	}
	c.frame("BEGIN", []string{"transaction:1"}, "")
	c.frame("NACK", append(ackOf(frame.V12, ms[2]), "transaction:1", "retry-after:1"), "")
	c.fails("not possible in a transaction")
}

// failing is a store whose disk is full.
type failing struct {
	queue.Store
	full chan struct{} // closed: full
}

func (f failing) Apply(ctx context.Context, now time.Time, c *queue.Change) (queue.Outcome, error) {
	select {
	case <-f.full:
		if len(c.Put)+len(c.Settle) > 0 {
			return queue.Outcome{}, fmt.Errorf("%w: disk full", queue.ErrRefused)
		}
	default:
	}
	return f.Store.Apply(ctx, now, c)
}

func TestDiskFull(t *testing.T) { // S115: no RECEIPT for what is not stored; and no RECEIPT into thin air ever after
	store := failing{queue.NewMemory(), make(chan struct{})}
	b := startBroker(t, brokerConfig{store: store})
	c := b.connect(frame.V12)
	c.send("/queue/a", "stored")
	c.subscribe("1", "/queue/a", "client")
	m := c.message("stored")
	tx := b.connect(frame.V12)
	tx.do("BEGIN", "transaction:1")
	tx.send("/queue/a", "never", "transaction:1")
	close(store.full)
	tx.frame("COMMIT", []string{"transaction:1", "receipt:1"}, "")
	tx.fails("transaction failed")
	c.frame("ACK", append(ackOf(frame.V12, m), "receipt:2"), "")
	if f := c.fails("acknowledgement failed"); header(f, "receipt-id") != "2" {
		t.Errorf("got %s", show(f))
	}
	for range 3 {
		c = b.connect(frame.V12)
		c.frame("SEND", []string{"destination:/queue/a", "receipt:3"}, "x")
		if f := c.fails("message not stored"); header(f, "receipt-id") != "3" {
			t.Errorf("got %s", show(f))
		}
	}
}
