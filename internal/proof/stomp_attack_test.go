package proof_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mvalve/mvalve/internal/stomptest"
)

// slowConsumers never read what they subscribed to. Others get it when they go.
func slowConsumers(t *testing.T, s *siege) {
	const n, size = 3000, 4 << 10
	var slow []*stompClient
	for range 5 {
		slow = append(slow, s.subscribeAndSleep(t, "/queue/slow"), s.subscribeAndSleep(t, "/topic/slow"))
	}
	began := time.Now()
	s.fill(t, "/queue/slow", n, size)
	sent := time.Since(began)
	s.fill(t, "/topic/slow", n, size)
	published := time.Since(began) - sent
	measure(s.span)
	for _, c := range slow {
		c.Close()
	}
	began = time.Now()
	s.drain(t, "slow", n)
	t.Logf("%d messages of %d KiB sent to the queue in %v, published in %v, taken by another consumer %v after the slow ones left", n, size>>10, sent, published, time.Since(began))
}

// halfOpen is peers that are stopped or gone without a word: one with room for
// what the broker sends, one without. The broker has promised to hear of them
// each second.
func halfOpen(t *testing.T, s *siege) {
	const n, size, interval = 2000, 4 << 10, time.Second
	// All they ever say, at once: they are late soon.
	hello := "CONNECT\naccept-version:1.2\nhost:/\nheart-beat:1000,1000\n\n\x00" +
		"SUBSCRIBE\ndestination:/queue/%s\nid:0\nack:client-individual\nprefetch-count:10000\nreceipt:ready\n\n\x00"
	roomy, full := s.raw(t, fmt.Sprintf(hello, "roomy")), s.raw(t, fmt.Sprintf(hello, "full"))
	if err := full.(*net.TCPConn).SetReadBuffer(4 << 10); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	closing := make(chan time.Duration, 1)
	go func() {
		_, _ = io.Copy(io.Discard, roomy) // until the broker has closed it
		closing <- time.Since(began)
	}()
	s.fill(t, "/queue/roomy", 50, 10)
	s.fill(t, "/queue/full", n, size)
	filled := time.Since(began)
	var closed time.Duration
	select {
	case closed = <-closing:
	case <-time.After(patience):
		t.Fatal("a peer that is gone was not noticed")
	}
	s.drain(t, "roomy", 50)
	again := time.Since(began)
	s.drain(t, "full", n)
	t.Logf("filled after %v; interval %v: closed after %v, its messages came again after %v, those of the full one after %v", filled, interval, closed, again, time.Since(began))
	const margin = 1500 * time.Millisecond // of a busy machine
	if closed > shortOrLong(30*time.Second, 3*interval+margin) || long && again > 3*interval+2*margin {
		t.Errorf("closed after %v, again after %v", closed, again)
	}
	full.Close()
}

// flood sends small messages as fast as it can without asking for receipts.
func flood(t *testing.T, s *siege) { s.flood(t, "flood", 4, 64, 1<<10) }

// largeFlood does the same with large ones: the disk is what is fought for.
func largeFlood(t *testing.T, s *siege) { s.flood(t, "large", 32, 1, 1<<20) }

// flood sends without asking for receipts, on some connections, a batch at a
// time. Nothing is lost.
func (s *siege) flood(t *testing.T, queue string, connections, batch, size int) {
	t.Helper()
	body := strings.Repeat("x", size)
	var sent atomic.Int64
	var floods sync.WaitGroup
	for range connections {
		c := s.dial(t)
		floods.Go(func() {
			for end := time.Now().Add(s.span); time.Now().Before(end); sent.Add(int64(batch)) {
				for range batch {
					c.Add("SEND", body, "destination:/queue/"+queue)
				}
				if err := c.Flush(); err != nil {
					t.Errorf("flood: %v", err)
					return
				}
			}
			if err := c.leave(); err != nil {
				t.Errorf("flood: %v", err)
			}
		})
	}
	floods.Wait()
	c := s.dial(t)
	stored, err := c.count(queue)
	if err != nil || stored != sent.Load() {
		t.Errorf("%d of %d messages are there: %v", stored, sent.Load(), err)
	}
	t.Logf("%d messages of %d KiB, all stored", stored, size>>10)
	if err := c.leave(); err != nil {
		t.Error(err)
	}
}

// slowLoris writes a byte per second on many connections: those that have not
// said who they are have to go, those that have are let alone.
func slowLoris(t *testing.T, s *siege) {
	const connections = 300
	began := time.Now()
	var strangers, known []net.Conn
	for i := range connections {
		if i%6 == 0 {
			c := s.dial(t)
			t.Cleanup(func() { c.Close() })
			known = append(known, c.Conn)
		} else {
			strangers = append(strangers, s.raw(t, "C"))
		}
	}
	const endless = 200 // seconds
	text, hello := "SEND\ndestination:/queue/loris\nwhat:"+strings.Repeat("x", endless), "ONNECT\na:"+strings.Repeat("x", endless)
	closed := make(chan error, connections)
	for _, nc := range strangers {
		go func() {
			_ = nc.SetReadDeadline(time.Now().Add(hostileTimeout + patience)) // closed: the read says so
			_, err := io.Copy(io.Discard, nc)
			closed <- err
		}()
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for left, i := len(strangers), 0; left > 0; {
		select {
		case err := <-closed:
			left--
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatal("a stranger was not sent away")
			}
		case <-tick.C:
			for _, nc := range known {
				if _, err := nc.Write([]byte{text[i]}); err != nil {
					t.Fatalf("one that is known was sent away: %v", err)
				}
			}
			for _, nc := range strangers {
				_, _ = nc.Write([]byte{hello[i]}) // it may be closed
			}
			i++
		}
	}
	after := time.Since(began)
	t.Logf("%d strangers were sent away within %v (limit %v), %d that are known stay", len(strangers), after, hostileTimeout, len(known))
	if after > shortOrLong(30*time.Second, hostileTimeout+lingering+2*time.Second) {
		t.Errorf("sent away after %v", after)
	}
	for _, nc := range append(known, strangers...) {
		nc.Close()
	}
}

// tooMany is more connections than the broker takes. It says so to the rest, and
// takes others when they are gone.
func tooMany(t *testing.T, s *siege) {
	const excess = 100
	var in []*stompClient
	refused := 0
	for range hostileConnections + excess {
		c, err := dialSTOMP(t.Context(), s.b.address)
		switch said := (*stomptest.Error)(nil); {
		case err == nil:
			in = append(in, c)
		case errors.As(err, &said):
			refused++
		default:
			t.Fatalf("neither let in nor told why: %v", err)
		}
	}
	t.Logf("%d let in, %d refused", len(in), refused)
	if refused < excess {
		t.Errorf("only %d were refused", refused)
	}
	for _, c := range in {
		c.Close()
	}
	waitFor(t, patience, "others are let in", func() bool {
		c, err := dialSTOMP(t.Context(), s.b.address)
		if err != nil {
			return false
		}
		c.Close()
		return true
	})
}

// giants announce bodies that do not come, or that no broker would take.
func giants(t *testing.T, s *siege) {
	before, _ := s.b.resident()
	var waiting []*stompClient
	for range 200 {
		c := s.dial(t)
		c.Out = append(c.Out, "SEND\ndestination:/queue/giant\ncontent-length:16777216\n\nsome bytes"...)
		if err := c.Flush(); err != nil {
			t.Fatal(err)
		}
		waiting = append(waiting, c)
	}
	for _, length := range []string{"16777217", "99999999999", "18446744073709551616", "-1"} {
		c := s.dial(t)
		c.Add("SEND", "", "destination:/queue/giant", "content-length:"+length)
		if _, err := c.Ask(); !errors.As(err, new(*stomptest.Error)) {
			t.Errorf("content-length %s: %v in place of ERROR", length, err)
		}
		c.Close()
	}
	measure(s.span)
	after, _ := s.b.resident()
	t.Logf("%d bodies of 16 MiB announced: %s resident more", len(waiting), inMiB(after-before))
	if after-before > 64*mib {
		t.Errorf("what was announced cost %s", inMiB(after-before))
	}
	for _, c := range waiting {
		c.Close()
	}
}

// endlessHeaders is frames whose headers, or whose first line, never end.
func endlessHeaders(t *testing.T, s *siege) {
	var attackers sync.WaitGroup
	for i := range 20 {
		c := s.dial(t)
		line := []byte(strings.Repeat("name:value\n", 100))
		if i%2 == 0 {
			line = bytes.Repeat([]byte("x"), 1000)
		}
		attackers.Go(func() {
			go func() {
				for _, err := c.Write([]byte("SEND\n")); err == nil; {
					_, err = c.Write(line)
				}
			}()
			_, err := c.Next()
			if !errors.As(err, new(*stomptest.Error)) {
				t.Errorf("endless headers: %v in place of ERROR", err)
			}
			_, _ = io.Copy(io.Discard, c.Conn) // until the broker has closed
			c.Close()
		})
	}
	attackers.Wait()
}

// otherProtocols is peers that believe to speak to something else.
func otherProtocols(t *testing.T, s *siege) {
	for range 50 {
		nc := s.raw(t, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		answer, err := io.ReadAll(nc)
		if err != nil || !bytes.HasPrefix(answer, []byte("HTTP/1.1 400 ")) {
			t.Fatalf("HTTP: %q, %v", answer, err)
		}
		nc = s.raw(t, "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"+strings.Repeat("\x00", 500))
		_ = nc.SetReadDeadline(time.Now().Add(patience)) // closed: the read says so
		if _, err := io.ReadAll(nc); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("TLS: %v", err)
		}
	}
	c := s.dial(t)
	c.Add("CONNECT", "")
	if f, err := c.Ask(); err == nil {
		t.Errorf("a second CONNECT is answered by %v", f.Command)
	}
	c.Close()
}
