package memcached_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mvalve/mvalve/state"
	"github.com/mvalve/mvalve/state/memcached"
)

// wipingServer is a memcached that is wiped in the middle of one request, right
// after the look-up of its first key, or dies right after an answer: moments that
// the real one cannot be made to meet. It knows no cas.
type wipingServer struct {
	mu     sync.Mutex
	values map[string]string
	wipe   bool // at the next gets of several keys
	die    bool // after the next add
	listen net.Listener
}

func newWipingServer(t *testing.T) (*wipingServer, string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &wipingServer{values: make(map[string]string), listen: l}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { s.serve(conn) })
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	return s, l.Addr().String()
}

func (s *wipingServer) serve(conn net.Conn) {
	defer conn.Close()
	in := bufio.NewReader(conn)
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return
		}
		words := strings.Fields(line)
		switch words[0] {
		case "stats":
			fmt.Fprint(conn, "STAT evictions 0\r\nEND\r\n")
		case "add":
			var size int
			fmt.Sscan(words[4], &size)
			value := make([]byte, size+2)
			if _, err := io.ReadFull(in, value); err != nil {
				return
			}
			die := s.put(words[1], string(value[:size]))
			fmt.Fprint(conn, "STORED\r\n")
			if die {
				s.listen.Close()
				return
			}
		case "gets":
			io.WriteString(conn, s.look(words[1:]))
		}
	}
}

func (s *wipingServer) put(key, value string) (die bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.values[key] = value
	return s.die
}

func (s *wipingServer) look(keys []string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var answer strings.Builder
	for i, key := range keys {
		if i == 1 && s.wipe {
			clear(s.values)
			s.wipe = false
		}
		if v, ok := s.values[key]; ok {
			fmt.Fprintf(&answer, "VALUE %s 0 %d 1\r\n%s\r\n", key, len(v), v)
		}
	}
	return answer.String() + "END\r\n"
}

// TestWipeWithinARead proves the order of the look-ups: had the marker been
// read first, it would be there, and the missing key would count as never used.
func TestWipeWithinARead(t *testing.T) {
	fake, addr := newWipingServer(t)
	var c clock
	start := time.Now().Truncate(time.Microsecond)
	c.set(start)
	s := open(t, memcached.Config{MarkerTime: c.now}, addr)
	wantLost(t, s, "k", start)
	wipedAt := start.Add(time.Minute)
	c.set(wipedAt)
	fake.mu.Lock()
	fake.wipe = true
	fake.mu.Unlock()
	entries, errs := s.Get(t.Context(), []string{"k"})
	if errs != nil {
		t.Fatal(errs)
	}
	if got := entries[0].Lost; !got.Equal(wipedAt) {
		t.Errorf("lost %v, want %v", got, wipedAt)
	}
}

// TestDeathAfterAnAdd: the value is there, whether it counts is not known.
func TestDeathAfterAnAdd(t *testing.T) {
	fake, addr := newWipingServer(t)
	s := open(t, memcached.Config{MarkerTime: fresh, MaxConns: 1}, addr)
	fake.mu.Lock()
	fake.die = true
	fake.mu.Unlock()
	errs := s.Update(t.Context(), time.Now(), []string{"k"}, []time.Duration{time.Minute}, func(int, state.Entry) []byte { return []byte("x") })
	if errs == nil || !errors.Is(errs[0], state.ErrUnknown) || errors.Is(errs[0], state.ErrUnavailable) {
		t.Errorf("%v, want ErrUnknown and not ErrUnavailable", errs)
	}
}
