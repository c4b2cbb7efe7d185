package bench

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"time"

	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/valve"
)

// idle measures what a reader costs while there is nothing that may go.
func (s *session) idle() error {
	err := s.with(func(p *pipe) error {
		if err := p.read(valve.ReaderConfig{}); err != nil {
			return err
		}
		return p.idle("nothing waits", 1.5)
	})
	if err != nil {
		return err
	}
	return s.with(func(p *pipe) error {
		if err := p.limit(p.prefix+"*", "1/24h"); err != nil {
			return err
		}
		src := newSource(p.prefix, destinations)
		for range 10 { // of each destination one goes, nine wait
			if err := p.writer.Insert(s.c.Context, src.messages(destinations)...); err != nil {
				return err
			}
		}
		if err := p.read(valve.ReaderConfig{}); err != nil {
			return err
		}
		if err := p.take(destinations); err != nil {
			return err
		}
		return p.idle(fmt.Sprintf("%d throttled destinations", destinations), 2)
	})
}

// take takes and acks the n messages that may go.
func (p *pipe) take(n int) error {
	ctx, cancel := context.WithTimeout(p.s.c.Context, time.Minute)
	defer cancel()
	sub, err := p.reader.Subscribe(valve.Filter{}, n)
	if err != nil {
		return err
	}
	defer func() { _ = sub.Close() }() // it cannot fail
	batch := make([]*valve.Delivery, n)
	for i := range batch {
		d, err := sub.Next(ctx)
		if err != nil {
			return fmt.Errorf("%d of %d messages taken: %w", i, n, err)
		}
		batch[i] = d
	}
	return p.reader.Ack(ctx, batch...)
}

// idle measures the processor time of this process while a caller waits in vain.
func (p *pipe) idle(name string, most float64) error {
	ctx, cancel := context.WithCancel(p.s.c.Context)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		d, err := p.reader.Next(ctx)
		if d != nil {
			err = fmt.Errorf("message %v was dispatched", d.Message.ID)
		}
		done <- err
	}()
	if err := wait(ctx, 2*settleTime); err != nil { // readers poll more often for a second after a message
		return err
	}
	runtime.GC()
	var got span
	err := p.s.profiled("idle "+name, func() (err error) {
		began, cpu := time.Now(), cpuTime()
		err = wait(ctx, max(p.s.seconds, 5*time.Second))
		got = span{time: time.Since(began), cpu: cpuTime() - cpu}
		return err
	})
	if err != nil {
		return err
	}
	select {
	case err := <-done:
		return fmt.Errorf("the reader was not idle: %w", err)
	default:
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		return fmt.Errorf("the reader was not idle: %w", err)
	}
	p.s.results.add("idle", name, "% of a core", 100*got.cpu.Seconds()/got.time.Seconds(), atMost(most))
	return nil
}

// backlog measures the latency of other destinations' messages behind a large
// backlog of one that is throttled, and that nobody writes to its rows.
func (s *session) backlog() error {
	n := s.c.Int("backlog")
	return s.with(func(p *pipe) error {
		name := p.prefix + "0"
		p.counts.mark = name
		if err := p.limit(name, "1/24h"); err != nil {
			return err
		}
		for left := n + 1; left > 0; {
			batch := newSource(p.prefix, 1).messages(min(left, 5000))
			if err := p.writer.Insert(s.c.Context, batch...); err != nil {
				return err
			}
			left -= len(batch)
			s.show("backlog: %d of %d inserted", n+1-left, n+1)
		}
		if err := p.read(valve.ReaderConfig{}); err != nil {
			return err
		}
		if err := p.take(1); err != nil {
			return err
		}
		p.counts.observed.Store(true)
		label := fmt.Sprintf("behind %d waiting, ", n)
		if err := p.lags("backlog", label+"same process", false, 10); err != nil {
			return err
		}
		if err := p.lags("backlog", label+"other process", true, 20); err != nil {
			return err
		}
		if err := p.idle(label+"idle", 2); err != nil {
			return err
		}
		runtime.GC()
		var mem runtime.MemStats
		runtime.ReadMemStats(&mem)
		s.results.add("backlog", label+"live heap", "MiB", float64(mem.HeapAlloc)/(1<<20), goal{})
		s.results.add("backlog", label+"references kept", "messages", float64(p.reader.Stats().Indexed), goal{})
		s.results.add("backlog", label+"rows asked to be written", "rows", float64(p.counts.marked.Load()), atMost(0))
		return p.untouched(name, label, n)
	})
}

// untouched looks at every waiting row: none may ever have been leased.
func (p *pipe) untouched(name, label string, want int) error {
	admin, err := p.opened.Admin()
	if err != nil {
		return err
	}
	var after queue.Cursor
	seen, touched := 0, 0
	for {
		letters, err := admin.Peek(p.s.c.Context, queue.Incoming, "", after, 5000)
		if err != nil {
			return err
		}
		if len(letters) == 0 {
			break
		}
		for _, l := range letters {
			after = queue.Cursor{ID: l.Message.ID}
			if l.Message.Destination != name {
				continue
			}
			seen++
			if l.Message.Attempts != 0 || !l.Message.LeaseToken.IsZero() {
				touched++
			}
		}
	}
	if seen != want {
		return fmt.Errorf("%d messages wait, expected %d", seen, want)
	}
	p.s.results.add("backlog", label+"rows that were leased", "rows", float64(touched), atMost(0))
	return nil
}
