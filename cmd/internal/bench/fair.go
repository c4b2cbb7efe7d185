package bench

import (
	"context"
	"fmt"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/mvalve/mvalve/internal/checker"
	"github.com/mvalve/mvalve/valve"
)

const (
	fairSpan      = 5 * time.Second
	fairRate      = 8000 // messages per second that the consumers take together
	fairConsumers = 16
	fairHeavy     = 20 // destinations with twenty times the backlog of the others
)

// fair measures how evenly destinations with unequal backlogs are served by
// consumers that are slower than the reader.
func (s *session) fair() error {
	served := max(s.seconds, fairSpan+2*time.Second)
	each := int(served.Seconds()*fairRate)/destinations*5/4 + 20
	return s.with(func(p *pipe) error {
		insert := func(perDestination, first, n int) error {
			src := newSource(p.prefix, destinations)
			src.names, src.next = src.names[first:first+n], 0
			for left := perDestination * n; left > 0; {
				batch := src.messages(min(left, 5000))
				if err := p.writer.Insert(s.c.Context, batch...); err != nil {
					return err
				}
				left -= len(batch)
			}
			return nil
		}
		// The heavy ones first: by age alone they would take everything.
		if err := insert(20*each, 0, fairHeavy); err != nil {
			return err
		}
		if err := insert(each, fairHeavy, destinations-fairHeavy); err != nil {
			return err
		}
		if err := p.read(valve.ReaderConfig{}); err != nil {
			return err
		}
		if err := wait(s.c.Context, 2*settleTime); err != nil { // until every destination is known
			return err
		}
		log, err := p.serve(served)
		if err != nil {
			return err
		}
		if len(log) != destinations {
			return fmt.Errorf("%d of %d destinations were served", len(log), destinations)
		}
		worst, _, ok := checker.Fairness(log, fairSpan)
		if !ok {
			return fmt.Errorf("too short for a span of %v", fairSpan)
		}
		s.results.add("fair", fmt.Sprintf("%d destinations, worst %v", destinations, fairSpan), "Jain index", worst, atLeast(0.99))
		return nil
	})
}

// serve consumes for a while and returns when each destination was served.
func (p *pipe) serve(d time.Duration) (map[string][]int64, error) {
	ctx, cancel := context.WithTimeout(p.s.c.Context, d)
	defer cancel()
	limiter := rate.NewLimiter(fairRate, fairConsumers)
	var mu sync.Mutex
	log := make(map[string][]int64)
	var failed error
	var work sync.WaitGroup
	for range fairConsumers {
		work.Go(func() {
			batch := make([]*valve.Delivery, 0, 50)
			for limiter.Wait(ctx) == nil {
				d, err := p.reader.Next(ctx)
				if err != nil {
					break
				}
				batch = append(batch, d)
				mu.Lock()
				log[d.Message.Destination] = append(log[d.Message.Destination], d.DispatchedAt.UnixMicro())
				mu.Unlock()
				if len(batch) == cap(batch) {
					if err := p.reader.Ack(p.s.c.Context, batch...); err != nil {
						mu.Lock()
						failed = err
						mu.Unlock()
						return
					}
					batch = batch[:0]
				}
			}
			_ = p.reader.Ack(p.s.c.Context, batch...) // the measurement is over
		})
	}
	work.Wait()
	if failed != nil {
		return nil, fmt.Errorf("ack: %w", failed)
	}
	return log, p.s.c.Context.Err()
}
