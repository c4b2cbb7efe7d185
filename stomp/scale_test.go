package stomp

import (
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mvalve/mvalve/stomp/frame"
)

// liveHeap returns the bytes in use after a collection.
func liveHeap() int64 {
	runtime.GC()
	runtime.GC() // the second empties the pools
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func TestMemoryOfSubscriptions(t *testing.T) {
	if testing.Short() || raceEnabled {
		t.Skip("measures memory")
	}
	b := startBroker(t, brokerConfig{})
	const connections, each = 100, 1000
	clients := make([]*client, connections)
	for i := range clients {
		clients[i] = b.connect(frame.V12)
	}
	before := liveHeap()
	var wg sync.WaitGroup
	for i, c := range clients {
		wg.Go(func() {
			var wire strings.Builder
			for k := range each {
				fmt.Fprintf(&wire, "SUBSCRIBE\nid:%d\ndestination:/queue/worker-%d-%d\nack:client-individual\n\n\x00", k, i, k)
			}
			c.write(wire.String())
			c.do("BEGIN", "transaction:last")
		})
	}
	wg.Wait()
	if n := b.srv.Stats().Subscriptions; n != connections*each {
		t.Fatalf("%d subscriptions", n)
	}
	per := int64(0)
	eventually(t, "260 bytes per subscription, once connections gave back what they had borrowed", func() bool {
		per = (liveHeap() - before) / (connections * each)
		return per <= 260
	})
	t.Logf("%d bytes per subscription", per)
	runtime.KeepAlive(clients)
}

func TestMemoryOfConnections(t *testing.T) {
	if testing.Short() || raceEnabled {
		t.Skip("measures memory")
	}
	b := startBroker(t, brokerConfig{config: Config{MaxUnauthenticated: 6000}})
	const n = 5000
	before := liveHeap()
	clients := make([]*client, n)
	for i := range clients {
		clients[i] = b.connect(frame.V12)
	}
	if got := b.srv.Stats().Connections; got != n {
		t.Fatalf("%d connections", got)
	}
	per := (liveHeap() - before) / n // the test's ends included
	t.Logf("%d bytes per connection, both ends", per)
	if per > 24<<10 {
		t.Errorf("%d bytes per connection", per)
	}
	clients[n-1].send("/queue/a", "x")
	for _, c := range clients {
		c.nc.Close()
	}
	eventually(t, "all gone", func() bool { return b.srv.Stats().Connections == 0 })
}

func TestNothingPerQueue(t *testing.T) { // a queue without subscriber costs nothing here
	if testing.Short() || raceEnabled {
		t.Skip("measures memory")
	}
	b := startBroker(t, brokerConfig{})
	c := b.connect(frame.V12)
	for i := range 2000 {
		c.send(fmt.Sprintf("/queue/%d", i), "x")
	}
	if n := len(b.srv.hub.exact); n != 0 {
		t.Errorf("%d topics", n)
	}
}

func TestProducerFlood(t *testing.T) { // producers that never wait: memory is bounded, nothing is lost, others are served
	b := startBroker(t, brokerConfig{config: Config{MaxPending: 100, MaxPendingBytes: 1 << 20, MaxTotalBytes: 2 << 20}})
	const producers, each, size = 8, 300, 16 << 10
	var wg sync.WaitGroup
	for range producers {
		c := b.connect(frame.V12)
		wg.Go(func() {
			for range each {
				c.frame("SEND", []string{"destination:/queue/flood"}, strings.Repeat("x", size))
			}
			c.do("DISCONNECT")
		})
	}
	stop := make(chan struct{})
	most := 0
	var watch sync.WaitGroup
	watch.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				most = max(most, b.srv.Stats().PendingBytes)
				runtime.Gosched()
			}
		}
	})
	other := b.connect(frame.V12)
	for range 20 {
		other.send("/queue/other", "x")
	}
	wg.Wait()
	close(stop)
	watch.Wait()
	if n, err := b.srv.countMessages("flood"); err != nil || n != producers*each {
		t.Errorf("%d messages, %v", n, err)
	}
	if most > 2<<20+1<<20 {
		t.Errorf("%d bytes were on their way", most)
	}
}

func TestSlowLoris(t *testing.T) { // peers that send a byte now and then cost little and hold nobody up
	b := startBroker(t, brokerConfig{config: Config{ConnectTimeout: 200 * time.Millisecond}})
	var slow []*client
	for range 200 {
		c := b.dial()
		c.write("CONN")
		slow = append(slow, c)
	}
	var c *client
	eventually(t, "connected", func() bool { // on a busy machine it may itself be too slow
		c = b.dial()
		_, _ = io.WriteString(c.nc, "CONNECT\n\n\x00")
		f, err := c.read()
		if err != nil || f.Command != frame.Connected {
			c.nc.Close()
			return false
		}
		return true
	})
	c.send("/queue/a", "x")
	for _, s := range slow {
		s.closed()
		s.nc.Close()
	}
	eventually(t, "gone", func() bool { return b.srv.Stats().Connections == 1 })
}

// A client that never reads its receipts is held up, not the server.
func TestHalfOpenProducer(t *testing.T) {
	const frames, each = 1000, 2000
	virtually(t, brokerConfig{config: Config{OutBuffer: 16 << 10, MaxPending: 50}}, func(t *testing.T, b *broker) {
		c := b.connect(frame.V12)
		one := "SEND\ndestination:/queue/a\nreceipt:" + strings.Repeat("r", each) + "\n\nx\x00"
		var taken atomic.Int64
		go func() {
			for range frames {
				if _, err := io.WriteString(c.nc, one); err != nil {
					t.Errorf("write: %v", err)
					return
				}
				taken.Add(1)
			}
		}()
		pass(time.Minute)
		before := taken.Load()
		if n := before * int64(len(one)); n < 16<<10 || n > 256<<10 {
			t.Errorf("%d bytes were taken from a client that reads nothing", n)
		}
		b.connect(frame.V12).send("/queue/b", "x")
		pass(time.Minute)
		if n := taken.Load() - before; n > 0 {
			t.Errorf("%d frames more were taken", n)
		}
		for range frames { // it goes on where it was
			c.expect(frame.Receipt)
		}
	})
}

func TestMalformedFlood(t *testing.T) {
	n := 20_000
	if testing.Short() || raceEnabled {
		n = 500
	}
	b := startBroker(t, brokerConfig{config: Config{Linger: 50 * time.Millisecond}})
	c := b.connect(frame.V12)
	bad := []string{"\x16\x03\x01", "CONNECT\n\n\x00JUMP\n\n\x00", "\x00\x00\x00", "CONNECT\na", "CONNECT\n\n\x00SEND\n\n\x00", "CONNECT\n\n\x00ACK\nmessage-id:x\n\n\x00", "CONNECT\n\n\x00SEND\ndestination:/queue/a\ncontent-length:99999999999\n\n"}
	for i := range n {
		nc, err := net.Dial("tcp", b.addr)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = nc.Write([]byte(bad[i%len(bad)]))
		nc.Close()
		if i%1000 == 0 {
			c.send("/queue/undisturbed", "x")
		}
	}
	eventually(t, "all gone", func() bool { return b.srv.Stats().Connections == 1 })
	if n, err := b.srv.countMessages("a"); err != nil || n != 0 {
		t.Errorf("%d messages, %v", n, err)
	}
}
