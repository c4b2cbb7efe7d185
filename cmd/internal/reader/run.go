package reader

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"

	"github.com/urfave/cli/v2"

	"github.com/mvalve/mvalve/cmd/internal/setup"
	"github.com/mvalve/mvalve/valve"
)

// printCredit is how many printed lines may wait for their acknowledgement.
const printCredit = 256

func run(c *cli.Context) (err error) {
	o, err := parse(c)
	if err != nil {
		return err
	}
	if len(o.command) > 0 {
		if _, err := exec.LookPath(o.command[0]); err != nil {
			return setup.Usagef("--%s: %w", o.mode, err)
		}
	}
	pipe, err := setup.OpenPipe(c, setup.PipeOptions{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, pipe.Close()) }()
	pipe.Announce(c)
	limiter, err := pipe.OpenState(c)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, limiter.Close()) }()
	if o.limit != nil {
		if err := pipe.SetDefaultLimit(c, *o.limit); err != nil {
			return err
		}
	}
	r, err := valve.OpenReader(c.Context, pipe.Store, valve.ReaderConfig{
		Logger: pipe.Log, State: limiter, Destinations: o.destinations, Lease: o.lease,
		MaxAttempts: o.maxAttempts, RetryMin: o.retryMin, RetryMax: o.retryMax,
		Emergency: o.emergency, OnEmergency: o.onEmergency,
	})
	if err != nil {
		return fmt.Errorf("queue %s: %w", pipe.Name, err)
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	credit := o.concurrency
	if o.mode == "print" {
		credit = max(credit, printCredit)
	}
	if o.count > 0 {
		credit = min(credit, o.count)
	}
	sub, err := r.Subscribe(valve.Filter{Globs: o.destinations}, credit)
	if err != nil {
		return err
	}
	j := newJob(o, r, sub, pipe, c.App.Name, c.App.ErrWriter)
	consumer, err := newConsumer(c.Context, j, c.App.Writer)
	if err != nil {
		return err
	}
	return j.run(c.Context, consumer)
}

// consumer does something with a delivery and says how it ended.
type consumer interface {
	// consume returns when the message is dealt with. Work ends early with ctx.
	consume(ctx context.Context, d *valve.Delivery) verdict
	// close ends what the consumer started, within ctx.
	close(ctx context.Context) error
}

func newConsumer(ctx context.Context, j *job, out io.Writer) (consumer, error) {
	switch j.o.mode {
	case "exec":
		return &executor{command: j.o.command, timeout: j.o.timeout, log: j.pipe.Log}, nil
	case "pipe":
		return startPiper(ctx, j)
	case "post":
		return newPoster(j.o), nil
	}
	return &printer{out: out}, nil
}
