package memcached_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bradfitz/gomemcache/memcache"

	"github.com/mvalve/mvalve/internal/testserver"
	"github.com/mvalve/mvalve/state"
	"github.com/mvalve/mvalve/state/memcached"
)

func TestFreshServerLostNothing(t *testing.T) {
	s := open(t, memcached.Config{MarkerTime: fresh}, testserver.OwnMemcached(t).Addr)
	wantLost(t, s, "never", time.Time{})
}

func TestMarkerTimeIsAskedOncePerEpoch(t *testing.T) {
	server := testserver.OwnMemcached(t)
	var asked atomic.Int64
	first := time.Now().Add(-time.Hour).Truncate(time.Microsecond)
	cfg := memcached.Config{Prefix: prefix(), MarkerTime: func(context.Context) (time.Time, error) {
		asked.Add(1)
		return first, nil
	}}
	s := open(t, cfg, server.Addr)
	for i := range 10 {
		wantLost(t, s, strconv.Itoa(i), first)
	}
	cfg.MarkerTime = func(context.Context) (time.Time, error) { return time.Now(), nil }
	wantLost(t, open(t, cfg, server.Addr), "x", first) // another reader finds the marker
	if got := asked.Load(); got != 1 {
		t.Errorf("MarkerTime was called %d times, want once", got)
	}
}

func TestWipeIsALoss(t *testing.T) {
	for name, wipe := range map[string]func(*testserver.MemcachedServer){
		"flush":   func(s *testserver.MemcachedServer) { s.Flush(t) },
		"restart": func(s *testserver.MemcachedServer) { s.Restart(t) },
	} {
		t.Run(name, func(t *testing.T) {
			var c clock
			start := time.Now().Truncate(time.Microsecond)
			c.set(start)
			hit, spared := testserver.OwnMemcached(t), testserver.OwnMemcached(t)
			s := open(t, memcached.Config{MarkerTime: c.now}, hit.Addr, spared.Addr)
			const n = 40
			for i := range n {
				put(t, s, strconv.Itoa(i), "used")
			}
			wipedAt := start.Add(time.Minute)
			c.set(wipedAt)
			wipe(hit)
			var gone, kept int
			for i := range n {
				switch e := get(t, s, strconv.Itoa(i)); {
				case string(e.Data) == "used":
					kept++
				case e.Data == nil && e.Lost.Equal(wipedAt):
					gone++
				default:
					t.Errorf("key %d: %q, lost %v; want %q, or lost %v", i, e.Data, e.Lost, "used", wipedAt)
				}
			}
			if gone == 0 || kept == 0 {
				t.Errorf("%d keys gone, %d kept; want some of each", gone, kept)
			}
			put(t, s, "0", "again")
			wantValue(t, s, "0", "again")
		})
	}
}

// TestWipesBetweenReadAndWrite wipes the server while Update is computing: the
// case in which add succeeds though the key was used.
func TestWipesBetweenReadAndWrite(t *testing.T) {
	server := testserver.OwnMemcached(t)
	var c clock
	start := time.Now().Truncate(time.Microsecond)
	c.set(start)
	// On one connection: a second one would by itself be a reason to look again.
	s := open(t, memcached.Config{MarkerTime: c.now, MaxConns: 1}, server.Addr)
	wipedAt := start.Add(time.Minute)
	var seen []state.Entry
	errs := s.Update(t.Context(), wipedAt, []string{"k"}, []time.Duration{time.Minute}, func(_ int, old state.Entry) []byte {
		seen = append(seen, old)
		if len(seen) == 1 {
			put(t, s, "k", "another reader's permit")
			c.set(wipedAt)
			server.Flush(t)
		}
		return []byte(strconv.Itoa(len(seen)))
	})
	if errs != nil {
		t.Fatal(errs)
	}
	if len(seen) < 2 || !seen[0].Lost.Equal(start) {
		t.Fatalf("fn saw %v, want first a key unused since %v, then a loss", seen, start)
	}
	if last := seen[len(seen)-1]; last.Data != nil || last.Lost.Before(wipedAt) {
		t.Errorf("the result that counted was computed from %v, want a loss at %v", last, wipedAt)
	}
	wantValue(t, s, "k", strconv.Itoa(len(seen)))
}

// TestLateWriteOfAPastEpochIsALoss: what a writer leaves behind that died
// between its add and its second look at the marker must not be believed.
func TestLateWriteOfAPastEpochIsALoss(t *testing.T) {
	server := testserver.OwnMemcached(t)
	proxy := testserver.NewProxy(t, server.Addr)
	var c clock
	start := time.Now().Truncate(time.Microsecond)
	c.set(start)
	p := prefix()
	late := open(t, memcached.Config{Prefix: p, MarkerTime: c.now}, proxy.Addr)
	wipedAt := start.Add(time.Minute)
	ctx, die := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	errs := late.Update(ctx, start, []string{"k"}, []time.Duration{time.Minute}, func(int, state.Entry) []byte {
		server.Flush(t)
		proxy.StallReplies()
		wg.Go(func() {
			defer die()
			arrived(t, server.Addr, p+"v:k")
		})
		return []byte("stale")
	})
	wg.Wait()
	if errs == nil || !errors.Is(errs[0], state.ErrUnknown) {
		t.Fatalf("no reply to the write: %v, want ErrUnknown", errs)
	}
	late.Close()
	proxy.Resume(t)
	c.set(wipedAt)
	s := open(t, memcached.Config{Prefix: p, MarkerTime: c.now}, proxy.Addr)
	wantLost(t, s, "k", wipedAt)
	errs = s.Update(t.Context(), wipedAt.Add(time.Second), []string{"k"}, []time.Duration{time.Minute}, func(_ int, old state.Entry) []byte {
		if old.Data != nil || !old.Lost.Equal(wipedAt.Add(time.Second)) {
			t.Errorf("fn saw %q, lost %v; want a loss now", old.Data, old.Lost)
		}
		return []byte("new")
	})
	if errs != nil {
		t.Fatal(errs)
	}
	wantValue(t, s, "k", "new")
}

// arrived waits until the server has the key.
func arrived(t *testing.T, addr, key string) {
	c := memcache.New(addr)
	defer c.Close()
	c.Timeout = 10 * time.Second
	deadline := time.Now().Add(30 * time.Second)
	for {
		_, err := c.Get(key)
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("%s does not arrive: %v", key, err)
			return
		}
		tick(t)
	}
}

// TestNoWipeGoesUnseen hammers one key while the server is wiped again and
// again. Each result is computed from a count; a wipe starts over, and must be
// announced: an absent entry whose Lost is the opening marker's is wrong once
// anything was counted.
func TestNoWipeGoesUnseen(t *testing.T) {
	server := testserver.OwnMemcached(t)
	s := open(t, memcached.Config{}, server.Addr)
	opening := get(t, s, "hot").Lost
	var counted, unseen, losses atomic.Int64
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				var before int64
				var old state.Entry
				errs := s.Update(t.Context(), time.Now(), []string{"hot"}, []time.Duration{time.Minute}, func(_ int, e state.Entry) []byte {
					before, old = counted.Load(), e
					n, _ := strconv.Atoi(string(e.Data))
					return strconv.AppendInt(nil, int64(n+1), 10)
				})
				switch {
				case errs != nil:
					if !errors.Is(errs[0], state.ErrConflict) {
						t.Error(errs[0])
						return
					}
				case old.Data == nil && before > 0 && old.Lost.Equal(opening):
					unseen.Add(1)
				default:
					if old.Data == nil && before > 0 {
						losses.Add(1)
					}
					counted.Add(1)
				}
			}
		})
	}
	const wipes = 200
	for range wipes {
		for target := counted.Load() + 5; counted.Load() < target && !t.Failed(); {
			tick(t)
		}
		server.Flush(t)
	}
	close(stop)
	wg.Wait()
	if unseen.Load() > 0 || losses.Load() < wipes/2 {
		t.Errorf("%d wipes: %d seen as a loss, %d not", wipes, losses.Load(), unseen.Load())
	}
}

func TestMarkerTimeUnknownIsUnavailable(t *testing.T) {
	server := testserver.OwnMemcached(t)
	var broken atomic.Bool
	s := open(t, memcached.Config{MarkerTime: func(context.Context) (time.Time, error) {
		if broken.Load() {
			return time.Time{}, errors.New("database is away")
		}
		return time.Now(), nil
	}}, server.Addr)
	broken.Store(true)
	server.Flush(t)
	if _, errs := s.Get(t.Context(), []string{"k"}); errs == nil || !errors.Is(errs[0], state.ErrUnavailable) {
		t.Errorf("no time for the marker: %v, want ErrUnavailable", errs)
	}
	broken.Store(false)
	if e := get(t, s, "k"); e.Lost.IsZero() {
		t.Error("the loss was forgotten")
	}
}

func TestEvictionIsALoss(t *testing.T) {
	server := testserver.OwnMemcached(t, "-m", "4") // evictions are on
	var c clock
	start := time.Now().Truncate(time.Microsecond)
	c.set(start)
	s := open(t, memcached.Config{MarkerTime: c.now}, server.Addr)
	large := string(make([]byte, 60<<10)) // evictions are among values of a size
	put(t, s, "first", large)
	evictedAt := start.Add(time.Minute)
	c.set(evictedAt)
	for i := range 400 { // 24 MB; nobody looks at the first key meanwhile, which would keep it
		put(t, s, fmt.Sprint("filler", i), large)
	}
	deadline := time.Now().Add(time.Minute)
	for !get(t, s, "first").Lost.Equal(evictedAt) {
		if time.Now().After(deadline) {
			t.Fatalf("lost %v, want %v", get(t, s, "first").Lost, evictedAt)
		}
		tick(t)
	}
}

func TestUnreachableIsNotMissing(t *testing.T) {
	const timeout = time.Second
	const busy = 30 * time.Second // how much longer a call may take on a busy machine
	update := func(s state.Store, key string) error {
		errs := s.Update(t.Context(), time.Now(), []string{key}, []time.Duration{time.Minute}, func(int, state.Entry) []byte { return []byte("x") })
		if errs == nil {
			return nil
		}
		return errs[0]
	}
	read := func(s state.Store, key string) error {
		_, errs := s.Get(t.Context(), []string{key})
		if errs == nil {
			return nil
		}
		return errs[0]
	}
	for name, disturb := range map[string]func(*testserver.Proxy){
		"cut":   (*testserver.Proxy).Cut,
		"stall": (*testserver.Proxy).Stall,
	} {
		t.Run(name, func(t *testing.T) {
			proxy := testserver.NewProxy(t, testserver.OwnMemcached(t).Addr)
			p := prefix()
			patient := open(t, memcached.Config{Prefix: p, MarkerTime: fresh}, proxy.Addr)
			put(t, patient, "k", "x")
			s := openHasty(t, memcached.Config{Prefix: p, MarkerTime: fresh, Timeout: timeout}, proxy.Addr)
			disturb(proxy)
			var wg sync.WaitGroup
			for verb, call := range map[string]func(state.Store, string) error{"read": read, "update": update} {
				wg.Go(func() {
					begin := time.Now()
					err := call(s, "k")
					if !errors.Is(err, state.ErrUnavailable) || errors.Is(err, state.ErrUnknown) {
						t.Errorf("%s: %v, want ErrUnavailable: nothing was written", verb, err)
					}
					if took := time.Since(begin); took > timeout+busy {
						t.Errorf("%s took %v with a time-out of %v", verb, took, timeout)
					}
				})
			}
			wg.Wait()
			proxy.Resume(t)
			deadline := time.Now().Add(time.Minute)
			for read(s, "k") != nil {
				if time.Now().After(deadline) {
					t.Fatal("does not recover by itself")
				}
			}
			wantValue(t, patient, "k", "x")
		})
	}
}

// openHasty opens a store with a time-out so short that a busy machine may miss it.
func openHasty(t *testing.T, cfg memcached.Config, servers ...string) *memcached.Store {
	t.Helper()
	cfg.Servers = servers
	deadline := time.Now().Add(time.Minute)
	for {
		s, err := memcached.Open(t.Context(), cfg)
		if err == nil {
			t.Cleanup(func() { s.Close() })
			return s
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// TestNoReplyToAWriteIsUnknown: once the write is on its way the caller gives up.
func TestNoReplyToAWriteIsUnknown(t *testing.T) {
	for name, disturb := range map[string]func(*testserver.Proxy){
		"stalled": (*testserver.Proxy).StallReplies,
		"dropped": (*testserver.Proxy).Stall,
	} {
		t.Run(name, func(t *testing.T) {
			proxy := testserver.NewProxy(t, testserver.OwnMemcached(t).Addr)
			p := prefix()
			s := open(t, memcached.Config{Prefix: p, MarkerTime: fresh}, proxy.Addr)
			put(t, s, "k", "old")
			ctx, giveUp := context.WithCancel(t.Context())
			defer giveUp()
			var wg sync.WaitGroup
			errs := s.Update(ctx, time.Now(), []string{"k"}, []time.Duration{time.Minute}, func(int, state.Entry) []byte {
				disturb(proxy)
				wg.Go(func() {
					defer giveUp()
					onItsWay(t, proxy, "cas "+p+"v:k", "STORED")
				})
				return []byte("new")
			})
			wg.Wait()
			if errs == nil || !errors.Is(errs[0], state.ErrUnknown) {
				t.Fatalf("%v, want ErrUnknown", errs)
			}
		})
	}
}

// onItsWay waits until the proxy holds a request, or the answer to it.
func onItsWay(t *testing.T, proxy *testserver.Proxy, request, answer string) {
	deadline := time.Now().Add(20 * time.Second)
	for {
		requests, replies := proxy.Held()
		if bytes.Contains(requests, []byte(request)) || bytes.Contains(replies, []byte(answer)) {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("the proxy holds %q and %q, want %q or %q", requests, replies, request, answer)
			return
		}
		tick(t)
	}
}

func TestOneServerAwayTheOtherGoesOn(t *testing.T) {
	away, there := testserver.OwnMemcached(t), testserver.OwnMemcached(t)
	s := open(t, memcached.Config{MarkerTime: fresh}, away.Addr, there.Addr)
	const n = 50
	keys := make([]string, n)
	ttls := make([]time.Duration, n)
	for i := range keys {
		keys[i], ttls[i] = strconv.Itoa(i), time.Minute
	}
	away.Kill(t)
	errs := s.Update(t.Context(), time.Now(), keys, ttls, func(i int, _ state.Entry) []byte { return []byte(keys[i]) })
	var failed int
	for i, err := range errs {
		switch {
		case err == nil:
			wantValue(t, s, keys[i], keys[i])
		case errors.Is(err, state.ErrUnavailable):
			failed++
		default:
			t.Error(err)
		}
	}
	if failed == 0 || failed == n {
		t.Errorf("%d of %d keys failed, want those of one server", failed, n)
	}
}

func TestContextEndsCalls(t *testing.T) {
	proxy := testserver.NewProxy(t, testserver.OwnMemcached(t).Addr)
	s := open(t, memcached.Config{MarkerTime: fresh}, proxy.Addr)
	proxy.Stall()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, errs := s.Get(ctx, []string{"k"})
	if errs == nil || !errors.Is(errs[0], state.ErrUnavailable) || !errors.Is(errs[0], context.DeadlineExceeded) {
		t.Errorf("%v, want ErrUnavailable because of the context", errs)
	}
}

// TestRefusedWriteSaysSo: a full server with -M refuses; nothing was written.
func TestRefusedWriteSaysSo(t *testing.T) {
	server := testserver.OwnMemcached(t, "-M", "-m", "4")
	s := open(t, memcached.Config{MarkerTime: fresh}, server.Addr)
	for i := range 200 {
		errs := s.Update(t.Context(), time.Now(), []string{strconv.Itoa(i)}, []time.Duration{time.Minute}, func(int, state.Entry) []byte { return make([]byte, 60<<10) })
		if errs == nil {
			continue
		}
		if !errors.Is(errs[0], state.ErrUnavailable) {
			t.Errorf("full server: %v, want ErrUnavailable", errs[0])
		}
		return
	}
	t.Error("4 MiB hold 12 MB")
}
