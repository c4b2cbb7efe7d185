package proof_test

import (
	"bytes"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/mvalve/mvalve/internal/stomptest"
)

// hostileTimeout is the broker's for CONNECT: also for the clients that behave, on
// a machine that stands still for seconds.
var hostileTimeout = shortOrLong(10*time.Second, 2*time.Second)

const (
	hostileConnections = 800
	lingering          = 2 * time.Second // the broker's, for the last frames
	// hostileResident bounds the broker's memory whatever its clients do: 64 MiB
	// of SENDs under way, 1 MiB for each slow reader, what each flooding
	// connection is about to send, and twice as much again for the collector and
	// the database, beside the 20 MiB of a broker at rest.
	hostileResident = 384 * mib
)

// The share of its pace that the pair has to keep in the long form: beside
// attackers that only cost attention, and beside others that have a right to the
// store's whole throughput, too. The attackers' own work is done by the same
// processors.
const (
	undisturbed = 0.5
	sharing     = 0.1
)

// siege is a broker under attack.
type siege struct {
	b    *broker
	span time.Duration // of an attack that could go on for ever
}

// TestHostileClients: whatever clients do, a pair that behaves does not notice,
// memory stays bounded, and nothing is left when they are gone.
func TestHostileClients(t *testing.T) {
	onLinux(t)
	alone(t)
	b := newBroker(t, newPipe(t, onSQLite), "--max-connections", fmt.Sprint(hostileConnections), "--connect-timeout", hostileTimeout.String())
	s := &siege{b: b, span: shortOrLong(500*time.Millisecond, 5*time.Second)}
	p := newPair(t, b)
	measure(2 * s.span)
	p.phase(t, b, "at peace", undisturbed)
	goroutines, files, heap := b.goroutines(t), b.files(t), b.heap(t)
	for _, attack := range []struct {
		name  string
		run   func(*testing.T, *siege)
		share float64
	}{
		{"slow consumers", slowConsumers, sharing},
		{"half-open connections", halfOpen, undisturbed / 2}, // their messages are sent and taken at full speed
		{"flood of SENDs without receipt", flood, sharing},
		{"slow loris", slowLoris, undisturbed},
		{"malformed frames", malformed, undisturbed},
		{"more connections than allowed", tooMany, undisturbed},
		{"giant content-length", giants, undisturbed},
		{"endless headers", endlessHeaders, undisturbed},
		{"HTTP and TLS on the port", otherProtocols, undisturbed},
		{"flood of large bodies", largeFlood, 0}, // judged by memory and by loss
		{"what it left to do", func(*testing.T, *siege) { p.recover(t) }, 0},
		{"after that", func(*testing.T, *siege) { measure(2 * s.span) }, sharing},
	} {
		t.Run(attack.name, func(t *testing.T) { attack.run(t, s) })
		p.phase(t, b, attack.name, attack.share)
	}
	measure(s.span)
	p.phase(t, b, "at peace again", undisturbed)
	// A few connections to the database may have come.
	waitFor(t, patience, "what served the attackers is gone", func() bool {
		return b.goroutines(t) <= goroutines+8 && b.files(t) <= files+8
	})
	_, most := b.resident()
	t.Logf("goroutines %d, before %d; open files %d, before %d; live heap %s, before %s; most resident %s, bound %s",
		b.goroutines(t), goroutines, b.files(t), files, inMiB(b.heap(t)), inMiB(heap), inMiB(most), inMiB(hostileResident))
	if most > hostileResident {
		t.Errorf("the broker used %s", inMiB(most))
	}
	p.end(t)
	b.proc.stop(t)
}

// dial connects an attacker that gets as far as CONNECTED.
func (s *siege) dial(t *testing.T) *stompClient {
	t.Helper()
	c, err := dialSTOMP(t.Context(), s.b.address)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// raw connects an attacker that says what it wants.
func (s *siege) raw(t *testing.T, text string) net.Conn {
	t.Helper()
	nc, err := new(net.Dialer).DialContext(t.Context(), "tcp", s.b.address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	if _, err := nc.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	return nc
}

// fill sends n messages of size bytes that begin with their number.
func (s *siege) fill(t *testing.T, destination string, n, size int) {
	t.Helper()
	c := s.dial(t)
	filler := strings.Repeat("x", size)
	for i := range n {
		c.Add("SEND", fmt.Sprintf("%d %s", i, filler), "destination:"+destination)
		if i%100 == 99 || i == n-1 {
			if err := c.Flush(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := c.leave(); err != nil {
		t.Fatal(err)
	}
}

// drain takes messages until n different ones came, all of them again.
func (s *siege) drain(t *testing.T, queue string, n int) {
	t.Helper()
	c := s.dial(t)
	c.Add("SUBSCRIBE", "", "destination:/queue/"+queue, "id:0", "ack:client-individual", "prefetch-count:1000")
	seen := make(map[string]bool)
	for len(seen) < n {
		f, err := c.Ask()
		if err != nil {
			t.Fatalf("%d of %d messages of %s came: %v", len(seen), n, queue, err)
		}
		number, _, _ := bytes.Cut(f.Body, []byte(" "))
		seen[string(number)] = true
		c.Add("ACK", "", "id:"+stomptest.Header(f, "ack"))
	}
	if err := c.leave(); err != nil {
		t.Fatal(err)
	}
}

// subscribeAndSleep subscribes and never reads again.
func (s *siege) subscribeAndSleep(t *testing.T, destination string) *stompClient {
	t.Helper()
	c := s.dial(t)
	if err := c.Conn.(*net.TCPConn).SetReadBuffer(4 << 10); err != nil {
		t.Fatal(err)
	}
	c.Add("SUBSCRIBE", "", "destination:"+destination, "id:0", "ack:client-individual", "prefetch-count:10000", "receipt:ready")
	if _, err := c.receipt("ready"); err != nil {
		t.Fatal(err)
	}
	return c
}
