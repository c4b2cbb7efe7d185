// Package writer is the command mvalve-writer.
package writer

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"
	"golang.org/x/time/rate"

	"github.com/mvalve/mvalve/cmd/internal/jsonline"
	"github.com/mvalve/mvalve/cmd/internal/setup"
	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/throttle"
	"github.com/mvalve/mvalve/valve"
)

const description = `Reads messages from the files, or from standard input without any ("-" is
standard input), and commits them at 1,000 lines or 20 ms after the first.

  echo '{"destination":"mail.example","body":"hello"}' | mvalve-writer
  mvalve-writer --destination mail.example --body hello
  mvalve-writer --format lines --destination crawl.example urls.txt

A JSON line has destination (required), body or body_base64, headers (a list of
pairs, or an object), lane (emergency, timed, incoming), priority (0 last to 9
first, normal 4), delay ("3s") or ready_at (RFC 3339), ttl ("1h") or expires_at,
and id (a version 7 UUID; one that is there already is refused). What
mvalve-reader prints is accepted; any other field is an error.

A bad line ends the run with exit code 65, naming file, line and field and how
many lines are committed; correct it and go on with --skip.

Every flag can also be given as a variable: MVALVE_DESTINATION for --destination.
Exit codes: 0 done, 1 bug, 2 usage, 65 bad data, 66 input not readable, 69 back
end unreachable, 74 output failed, 77 refused by the back end, 78 schema mismatch,
130 SIGINT, 143 SIGTERM (what was read is committed; the last line is named).`

// App returns the command.
func App() *cli.App {
	return &cli.App{
		Name:        "mvalve-writer",
		Usage:       "write messages into a pipe",
		UsageText:   "mvalve-writer [flags] [FILE...]",
		Description: description,
		Action:      run,
		Flags: append([]cli.Flag{
			&cli.StringFlag{Name: "format", Value: "json", Usage: "`FORMAT` of the input: json (one object a line), or lines (each line is the body of one message)"},
			&cli.StringFlag{Name: "body", Usage: "write one message with the body `TEXT` instead of reading"},
			&cli.StringFlag{Name: "destination", Usage: "`NAME` for messages that do not say theirs"},
			&cli.StringFlag{Name: "lane", Usage: "`LANE` for messages that do not say theirs: emergency, timed or incoming", DefaultText: "timed with a delay, else incoming"},
			&cli.IntFlag{Name: "priority", Value: queue.NormalLevel, Usage: "priority `N` for messages that do not say theirs: 0 (last) to 9 (first)"},
			&cli.DurationFlag{Name: "delay", Usage: "do not deliver before `DURATION` has passed, for messages that do not say it", DefaultText: "none"},
			&cli.DurationFlag{Name: "ttl", Usage: "do not deliver after `DURATION` has passed, for messages that do not say it", DefaultText: "for ever"},
			&cli.StringSliceFlag{Name: "header", Usage: "header `NAME=VALUE` for messages that have none of that name; repeatable"},
			&cli.StringFlag{Name: "rate", Usage: "write no faster than `N/DURATION`, such as 100/s", DefaultText: "no limit"},
			&cli.IntFlag{Name: "skip", Usage: "pass over the first `N` lines of the input"},
			&cli.BoolFlag{Name: "atomic", Usage: fmt.Sprintf("commit all lines or none; at most %d messages and %d MiB", valve.MaxInsert, valve.MaxInsertBytes>>20)},
			&cli.BoolFlag{Name: "print-ids", Usage: "print the id of every message once it is committed"},
			&cli.BoolFlag{Name: "json", Usage: `print one line {"inserted":N,"seconds":S} at the end`},
		}, setup.QueueFlags()...),
	}
}

// options are the flags, checked.
type options struct {
	format   string
	files    []string
	bytes    int64 // of all files; -1: not known
	body     *string
	defaults jsonline.Defaults
	limiter  *rate.Limiter // nil: no limit
	skip     int
	atomic   bool
	ids      bool
}

func parse(c *cli.Context) (*options, error) {
	o := &options{
		format: c.String("format"), files: c.Args().Slice(), skip: c.Int("skip"),
		atomic: c.Bool("atomic"), ids: c.Bool("print-ids"),
	}
	if o.format != "json" && o.format != "lines" {
		return nil, setup.Usagef("--format %q: use json or lines", o.format)
	}
	if c.IsSet("body") {
		body := c.String("body")
		o.body = &body
		if len(o.files) > 0 || o.skip > 0 {
			return nil, setup.Usagef("--body writes one message; leave out files and --skip")
		}
		if !c.IsSet("destination") {
			return nil, setup.Usagef("--body needs --destination NAME")
		}
	}
	if o.format == "lines" && !c.IsSet("destination") {
		return nil, setup.Usagef("--format lines needs --destination NAME")
	}
	if o.skip < 0 {
		return nil, setup.Usagef("--skip %d: use the number of lines to pass over", o.skip)
	}
	if err := o.parseDefaults(c); err != nil {
		return nil, err
	}
	if c.IsSet("rate") {
		if o.atomic {
			return nil, setup.Usagef("--rate and --atomic exclude each other: one commit has no rate")
		}
		limit, err := throttle.ParseLimit(c.String("rate"))
		if err != nil || limit.IsNone() || limit.Mode != throttle.Window || limit.Guard != 0 {
			return nil, setup.Usagef("--rate %q: use N/DURATION such as 100/s or 10/30s", c.String("rate"))
		}
		perSecond := float64(limit.Max) / limit.Interval.Seconds()
		o.limiter = rate.NewLimiter(rate.Limit(perSecond), max(1, int(perSecond/100)))
	}
	return o, o.checkFiles()
}

func (o *options) parseDefaults(c *cli.Context) error {
	d := &o.defaults
	d.Destination, d.Delay, d.TTL = c.String("destination"), c.Duration("delay"), c.Duration("ttl")
	if c.IsSet("destination") {
		if err := queue.CheckDestination(d.Destination); err != nil {
			return setup.Usagef("--destination: %w", err)
		}
	}
	if lane := c.String("lane"); lane != "" {
		var err error
		if d.Lane, err = queue.ParseLane(lane); err != nil {
			return setup.Usagef("--lane %q: use emergency, timed or incoming", lane)
		}
	}
	if d.Lane == queue.Incoming && d.Delay > 0 {
		return setup.Usagef("--lane incoming cannot have a --delay; use --lane timed or leave the lane out")
	}
	level := c.Int("priority")
	if level < 0 || level > 9 {
		return setup.Usagef("--priority %d: use 0 (last) to 9 (first)", level)
	}
	d.Priority = queue.Level(level)
	if d.Delay < 0 || d.TTL < 0 {
		return setup.Usagef("--delay and --ttl cannot be negative; use a duration such as 3s")
	}
	for _, header := range c.StringSlice("header") {
		name, value, ok := strings.Cut(header, "=")
		if !ok || name == "" {
			return setup.Usagef("--header %q: use NAME=VALUE", header)
		}
		d.Headers = append(d.Headers, queue.Header{Name: name, Value: value})
	}
	return nil
}

// checkFiles finds a missing file before anything is written.
func (o *options) checkFiles() error {
	if o.body != nil {
		return nil
	}
	if len(o.files) == 0 {
		o.files = []string{"-"}
	}
	for _, name := range o.files {
		if name == "-" {
			o.bytes = -1
			continue
		}
		info, err := os.Stat(name)
		if err == nil && info.IsDir() {
			err = errors.New("is a folder")
		}
		if err != nil {
			var path *fs.PathError
			if errors.As(err, &path) {
				err = path.Err
			}
			return setup.Failf(setup.ExitInput, "%s: %w", name, err)
		}
		if o.bytes >= 0 {
			o.bytes += info.Size()
		}
	}
	return nil
}

func run(c *cli.Context) (err error) {
	o, err := parse(c)
	if err != nil {
		return err
	}
	pipe, err := setup.OpenPipe(c, setup.PipeOptions{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, pipe.Close()) }()
	pipe.Announce(c)
	w, err := valve.NewWriter(c.Context, pipe.Store, valve.WriterConfig{Logger: pipe.Log})
	if err != nil {
		return fmt.Errorf("queue %s: %w", pipe.Name, err)
	}
	defer func() { err = errors.Join(err, w.Close()) }()

	maxBody := queue.MaxBody
	if s, ok := pipe.Store.(queue.Sizer); ok {
		maxBody = s.MaxBody()
	}
	if o.body == nil && slices.Contains(o.files, "-") && term.IsTerminal(int(os.Stdin.Fd())) {
		fmt.Fprintf(c.App.ErrWriter, "%s: reading from the terminal; end with Ctrl-D\n", c.App.Name)
	}
	job := &job{
		o: o, w: w, out: c.App.Writer, bar: newBar(c.App.ErrWriter, o),
		parser: jsonline.Parser{Defaults: o.defaults, Now: w.Now, MaxBody: maxBody},
	}
	start := time.Now()
	err = job.run(c.Context)
	job.bar.close()
	seconds := time.Since(start).Seconds()
	if c.Bool("json") {
		_, printErr := fmt.Fprintf(c.App.Writer, "{\"inserted\":%d,\"seconds\":%.3f}\n", job.inserted, seconds)
		if err == nil && printErr != nil {
			err = setup.Failf(setup.ExitOutput, "standard output: %w", printErr)
		}
	} else if err == nil {
		fmt.Fprintf(c.App.ErrWriter, "%s: inserted %d in %.3f s\n", c.App.Name, job.inserted, seconds)
	}
	return err
}
