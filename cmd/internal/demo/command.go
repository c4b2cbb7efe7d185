// Package demo is the command `mvalve demo`: a valve at work, judged by who
// receives. It starts real reader processes that post to an HTTP receiver in
// this process, writes messages of all lanes for three destinations with
// different limits, and counts at the receiver whether a window held too many.
package demo

import (
	"fmt"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/mvalve/mvalve/cmd/internal/setup"
)

const description = `Starts reader processes that post to an HTTP receiver on this machine, and writes
some hundred messages in all lanes for three destinations with different limits.
It ends with a table: what was sent and received, the rate that each limit allows
and the one achieved, how many windows held more than the limit allows as the
receiver counted them, and how long emergencies took from insert to arrival. An
emergency overtakes what waits for its destination, but keeps to the limit.

Without flags it needs nothing and leaves nothing: the queue is a file in a
temporary folder. With --queue it runs on your servers, with destinations of its
own (demo-XXXXX.*) whose limits and messages are removed at the end; it never
touches others. It refuses to run while other readers are alive, since one that
serves all destinations would take its messages; --force runs nevertheless. On a
pipe that no reader has served yet it settles, as any reader does, where the
limits are counted (--state).

The limits have a guard, because the receiver counts arrivals while mvalve
controls the moment of dispatch: the guard makes up for requests that travel longer.
Every request bears that moment, and the exit code judges by it, guard included: a
machine that is stopped for a while fails no valve.

Exit codes: 0 done, 1 a message was lost or a window was above its limit when it
was dispatched, 2 usage, 69 back end unreachable, 74 output failed, 75 not finished
in time, 77 refused by the back end, 78 schema or state mismatch, 130 SIGINT,
143 SIGTERM.`

// The bounds of the flags.
const (
	minSeconds = 5
	maxSeconds = 600
	maxReaders = 16
)

// Command returns the command demo. The program that has it must be the one that
// os.Executable names, with the command at its top: it starts itself as a reader.
func Command() *cli.Command {
	return &cli.Command{
		Name: "demo", Usage: "show the valve at work: three limits, several readers, a receiver that counts",
		UsageText: "mvalve demo [flags]", Description: description,
		Action: run, Subcommands: []*cli.Command{readerCommand()},
		CustomHelpTemplate: cli.CommandHelpTemplate, // the reader is not for people
		Flags: append([]cli.Flag{
			&cli.IntFlag{Name: "seconds", Value: 20, Usage: fmt.Sprintf("about how long it runs, `N` from %d to %d", minSeconds, maxSeconds)},
			&cli.IntFlag{Name: "readers", Value: 3, Usage: fmt.Sprintf("reader processes, `N` from 1 to %d", maxReaders)},
			&cli.BoolFlag{Name: "json", Usage: "print one JSON line instead of the table"},
			&cli.BoolFlag{Name: "force", Usage: "run although other readers are alive, which may take messages of the demo"},
			&cli.StringFlag{Name: "queue", DefaultText: "a file in a temporary folder", Usage: "`URL` of the queue, as for the other commands"},
			setup.StateFlag(),
		}, setup.LogFlags()...),
	}
}

// options are the flags, checked.
type options struct {
	total    time.Duration // of the whole run, about
	readers  int
	json     bool
	force    bool
	embedded bool // the queue is a file in a temporary folder
}

func parse(c *cli.Context) (*options, error) {
	if c.Args().Present() {
		return nil, setup.Usagef("unexpected argument %q; mvalve demo takes only flags", c.Args().First())
	}
	o := &options{
		total: time.Duration(c.Int("seconds")) * time.Second, readers: c.Int("readers"),
		json: c.Bool("json"), force: c.Bool("force"), embedded: c.String("queue") == "",
	}
	switch n := c.Int("seconds"); {
	case n < minSeconds || n > maxSeconds:
		return nil, setup.Usagef("--seconds %d: use a number from %d to %d", n, minSeconds, maxSeconds)
	case o.readers < 1 || o.readers > maxReaders:
		return nil, setup.Usagef("--readers %d: use a number from 1 to %d", o.readers, maxReaders)
	case strings.HasPrefix(c.String("queue"), "memory:"):
		return nil, setup.Usagef("--queue memory: cannot be shared by processes; use sqlite:PATH or mysql://user:password@host:port/database")
	case c.String("state") == "memory:":
		return nil, setup.Usagef("--state memory: counts for one reader only; use queue: or memcached://host:port,host:port")
	case c.String("state") != "":
		if _, err := setup.ParseState(c.String("state")); err != nil {
			return nil, err
		}
	}
	return o, nil
}
