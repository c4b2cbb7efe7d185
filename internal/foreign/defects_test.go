package foreign_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-stomp/stomp/v3"
)

// The tests of this file each name a defect of ocamlmq or of
// POE::Component::MessageQueue, the brokers that mvalve serve stands in for, and
// show that it is absent. Their like for one process on a store in memory are in
// package stomp.

// TestNoInjection: POE-MQ put destination, message-id and client names into SQL
// as they came, so that SUBSCRIBE to x' OR '1'='1 read other people's queues.
func TestNoInjection(t *testing.T) {
	t.Parallel()
	for name, pipe := range map[string]func(*testing.T) string{"MariaDB": mariadbURL, "SQLite": sqliteURL} {
		t.Run(name, func(t *testing.T) {
			b := serve(t, pipe(t))
			c := b.dial(t)
			c.put("/queue/secret", "for its reader only")
			attacks := []string{
				`x' OR '1'='1`, `x" OR "1"="1`, "x`; --", `'; DROP TABLE q_incoming; --`, `x\' OR 1=1 -- `, `%`, `_`, `secret' --`, "0x73656372657430", "*'",
			}
			for _, attack := range attacks {
				in := c.subscribe("/queue/"+attack, stomp.AckAuto)
				c.put("/queue/"+attack, attack, "message-id", attack, "x-"+attack, attack)
				if m := in.next(attack); m.Destination != "/queue/"+attack {
					t.Errorf("%s: came from %s", attack, m.Destination)
				}
				in.silent()
				b.awaitEmpty(strings.ReplaceAll(attack, `\`, `\\`))
			}
			c.close()
			b.left(t, "secret", "for its reader only")
		})
	}
}

// TestBogusAck: POE-MQ 0.1.4 ended with exit 1 when a client acknowledged a
// message that it did not have.
func TestBogusAck(t *testing.T) {
	t.Parallel()
	b := serve(t, sqliteURL(t))
	c := b.dial(t)
	in := c.subscribe("/queue/a", stomp.AckClientIndividual)
	c.put("/queue/a", "mine")
	m := in.next("mine")
	id := m.Header.Get("message-id")
	// Somebody else's is late, as far as the server can know: no error, no effect.
	if answer := b.raw("CONNECT\naccept-version:1.2\nhost:x\n\n\x00ACK\nid:" + id + "\nreceipt:a\n\n\x00DISCONNECT\nreceipt:d\n\n\x00"); !strings.Contains(answer, "receipt-id:d") {
		t.Errorf("another connection's ACK was answered by %q", answer)
	}
	for _, bogus := range []string{"nonsense", "0", "1", "-1", "", "a/b", "'", strings.Repeat("9", 1000)} {
		for _, frames := range []string{
			"CONNECT\n\n\x00ACK\nmessage-id:" + bogus + "\n\n\x00",
			"CONNECT\naccept-version:1.1\nhost:x\n\n\x00ACK\nsubscription:1\nmessage-id:" + bogus + "\n\n\x00",
			"CONNECT\naccept-version:1.2\nhost:x\n\n\x00ACK\nid:" + bogus + "\n\n\x00",
			"CONNECT\naccept-version:1.2\nhost:x\n\n\x00NACK\nid:" + bogus + "\n\n\x00",
		} {
			if answer := b.raw(frames); !strings.Contains(answer, "ERROR\n") {
				t.Errorf("%q was answered by %q, want ERROR", frames, answer)
			}
		}
	}
	if n := b.count("a"); n != "1" {
		t.Errorf("somebody else's ACK changed the queue: %s messages", n)
	}
	in.ack(m)
	c.close()
	b.left(t, "a")
}

// TestSlashInMessageID: POE-MQ took the client's message-id for a file name, and
// ended when it could not be opened.
func TestSlashInMessageID(t *testing.T) {
	t.Parallel()
	b := serve(t, sqliteURL(t))
	c := b.dial(t)
	in := c.subscribe("/queue/a", stomp.AckClientIndividual)
	seen := make(map[string]bool)
	for _, id := range []string{"a/b", "../../../etc/passwd", "/", "same", "same"} {
		c.put("/queue/a", id, "message-id", id)
		m := in.next(id)
		if got := m.Header.Get("message-id"); got == id || seen[got] {
			t.Errorf("message-id is %q, want one of the server's own", got)
		}
		seen[m.Header.Get("message-id")] = true
		in.ack(m)
	}
	c.close()
	b.left(t, "a")
}

// TestPlainBodies: POE-MQ never finished reading a body "0", made a blank of an
// empty one, and ocamlmq made LF of CRLF in a body without content-length.
func TestPlainBodies(t *testing.T) {
	t.Parallel()
	b := serve(t, sqliteURL(t))
	in := b.dial(t).subscribe("/queue/a", stomp.AckAuto)
	for _, body := range []string{"0", "", "00", " ", "\r\n", "a\r\nb\r\n", "\n", "\n0"} {
		for _, length := range []string{"", fmt.Sprintf("content-length:%d\n", len(body))} {
			b.raw("CONNECT\naccept-version:1.2\nhost:x\n\n\x00SEND\ndestination:/queue/a\n" + length + "\n" + body + "\x00DISCONNECT\nreceipt:r\n\n\x00")
			in.next(body)
		}
	}
}

// TestDeadSubscriber: POE-MQ did not store what it had an auto subscriber for, so
// that a message for one that had just died was gone; ocamlmq waited two seconds
// and kept dead subscribers in its round.
func TestDeadSubscriber(t *testing.T) {
	t.Parallel()
	for _, ack := range []string{"auto", "client", "client-individual"} {
		t.Run(ack, func(t *testing.T) {
			b := serve(t, sqliteURL(t))
			c := b.dial(t)
			for round := range 10 {
				// A queue of its own: what waits already may be written to a
				// subscriber before it dies, and with ack:auto is its then.
				queue := fmt.Sprint("dead", round)
				b.dieSubscribed("/queue/"+queue, ack)
				var want []string
				for n := range 10 {
					want = append(want, fmt.Sprint(round, ".", n))
					c.put("/queue/"+queue, want[n])
				}
				in := c.subscribe("/queue/"+queue, stomp.AckAuto)
				seen := make(map[string]bool)
				for len(seen) < len(want) {
					body := string(in.any().Body)
					if seen[body] || !slices.Contains(want, body) {
						t.Errorf("got %s", body)
					}
					seen[body] = true
				}
				b.awaitEmpty(queue)
			}
		})
	}
}

// TestDiesInMessage: a message of which a subscriber got a part is not done, also
// with ack:auto.
func TestDiesInMessage(t *testing.T) {
	t.Parallel()
	b := serve(t, sqliteURL(t))
	c := b.dial(t)
	big := strings.Repeat("x", 12<<20) // more than sockets take without a reader
	c.put("/queue/big", big)
	for _, ack := range []string{"auto", "client"} {
		nc := b.rawSubscribe("/queue/big", ack)
		readUntil(t, nc, "MESSAGE\n")
		reset(nc)
	}
	in := c.subscribe("/queue/big", stomp.AckAuto)
	in.next(big)
	b.awaitEmpty("big")
}

// dieSubscribed subscribes, and cuts the connection without a word.
func (b *broker) dieSubscribed(destination, ack string) {
	b.t.Helper()
	reset(b.rawSubscribe(destination, ack))
}

// rawSubscribe returns a connection with a subscription that takes little before
// it is read.
func (b *broker) rawSubscribe(destination, ack string) net.Conn {
	b.t.Helper()
	nc, err := net.Dial("tcp", b.addr)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { nc.Close() })
	if tcp, ok := nc.(*net.TCPConn); ok {
		_ = tcp.SetReadBuffer(4096)
	}
	fmt.Fprintf(nc, "CONNECT\naccept-version:1.2\nhost:x\n\n\x00SUBSCRIBE\nid:1\ndestination:%s\nack:%s\nreceipt:r\n\n\x00", destination, ack)
	readUntil(b.t, nc, "receipt-id:r\n")
	return nc
}

// readUntil reads a connection up to a text and no further.
func readUntil(t *testing.T, nc net.Conn, text string) {
	t.Helper()
	_ = nc.SetDeadline(time.Now().Add(patience))
	var got []byte
	for one := make([]byte, 1); !bytes.HasSuffix(got, []byte(text)); got = append(got, one...) {
		if _, err := nc.Read(one); err != nil {
			t.Fatalf("%v after %.300q", err, got)
		}
	}
}

// reset closes a connection as a process does that dies with something unread.
func reset(nc net.Conn) {
	if tcp, ok := nc.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	nc.Close()
}

// TestFirstInFirstOut: ocamlmq ordered a queue by the text of message ids, 10
// before 9, and gave what was in memory before what was on disk.
func TestFirstInFirstOut(t *testing.T) {
	t.Parallel()
	b := serve(t, sqliteURL(t))
	var want []string
	for n := range 24 {
		if n == 12 {
			b.restart()
		}
		c := b.dial(t)
		c.put("/queue/a", fmt.Sprint(n))
		c.close()
		want = append(want, fmt.Sprint(n))
	}
	b.left(t, "a", want...)
}

// TestInterruptedProducers: ocamlmq ended at SIGINT without writing what it had
// given receipts for.
func TestInterruptedProducers(t *testing.T) {
	t.Parallel()
	for _, signal := range []os.Signal{os.Interrupt, os.Kill} {
		t.Run(signal.String(), func(t *testing.T) {
			b := serve(t, sqliteURL(t))
			sent := newLedger()
			var producers sync.WaitGroup
			for p := range 8 {
				nc := b.rawSubscribe("/queue/of-nobody", "auto")
				producers.Go(func() { produce(nc, fmt.Sprint(p), sent) })
			}
			b.await("300 receipts", func() bool { return sent.size() >= 300 })
			if signal == os.Kill {
				b.kill()
			} else {
				b.stop(signal)
			}
			producers.Wait()
			b.start()
			sent.check(t, b, "a")
		})
	}
}

// produce sends messages, each when the one before has its receipt, and notes
// them, until the broker has gone. It knows that by the connection alone: go-stomp
// would wait for the receipt as long as it would for one that is slow.
func produce(nc net.Conn, name string, sent *ledger) {
	_ = nc.SetDeadline(time.Time{})
	answers := bufio.NewReader(nc)
	for n := 0; ; n++ {
		body := fmt.Sprint(name, ".", n)
		if _, err := fmt.Fprintf(nc, "SEND\ndestination:/queue/a\nreceipt:%s\n\n%s\x00", body, body); err != nil {
			return
		}
		for answer := ""; !strings.Contains(answer, "receipt-id:"+body+"\n"); {
			var err error
			if answer, err = answers.ReadString(0); err != nil || strings.Contains(answer, "ERROR\n") {
				return
			}
		}
		sent.add(body)
	}
}

// ledger is what producers have receipts for.
type ledger struct {
	mu     sync.Mutex
	bodies map[string]bool
}

func newLedger() *ledger { return &ledger{bodies: make(map[string]bool)} }

func (l *ledger) add(body string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.bodies[body] = true
}

func (l *ledger) size() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.bodies)
}

// check drains a queue and asserts that all of the ledger is in it, once.
// Messages without a receipt may be there, too.
func (l *ledger) check(t *testing.T, b *broker, queue string) {
	t.Helper()
	c := b.dial(t)
	in := c.subscribe("/queue/"+queue, stomp.AckAuto, "prefetch-count", "1000")
	seen := make(map[string]bool)
	for missing := l.size(); missing > 0; {
		body := string(in.any().Body)
		if seen[body] {
			t.Errorf("twice: %.40s", body)
		}
		seen[body] = true
		if l.bodies[body] {
			missing--
		}
	}
	c.close()
	t.Logf("%d receipts, %d messages", l.size(), len(seen))
}

// copyFile copies one file of a broker's pipe; one that is not there is skipped.
func copyFile(t *testing.T, to, from string) {
	t.Helper()
	in, err := os.Open(from)
	if os.IsNotExist(err) {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if _, err := io.Copy(out, in); err != nil {
		t.Fatal(err)
	}
}
