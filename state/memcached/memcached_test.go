package memcached_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mvalve/mvalve/internal/testserver"
	"github.com/mvalve/mvalve/state"
	"github.com/mvalve/mvalve/state/memcached"
	"github.com/mvalve/mvalve/state/statetest"
)

func TestMain(m *testing.M) { testserver.Main(m) }

// lastPrefix numbers the stores of this process, so that each has its own keys.
var lastPrefix atomic.Int64

func prefix() string {
	return fmt.Sprintf("t%x.%d:", rand.Uint64(), lastPrefix.Add(1))
}

// open returns a store on servers, with settings of its own where cfg has none.
func open(tb testing.TB, cfg memcached.Config, servers ...string) *memcached.Store {
	tb.Helper()
	cfg.Servers = servers
	if cfg.Prefix == "" {
		cfg.Prefix = prefix()
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 30 * time.Second // a busy machine is not what is tested
	}
	s, err := memcached.Open(tb.Context(), cfg)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { s.Close() })
	return s
}

// fresh is the marker time of a pipe that was never used.
func fresh(context.Context) (time.Time, error) { return time.Time{}, nil }

func put(tb testing.TB, s state.Store, key, value string) {
	tb.Helper()
	errs := s.Update(tb.Context(), time.Now(), []string{key}, []time.Duration{time.Minute}, func(int, state.Entry) []byte { return []byte(value) })
	if errs != nil {
		tb.Fatal(errs)
	}
}

func get(tb testing.TB, s state.Store, key string) state.Entry {
	tb.Helper()
	entries, errs := s.Get(tb.Context(), []string{key})
	if errs != nil {
		tb.Fatal(errs)
	}
	return entries[0]
}

func wantValue(tb testing.TB, s state.Store, key, want string) {
	tb.Helper()
	if e := get(tb, s, key); string(e.Data) != want {
		tb.Errorf("%s = %q, want %q", key, e.Data, want)
	}
}

func wantLost(tb testing.TB, s state.Store, key string, want time.Time) {
	tb.Helper()
	if e := get(tb, s, key); e.Data != nil || !e.Lost.Equal(want) {
		tb.Errorf("%s = %q, lost %v; want absent, lost %v", key, e.Data, e.Lost, want)
	}
}

// clock is a marker time that a test sets.
type clock struct{ micros atomic.Int64 }

func (c *clock) set(t time.Time) { c.micros.Store(t.UnixMicro()) }

func (c *clock) now(context.Context) (time.Time, error) {
	return time.UnixMicro(c.micros.Load()), nil
}

func TestSuite(t *testing.T) {
	for name, servers := range map[string]int{"one server": 1, "three servers": 3} {
		t.Run(name, func(t *testing.T) {
			var addrs []string
			for range servers {
				addrs = append(addrs, testserver.OwnMemcached(t).Addr)
			}
			statetest.Run(t, func(t *testing.T) state.Store {
				return open(t, memcached.Config{}, addrs...)
			})
		})
	}
}

func TestConfig(t *testing.T) {
	for name, cfg := range map[string]memcached.Config{
		"no servers":  {},
		"no port":     {Servers: []string{"localhost"}},
		"twice":       {Servers: []string{"a:1", "b:1", "a:1"}},
		"long prefix": {Servers: []string{"a:1"}, Prefix: strings.Repeat("x", 49)},
		"bad prefix":  {Servers: []string{"a:1"}, Prefix: "a b"},
	} {
		if s, err := memcached.Open(t.Context(), cfg); err == nil {
			s.Close()
			t.Errorf("%s: accepted", name)
		}
	}
	_, err := memcached.Open(t.Context(), memcached.Config{Servers: []string{"127.0.0.1:1"}})
	if !errors.Is(err, state.ErrUnavailable) || !strings.Contains(err.Error(), "127.0.0.1:1") {
		t.Errorf("nobody listens: %v, want ErrUnavailable that names the address", err)
	}
}

func TestKeysAndValues(t *testing.T) {
	s := open(t, memcached.Config{Prefix: prefix() + strings.Repeat("p", 20)}, testserver.Memcached(t).Addr)
	long := strings.Repeat("k", 200)
	put(t, s, long, strings.Repeat("v", 64<<10))
	if e := get(t, s, long); len(e.Data) != 64<<10 {
		t.Errorf("longest key and value: %d bytes came back", len(e.Data))
	}
	for _, key := range []string{"", "a b", "a\r\nflush_all", "\x7f", "ä", long + "k"} {
		errs := s.Update(t.Context(), time.Now(), []string{key, "good"}, []time.Duration{time.Minute, time.Minute}, func(int, state.Entry) []byte { return []byte("x") })
		if len(errs) != 2 || errs[0] == nil || errs[1] != nil {
			t.Errorf("Update with key %.20q: %v, want an error for it alone", key, errs)
		}
		if _, errs := s.Get(t.Context(), []string{key}); errs == nil {
			t.Errorf("Get with key %.20q: no error", key)
		}
		if err := s.Delete(t.Context(), key); err == nil {
			t.Errorf("Delete with key %.20q: no error", key)
		}
	}
	errs := s.Update(t.Context(), time.Now(), []string{"big"}, []time.Duration{time.Minute}, func(int, state.Entry) []byte { return make([]byte, 64<<10+1) })
	if errs == nil || !strings.Contains(errs[0].Error(), "65537") {
		t.Errorf("value above the limit: %v, want an error that names its size", errs)
	}
}

func TestTTL(t *testing.T) {
	s := open(t, memcached.Config{}, testserver.Memcached(t).Addr)
	keys := []string{"short", "year", "days"}
	ttls := []time.Duration{10 * time.Millisecond, 365 * 24 * time.Hour, 30*24*time.Hour - 500*time.Millisecond}
	if errs := s.Update(t.Context(), time.Now(), keys, ttls, func(int, state.Entry) []byte { return []byte("x") }); errs != nil {
		t.Fatal(errs)
	}
	wantValue(t, s, "year", "x") // as a relative time it would be a date in 1971
	wantValue(t, s, "days", "x") // rounding up takes it over the border
	deadline := time.Now().Add(time.Minute)
	for get(t, s, "short").Data != nil {
		if time.Now().After(deadline) {
			t.Fatal("10 ms have lasted a minute")
		}
		tick(t)
	}
}

// tick waits for the next turn of a poll.
func tick(t *testing.T) {
	t.Helper()
	select {
	case <-time.After(5 * time.Millisecond):
	case <-t.Context().Done():
	}
}

func TestEveryChangeCounts(t *testing.T) {
	s := open(t, memcached.Config{}, testserver.Memcached(t).Addr)
	const workers, each = 16, 50
	var wg sync.WaitGroup
	var conflicts atomic.Int64
	for w := range workers {
		wg.Go(func() {
			for range each {
				for {
					errs := s.Update(t.Context(), time.Now(), []string{"n"}, []time.Duration{time.Minute}, func(_ int, old state.Entry) []byte {
						n, _ := strconv.Atoi(string(old.Data))
						return strconv.AppendInt(nil, int64(n+1), 10)
					})
					if errs == nil {
						break
					}
					if !errors.Is(errs[0], state.ErrConflict) {
						t.Errorf("worker %d: %v", w, errs[0])
						return
					}
					conflicts.Add(1)
				}
			}
		})
	}
	wg.Wait()
	wantValue(t, s, "n", strconv.Itoa(workers*each))
	t.Logf("%d calls gave up with ErrConflict", conflicts.Load())
}

func TestSameKeyTwiceInOneUpdate(t *testing.T) {
	s := open(t, memcached.Config{}, testserver.Memcached(t).Addr)
	keys := make([]string, 10)
	ttls := make([]time.Duration, len(keys))
	for i := range keys {
		keys[i], ttls[i] = "k"+strconv.Itoa(i%5), time.Minute
	}
	errs := s.Update(t.Context(), time.Now(), keys, ttls, func(_ int, old state.Entry) []byte { return append([]byte("x"), old.Data...) })
	if errs != nil {
		t.Fatal(errs)
	}
	for i := range 5 {
		wantValue(t, s, "k"+strconv.Itoa(i), "xx")
	}
}

func TestNilLeavesTheKeyAlone(t *testing.T) {
	s := open(t, memcached.Config{MarkerTime: fresh}, testserver.Memcached(t).Addr)
	put(t, s, "a", "1")
	errs := s.Update(t.Context(), time.Now(), []string{"a", "b"}, make([]time.Duration, 2), func(int, state.Entry) []byte { return nil })
	if errs != nil {
		t.Fatal(errs)
	}
	wantValue(t, s, "a", "1")
	wantLost(t, s, "b", time.Time{})
}

func TestClose(t *testing.T) {
	server := testserver.OwnMemcached(t)
	s := open(t, memcached.Config{}, server.Addr)
	put(t, s, "a", "1")
	server.Freeze(t)
	ended := make(chan []error)
	go func() {
		_, errs := s.Get(context.Background(), []string{"a"})
		ended <- errs
	}()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	select {
	case errs := <-ended:
		if errs == nil || !errors.Is(errs[0], state.ErrUnavailable) {
			t.Errorf("Get during Close: %v, want ErrUnavailable", errs)
		}
	case <-time.After(20 * time.Second): // less than the time-out of a call
		t.Fatal("Close does not end calls under way")
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	errs := s.Update(t.Context(), time.Now(), []string{"a"}, []time.Duration{time.Minute}, func(int, state.Entry) []byte { return []byte("x") })
	if errs == nil || !errors.Is(errs[0], state.ErrUnavailable) {
		t.Errorf("Update after Close: %v, want ErrUnavailable", errs)
	}
}

func TestServersInAnyOrder(t *testing.T) {
	a, b, c, d := testserver.OwnMemcached(t).Addr, testserver.OwnMemcached(t).Addr, testserver.OwnMemcached(t).Addr, testserver.OwnMemcached(t).Addr
	p := prefix()
	const n = 1000
	keys := make([]string, n)
	ttls := make([]time.Duration, n)
	for i := range keys {
		keys[i], ttls[i] = fmt.Sprintf("%064x", i), time.Minute
	}
	three := open(t, memcached.Config{Prefix: p}, a, b, c)
	if errs := three.Update(t.Context(), time.Now(), keys, ttls, func(i int, _ state.Entry) []byte { return []byte(keys[i]) }); errs != nil {
		t.Fatal(errs)
	}
	found := func(s state.Store) (count int) {
		entries, errs := s.Get(t.Context(), keys)
		if errs != nil {
			t.Fatal(errs)
		}
		for i, e := range entries {
			if string(e.Data) == keys[i] {
				count++
			}
		}
		return count
	}
	if got := found(open(t, memcached.Config{Prefix: p}, c, a, b)); got != n {
		t.Errorf("the same servers in another order have %d of %d keys", got, n)
	}
	if moved := n - found(open(t, memcached.Config{Prefix: p}, a, b, c, d)); moved < 200 || moved > 300 {
		t.Errorf("a fourth server takes over %d of %d keys, want about 250", moved, n)
	}
	for _, one := range []string{a, b, c} {
		if got := found(open(t, memcached.Config{Prefix: p}, one)); got < 250 || got > 420 {
			t.Errorf("server %s has %d of %d keys, want about a third", one, got, n)
		}
	}
}
