package bench

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"sync"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/time/rate"

	"github.com/mvalve/mvalve/cmd/internal/setup"
	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/valve"
)

const (
	lowLoad    = 200 // messages per second
	settleTime = time.Second
	childRole  = "writer"
	stampBytes = 8 // of the body: when Insert was called, Unix nanoseconds
)

// lags are times from the call of Insert to the return of Next.
type lags struct {
	mu    sync.Mutex
	from  time.Time // what was sent before does not count
	all   []time.Duration
	taken int // messages, those that do not count included
}

func (l *lags) add(m *queue.Message) {
	if len(m.Body) < stampBytes {
		return
	}
	sent := time.Unix(0, int64(binary.LittleEndian.Uint64(m.Body)))
	lag := time.Since(sent)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.taken++
	if !sent.Before(l.from) {
		l.all = append(l.all, lag)
	}
}

// milliseconds returns a quantile, p within 0 and 1.
func (l *lags) milliseconds(p float64) float64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	sorted := slices.Sorted(slices.Values(l.all))
	if len(sorted) == 0 {
		return 0
	}
	i := min(int(p*float64(len(sorted))), len(sorted)-1)
	return float64(sorted[i].Microseconds()) / 1000
}

// insertStamped inserts one message at a time, perSecond of them, for d, and one
// at its end, which counts however slow the machine was. It returns how many.
func insertStamped(ctx context.Context, w *valve.Writer, perSecond int, d time.Duration) (inserted int, err error) {
	ending, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	limiter := rate.NewLimiter(rate.Limit(perSecond), 1)
	src := newSource("cold-", destinations)
	for last := false; !last; inserted++ {
		last = limiter.Wait(ending) != nil
		m := src.messages(1)[0]
		m.Body = append(binary.LittleEndian.AppendUint64(nil, uint64(time.Now().UnixNano())), m.Body[stampBytes:]...)
		if err := w.Insert(ctx, m); err != nil {
			return inserted, fmt.Errorf("insert: %w", err)
		}
	}
	return inserted, nil
}

// floor measures what the store itself takes for one insert and one lease at
// low load, one after the other: no engine can be faster.
func (s *session) floor() error {
	return s.with(func(p *pipe) error {
		limiter := rate.NewLimiter(lowLoad, 1)
		src := newSource("raw-", destinations)
		var ids queue.IDSource
		l := &lags{}
		if err := rawCycle(s.c.Context, p.store, &ids, src.messages(1), nil); err != nil { // prepares statements
			return err
		}
		ctx, cancel := context.WithTimeout(s.c.Context, s.seconds)
		defer cancel()
		for limiter.Wait(ctx) == nil || len(l.all) == 0 {
			began := time.Now()
			if err := rawCycle(s.c.Context, p.store, &ids, src.messages(1), func() { l.all = append(l.all, time.Since(began)) }); err != nil {
				return err
			}
		}
		s.results.add("latency", "store alone, p50", "ms", l.milliseconds(0.5), goal{})
		s.results.add("latency", "store alone, p99", "ms", l.milliseconds(0.99), goal{})
		return s.c.Context.Err()
	})
}

// latency measures Insert to Next at low load.
func (s *session) latency() error {
	if err := s.floor(); err != nil {
		return err
	}
	for _, other := range []bool{false, true} {
		err := s.with(func(p *pipe) error {
			if err := p.read(valve.ReaderConfig{}); err != nil {
				return err
			}
			name, most := "same process", 2.0
			if other {
				name, most = "other process", 10.0
			}
			return p.lags("latency", name, other, most)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// lags measures and notes the latency of messages from this or another process.
func (p *pipe) lags(bench, name string, other bool, most float64) error {
	l := &lags{from: time.Now().Add(settleTime)}
	if err := p.s.profiled(bench+" "+name, func() error { return p.takeStamped(l, other) }); err != nil {
		return err
	}
	if len(l.all) == 0 {
		return errors.New("no message arrived")
	}
	p.s.results.add(bench, name+", p50", "ms", l.milliseconds(0.5), goal{})
	p.s.results.add(bench, name+", p99", "ms", l.milliseconds(0.99), atMost(most))
	p.s.results.add(bench, name+", most", "ms", l.milliseconds(1), goal{})
	return nil
}

func (p *pipe) takeStamped(l *lags, other bool) error {
	taking, stop := context.WithCancel(p.s.c.Context)
	defer stop()
	acks := make(chan *valve.Delivery, 10_000)
	var work sync.WaitGroup
	var takeErr, ackErr error
	work.Go(func() {
		defer close(acks)
		for d, err := range p.reader.All(taking) {
			if err != nil {
				takeErr = fmt.Errorf("take: %w", err)
				stop()
				return
			}
			l.add(d.Message)
			acks <- d
		}
	})
	work.Go(func() {
		for d := range acks {
			if err := d.Ack(p.s.c.Context); err != nil && ackErr == nil {
				ackErr = fmt.Errorf("ack: %w", err)
			}
		}
	})
	insert := p.spawn
	if !other {
		insert = func(d time.Duration) (int, error) { return insertStamped(p.s.c.Context, p.writer, lowLoad, d) }
	}
	inserted, err := insert(time.Until(l.from) + p.s.seconds)
	if err == nil {
		err = l.await(taking, inserted)
	}
	stop()
	work.Wait()
	return errors.Join(err, takeErr, ackErr, p.s.c.Context.Err())
}

// await returns when as many messages were taken.
func (l *lags) await(ctx context.Context, messages int) error {
	taken := func() int64 {
		l.mu.Lock()
		defer l.mu.Unlock()
		return int64(l.taken)
	}
	return (&load{}).await(ctx, "messages taken", int64(messages), taken)
}

// spawn lets another process insert for d, and returns how many messages it did.
func (p *pipe) spawn(d time.Duration) (inserted int, err error) {
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	// It ends by itself after --seconds; only the end of the command kills it.
	cmd := exec.CommandContext(p.s.c.Context, self, "bench", "--role", childRole, "--rate", fmt.Sprint(lowLoad),
		"--seconds", fmt.Sprint(max(1, int(d.Round(time.Second)/time.Second))))
	// The environment, unlike the arguments, hides a password from other users.
	cmd.Env = append(os.Environ(), "MVALVE_QUEUE="+p.url)
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err == nil {
		_, err = fmt.Sscan(string(out), &inserted)
	}
	if err != nil {
		return 0, fmt.Errorf("other process: %w: %s%s", err, out, &said)
	}
	return inserted, nil
}

// runRole is what the other process does: it inserts and prints how many.
func runRole(c *cli.Context, role string) (err error) {
	if role != childRole {
		return setup.Usagef("--role %.40q: the only one is %s", role, childRole)
	}
	opened, err := setup.OpenPipe(c, setup.PipeOptions{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, opened.Close()) }()
	w, err := valve.NewWriter(c.Context, opened.Store, valve.WriterConfig{Logger: opened.Log})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	inserted, err := insertStamped(c.Context, w, c.Int("rate"), time.Duration(c.Int("seconds"))*time.Second)
	if err == nil {
		_, err = fmt.Fprintln(c.App.Writer, inserted)
	}
	return err
}
