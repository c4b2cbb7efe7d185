package admin

import (
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/mvalve/mvalve/cmd/internal/jsonline"
	"github.com/mvalve/mvalve/cmd/internal/setup"
	"github.com/mvalve/mvalve/internal/checker"
	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/throttle"
)

func auditCommand() *cli.Command {
	return &cli.Command{
		Name: "audit", Usage: "judge a dispatch log on standard input: was any half-open window above the limit?",
		Description: "Reads what mvalve-reader prints, of all readers together in any order, and shares no code\nwith the limiter. Exit code 65 if a window is above. USED is the share of the allowed rate,\nright for a log with a backlog all the time.",
		Flags: append([]cli.Flag{
			&cli.StringFlag{Name: "limit", Usage: "`LIMIT` of each destination, such as 10/30s; a guard widens the window"},
			&cli.StringSliceFlag{Name: "destination", Usage: "only destinations that match `GLOB`; repeatable", DefaultText: "all"},
			&cli.DurationFlag{Name: "fairness", Usage: "also print the smallest Jain index of all destinations over spans of `DURATION`", DefaultText: "none"},
			jsonFlag(),
		}, setup.LogFlags()...),
		Action: audit,
	}
}

// auditRow is a line of `audit`.
type auditRow struct {
	Destination string  `json:"destination"`
	Count       int     `json:"count"`
	First       string  `json:"first"`
	Last        string  `json:"last"`
	Max         int     `json:"max"`
	Window      string  `json:"window"`
	Worst       int     `json:"worst"`
	WorstAt     string  `json:"worst_at"`
	Above       int     `json:"above"`
	AboveAt     string  `json:"above_at,omitempty"`
	Used        float64 `json:"used,omitempty"`
}

func audit(c *cli.Context) error {
	if err := arguments(c); err != nil {
		return err
	}
	limit, err := throttle.ParseLimit(c.String("limit"))
	if err != nil {
		return setup.Usagef("--limit: %w", err)
	}
	if limit.IsNone() {
		return setup.Usagef("--limit none: there is nothing to judge; use a limit such as 10/30s")
	}
	globs := c.StringSlice("destination")
	for _, glob := range globs {
		if err := throttle.CheckPattern(glob); err != nil {
			return setup.Usagef("--destination: %w", err)
		}
	}
	log, err := checker.ReadLog(c.App.Reader)
	if err != nil {
		return setup.Failf(setup.ExitData, "stdin: %w", err)
	}
	var rows []auditRow
	above := 0
	for name, stamps := range log {
		if len(globs) > 0 && !slices.ContainsFunc(globs, func(g string) bool { return throttle.MatchGlob(g, name) }) {
			delete(log, name)
			continue
		}
		r := checker.Check(name, stamps, checker.Limit{Max: int(min(limit.Max, math.MaxInt)), Window: limit.Interval + limit.Guard})
		above += r.Above
		rows = append(rows, newAuditRow(r))
	}
	if len(rows) == 0 {
		return setup.Failf(setup.ExitData, "stdin: no dispatch to judge; feed it what mvalve-reader prints")
	}
	slices.SortFunc(rows, func(a, b auditRow) int {
		if a.Destination < b.Destination {
			return -1
		}
		return 1
	})
	heading := "DESTINATION\tCOUNT\tALLOWED\tWORST\tWORST AT\tABOVE\tUSED"
	if err := table(c, heading, rows, auditRow.text); err != nil {
		return err
	}
	if err := auditFairness(c, log); err != nil {
		return err
	}
	if above > 0 {
		return setup.Failf(setup.ExitData, "%d windows are above the limit", above)
	}
	return nil
}

func newAuditRow(r checker.Report) auditRow {
	at := func(micros int64) string { return jsonline.FormatTime(queue.Time(micros)) }
	return auditRow{
		Destination: r.Destination, Count: r.Count, First: at(r.First), Last: at(r.Last), Max: r.Limit.Max, Window: r.Limit.Window.String(),
		Worst: r.Worst, WorstAt: at(r.WorstAt), Above: r.Above, AboveAt: at(r.AboveAt), Used: math.Round(r.Used*1e4) / 1e4,
	}
}

func (r auditRow) text() string {
	used := "-"
	if r.Used > 0 {
		used = fmt.Sprintf("%.4f", r.Used)
	}
	return fmt.Sprintf("%s\t%d\t%d in %s\t%d\t%s\t%d\t%s", show(r.Destination), r.Count, r.Max, r.Window, r.Worst, r.WorstAt, r.Above, used)
}

func auditFairness(c *cli.Context, log map[string][]int64) error {
	span := c.Duration("fairness")
	if span <= 0 {
		return nil
	}
	worst, at, ok := checker.Fairness(log, span.Truncate(time.Microsecond))
	if !ok {
		return setup.Failf(setup.ExitData, "--fairness %v: the destinations are not busy together for so long", span)
	}
	if c.Bool("json") {
		return say(c, `{"fairness":%.4f,"span":%q,"at":%q}`, worst, span, jsonline.FormatTime(queue.Time(at)))
	}
	return say(c, "fairness %.4f at worst over %v, from %s", worst, span, jsonline.FormatTime(queue.Time(at)))
}
