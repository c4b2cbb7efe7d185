package proof_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/mvalve/mvalve/internal/stomptest"
	"github.com/mvalve/mvalve/stomp/frame"
)

// each calls f for 0 to n-1 in a few goroutines and ends the test at an error.
func each(t *testing.T, n int, f func(i int) error) {
	t.Helper()
	const workers = 16
	var run sync.WaitGroup
	failed := make(chan error, workers)
	for w := range workers {
		run.Go(func() {
			for i := w; i < n; i += workers {
				if err := f(i); err != nil {
					failed <- fmt.Errorf("%d: %w", i, err)
					return
				}
			}
		})
	}
	run.Wait()
	close(failed)
	for err := range failed {
		if errors.Is(err, syscall.EMFILE) {
			t.Skipf("raise the limit of open files: %v", err)
		}
		t.Fatal(err)
	}
}

// TestManyConnections: 5,000 connections at once, each of which sends a message
// and receives one.
func TestManyConnections(t *testing.T) {
	onLinux(t)
	alone(t)
	const n, bound = 5000, 64 << 10
	b := newBroker(t, newPipe(t, onSQLite))
	before, _ := b.resident()
	goroutines, files := b.goroutines(t), b.files(t)
	clients := make([]*stompClient, n)
	began := time.Now()
	each(t, n, func(i int) (err error) {
		clients[i], err = dialSTOMP(t.Context(), b.address)
		return err
	})
	dialed := time.Since(began)
	idle, _ := b.resident()
	began = time.Now()
	each(t, n, func(i int) error { // all are out before the first is read
		c, queue := clients[i], "destination:/queue/many-"
		c.Add("SUBSCRIBE", "", queue+strconv.Itoa(i), "id:0", "ack:client-individual")
		c.Add("SEND", strconv.Itoa(i), queue+strconv.Itoa((i+1)%n), "receipt:sent")
		return c.Flush()
	})
	each(t, n, func(i int) error { return clients[i].exchangeOne((i + n - 1) % n) })
	exchanged := time.Since(began)
	used, _ := b.resident()
	heap := b.heap(t)
	each(t, n, func(i int) error { return clients[i].leave() })
	waitFor(t, patience, "what served them is gone", func() bool {
		return b.goroutines(t) <= goroutines+8 && b.files(t) <= files+8
	})
	t.Logf("%d connections in %v, %d messages around in %v; resident per connection: idle %d bytes, after use %d bytes (live heap of all %s, when they are gone %s)",
		n, dialed, n, exchanged, (idle-before)/n, (used-before)/n, inMiB(heap), inMiB(b.heap(t)))
	if idle-before > n*bound || used-before > 2*n*bound {
		t.Errorf("more than %d bytes per idle connection, or twice as much per one in use", bound)
	}
	b.proc.stop(t)
}

// exchangeOne reads the RECEIPT of what was sent and the MESSAGE with a number,
// in whatever order, and acknowledges.
func (c *stompClient) exchangeOne(want int) error {
	var sent, got bool
	for !sent || !got {
		f, err := c.Next()
		if err != nil {
			return err
		}
		if f.Command == frame.Receipt {
			sent = true
			continue
		}
		if string(f.Body) != strconv.Itoa(want) || got {
			return fmt.Errorf("%v %q in place of %d", f.Command, f.Body, want)
		}
		got = true
		c.Add("ACK", "", "id:"+stomptest.Header(f, "ack"), "receipt:acked")
	}
	_, err := c.receipt("acked")
	return err
}

// TestManySubscriptions: idle subscriptions, 1,000 on each connection, cost at
// most 300 bytes of live heap each, as the load generator finds.
func TestManySubscriptions(t *testing.T) {
	onLinux(t)
	alone(t)
	n := shortOrLong(100_000, 1_000_000)
	const bound = 300
	b := newBroker(t, newPipe(t, onSQLite))
	load := start(t, nil, nil, filepath.Join(bin, "mvalve"), "bench", "stomp", "--json", "--number", strconv.Itoa(n),
		"--address", b.address, "--debug", b.debug, "--pid", strconv.Itoa(b.proc.cmd.Process.Pid), "memory-subscriptions")
	load.wait(t, 5*time.Minute)
	found := false
	for line := range bytes.Lines(load.stdout()) {
		var figure struct {
			Case  string
			Value float64
		}
		if err := json.Unmarshal(line, &figure); err != nil {
			t.Fatalf("%v: %q", err, line)
		}
		_, name, ok := strings.Cut(figure.Case, "memory-subscriptions, ")
		if !ok {
			continue
		}
		t.Logf("%d subscriptions: %s: %.1f bytes", n, name, figure.Value)
		if name != "live heap per subscription" {
			continue
		}
		found = true
		if figure.Value > bound {
			t.Errorf("%.1f bytes of live heap per subscription, want at most %d", figure.Value, bound)
		}
	}
	if !found {
		t.Errorf("the load generator does not tell: %s%s", load.stdout(), load.stderr())
	}
	b.proc.stop(t)
}

// TestManyQueues: as many queues as there are messages. They cost nothing while
// nobody is subscribed, and little while one subscription takes them all.
func TestManyQueues(t *testing.T) {
	onLinux(t)
	for name, destination := range map[string]string{"prefix": "/queue/many-*", "pipe": "/pipe"} {
		t.Run(name, func(t *testing.T) {
			alone(t)
			n := shortOrLong(50_000, 1_000_000)
			b := newBroker(t, newPipe(t, onSQLite))
			before := b.heap(t)
			began := time.Now()
			fillQueues(t, b, n)
			sent := time.Since(began)
			waiting := b.heap(t)
			began = time.Now()
			heaviest := drainQueues(t, b, destination, n)
			drained := time.Since(began)
			const slack, bound = 16 * mib, 300_000_000
			// What is left may be the remembered limits of the last 100,000 queues.
			remembered := shortOrLong[int64](64*mib, 40*mib)
			began = time.Now()
			after := b.heap(t)
			for ; after-before > remembered && time.Since(began) < patience; measure(200 * time.Millisecond) {
				after = b.heap(t)
			}
			forgotten := time.Since(began)
			_, most := b.resident()
			t.Logf("%d queues: sent in %.1f s, drained over one subscription in %.1f s; live heap before %s, nobody subscribed %s, at most %s while drained, %.1f s after that %s; most resident %s",
				n, sent.Seconds(), drained.Seconds(), inMiB(before), inMiB(waiting), inMiB(heaviest), forgotten.Seconds(), inMiB(after), inMiB(most))
			if waiting-before > slack || after-before > remembered {
				t.Error("queues without subscribers cost memory")
			}
			if heaviest > bound {
				t.Errorf("%s of live heap while drained", inMiB(heaviest))
			}
			if left, dead := b.p.left(t); left+dead > 0 {
				t.Errorf("%d messages and %d dead letters stay behind", left, dead)
			}
			b.proc.stop(t)
		})
	}
}

// fillQueues sends one message to each of n queues.
func fillQueues(t *testing.T, b *broker, n int) {
	t.Helper()
	const connections = 4
	each(t, connections, func(which int) error {
		c, err := dialSTOMP(t.Context(), b.address)
		if err != nil {
			return err
		}
		for i := which; i < n; i += connections {
			number := strconv.Itoa(i)
			c.Add("SEND", number, "destination:/queue/many-"+number)
			if len(c.Out) < 16<<10 {
				continue
			}
			if err := c.Flush(); err != nil {
				return err
			}
		}
		return c.leave() // its RECEIPT comes when all are on disk
	})
}

// drainQueues takes all messages over one subscription and returns the most that
// was live on the broker's heap meanwhile.
func drainQueues(t *testing.T, b *broker, destination string, n int) (heaviest int64) {
	t.Helper()
	c, err := dialSTOMP(t.Context(), b.address)
	if err != nil {
		t.Fatal(err)
	}
	c.Add("SUBSCRIBE", "", "destination:"+destination, "id:0", "ack:client-individual", "prefetch-count:1000")
	done := make(chan error, 1)
	go func() { done <- c.takeNumbers(n) }()
	tick := time.NewTicker(shortOrLong(200*time.Millisecond, 2*time.Second))
	defer tick.Stop()
	for {
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			return heaviest
		case <-tick.C:
			heaviest = max(heaviest, b.heap(t))
		}
	}
}

// takeNumbers takes the messages 0 to n-1, each once, in any order.
func (c *stompClient) takeNumbers(n int) error {
	seen := make([]bool, n)
	for left := n; left > 0; left-- {
		if !c.Frames.Buffered() {
			if err := c.Flush(); err != nil {
				return err
			}
		}
		f, err := c.Next()
		if err != nil {
			return fmt.Errorf("%d to come: %w", left, err)
		}
		number, err := strconv.Atoi(string(f.Body))
		if err != nil || seen[number] {
			return fmt.Errorf("%v %q: not for the first time (%w)", f.Command, f.Body, err)
		}
		seen[number] = true
		c.Add("ACK", "", "id:"+stomptest.Header(f, "ack"))
	}
	return c.leave()
}

// TestRapidConnections: clients that connect, send one message and are gone.
// Nothing is lost, whatever way they go; but what a reset connection sent may
// never have reached the broker.
func TestRapidConnections(t *testing.T) { // S111, S112
	onLinux(t)
	alone(t)
	const n = 1000
	b := newBroker(t, newPipe(t, onSQLite))
	goroutines, files := b.goroutines(t), b.files(t)
	hello := "CONNECT\naccept-version:1.2\nhost:/\n\n\x00SEND\ndestination:/queue/rapid-%s\n\nx\x00"
	for _, way := range []string{"half-closed", "disconnected", "closed", "reset"} {
		text := fmt.Appendf(nil, hello, way)
		if way == "disconnected" {
			text = append(text, "DISCONNECT\nreceipt:bye\n\n\x00"...)
		}
		began := time.Now()
		for range n {
			if err := sayAndGo(t, b.address, way, text); err != nil {
				t.Fatalf("%s: %v", way, err)
			}
		}
		span := time.Since(began)
		c, err := dialSTOMP(t.Context(), b.address)
		if err != nil {
			t.Fatal(err)
		}
		stored, wait := int64(0), patience
		if way == "reset" { // some may never come
			wait = 3 * time.Second
		}
		for end := time.Now().Add(wait); stored < n && time.Now().Before(end); measure(20 * time.Millisecond) {
			if stored, err = c.count("rapid-" + way); err != nil {
				t.Fatal(err)
			}
		}
		t.Logf("%d connections in %v, %s: %d messages stored", n, span, way, stored)
		if stored > n || stored < n && way != "reset" {
			t.Errorf("%s: %d of %d messages", way, stored, n)
		}
		if err := c.leave(); err != nil {
			t.Error(err)
		}
	}
	waitFor(t, patience, "what served them is gone", func() bool {
		return b.goroutines(t) <= goroutines+8 && b.files(t) <= files+8
	})
	b.proc.stop(t)
}
