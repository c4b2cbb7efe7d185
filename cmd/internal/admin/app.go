// Package admin is the command mvalve: it makes tables, sets limits, looks into
// a pipe and repairs it.
package admin

import (
	"encoding/json"
	"errors"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/mvalve/mvalve/cmd/internal/setup"
	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/throttle"
)

const description = `A message valve: producers write messages for many destinations into one pipe
(mvalve-writer), readers take them out, never faster than each destination's limit
(mvalve-reader). This command administrates the pipe.

  mvalve init --queue mysql://user:password@host/db --state memcached://host:11211
  mvalve limit set mail.example 10/30s
  mvalve explain mail.example

A LIMIT is MAX/INTERVAL, then optionally window, strict or paced, then optionally
guard=DURATION: 10/30s, "1/1.4s strict", "10/30s paced guard=50ms", or none.
A PATTERN is a destination or a glob: * any bytes, ? one byte, \ escapes. The exact
name wins, then the pattern with more literal bytes. Changes reach every reader
within a second.

Every flag can also be given as a variable: MVALVE_QUEUE for --queue.
Exit codes: 0 done, 1 bug, 2 usage, 65 bad data, 66 input not readable, 69 back
end unreachable, 74 output failed, 77 refused by the back end, 78 schema or state
mismatch.`

// App returns the command with extra subcommands.
func App(extra ...*cli.Command) *cli.App {
	return &cli.App{
		Name: "mvalve", Usage: "administrate a message valve", Description: description,
		UsageText: "mvalve COMMAND [flags] [arguments]",
		Action:    unknown,
		Commands: append([]*cli.Command{
			initCommand(), limitCommand(),
			pauseCommand("pause", "stop the destinations that match", throttle.Pause),
			pauseCommand("resume", "end a pause of the same pattern", throttle.Resume),
			holdCommand(), releaseCommand(), explainCommand(), statsCommand(), deadCommand(),
			auditCommand(), completionCommand(),
		}, extra...),
	}
}

func unknown(c *cli.Context) error {
	if c.Args().Present() {
		return setup.Usagef("unknown command %q; see mvalve --help", c.Args().First())
	}
	return cli.ShowAppHelp(c)
}

// jsonFlag is --json.
func jsonFlag() cli.Flag {
	return &cli.BoolFlag{Name: "json", Usage: "print JSON lines instead of a table"}
}

// arguments checks that there are as many arguments as names.
func arguments(c *cli.Context, names ...string) error {
	if c.NArg() < len(names) {
		return setup.Usagef("%s is missing; see mvalve %s --help", names[c.NArg()], c.Command.FullName())
	}
	if c.NArg() > len(names) {
		return setup.Usagef("unexpected argument %q; see mvalve %s --help", c.Args().Get(len(names)), c.Command.FullName())
	}
	return nil
}

// withPipe opens the queue, runs f and closes it.
func withPipe(c *cli.Context, options setup.PipeOptions, f func(*setup.Pipe) error) (err error) {
	pipe, err := setup.OpenPipe(c, options)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, pipe.Close()) }()
	if pipe.Created {
		pipe.Announce(c)
	}
	return f(pipe)
}

// withRules is withPipe for what changes limits and holds.
func withRules(c *cli.Context, f func(*setup.Pipe, throttle.RuleStore, time.Time) error) error {
	return withPipe(c, setup.PipeOptions{}, func(pipe *setup.Pipe) error {
		rules, err := pipe.Rules()
		if err != nil {
			return err
		}
		now, err := pipe.Store.Now(c.Context)
		if err != nil {
			return err
		}
		return f(pipe, rules, now)
	})
}

// table prints rows as JSON lines with --json, else as columns under a heading.
func table[T any](c *cli.Context, heading string, rows []T, columns func(T) string) error {
	if c.Bool("json") {
		encoder := json.NewEncoder(c.App.Writer)
		encoder.SetEscapeHTML(false)
		for _, row := range rows {
			if err := encoder.Encode(row); err != nil {
				return setup.Failf(setup.ExitOutput, "standard output: %w", err)
			}
		}
		return nil
	}
	w := tabwriter.NewWriter(c.App.Writer, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, heading)
	for _, row := range rows {
		fmt.Fprintln(w, columns(row))
	}
	if err := w.Flush(); err != nil {
		return setup.Failf(setup.ExitOutput, "standard output: %w", err)
	}
	return nil
}

// say prints one line on standard output.
func say(c *cli.Context, format string, args ...any) error {
	if _, err := fmt.Fprintf(c.App.Writer, format+"\n", args...); err != nil {
		return setup.Failf(setup.ExitOutput, "standard output: %w", err)
	}
	return nil
}

func checkPattern(pattern string) error {
	if err := throttle.CheckPattern(pattern); err != nil {
		return setup.Usagef("PATTERN: %w", err)
	}
	return nil
}

func checkDestination(name string) error {
	if err := queue.CheckDestination(name); err != nil {
		return setup.Usagef("DEST: %w", err)
	}
	return nil
}

func initCommand() *cli.Command {
	return &cli.Command{
		Name: "init", Usage: "make the tables, and say with --state where limits are counted",
		Description: "Does nothing to tables that are there. With --state it moves the counting of the limits:\nreaders that run follow within two seconds, what was counted before is taken as lost, so\nthat every destination may pause for one interval of its limit.",
		Flags:       append([]cli.Flag{setup.StateFlag()}, setup.QueueFlags()...),
		Action: func(c *cli.Context) error {
			if err := arguments(c); err != nil {
				return err
			}
			if c.IsSet("state") {
				if _, err := setup.ParseState(c.String("state")); err != nil {
					return err
				}
			}
			return withPipe(c, setup.PipeOptions{Init: true}, func(pipe *setup.Pipe) error { return initialize(c, pipe) })
		},
	}
}

func initialize(c *cli.Context, pipe *setup.Pipe) error {
	if store, ok := pipe.Store.(queue.Initializer); ok {
		if err := store.Init(c.Context); err != nil {
			return fmt.Errorf("queue %s: %w", pipe.Name, err)
		}
	}
	if err := say(c, "queue %s: tables ready", pipe.Name); err != nil || !c.IsSet("state") {
		return err
	}
	ruling, moved, err := pipe.Move(c.Context, c.String("state"))
	if err != nil {
		return err
	}
	how := "limits are counted in"
	if moved {
		how = "limits are from now on counted in"
	}
	return say(c, "%s %s (epoch %d)", how, ruling, ruling.Epoch)
}
