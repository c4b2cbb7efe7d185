package admin

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/mvalve/mvalve/cmd/internal/jsonline"
	"github.com/mvalve/mvalve/cmd/internal/setup"
	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/throttle"
)

func explainCommand() *cli.Command {
	return &cli.Command{
		Name: "explain", Usage: "say why a destination waits and when its next message goes", ArgsUsage: "DEST",
		Flags: append([]cli.Flag{jsonFlag()}, setup.QueueFlags()...),
		Action: func(c *cli.Context) error {
			if err := arguments(c, "DEST"); err != nil {
				return err
			}
			name := c.Args().First()
			if err := checkDestination(name); err != nil {
				return err
			}
			return withPipe(c, setup.PipeOptions{MustExist: true}, func(pipe *setup.Pipe) error {
				e, err := explain(c, pipe, name)
				if err != nil {
					return err
				}
				return table(c, "", []*explanation{e}, (*explanation).text)
			})
		},
	}
}

// explanation is what is known of a destination.
type explanation struct {
	Destination string `json:"destination"`
	Waiting     int64  `json:"waiting"`
	Leased      int64  `json:"leased"`
	Dead        int64  `json:"dead"`
	Limit       string `json:"limit"`
	Pattern     string `json:"pattern,omitempty"`
	Counted     int64  `json:"counted"`
	CountedIn   string `json:"counted_in"`
	Paused      bool   `json:"paused"`
	HeldUntil   string `json:"held_until,omitempty"`
	HeldFor     string `json:"held_for,omitempty"`
	NextDue     string `json:"next_due,omitempty"`
	Readers     int    `json:"readers"`
	Next        string `json:"next,omitempty"`
	Why         string `json:"why"`
}

func (e *explanation) text() string {
	limit := e.Limit
	if e.Pattern != "" {
		limit += " (" + show(e.Pattern) + "), " + fmt.Sprint(e.Counted) + " in the window, counted in " + e.CountedIn
	}
	out := fmt.Sprintf("destination\t%s\nmessages\t%d waiting, %d leased, %d dead\nlimit\t%s\nreaders\t%d alive",
		show(e.Destination), e.Waiting, e.Leased, e.Dead, limit, e.Readers)
	if e.HeldUntil != "" {
		out += fmt.Sprintf("\nheld until\t%s (%s)", e.HeldUntil, e.HeldFor)
	}
	if e.Next != "" {
		return out + fmt.Sprintf("\nnext\t%s: %s", e.Next, e.Why)
	}
	return out + "\nnext\t" + e.Why
}

func explain(c *cli.Context, pipe *setup.Pipe, name string) (*explanation, error) {
	ctx := c.Context
	now, err := pipe.Store.Now(ctx)
	if err != nil {
		return nil, err
	}
	e := &explanation{Destination: name, Limit: "none"}
	due, err := e.count(ctx, pipe, now)
	if err != nil {
		return nil, err
	}
	store, err := pipe.Rules()
	if err != nil {
		return nil, err
	}
	rules := throttle.NewRules(store, pipe.Log)
	if err := rules.Reload(ctx, now); err != nil {
		return nil, err
	}
	if e.Readers, err = pipe.Readers(ctx); err != nil {
		return nil, err
	}
	rule := rules.Resolve(name)
	e.Paused, e.Pattern = rule.Paused, rule.Pattern
	next := reasons{now: now}
	next.add(due, "no message is due before")
	if hold, ok := rules.Hold(name); ok && hold.Until.After(now) {
		e.HeldUntil, e.HeldFor = jsonline.FormatTime(hold.Until), hold.Reason
		next.add(hold.Until, "held ("+hold.Reason+")")
	}
	if !rule.Limit.IsNone() {
		e.Limit = rule.Limit.String()
		if err := e.usage(c, pipe, now, rule, &next); err != nil {
			next.unknown = fmt.Sprintf("nothing goes while the limits cannot be read: %v", err)
		}
	}
	e.conclude(next)
	return e, nil
}

// count counts the destination's messages and returns when the first is due.
func (e *explanation) count(ctx context.Context, pipe *setup.Pipe, now time.Time) (due time.Time, err error) {
	admin, err := pipe.Admin()
	if err != nil {
		return due, err
	}
	counts, err := admin.Count(ctx, now, e.Destination)
	if err != nil {
		return due, err
	}
	ready := false
	for _, n := range counts {
		if n.Table == queue.Dead {
			e.Dead += n.Waiting + n.Leased
			continue
		}
		e.Waiting += n.Waiting
		e.Leased += n.Leased
		if n.Waiting > 0 && (n.Table != queue.Timed || !n.NextReady.After(now)) {
			ready = true
		}
		if n.Table == queue.Timed && n.Waiting > 0 {
			due = n.NextReady
		}
	}
	if ready {
		return time.Time{}, nil
	}
	e.NextDue = jsonline.FormatTime(due)
	return due, nil
}

func (e *explanation) usage(c *cli.Context, pipe *setup.Pipe, now time.Time, rule throttle.Resolved, next *reasons) error {
	ruling, err := pipe.Ruling(c.Context)
	if err != nil {
		return err
	}
	e.CountedIn = ruling.String()
	if rule.Limit.Window() > time.Minute {
		e.CountedIn = "queue:"
	}
	if e.CountedIn == "memory:" {
		next.unknown = "only the reader itself knows: limits are counted in its memory"
		return nil
	}
	limiter, closeState, err := openThrottle(c, pipe)
	if err != nil {
		return err
	}
	defer closeState()
	status, err := limiter.Status(c.Context, now, e.Destination, rule.Limit)
	if err != nil {
		return err
	}
	e.Counted = status.Used
	next.add(status.Next, whyUsed(status))
	return nil
}

// whyUsed says why a window is full.
func whyUsed(s throttle.Status) string {
	switch s.Why {
	case "state lost":
		return "the limit counts as used up: the store that counts it was wiped or restarted"
	case "state malformed":
		return "the limit counts as used up: what the store counted cannot be read"
	case "other limit":
		return "the limit was changed; what the former one allowed counts"
	}
	if !s.Closed.IsZero() {
		return "a series keeps its distance (X-Mvalve-Duration)"
	}
	return "the limit is used up"
}

// reasons finds what a destination waits for longest.
type reasons struct {
	now     time.Time
	at      time.Time
	why     string
	unknown string
}

func (r *reasons) add(at time.Time, why string) {
	if at.After(r.now) && at.After(r.at) {
		r.at, r.why = at, why
	}
}

func (e *explanation) conclude(r reasons) {
	switch {
	case e.Waiting == 0 && e.Leased == 0:
		e.Why = "nothing waits"
	case e.Waiting == 0:
		e.Why = "all messages are leased by readers"
	case e.Paused:
		e.Why = "paused; mvalve resume ends that"
	case r.unknown != "":
		e.Why = r.unknown
	case !r.at.IsZero():
		e.Next, e.Why = jsonline.FormatTime(r.at), r.why
	case e.Readers == 0:
		e.Why = "no reader is alive; start one with: mvalve-reader"
	default:
		e.Why = "now"
	}
}

func statsCommand() *cli.Command {
	return &cli.Command{
		Name: "stats", Usage: "what waits per destination, and what happened lately",
		Flags: append([]cli.Flag{
			&cli.StringFlag{Name: "destination", Usage: "only this `NAME`", DefaultText: "all"},
			&cli.DurationFlag{Name: "since", Value: time.Hour, Usage: "count what happened within `DURATION`"},
			jsonFlag(),
		}, setup.QueueFlags()...),
		Action: func(c *cli.Context) error {
			if err := arguments(c); err != nil {
				return err
			}
			if c.Duration("since") <= 0 {
				return setup.Usagef("--since %v: use a duration such as 1h", c.Duration("since"))
			}
			return withPipe(c, setup.PipeOptions{MustExist: true}, func(pipe *setup.Pipe) error { return stats(c, pipe) })
		},
	}
}

// statRow is a line of `stats`.
type statRow struct {
	Destination string           `json:"destination"`
	Emergency   int64            `json:"emergency"`
	Timed       int64            `json:"timed"`
	Incoming    int64            `json:"incoming"`
	Leased      int64            `json:"leased"`
	Dead        int64            `json:"dead"`
	Oldest      string           `json:"oldest,omitempty"`
	Actions     map[string]int64 `json:"actions,omitempty"`

	oldest time.Time
}

func stats(c *cli.Context, pipe *setup.Pipe) error {
	admin, err := pipe.Admin()
	if err != nil {
		return err
	}
	now, err := pipe.Store.Now(c.Context)
	if err != nil {
		return err
	}
	only := c.String("destination")
	counts, err := admin.Count(c.Context, now, only)
	if err != nil {
		return err
	}
	logged, err := admin.Stats(c.Context, now.Add(-c.Duration("since")))
	if err != nil {
		return err
	}
	rows := make(map[string]*statRow)
	row := func(name string) *statRow {
		if rows[name] == nil {
			rows[name] = &statRow{Destination: name, Actions: make(map[string]int64)}
		}
		return rows[name]
	}
	for _, n := range counts {
		row(n.Destination).count(n)
	}
	for _, s := range logged {
		if only == "" || s.Destination == only {
			row(s.Destination).Actions[s.Action] += s.Count
		}
	}
	sorted := make([]*statRow, 0, len(rows))
	for _, r := range rows {
		r.Oldest = jsonline.FormatTime(r.oldest)
		sorted = append(sorted, r)
	}
	slices.SortFunc(sorted, func(a, b *statRow) int {
		if a.Destination < b.Destination {
			return -1
		}
		return 1
	})
	heading := "DESTINATION\tEMERGENCY\tTIMED\tINCOMING\tLEASED\tDEAD\tOLDEST\tENQUEUED\tDISPATCHED\tACKED\tRETRIED\tTHROTTLED\tDIED"
	return table(c, heading, sorted, func(r *statRow) string {
		a := r.Actions
		return fmt.Sprintf("%s\t%d\t%d\t%d\t%d\t%d\t%s\t%d\t%d\t%d\t%d\t%d\t%d", show(r.Destination), r.Emergency, r.Timed, r.Incoming,
			r.Leased, r.Dead, orDash(r.Oldest), a["enqueue"], a["dequeue"], a["ack"], a["retry"], a["throttle"], a["dead"])
	})
}

func (r *statRow) count(n queue.Count) {
	switch n.Table {
	case queue.Emergency:
		r.Emergency += n.Waiting
	case queue.Timed:
		r.Timed += n.Waiting
	case queue.Incoming:
		r.Incoming += n.Waiting
	case queue.Dead:
		r.Dead += n.Waiting + n.Leased
		return
	}
	r.Leased += n.Leased
	if !n.Oldest.IsZero() && (r.oldest.IsZero() || n.Oldest.Before(r.oldest)) {
		r.oldest = n.Oldest
	}
}
