package proof_test

import (
	"context"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/mvalve/mvalve/internal/stomptest"
)

// pair is a producer and a consumer that behave well and measure themselves: a
// batch of pairBatch messages each pairPace, with receipts, waited for.
type pair struct {
	stop   context.CancelFunc // of the producer
	leave  context.CancelFunc // of the consumer
	sends  sync.WaitGroup
	takes  sync.WaitGroup
	mu     sync.Mutex
	made   []time.Time     // of message i
	got    []int           // how often message i came
	times  []time.Duration // from SEND to MESSAGE, in this phase
	fresh  int             // of these, messages sent in this phase
	since  time.Time       // when the phase began
	failed error
}

const (
	pairPace  = 10 * time.Millisecond
	pairBatch = 5
	pairRate  = float64(pairBatch) * float64(time.Second/pairPace)
)

func newPair(t *testing.T, b *broker) *pair {
	t.Helper()
	producing, stop := context.WithCancel(t.Context())
	consuming, leave := context.WithCancel(t.Context())
	p := &pair{stop: stop, leave: leave, since: time.Now()}
	t.Cleanup(func() { stop(); leave() })
	consumer, err := dialSTOMP(consuming, b.address)
	if err != nil {
		t.Fatal(err)
	}
	consumer.Add("SUBSCRIBE", "", "destination:/queue/pair", "id:0", "ack:client-individual", "receipt:ready")
	if _, err := consumer.receipt("ready"); err != nil {
		t.Fatal(err)
	}
	producer, err := dialSTOMP(t.Context(), b.address)
	if err != nil {
		t.Fatal(err)
	}
	p.sends.Go(func() { p.note(p.produce(producing, producer)) })
	p.takes.Go(func() {
		if err := p.consume(consumer); consuming.Err() == nil {
			p.note(err)
		}
	})
	return p
}

func (p *pair) note(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.failed == nil {
		p.failed = err
	}
}

func (p *pair) produce(ctx context.Context, c *stompClient) error {
	tick := time.NewTicker(pairPace)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return c.leave()
		case <-tick.C:
		}
		p.mu.Lock()
		for range pairBatch {
			n := strconv.Itoa(len(p.made))
			c.Add("SEND", n, "destination:/queue/pair", "receipt:"+n)
			p.made, p.got = append(p.made, time.Now()), append(p.got, 0)
		}
		p.mu.Unlock()
		if err := c.Flush(); err != nil {
			return err
		}
		for range pairBatch {
			if _, err := c.Next(); err != nil {
				return err
			}
		}
	}
}

// consume takes and acknowledges until the connection ends.
func (p *pair) consume(c *stompClient) error {
	for {
		f, err := c.Next()
		if err != nil {
			return err
		}
		n, err := strconv.Atoi(string(f.Body))
		if err != nil {
			return err
		}
		p.mu.Lock()
		p.got[n]++
		p.times = append(p.times, time.Since(p.made[n]))
		if p.made[n].After(p.since) {
			p.fresh++
		}
		p.mu.Unlock()
		c.Add("ACK", "", "id:"+stomptest.Header(f, "ack"))
		if !c.Frames.Buffered() { // only MESSAGEs come here
			if err := c.Flush(); err != nil {
				return err
			}
		}
	}
}

// recover waits until the pair has got something again: hundreds of megabytes take
// a slow disk a while.
func (p *pair) recover(t *testing.T) {
	t.Helper()
	p.mu.Lock()
	before := len(p.times)
	p.mu.Unlock()
	waitFor(t, patience, "the pair goes on", func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return len(p.times) > before
	})
}

func (p *pair) missing() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for _, got := range p.got {
		if got == 0 {
			n++
		}
	}
	return n
}

// phase judges the time since the last one: what share of its pace the pair kept. In
// the short form some message of the phase has to come, be it a while later.
func (p *pair) phase(t *testing.T, b *broker, name string, wantShare float64) {
	t.Helper()
	going := func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.fresh > 0 || p.failed != nil
	}
	if !long {
		waitFor(t, patience, name+": the pair goes on", going)
	}
	p.mu.Lock()
	times, span := p.times, time.Since(p.since)
	p.times, p.fresh, p.since = nil, 0, time.Now()
	err := p.failed
	p.mu.Unlock()
	if err != nil {
		t.Errorf("%s: the pair: %v", name, err)
	}
	slices.Sort(times)
	at := func(share float64) time.Duration {
		if len(times) == 0 {
			return 0
		}
		return times[int(share*float64(len(times)-1))].Round(100 * time.Microsecond)
	}
	rate := float64(len(times)) / span.Seconds()
	now, most := b.resident()
	t.Logf("%-38s %5.1f s: pair %4.0f/s of %.0f, p50 %6v p99 %6v most %6v; broker %s resident (most so far %s)",
		name, span.Seconds(), rate, pairRate, at(0.5), at(0.99), at(1), inMiB(now), inMiB(most))
	const tooShort = 300 * time.Millisecond // to judge a rate by
	if share := rate / pairRate; long && share < wantShare && span > tooShort {
		t.Errorf("%s: the pair kept %.2f of its pace, want %.2f", name, share, wantShare)
	}
}

// end stops the pair and checks that each message came, and came once.
func (p *pair) end(t *testing.T) {
	t.Helper()
	p.stop()
	p.sends.Wait()
	waitFor(t, patience, "all messages of the pair came", func() bool { return p.missing() == 0 })
	p.leave()
	p.takes.Wait()
	repeated := 0
	for _, got := range p.got {
		repeated += max(0, got-1)
	}
	t.Logf("pair: %d messages, %d missing, %d repeated", len(p.made), p.missing(), repeated)
	if p.missing()+repeated > 0 || p.failed != nil {
		t.Errorf("the pair was disturbed: %v", p.failed)
	}
}
