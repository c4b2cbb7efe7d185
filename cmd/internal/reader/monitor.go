package reader

import (
	"context"
	"fmt"
	"time"

	"github.com/mvalve/mvalve/cmd/internal/jsonline"
	"github.com/mvalve/mvalve/cmd/internal/setup"
	"github.com/mvalve/mvalve/valve"
)

const (
	lookGap   = 25 * time.Millisecond // between two looks at what goes on
	hintAfter = 2 * time.Second       // of nothing to do
	drainIdle = 100 * time.Millisecond
	drainTell = 10 * time.Second // between two lines about what --drain waits for
	countGap  = 250 * time.Millisecond
	countPace = 20 // a count may take 1/countPace of the time
)

// monitor ends the run as --drain and --wait say, and gives the hints.
func (j *job) monitor(ctx context.Context) {
	tick := time.NewTicker(lookGap)
	defer tick.Stop()
	hinted := false
	told, countAt := j.started, j.started
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now := time.Now()
		idle := j.idle()
		if !hinted && now.Sub(j.started) >= hintAfter {
			j.hint(ctx)
			hinted = true
		}
		if hinted && !j.o.drain && j.o.wait == 0 {
			return
		}
		waited := j.o.wait > 0 && idle >= j.o.wait
		if !waited && (!j.o.drain || idle < drainIdle || now.Before(countAt)) {
			continue
		}
		pending, err := j.r.Pending(ctx)
		countAt = time.Now().Add(max(countGap, countPace*time.Since(now)))
		switch {
		case err != nil:
			if ctx.Err() == nil {
				j.pipe.Log.Warn("what is left could not be counted", "err", err)
			}
		case pending.Waiting+pending.Leased == 0 && j.idle() >= min(idle, drainIdle):
			j.stop(errEnough)
		case waited:
			j.stop(setup.Failf(setup.ExitUnfinished, "--wait %v ended with messages left: %s", j.o.wait, describe(pending)))
		case j.o.drain && time.Since(told) >= drainTell:
			fmt.Fprintf(j.stderr, "%s: --drain waits: %s\n", j.name, describe(pending))
			told = time.Now()
		}
	}
}

// idle is how long nothing has been under way.
func (j *job) idle() time.Duration {
	if j.busy.Load() > 0 {
		return 0
	}
	return time.Since(j.started) - time.Duration(j.lastBusy.Load())
}

// hint tells once, after two seconds without a message, how to write one or what
// the messages that are there wait for.
func (j *job) hint(ctx context.Context) {
	if j.taken.Load() > 0 {
		return
	}
	pending, err := j.r.Pending(ctx)
	switch {
	case err != nil || j.taken.Load() > 0:
	case pending.Waiting+pending.Leased > 0:
		fmt.Fprintf(j.stderr, "%s: nothing may go yet: %s\n", j.name, describe(pending))
	case !j.o.drain:
		fmt.Fprintf(j.stderr, "%s: nothing to do yet; write a message with: mvalve-writer --queue %s --destination mail.example --body hello\n", j.name, j.pipe.Name)
	}
}

// describe says how many messages are left and what the next one waits for.
func describe(p valve.Pending) string {
	text := fmt.Sprintf("%d waiting, %d leased", p.Waiting, p.Leased)
	switch {
	case p.Empty.Why == "":
		return text
	case p.Empty.Next.IsZero():
		return fmt.Sprintf("%s; %q waits (%s)", text, p.Empty.Destination, p.Empty.Why)
	}
	return fmt.Sprintf("%s; the next is for %q at %s (%s)", text, p.Empty.Destination, jsonline.FormatTime(p.Empty.Next), p.Empty.Why)
}
