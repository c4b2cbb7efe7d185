package admin

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/mvalve/mvalve/cmd/internal/jsonline"
	"github.com/mvalve/mvalve/cmd/internal/setup"
	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/throttle"
)

func limitCommand() *cli.Command {
	return &cli.Command{
		Name: "limit", Usage: "show and change limits",
		Subcommands: []*cli.Command{
			{Name: "ls", Usage: "list all patterns", Flags: append([]cli.Flag{jsonFlag()}, setup.QueueFlags()...), Action: limitList},
			{Name: "set", Usage: "limit the destinations that match", ArgsUsage: "PATTERN LIMIT", Action: limitSet,
				Flags: append([]cli.Flag{
					&cli.IntFlag{Name: "weight", DefaultText: "1", Usage: fmt.Sprintf("share among destinations, 1 to %d", throttle.MaxWeight)},
					&cli.IntFlag{Name: "max-in-flight", DefaultText: "no cap", Usage: "most deliveries out at once per reader, `N`; 0 for no cap"},
				}, setup.QueueFlags()...)},
			{Name: "rm", Usage: "let the pattern inherit its limit again", ArgsUsage: "PATTERN", Flags: setup.QueueFlags(), Action: limitRemove},
			{Name: "load", Usage: "set the limits in a file, all or none of its lines checked first", ArgsUsage: "FILE", Flags: setup.QueueFlags(), Action: limitLoad,
				Description: "Each line is PATTERN LIMIT, with PATTERN in double quotes if it has blanks. Blank lines and\nlines that begin with # are skipped. \"-\" is standard input."},
			{Name: "reset", Usage: "forget past dispatches: the one verb after which a window may hold more than its limit", ArgsUsage: "DEST",
				Flags: setup.QueueFlags(), Action: limitReset},
		},
	}
}

// ruleRow is a line of `limit ls`.
type ruleRow struct {
	Pattern     string `json:"pattern"`
	Limit       string `json:"limit,omitempty"`
	Weight      *int   `json:"weight,omitempty"`
	MaxInFlight *int   `json:"max_in_flight,omitempty"`
	Paused      *bool  `json:"paused,omitempty"`
	Version     int64  `json:"version"`
	ChangedAt   string `json:"changed_at"`
}

func limitList(c *cli.Context) error {
	if err := arguments(c); err != nil {
		return err
	}
	return withPipe(c, setup.PipeOptions{MustExist: true}, func(pipe *setup.Pipe) error {
		store, err := pipe.Rules()
		if err != nil {
			return err
		}
		rules := throttle.NewRules(store, pipe.Log)
		if err := rules.Reload(c.Context, time.Now()); err != nil {
			return err
		}
		var rows []ruleRow
		for _, r := range rules.Rules() {
			if r.IsEmpty() {
				continue // only remembers what applied before
			}
			row := ruleRow{Pattern: r.Pattern, Weight: r.Weight, MaxInFlight: r.MaxInFlight, Paused: r.Paused,
				Version: r.Version, ChangedAt: jsonline.FormatTime(r.ChangedAt)}
			if r.Limit != nil {
				row.Limit = r.Limit.String()
			}
			rows = append(rows, row)
		}
		return table(c, "PATTERN\tLIMIT\tWEIGHT\tMAX IN FLIGHT\tPAUSED\tCHANGED", rows, func(r ruleRow) string {
			return fmt.Sprintf("%s\t%s\t%s\t%s\t%s\t%s", show(r.Pattern), orDash(r.Limit), deref(r.Weight), deref(r.MaxInFlight), deref(r.Paused), r.ChangedAt)
		})
	})
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func deref[T any](p *T) string {
	if p == nil {
		return "-"
	}
	return fmt.Sprint(*p)
}

// show quotes a name that a table cannot hold as it is.
func show(name string) string {
	if strings.ContainsFunc(name, func(r rune) bool { return !strconv.IsPrint(r) }) {
		return strconv.Quote(name)
	}
	return name
}

func limitSet(c *cli.Context) error {
	if c.NArg() < 2 {
		return arguments(c, "PATTERN", "LIMIT")
	}
	pattern := c.Args().First()
	if err := checkPattern(pattern); err != nil {
		return err
	}
	limit, err := throttle.ParseLimit(strings.Join(c.Args().Tail(), " "))
	if err != nil {
		return setup.Usagef("LIMIT: %w", err)
	}
	weight, inFlight := optional(c, "weight"), optional(c, "max-in-flight")
	if weight != nil && (*weight < 1 || *weight > throttle.MaxWeight) {
		return setup.Usagef("--weight %d: use 1 to %d", *weight, throttle.MaxWeight)
	}
	if inFlight != nil && *inFlight < 0 {
		return setup.Usagef("--max-in-flight %d: use 0 (no cap) or more", *inFlight)
	}
	return withRules(c, func(_ *setup.Pipe, store throttle.RuleStore, now time.Time) error {
		rule, err := throttle.SetLimit(c.Context, store, now, pattern, limit)
		if err != nil {
			return err
		}
		if weight != nil || inFlight != nil {
			if weight == nil {
				weight = rule.Weight
			}
			if inFlight == nil {
				inFlight = rule.MaxInFlight
			}
			if _, err := throttle.SetShare(c.Context, store, now, pattern, weight, inFlight); err != nil {
				return err
			}
		}
		return say(c, "%s: %s", show(pattern), limit)
	})
}

func optional(c *cli.Context, name string) *int {
	if !c.IsSet(name) {
		return nil
	}
	n := c.Int(name)
	return &n
}

func limitRemove(c *cli.Context) error {
	if err := arguments(c, "PATTERN"); err != nil {
		return err
	}
	pattern := c.Args().First()
	if err := checkPattern(pattern); err != nil {
		return err
	}
	return withRules(c, func(_ *setup.Pipe, store throttle.RuleStore, now time.Time) error {
		rules, _, err := store.LoadRules(c.Context)
		if err != nil {
			return err
		}
		for _, r := range rules {
			if r.Pattern == pattern && r.Limit != nil {
				if _, err := throttle.RemoveLimit(c.Context, store, now, pattern); err != nil {
					return err
				}
				return say(c, "%s: %s removed", show(pattern), *r.Limit)
			}
		}
		return setup.Failf(setup.ExitData, "%s has no limit of its own; see mvalve limit ls", show(pattern))
	})
}

// limitLine is a line of a file of limits.
type limitLine struct {
	pattern string
	limit   throttle.Limit
}

func limitLoad(c *cli.Context) error {
	if err := arguments(c, "FILE"); err != nil {
		return err
	}
	name := c.Args().First()
	file := os.Stdin
	if name != "-" {
		opened, err := os.Open(name)
		if err != nil {
			return setup.Failf(setup.ExitInput, "%w", err)
		}
		defer opened.Close()
		file = opened
	}
	lines, err := parseLimits(name, file)
	if err != nil {
		return err
	}
	return withRules(c, func(_ *setup.Pipe, store throttle.RuleStore, now time.Time) error {
		for n, l := range lines {
			if _, err := throttle.SetLimit(c.Context, store, now, l.pattern, l.limit); err != nil {
				return fmt.Errorf("%d of %d limits are set: %w", n, len(lines), err)
			}
		}
		return say(c, "%d limits are set", len(lines))
	})
}

// parseLimits reads all lines, so that a bad one changes nothing.
func parseLimits(name string, r io.Reader) ([]limitLine, error) {
	var lines []limitLine
	scanner := bufio.NewScanner(r)
	for number := 1; scanner.Scan(); number++ {
		text := strings.TrimSpace(scanner.Text())
		if text == "" || text[0] == '#' {
			continue
		}
		l, err := parseLimitLine(text)
		if err != nil {
			return nil, setup.Failf(setup.ExitData, "%s:%d: %w; nothing is changed", name, number, err)
		}
		lines = append(lines, l)
	}
	if err := scanner.Err(); err != nil {
		return nil, setup.Failf(setup.ExitInput, "%s: %w", name, err)
	}
	return lines, nil
}

func parseLimitLine(text string) (limitLine, error) {
	at := strings.IndexAny(text, " \t")
	if at < 0 {
		return limitLine{}, errors.New("LIMIT is missing; a line is PATTERN LIMIT")
	}
	pattern, rest := text[:at], text[at:]
	if text[0] == '"' {
		quoted, err := strconv.QuotedPrefix(text)
		if err != nil {
			return limitLine{}, errors.New("the quotes of PATTERN have no end")
		}
		rest = text[len(quoted):]
		if pattern, err = strconv.Unquote(quoted); err != nil {
			return limitLine{}, errors.New("PATTERN has a bad escape")
		}
	}
	if err := throttle.CheckPattern(pattern); err != nil {
		return limitLine{}, err
	}
	limit, err := throttle.ParseLimit(strings.TrimSpace(rest))
	return limitLine{pattern, limit}, err
}

func limitReset(c *cli.Context) error {
	if err := arguments(c, "DEST"); err != nil {
		return err
	}
	name := c.Args().First()
	if err := checkDestination(name); err != nil {
		return err
	}
	return withRules(c, func(pipe *setup.Pipe, store throttle.RuleStore, now time.Time) error {
		limiter, closeState, err := openThrottle(c, pipe)
		if err != nil {
			return err
		}
		defer closeState()
		if err := limiter.Forget(c.Context, now, name); err != nil {
			return err
		}
		if err := nudge(c.Context, store, now, name); err != nil {
			return fmt.Errorf("past dispatches are forgotten, but readers learn of it only when they ask again: %w", err)
		}
		audit := []queue.Stat{{Action: "limit_reset", Destination: name, Count: 1, At: now.Truncate(time.Second)}}
		if _, err := pipe.Store.Apply(c.Context, now, &queue.Change{Log: audit}); err != nil {
			return fmt.Errorf("past dispatches are forgotten, but that is not in the statistics: %w", err)
		}
		pipe.Log.Warn("past dispatches forgotten", "destination", name)
		return say(c, "%s: past dispatches are forgotten; the next window may hold more than the limit", show(name))
	})
}

// nudge stores the rule that limits a destination as it is. Its new version makes
// the readers forget until when they meant to wait.
func nudge(ctx context.Context, store throttle.RuleStore, now time.Time, destination string) error {
	rules := throttle.NewRules(store, nil)
	if err := rules.Reload(ctx, now); err != nil {
		return err
	}
	pattern := rules.Resolve(destination).Pattern
	for _, r := range rules.Rules() {
		if r.Pattern == pattern {
			_, err := store.PutRule(ctx, now, r, false)
			return err
		}
	}
	return nil // no rule limits it
}

// openThrottle opens the limiter on the stores that count this pipe's limits.
func openThrottle(c *cli.Context, pipe *setup.Pipe) (*throttle.Limiter, func(), error) {
	ruling, err := pipe.Ruling(c.Context)
	if err != nil {
		return nil, nil, err
	}
	fast, err := pipe.OpenLimiter(c.Context, ruling)
	if err != nil {
		return nil, nil, fmt.Errorf("state %s: %w", ruling, err)
	}
	limiter := throttle.NewLimiter(throttle.Config{Fast: fast, Durable: pipe.Durable(), Logger: pipe.Log})
	return limiter, func() { _ = fast.Close() }, nil
}

func pauseCommand(name, usage string, do func(context.Context, throttle.RuleStore, time.Time, string) (throttle.Rule, error)) *cli.Command {
	return &cli.Command{
		Name: name, Usage: usage, ArgsUsage: "PATTERN", Flags: setup.QueueFlags(),
		Action: func(c *cli.Context) error {
			if err := arguments(c, "PATTERN"); err != nil {
				return err
			}
			pattern := c.Args().First()
			if err := checkPattern(pattern); err != nil {
				return err
			}
			return withRules(c, func(_ *setup.Pipe, store throttle.RuleStore, now time.Time) error {
				if _, err := do(c.Context, store, now, pattern); err != nil {
					return err
				}
				return say(c, "%s: %sd", show(pattern), name)
			})
		},
	}
}

func holdCommand() *cli.Command {
	return &cli.Command{
		Name: "hold", Usage: "let nothing go to a destination for a while", ArgsUsage: "DEST DURATION", Flags: setup.QueueFlags(),
		Action: func(c *cli.Context) error {
			if err := arguments(c, "DEST", "DURATION"); err != nil {
				return err
			}
			name := c.Args().First()
			if err := checkDestination(name); err != nil {
				return err
			}
			d, err := time.ParseDuration(c.Args().Get(1))
			if err != nil || d <= 0 {
				return setup.Usagef("DURATION %q: use a duration such as 30s or 1h30m", c.Args().Get(1))
			}
			return withRules(c, func(_ *setup.Pipe, store throttle.RuleStore, now time.Time) error {
				until := now.Add(d).Truncate(time.Microsecond)
				hold := throttle.Hold{Destination: name, Until: until, RestUntil: until, Reason: "operator"}
				if err := store.PutHold(c.Context, now, hold); err != nil {
					return err
				}
				return say(c, "%s: held until %s", show(name), jsonline.FormatTime(until))
			})
		},
	}
}

func releaseCommand() *cli.Command {
	return &cli.Command{
		Name: "release", Usage: "end the hold of a destination", ArgsUsage: "DEST", Flags: setup.QueueFlags(),
		Action: func(c *cli.Context) error {
			if err := arguments(c, "DEST"); err != nil {
				return err
			}
			name := c.Args().First()
			if err := checkDestination(name); err != nil {
				return err
			}
			return withRules(c, func(_ *setup.Pipe, store throttle.RuleStore, now time.Time) error {
				if err := store.Free(c.Context, now, name); err != nil {
					return err
				}
				return say(c, "%s: released", show(name))
			})
		},
	}
}
