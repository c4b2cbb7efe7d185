// Package bench is the command `mvalve bench`: it measures a pipe's speed on a
// queue, beside the same statements without the engine.
package bench

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"github.com/mvalve/mvalve/cmd/internal/setup"
)

const description = `Measures the benchmarks named, or all of them:

  raw      the store alone: insert, lease and ack, 1 to 1,000 messages per call
  cycle    the life-cycle insert, Next, Ack through the engine, and its share of raw
  limiter  what a limit that never throttles costs, and permits per state write
  latency  Insert to Next at low load, from the same and from another process
  idle     processor time of a reader with nothing to do, and with all throttled
  backlog  a new destination's message behind many of one throttled destination
  fair     Jain index over 1,000 destinations with unequal backlogs

Without --queue it works in temporary SQLite files. A queue that is named must be
empty; its tables are made if need be, and what was put in is removed again. All
commits are on disk (fsync) as in any other use; a database server must be set so
itself (innodb_flush_log_at_trx_commit=1).

Writer and readers run in one process but for "other process". Each figure is the
median of --repeat runs. Goals are for two cores; compare shares, not rates,
between machines.`

// Command returns `mvalve bench`.
func Command() *cli.Command {
	return &cli.Command{
		Name:        "bench",
		Usage:       "measure the speed of a queue, with and without the engine",
		UsageText:   "mvalve bench [flags] [NAME...]",
		Description: description,
		Action:      run,
		Subcommands: []*cli.Command{stompCommand()},
		Flags: append([]cli.Flag{
			&cli.StringFlag{Name: "queue", DefaultText: "temporary SQLite files", Usage: "`URL` of an empty queue: sqlite:PATH or mysql://user:password@host:port/database"},
			&cli.StringFlag{Name: "state", DefaultText: "queue:", Usage: "`URL` of a store that counts limits, measured beside queue: by the benchmark limiter: memcached://host:port,host:port"},
			&cli.IntFlag{Name: "seconds", Value: 5, Usage: "how many `SECONDS` each case is measured"},
			&cli.IntFlag{Name: "repeat", Value: 1, Usage: "how `MANY` times everything is measured; medians are printed"},
			&cli.IntFlag{Name: "backlog", Value: 100_000, Usage: "`NUMBER` of throttled messages in the benchmark backlog"},
			&cli.BoolFlag{Name: "json", Usage: "print one JSON object per figure instead of a table"},
			&cli.StringFlag{Name: "profile", Usage: "write processor, allocation and mutex profiles of each case into `FOLDER`"},
			&cli.StringFlag{Name: "role", Hidden: true, Usage: "what the other process does"},
			&cli.IntFlag{Name: "rate", Hidden: true, Value: lowLoad, Usage: "messages per second of the other process"},
		}, setup.LogFlags()...),
	}
}

// benchmarks by name, in order of running.
var benchmarks = []struct {
	name string
	run  func(*session) error
}{
	{"raw", (*session).raw},
	{"cycle", (*session).cycle},
	{"limiter", (*session).limiter},
	{"latency", (*session).latency},
	{"idle", (*session).idle},
	{"backlog", (*session).backlog},
	{"fair", (*session).fair},
}

func run(c *cli.Context) error {
	if role := c.String("role"); role != "" {
		return runRole(c, role)
	}
	s, err := newSession(c)
	if err != nil {
		return err
	}
	defer s.close()
	names, err := selected(c.Args().Slice())
	if err != nil {
		return err
	}
	for round := range c.Int("repeat") {
		s.bestRaw = 0
		for _, b := range benchmarks {
			if !slices.Contains(names, b.name) {
				continue
			}
			s.show("%s, run %d of %d", b.name, round+1, c.Int("repeat"))
			if err := b.run(s); err != nil {
				s.clear()
				return fmt.Errorf("%s: %w", b.name, err)
			}
		}
	}
	s.clear()
	return s.results.write(c.App.Writer, c.Bool("json"))
}

func selected(args []string) ([]string, error) {
	var known []string
	for _, b := range benchmarks {
		known = append(known, b.name)
	}
	for _, name := range args {
		if !slices.Contains(known, name) {
			return nil, setup.Usagef("unknown benchmark %.40q; known are %s", name, strings.Join(known, ", "))
		}
	}
	if len(args) == 0 {
		return known, nil
	}
	return args, nil
}

// session is one call of the command.
type session struct {
	c        *cli.Context
	seconds  time.Duration
	folder   string // temporary; of the SQLite files
	files    int
	terminal bool
	results  results
	bestRaw  float64 // messages per second of this round; 0: not measured yet
	rawOne   float64 // the same for one message per call
}

func newSession(c *cli.Context) (*session, error) {
	for _, name := range []string{"seconds", "repeat", "backlog"} { // flags of bench and of bench stomp
		if c.Int(name) < 1 {
			return nil, setup.Usagef("--%s %d: use a number from 1 on", name, c.Int(name))
		}
	}
	if c.IsSet("state") {
		if _, err := setup.ParseState(c.String("state")); err != nil {
			return nil, err
		}
	}
	s := &session{c: c, seconds: time.Duration(c.Int("seconds")) * time.Second}
	s.terminal = term.IsTerminal(int(os.Stderr.Fd()))
	if folder := c.String("profile"); folder != "" {
		if err := os.MkdirAll(folder, 0o755); err != nil {
			return nil, setup.Failf(setup.ExitOutput, "--profile: %w", err)
		}
	}
	if c.String("queue") == "" {
		var err error
		if s.folder, err = os.MkdirTemp("", "mvalve-bench-"); err != nil {
			return nil, setup.Failf(setup.ExitOutput, "temporary folder: %w", err)
		}
	}
	return s, nil
}

func (s *session) close() {
	if s.folder != "" {
		_ = os.RemoveAll(s.folder) // a temporary folder that stays does no harm
	}
}

// show tells on a terminal what is going on.
func (s *session) show(format string, a ...any) {
	if s.terminal {
		fmt.Fprintf(os.Stderr, "\r\x1b[Kbench: "+format, a...)
	}
}

func (s *session) clear() {
	if s.terminal {
		fmt.Fprint(os.Stderr, "\r\x1b[K")
	}
}
