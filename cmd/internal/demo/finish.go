package demo

import (
	"context"
	"errors"
	"fmt"

	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/throttle"
)

// left counts per target what is in the queue, dead letters not included.
func (j *job) left(ctx context.Context) ([]int, error) {
	now, err := j.pipe.Store.Now(ctx)
	if err != nil {
		return nil, err
	}
	left := make([]int, len(j.targets))
	for i, t := range j.targets {
		counts, err := j.admin.Count(ctx, now, t.name)
		if err != nil {
			return nil, fmt.Errorf("count what is left for %s: %w", t.name, err)
		}
		for _, n := range counts {
			if n.Table != queue.Dead {
				left[i] += int(n.Waiting + n.Leased)
			}
		}
	}
	return left, nil
}

func sum(numbers []int) int {
	total := 0
	for _, n := range numbers {
		total += n
	}
	return total
}

// result judges the run once the readers have ended.
func (j *job) result(ctx context.Context) (*result, error) {
	left, err := j.left(ctx)
	if err != nil {
		return nil, err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	r := &result{Queue: j.pipe.Name, State: j.ruling.String(), Readers: len(j.readers)}
	last := j.sent[0].at
	for i, t := range j.targets {
		a := j.receiver.account(t)
		last = max(last, a.report.Last)
		r.Destinations = append(r.Destinations, newRow(t, a, j.receiver.firsts(t.name), j.sent, left[i]))
	}
	r.Seconds = float64(last-j.sent[0].at) / 1e6
	r.sum()
	return r, nil
}

// clean removes from somebody's queue what the demo left there: its limits, what
// was counted under them, and messages that did not arrive.
func (j *job) clean(ctx context.Context) error {
	if j.o.embedded {
		return nil // the file goes
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaveWithin)
	defer cancel()
	if err := j.remove(ctx); err != nil {
		return fmt.Errorf("limits, messages or dead letters of %s.* are still there: %w", j.prefix, err)
	}
	return nil
}

func (j *job) remove(ctx context.Context) error {
	now, err := j.pipe.Store.Now(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, t := range j.targets {
		for _, lane := range []queue.Lane{queue.Emergency, queue.Timed, queue.Incoming, queue.Dead} {
			_, err := j.admin.Move(ctx, now, queue.Move{From: lane, Destination: t.name, Purge: true})
			errs = append(errs, err)
		}
		_, err := throttle.RemoveLimit(ctx, j.rules, now, t.name)
		errs = append(errs, err)
	}
	fast, err := j.pipe.OpenLimiter(ctx, j.ruling)
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	defer func() { _ = fast.Close() }()
	limiter := throttle.NewLimiter(throttle.Config{Fast: fast, Durable: j.pipe.Durable(), Logger: j.pipe.Log})
	for _, t := range j.targets {
		errs = append(errs, limiter.Forget(ctx, now, t.name))
	}
	return errors.Join(errs...)
}
