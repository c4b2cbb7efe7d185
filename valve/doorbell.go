package valve

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/mvalve/mvalve/queue"
)

// A doorbell is a datagram that says "something was committed": a hint that
// saves a reader of another process its wait for the next poll. Losing one, or
// getting one from a stranger, changes nothing but that delay.
var bellMessage = []byte("mvalve bell\n")

const (
	// ringGap is the least time between two datagrams to one reader.
	ringGap = time.Millisecond
	// lookupGap is how old the list of readers may be.
	lookupGap = time.Second
	// presenceGap is how often a reader says that it lives.
	presenceGap = 2 * time.Second
)

// ringer sends doorbells for a Writer. It never makes its caller wait.
type ringer struct {
	registry queue.Registry
	clock    *clock
	log      *slog.Logger

	mu      sync.Mutex
	own     map[queue.ID]bool // readers of this process: they were handed the messages
	conn    *net.UDPConn
	targets []*net.UDPAddr
	looked  time.Time
	busy    bool // a goroutine sends
	again   bool // ring once more when it is done
	closed  bool
	wg      sync.WaitGroup
}

func newRinger(store queue.Store, c *clock, log *slog.Logger) *ringer {
	registry, _ := store.(queue.Registry)
	return &ringer{registry: registry, clock: c, log: log, own: make(map[queue.ID]bool)}
}

func (r *ringer) skip(id queue.ID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.own[id] = true
	r.looked = time.Time{}
}

// ring wakes all readers of other processes soon.
func (r *ringer) ring() {
	if r.registry == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.again = true
	if r.busy || r.closed {
		return
	}
	r.busy = true
	r.wg.Go(r.send)
}

func (r *ringer) send() {
	for {
		r.mu.Lock()
		if !r.again || r.closed {
			r.busy = false
			r.mu.Unlock()
			return
		}
		r.again = false
		lookup := time.Since(r.looked) > lookupGap
		r.mu.Unlock()
		if lookup {
			r.lookup()
		}
		r.mu.Lock()
		for _, to := range r.targets {
			_, _ = r.conn.WriteToUDP(bellMessage, to) // best effort: polling finds the message too
		}
		r.mu.Unlock()
		time.Sleep(ringGap) //nolint:forbidigo // paces datagrams; a ring in between is remembered
	}
}

// lookup reads the addresses of live readers.
func (r *ringer) lookup() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	now := r.clock.Now()
	readers, err := r.registry.Announce(ctx, now, now.Add(-4*presenceGap), queue.Presence{})
	r.mu.Lock()
	defer r.mu.Unlock()
	r.looked = time.Now()
	if err != nil {
		r.log.Warn("readers not looked up", "err", err)
		return
	}
	r.targets = r.targets[:0]
	for _, p := range readers {
		if p.Address == "" || r.own[p.ID] {
			continue
		}
		if addr, err := net.ResolveUDPAddr("udp", p.Address); err == nil {
			r.targets = append(r.targets, addr)
		}
	}
	if len(r.targets) > 0 && r.conn == nil {
		if r.conn, err = net.ListenUDP("udp", nil); err != nil {
			r.log.Warn("no doorbell", "err", err)
			r.targets = nil
		}
	}
}

func (r *ringer) close() {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.wg.Wait()
	if r.conn != nil {
		_ = r.conn.Close()
	}
}

// bell listens for doorbells for a Reader.
type bell struct {
	conn *net.UDPConn
	done chan struct{}
}

// openBell listens on a free UDP port of host and calls ring for each doorbell.
func openBell(host string, ring func()) (*bell, error) {
	addr, err := net.ResolveUDPAddr("udp", net.JoinHostPort(host, "0"))
	if err != nil {
		return nil, err
	}
	conn, err := net.ListenUDP("udp", addr)
	if err != nil {
		return nil, err
	}
	b := &bell{conn: conn, done: make(chan struct{})}
	go func() {
		defer close(b.done)
		buf := make([]byte, 64)
		for {
			n, _, err := conn.ReadFromUDP(buf)
			if err != nil {
				return // closed
			}
			if bytes.Equal(buf[:n], bellMessage) {
				ring()
			}
		}
	}()
	return b, nil
}

func (b *bell) address() string { return b.conn.LocalAddr().String() }

func (b *bell) close() {
	_ = b.conn.Close()
	<-b.done
}
