package bench

import (
	"errors"
	"fmt"

	"github.com/mvalve/mvalve/valve"
)

// Goals of the life-cycle, for two cores.
const (
	goalRate    = 40_000 // messages per second
	goalOfRaw   = 60     // percent
	goalShared  = 10     // percent that a limiter costs at goalPermits per state write
	goalAlone   = 30     // percent that it costs at one
	goalPermits = 4
)

// raw measures the store alone.
func (s *session) raw() error {
	for _, c := range append(append([]rawCase{}, rawBatched...), rawSingle...) {
		if err := s.rawCase(c); err != nil {
			return err
		}
	}
	return nil
}

// rawCase measures one way of calling the store and keeps the best.
func (s *session) rawCase(c rawCase) error {
	return s.with(func(p *pipe) error {
		var got span
		err := s.profiled("raw "+c.String(), func() (err error) {
			got, err = measureRaw(s.c.Context, p.store, c, s.seconds)
			return err
		})
		if err != nil {
			return err
		}
		s.results.add("raw", c.String(), "msg/s", got.perSecond(), goal{})
		s.results.add("raw", c.String()+", processor", "µs/msg", got.cpuPerMessage(), goal{})
		if c.batch > 1 {
			s.bestRaw = max(s.bestRaw, got.perSecond())
		} else {
			s.rawOne = max(s.rawOne, got.perSecond())
		}
		return nil
	})
}

// cycle measures the life-cycle through the engine and compares it with raw,
// which it measures too unless this round did.
func (s *session) cycle() error {
	if s.bestRaw == 0 {
		for _, c := range []rawCase{{1000, 2}, {500, 4}, {1, 64}} {
			if err := s.rawCase(c); err != nil {
				return err
			}
		}
	}
	for _, c := range []struct {
		name string
		make func(*pipe, int) *flow
		raw  float64
		rate goal
		goal goal
	}{
		{"insert 100, ack up to 500", batchedFlow, s.bestRaw, atLeast(goalRate), atLeast(goalOfRaw)},
		{"insert 1, ack 1", singleFlow, s.rawOne, goal{}, atLeast(goalOfRaw)},
	} {
		var got span
		err := s.with(func(p *pipe) (err error) {
			if err := p.read(valve.ReaderConfig{}); err != nil {
				return err
			}
			got, err = p.flow("cycle "+c.name, c.make, destinations)
			return err
		})
		if err != nil {
			return err
		}
		s.results.add("cycle", c.name, "msg/s", got.perSecond(), c.rate)
		s.results.add("cycle", c.name+", of raw", "%", 100*got.perSecond()/c.raw, c.goal)
		s.results.add("cycle", c.name+", processor", "µs/msg", got.cpuPerMessage(), goal{})
	}
	return nil
}

// cpuPerMessage is the processor time per message in microseconds.
func (s span) cpuPerMessage() float64 {
	return float64(s.cpu.Microseconds()) / float64(max(s.count, 1))
}

// flow measures the life-cycle on p.
func (p *pipe) flow(name string, build func(*pipe, int) *flow, destinations int) (got span, err error) {
	err = p.s.profiled(name, func() (err error) {
		got, err = build(p, destinations).run(p.s.c.Context, p.s.seconds)
		return err
	})
	if err == nil {
		p.opened.Log.Info("calls", "case", name, "counts", p.counts.String())
	}
	return got, err
}

// limiterCase is a limit that never throttles.
type limiterCase struct {
	name         string
	destinations int
	limit        string
	build        func(*pipe, int) *flow
}

var limiterCases = []limiterCase{
	{"1000 destinations", destinations, "1000/1s", batchedFlow},
	{"1000 destinations, insert 1", destinations, "1000/1s", singleFlow},
	{"50 destinations", 50, "1000000/1s", batchedFlow},
}

// limiter measures what limits cost that never throttle: the same flow without
// and with one, one after the other. The reader knows nothing of the writer: both
// flows find and lease every message in the store.
func (s *session) limiter() error {
	states := []string{"queue:"}
	if s.c.IsSet("state") && s.c.String("state") != "queue:" {
		states = append(states, s.c.String("state"))
	}
	for _, c := range limiterCases {
		var free span
		err := s.with(func(p *pipe) (err error) {
			if err := p.readAlone(valve.ReaderConfig{}); err != nil {
				return err
			}
			free, err = p.flow("limiter none "+c.name, c.build, c.destinations)
			return err
		})
		if err != nil {
			return err
		}
		s.results.add("limiter", c.name+", no limit", "msg/s", free.perSecond(), goal{})
		for _, url := range states {
			if err := s.limited(c, url, free); err != nil {
				return fmt.Errorf("state %s: %w", url, err)
			}
		}
	}
	return nil
}

// limited measures one case with its limit, counted in the store at url.
func (s *session) limited(c limiterCase, url string, free span) error {
	ruling, err := stateRuling(url)
	if err != nil {
		return err
	}
	return s.with(func(p *pipe) (err error) {
		if err := p.limit(p.prefix+"*", c.limit); err != nil {
			return err
		}
		limiter, err := p.opened.OpenLimiter(s.c.Context, ruling)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, limiter.Close()) }()
		counted := &countedState{Store: limiter}
		if err := p.readAlone(valve.ReaderConfig{State: counted, Durable: p.opened.Durable()}); err != nil {
			return err
		}
		name := c.name + ", " + ruling.Scheme
		got, err := p.flow("limiter "+name, c.build, c.destinations)
		if err != nil {
			return err
		}
		permits := float64(p.reader.Stats().Dispatched) / float64(max(counted.granting.Load(), 1))
		cost := goal{}
		switch {
		case permits >= goalPermits:
			cost = atMost(goalShared)
		case permits < 1.5:
			cost = atMost(goalAlone)
		}
		s.results.add("limiter", name, "msg/s", got.perSecond(), goal{})
		s.results.add("limiter", name+", permits per write", "permits", permits, goal{})
		s.results.add("limiter", name+", cost", "%", 100*(1-got.perSecond()/free.perSecond()), cost)
		return nil
	})
}
