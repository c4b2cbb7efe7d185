package proof_test

import (
	"slices"
	"testing"
	"time"

	"github.com/mvalve/mvalve/internal/checker"
	"github.com/mvalve/mvalve/internal/testserver"
)

// TestMemcachedLost: the server that counts is flushed, restarted, cut off and
// stalled in the middle. No window is above, nothing waits longer than one
// interval after the end of the trouble, and all goes on by itself.
func TestMemcachedLost(t *testing.T) {
	for _, c := range []struct {
		name    string
		inShort bool
		trouble func(*testing.T, *testserver.MemcachedServer, *testserver.Proxy)
	}{
		{"flushed", true, func(t *testing.T, s *testserver.MemcachedServer, _ *testserver.Proxy) { s.Flush(t) }},
		{"restarted", false, func(t *testing.T, s *testserver.MemcachedServer, _ *testserver.Proxy) { s.Restart(t) }},
		{"cut off", true, func(t *testing.T, _ *testserver.MemcachedServer, p *testserver.Proxy) {
			p.Cut()
			measure(1500 * time.Millisecond)
			p.Resume(t)
		}},
		{"stalled", false, func(t *testing.T, _ *testserver.MemcachedServer, p *testserver.Proxy) {
			p.Stall()
			measure(1500 * time.Millisecond)
			p.Resume(t)
		}},
		{"answers lost", true, func(t *testing.T, _ *testserver.MemcachedServer, p *testserver.Proxy) {
			p.StallReplies()
			measure(700 * time.Millisecond)
			p.Drop()
			p.Resume(t)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if !long && !c.inShort {
				t.Skip("long form only")
			}
			t.Parallel()
			memcachedLost(t, c.trouble)
		})
	}
}

// slack is what going on may take beside the interval: readers ask again at
// intervals, and the machine is busy.
const slack = 1500 * time.Millisecond

func memcachedLost(t *testing.T, trouble func(*testing.T, *testserver.MemcachedServer, *testserver.Proxy)) {
	server := testserver.OwnMemcached(t)
	proxy := testserver.NewProxy(t, server.Addr)
	p := &pipe{queue: testserver.MariaDB(t).URL, state: "memcached://" + proxy.Addr}
	p.init(t)
	limits := map[string]checker.Limit{
		"slow":  {Max: 10, Window: 2 * time.Second},
		"quick": {Max: 50, Window: 250 * time.Millisecond},
	}
	p.limit(t, "slow", "10/2s", "quick", "50/250ms")
	rounds := shortOrLong(1, 8)
	p.write(t, backlog(400, "slow"))
	p.write(t, backlog(200*(6*rounds+shortOrLong(30, 10)), "quick"))
	readers := p.readers(t, 2)
	waitFor(t, patience, "the first dispatches", func() bool {
		log := dispatches(t, readers...)
		return len(log["slow"]) > 0 && len(log["quick"]) > 0
	})
	measure(900 * time.Millisecond) // into the middle of a window of slow
	ends := make([]int64, 0, rounds)
	for range rounds {
		trouble(t, server, proxy)
		ends = append(ends, time.Now().UnixMicro())
		measure(shortOrLong(3500*time.Millisecond, 4300*time.Millisecond))
	}
	goOn(func() bool {
		log := dispatches(t, readers...)
		return slices.Max(append(log["slow"], 0)) >= ends[0] && slices.Max(append(log["quick"], 0)) >= ends[0]
	})
	stopAll(t, readers...)
	log := dispatches(t, readers...)
	for destination, limit := range limits {
		judge(t, log, destination, limit, 0)
		stamps := slices.Sorted(slices.Values(log[destination]))
		for _, end := range ends {
			i, _ := slices.BinarySearch(stamps, end)
			if i == len(stamps) {
				t.Errorf("%s: nothing was dispatched after the trouble", destination)
				continue
			}
			pause := time.Duration(stamps[i]-end) * time.Microsecond
			t.Logf("%s: goes on %v after the trouble", destination, pause)
			if long && pause > limit.Window+slack {
				t.Errorf("%s: paused for %v after the trouble, want at most one interval of %v", destination, pause, limit.Window)
			}
		}
	}
}
