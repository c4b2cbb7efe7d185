// Package reader is the command mvalve-reader.
package reader

import (
	"fmt"
	"net/url"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/mvalve/mvalve/cmd/internal/setup"
	"github.com/mvalve/mvalve/throttle"
	"github.com/mvalve/mvalve/valve"
)

const description = `Takes messages out of a pipe, never faster than the limit of each destination
allows, counted over all readers together. Without a mode each message is printed
as one JSON line, flushed, then acknowledged:

  mvalve-reader --limit 10/30s

--exec starts a command per message, with the body on its standard input and facts
as MVALVE_MESSAGE_ID, _DESTINATION, _LANE, _PRIORITY, _ATTEMPT, _ENQUEUED_AT,
_DISPATCHED_AT, _EXPIRES_AT, _BYTES (the length of the body: a command that finds less
has lost its reader) and _HEADERS (a JSON list of pairs). The string is split
at blanks; quotes and backslashes work, nothing else of a shell does. Exit code 0
acknowledges, 75 retries later, 65 is a dead letter, any other retries later.

--pipe starts one command that gets the JSON lines and answers each with a line
  {"id":"...","verdict":"ack"}
where verdict is ack, retry (with an optional "delay":"3s"), throttled (with
"delay"), or dead; "reason" is optional.

--post sends the body to a URL, in which {destination} is replaced. 2xx
acknowledges; 429 and 503 with Retry-After make the whole destination wait; 408, 429,
5xx, redirects and network errors retry later; other 4xx are dead letters. The
headers are those of the message, Idempotency-Key with its id, which a repetition
has too, and Mvalve-Dispatched-At.

Delivery is at least once. Every flag can also be given as a variable: MVALVE_LIMIT
for --limit; of a repeatable flag one value.
Exit codes: 0 done (also after SIGINT and SIGTERM), 1 bug, 2 usage, 65 bad data,
69 back end unreachable, 74 output failed, 75 --wait ended with messages left,
77 refused by the back end, 78 schema or state mismatch.`

// App returns the command.
func App() *cli.App {
	return &cli.App{
		Name:        "mvalve-reader",
		Usage:       "take messages out of a pipe, within the limits",
		UsageText:   "mvalve-reader [flags]",
		Description: description,
		Action:      run,
		Flags: append([]cli.Flag{
			&cli.StringFlag{Name: "exec", Usage: "start `COMMAND` for every message, with the body on its standard input"},
			&cli.StringFlag{Name: "pipe", Usage: "start `COMMAND` once; it reads messages and writes verdicts, both as JSON lines"},
			&cli.StringFlag{Name: "post", Usage: "POST every message to `URL`, in which {destination} is replaced"},
			&cli.StringSliceFlag{Name: "destination", Usage: "only destinations that match `GLOB` (* any bytes, ? one, \\ escapes); repeatable", DefaultText: "all"},
			&cli.StringFlag{Name: "limit", Usage: "`LIMIT` of destinations that have none, such as 10/30s, \"1/1.4s strict\", \"10/30s paced guard=50ms\"; stored as the pipe's default if it has none", DefaultText: "none"},
			&cli.IntFlag{Name: "concurrency", Usage: "messages under way at once, `N`", DefaultText: "1 printing, else 8"},
			&cli.IntFlag{Name: "count", Usage: "end after `N` messages", DefaultText: "no end"},
			&cli.BoolFlag{Name: "drain", Usage: "end when nothing of the destinations is left, waiting or leased"},
			&cli.DurationFlag{Name: "wait", Usage: "end when no message could go for `DURATION`, with exit code 75 if some are left", DefaultText: "for ever"},
			&cli.IntFlag{Name: "max-attempts", Value: 20, Usage: "after `N` attempts a message is a dead letter"},
			&cli.DurationFlag{Name: "retry-min", Value: time.Second, Usage: "first `DURATION` before a retry, doubling (±20 %)"},
			&cli.DurationFlag{Name: "retry-max", Value: time.Hour, Usage: "longest `DURATION` before a retry"},
			&cli.DurationFlag{Name: "lease", Value: time.Minute, Usage: "`DURATION` after which a message of a reader that died goes to another; extended while work is under way"},
			&cli.DurationFlag{Name: "grace", Value: 10 * time.Second, Usage: "on SIGINT or SIGTERM wait up to `DURATION` for what is under way"},
			&cli.DurationFlag{Name: "timeout", Value: 30 * time.Second, Usage: "longest `DURATION` of one command, answer or request"},
			&cli.StringFlag{Name: "emergency", Value: "limit", Usage: "`POLICY` of emergency messages: limit (first, within the limit) or bypass (at once, counted all the same)"},
			&cli.StringFlag{Name: "on-emergency", Value: "hold", Usage: "what an emergency with X-Mvalve-Duration does to older messages of its destination, `ACTION`: hold, or drop (they become dead letters)"},
			setup.StateFlag(),
		}, setup.QueueFlags()...),
	}
}

// options are the flags, checked.
type options struct {
	mode         string // print, exec, pipe or post
	command      []string
	url          string
	destinations []string
	limit        *throttle.Limit
	concurrency  int
	count        int
	drain        bool
	wait         time.Duration
	maxAttempts  int
	retryMin     time.Duration
	retryMax     time.Duration
	lease        time.Duration
	grace        time.Duration
	timeout      time.Duration
	emergency    valve.EmergencyPolicy
	onEmergency  valve.EmergencyAction
}

func parse(c *cli.Context) (*options, error) {
	if c.Args().Present() {
		return nil, setup.Usagef("unexpected argument %q; mvalve-reader takes only flags", c.Args().First())
	}
	o := &options{
		mode: "print", destinations: c.StringSlice("destination"), concurrency: c.Int("concurrency"), count: c.Int("count"),
		drain: c.Bool("drain"), wait: c.Duration("wait"), maxAttempts: c.Int("max-attempts"), retryMin: c.Duration("retry-min"),
		retryMax: c.Duration("retry-max"), lease: c.Duration("lease"), grace: c.Duration("grace"), timeout: c.Duration("timeout"),
	}
	if err := o.parseMode(c); err != nil {
		return nil, err
	}
	if c.IsSet("state") {
		if _, err := setup.ParseState(c.String("state")); err != nil {
			return nil, err
		}
	}
	for _, glob := range o.destinations {
		if err := throttle.CheckPattern(glob); err != nil {
			return nil, setup.Usagef("--destination: %w", err)
		}
	}
	if c.IsSet("limit") {
		limit, err := throttle.ParseLimit(c.String("limit"))
		if err != nil {
			return nil, setup.Usagef("--limit: %w", err)
		}
		o.limit = &limit
	}
	if err := o.parseEmergency(c); err != nil {
		return nil, err
	}
	return o, o.checkNumbers(c)
}

func (o *options) parseEmergency(c *cli.Context) error {
	switch policy := c.String("emergency"); policy {
	case "limit":
	case "bypass":
		o.emergency = valve.Bypass
	default:
		return setup.Usagef("--emergency %q: use limit or bypass", policy)
	}
	switch action := c.String("on-emergency"); action {
	case "hold":
	case "drop":
		o.onEmergency = valve.DropOthers
	default:
		return setup.Usagef("--on-emergency %q: use hold or drop", action)
	}
	return nil
}

func (o *options) parseMode(c *cli.Context) error {
	for _, mode := range []string{"exec", "pipe", "post"} {
		if !c.IsSet(mode) {
			continue
		}
		if o.mode != "print" {
			return setup.Usagef("--%s and --%s exclude each other", o.mode, mode)
		}
		o.mode = mode
	}
	switch o.mode {
	case "exec", "pipe":
		var err error
		if o.command, err = splitCommand(c.String(o.mode)); err != nil {
			return setup.Usagef("--%s: %w", o.mode, err)
		}
	case "post":
		o.url = c.String("post")
		// The placeholder is legal in a path and in a query, not as a host.
		u, err := url.Parse(expand(o.url, "x"))
		if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			return setup.Usagef("--post: not a URL such as https://host/path/{destination}")
		}
	}
	return nil
}

func (o *options) checkNumbers(c *cli.Context) error {
	if !c.IsSet("concurrency") {
		o.concurrency = 8
		if o.mode == "print" {
			o.concurrency = 1
		}
	}
	for _, f := range []struct {
		name  string
		value int
		least int
	}{{"concurrency", o.concurrency, 1}, {"count", o.count, 0}, {"max-attempts", o.maxAttempts, 1}} {
		if f.value < f.least {
			return setup.Usagef("--%s %d: use a number from %d on", f.name, f.value, f.least)
		}
	}
	if c.IsSet("count") && o.count == 0 {
		return setup.Usagef("--count 0: use a number from 1 on")
	}
	for _, f := range []struct {
		name  string
		value time.Duration
		least time.Duration
	}{
		{"wait", o.wait, 0}, {"retry-min", o.retryMin, time.Millisecond}, {"retry-max", o.retryMax, o.retryMin},
		{"lease", o.lease, time.Second}, {"grace", o.grace, 0}, {"timeout", o.timeout, time.Millisecond},
	} {
		if f.value < f.least {
			return setup.Usagef("--%s %v: use a duration of at least %v", f.name, f.value, f.least)
		}
	}
	return nil
}

// splitCommand splits at blanks outside of quotes; a backslash takes the next
// character as it is, except within single quotes.
func splitCommand(text string) ([]string, error) {
	var (
		words  []string
		word   []rune
		inWord bool
		quote  rune
		escape bool
	)
	for _, r := range text {
		switch {
		case escape:
			word, escape = append(word, r), false
		case r == '\\' && quote != '\'':
			escape, inWord = true, true
		case quote != 0 && r == quote:
			quote = 0
		case quote != 0:
			word = append(word, r)
		case r == '\'' || r == '"':
			quote, inWord = r, true
		case r == ' ' || r == '\t' || r == '\n':
			if inWord {
				words, word, inWord = append(words, string(word)), nil, false
			}
		default:
			word, inWord = append(word, r), true
		}
	}
	if quote != 0 || escape {
		return nil, fmt.Errorf("a quote or backslash in the command has no end")
	}
	if inWord {
		words = append(words, string(word))
	}
	if len(words) == 0 {
		return nil, fmt.Errorf("the command is empty")
	}
	return words, nil
}
