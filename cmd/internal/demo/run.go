package demo

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/time/rate"

	"github.com/mvalve/mvalve/cmd/internal/setup"
	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/throttle"
	"github.com/mvalve/mvalve/valve"
)

const (
	title       = "mvalve demo"
	refresh     = 100 * time.Millisecond
	startAndEnd = 1500 * time.Millisecond // of a run, in which no messages flow
	startWithin = 20 * time.Second        // for the readers to be alive
	lateness    = 20 * time.Second        // after the end and the last arrival, when what is missing is given up
	leaveWithin = 20 * time.Second        // for the cleaning up
	insertSize  = 100
)

// sent is a message that was written.
type sent struct {
	id        string
	target    *target
	at        int64 // when Insert was called, on the receiver's clock
	emergency bool
}

// job is one run.
type job struct {
	c        *cli.Context
	o        *options
	pipe     *setup.Pipe
	rules    throttle.RuleStore
	admin    queue.Admin
	ruling   setup.Ruling
	stderr   io.Writer
	prefix   string
	targets  []*target
	span     time.Duration // between the first and the last message, about
	receiver *receiver
	readers  []*process

	mu   sync.Mutex
	sent []sent
}

func run(c *cli.Context) (err error) {
	o, err := parse(c)
	if err != nil {
		return err
	}
	if o.embedded {
		dir, err := os.MkdirTemp("", "mvalve-demo-")
		if err != nil {
			return setup.Failf(setup.ExitRefused, "no temporary folder for the queue: %w", err)
		}
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
		if err := c.Set("queue", "sqlite:"+filepath.Join(dir, "mvalve.db")); err != nil {
			return err
		}
	}
	pipe, err := setup.OpenPipe(c, setup.PipeOptions{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, pipe.Close()) }()
	pipe.Announce(c)
	j := &job{c: c, o: o, pipe: pipe, stderr: c.App.ErrWriter, prefix: "demo", span: o.total - startAndEnd}
	if !o.embedded {
		j.prefix += "-" + strings.ToLower(rand.Text()[:5])
	}
	j.targets = newTargets(j.prefix, j.span)
	err = j.run(c.Context)
	if s, ok := setup.WasSignalled(c.Context); ok {
		return setup.Failf(s.Code(), "%w", s)
	}
	return err
}

func (j *job) run(ctx context.Context) (err error) {
	if err := j.prepare(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, j.clean(ctx)) }()
	now, err := j.pipe.Store.Now(ctx)
	if err != nil {
		return err
	}
	names := make([]string, len(j.targets))
	for i, t := range j.targets {
		names[i] = t.name
		if _, err := throttle.SetLimit(ctx, j.rules, now, t.name, t.limit); err != nil {
			return fmt.Errorf("set the limit of %s: %w", t.name, err)
		}
	}
	if j.receiver, err = receive(ctx, names); err != nil {
		return err
	}
	defer j.receiver.close()
	err = j.startReaders(ctx)
	if err == nil {
		err = j.flow(ctx)
	}
	if stopErr := stop(j.readers); err == nil {
		err = stopErr
	}
	if len(j.sent) == 0 {
		return err
	}
	result, countErr := j.result(context.WithoutCancel(ctx))
	if err = errors.Join(err, countErr); countErr != nil {
		return err
	}
	if printErr := result.print(j.c.App.Writer, j.o.json); printErr != nil || err != nil {
		return errors.Join(err, printErr)
	}
	return result.verdict()
}

// prepare finds out whether the demo may run on this queue. It changes nothing
// but to settle where limits are counted.
func (j *job) prepare(ctx context.Context) (err error) {
	if j.rules, err = j.pipe.Rules(); err != nil {
		return err
	}
	if j.admin, err = j.pipe.Admin(); err != nil {
		return err
	}
	alive, err := j.pipe.Readers(ctx)
	if err != nil {
		return err
	}
	if alive > 0 && !j.o.force {
		return setup.Usagef("queue %s has %d live readers, which may take the demo's messages; stop them, or use --force if none of them serves destinations demo-*", j.pipe.Name, alive)
	}
	j.ruling, err = j.pipe.Rule(ctx, j.c.String("state"))
	return err
}

// startReaders starts the readers and returns when all of them are alive.
func (j *job) startReaders(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startWithin)
	defer cancel()
	before, err := j.pipe.Readers(ctx)
	if err != nil {
		return err
	}
	var logs io.Writer
	if j.c.IsSet("log-level") {
		logs = j.stderr
	}
	for range j.o.readers {
		p, err := startReader(ctx, j.c.String("queue"), []string{
			"--post", j.receiver.url + "{destination}", "--destination", j.prefix + ".*", "--grace", readerGrace.String(),
			"--log-level", j.c.String("log-level"), "--log-format", j.c.String("log-format"),
		}, logs)
		if err != nil {
			return err
		}
		j.readers = append(j.readers, p)
	}
	tick := time.NewTicker(refresh / 2)
	defer tick.Stop()
	for {
		alive, err := j.pipe.Readers(ctx)
		if err == nil && alive >= before+j.o.readers {
			return nil
		}
		if err := j.ended(); err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return setup.Failf(setup.ExitUnavailable, "%d of %d readers were alive after %v: %w", max(alive-before, 0), j.o.readers, startWithin, errors.Join(ctx.Err(), err))
		}
	}
}

// ended returns an error if a reader has ended, which none does by itself.
func (j *job) ended() error {
	for _, p := range j.readers {
		select {
		case <-p.done:
			if p.err == nil {
				return fmt.Errorf("reader process %d ended too early: %s", p.cmd.Process.Pid, p.output.last())
			}
			return p.failure()
		default:
		}
	}
	return nil
}

// flow writes the messages and returns when they have arrived and left the
// queue, or are given up.
func (j *job) flow(ctx context.Context) error {
	w, err := valve.NewWriter(ctx, j.pipe.Store, valve.WriterConfig{Logger: j.pipe.Log})
	if err != nil {
		return fmt.Errorf("queue %s: %w", j.pipe.Name, err)
	}
	defer func() { _ = w.Close() }()
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	all := backlog(j.targets, w.Now(), j.span)
	fmt.Fprintf(j.stderr, "%s: %d readers post %d messages to %s, about %v\n", title, len(j.readers),
		len(all)+len(emergencies(j.targets)), j.receiver.url, j.o.total)
	started := time.Now()
	for len(all) > 0 {
		n := min(len(all), insertSize)
		if err := j.insert(ctx, w, all[:n]...); err != nil {
			return err
		}
		all = all[n:]
	}
	var alarm sync.WaitGroup
	defer alarm.Wait()
	defer end(nil)
	alarm.Go(func() {
		if err := j.raise(ctx, w); err != nil {
			end(err)
		}
	})
	if err = j.watch(ctx, started); err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return err
}

// raise writes the emergencies one after the other.
func (j *job) raise(ctx context.Context, w *valve.Writer) error {
	all := emergencies(j.targets)
	gap := time.Duration(emergencyEnd * float64(j.span) / float64(len(all)))
	pace := rate.NewLimiter(rate.Every(gap), 1)
	for _, m := range all {
		if err := pace.Wait(ctx); err != nil {
			return nil //nolint:nilerr // the run ended; watch says why
		}
		if err := j.insert(ctx, w, m); err != nil && ctx.Err() == nil {
			return err
		}
	}
	return nil
}

// insert writes messages and notes when.
func (j *job) insert(ctx context.Context, w *valve.Writer, messages ...*queue.Message) error {
	at := j.receiver.now()
	if err := w.Insert(ctx, messages...); err != nil {
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, m := range messages {
		for _, t := range j.targets {
			if t.name == m.Destination {
				j.sent = append(j.sent, sent{id: m.ID.String(), target: t, at: at, emergency: m.Lane == queue.Emergency})
			}
		}
	}
	return nil
}

// watch shows the progress until everything has arrived and left the queue, the
// time is over, a reader fails or ctx ends.
func (j *job) watch(ctx context.Context, started time.Time) error {
	view := newView(j.stderr, j.targets, j.c.IsSet("log-level"))
	defer view.close()
	planned, before, moved := 0, 0, time.Now()
	for _, t := range j.targets {
		planned += t.total()
	}
	tick := time.NewTicker(refresh)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		elapsed := time.Since(started)
		arrived := 0
		accounts := make([]account, len(j.targets))
		for i, t := range j.targets {
			accounts[i] = j.receiver.account(t)
			arrived += accounts[i].messages
		}
		if arrived != before {
			before, moved = arrived, time.Now()
		}
		view.update(elapsed, accounts)
		if err := j.ended(); err != nil {
			return err
		}
		if elapsed > j.span+lateness && time.Since(moved) > lateness {
			return nil // the result tells what is missing
		}
		if arrived < planned {
			continue
		}
		if left, err := j.left(ctx); err == nil && sum(left) == 0 {
			return nil
		}
	}
}
