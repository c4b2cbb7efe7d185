package admin

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/mvalve/mvalve/cmd/internal/jsonline"
	"github.com/mvalve/mvalve/cmd/internal/setup"
	"github.com/mvalve/mvalve/queue"
)

// peekPage is how many dead letters are read at once.
const peekPage = 200

func deadCommand() *cli.Command {
	destination := func() cli.Flag {
		return &cli.StringFlag{Name: "destination", Usage: "only those of this `NAME`", DefaultText: "all"}
	}
	return &cli.Command{
		Name: "dead", Usage: "show and redrive dead letters",
		Subcommands: []*cli.Command{
			{Name: "ls", Usage: "list dead letters, oldest id first", Action: deadList,
				Flags: append([]cli.Flag{destination(), &cli.IntFlag{Name: "max", Value: 100, Usage: "at most `N`"}, jsonFlag()}, setup.QueueFlags()...)},
			{Name: "show", Usage: "print one dead letter as JSON, with its message as mvalve-reader prints it", ArgsUsage: "ID", Action: deadShow,
				Flags: setup.QueueFlags()},
			{Name: "redrive", Usage: "put dead letters back where they came from, with no attempts counted", ArgsUsage: "[ID...]", Action: deadRedrive,
				Description: "Needs IDs, --destination, or --all.",
				Flags: append([]cli.Flag{
					destination(), &cli.BoolFlag{Name: "all", Usage: "those of all destinations"},
					&cli.IntFlag{Name: "max", Usage: "at most `N`", DefaultText: "no limit"},
				}, setup.QueueFlags()...)},
		},
	}
}

// deadRow is a line of `dead ls`.
type deadRow struct {
	ID          string `json:"id"`
	Destination string `json:"destination"`
	Lane        string `json:"lane"`
	Attempts    int    `json:"attempts"`
	DeadAt      string `json:"dead_at"`
	Reason      string `json:"reason"`
	Damaged     string `json:"damaged,omitempty"`
}

func newDeadRow(l queue.Letter) deadRow {
	row := deadRow{DeadAt: jsonline.FormatTime(l.DeadAt), Reason: l.Reason}
	if m := l.Message; m != nil {
		row.ID, row.Destination, row.Lane, row.Attempts = m.ID.String(), m.Destination, m.Lane.String(), m.Attempts
	}
	if l.Err != nil {
		row.Damaged = l.Err.Error()
	}
	return row
}

func deadList(c *cli.Context) error {
	if err := arguments(c); err != nil {
		return err
	}
	most := c.Int("max")
	if most < 1 {
		return setup.Usagef("--max %d: use a number from 1 on", most)
	}
	return withPipe(c, setup.PipeOptions{MustExist: true}, func(pipe *setup.Pipe) error {
		admin, err := pipe.Admin()
		if err != nil {
			return err
		}
		var rows []deadRow
		var after queue.Cursor
		for len(rows) < most {
			letters, err := admin.Peek(c.Context, queue.Dead, c.String("destination"), after, min(peekPage, most-len(rows)))
			if err != nil {
				return err
			}
			if len(letters) == 0 {
				break
			}
			for _, l := range letters {
				rows = append(rows, newDeadRow(l))
				after.ID = l.Message.ID
			}
		}
		return table(c, "ID\tDESTINATION\tLANE\tATTEMPTS\tDEAD AT\tREASON", rows, func(r deadRow) string {
			return fmt.Sprintf("%s\t%s\t%s\t%d\t%s\t%s", r.ID, show(r.Destination), r.Lane, r.Attempts, r.DeadAt, show(r.Reason+r.Damaged))
		})
	})
}

// before returns the cursor right before an id.
func before(id queue.ID) queue.Cursor {
	for i := len(id) - 1; i >= 0; i-- {
		id[i]--
		if id[i] != 0xff {
			break
		}
	}
	return queue.Cursor{ID: id}
}

func deadShow(c *cli.Context) error {
	if err := arguments(c, "ID"); err != nil {
		return err
	}
	id, err := queue.ParseID(c.Args().First())
	if err != nil {
		return setup.Usagef("ID: %w", err)
	}
	return withPipe(c, setup.PipeOptions{MustExist: true}, func(pipe *setup.Pipe) error {
		admin, err := pipe.Admin()
		if err != nil {
			return err
		}
		letters, err := admin.Peek(c.Context, queue.Dead, "", before(id), 1)
		if err != nil {
			return err
		}
		if len(letters) == 0 || letters[0].Message == nil || letters[0].Message.ID != id {
			return setup.Failf(setup.ExitData, "%s is no dead letter; see mvalve dead ls", id)
		}
		l := letters[0]
		encoder := json.NewEncoder(c.App.Writer)
		encoder.SetEscapeHTML(false)
		err = encoder.Encode(struct {
			DeadAt  string          `json:"dead_at"`
			Reason  string          `json:"reason"`
			Damaged string          `json:"damaged,omitempty"`
			Message json.RawMessage `json:"message"`
		}{jsonline.FormatTime(l.DeadAt), l.Reason, newDeadRow(l).Damaged, jsonline.Append(nil, l.Message, l.Message.Attempts, time.Time{})})
		if err != nil {
			return setup.Failf(setup.ExitOutput, "standard output: %w", err)
		}
		return nil
	})
}

func deadRedrive(c *cli.Context) error {
	move := queue.Move{From: queue.Dead, Destination: c.String("destination"), Limit: c.Int("max")}
	for _, text := range c.Args().Slice() {
		id, err := queue.ParseID(text)
		if err != nil {
			return setup.Usagef("ID: %w", err)
		}
		move.IDs = append(move.IDs, id)
	}
	if move.IDs == nil && move.Destination == "" && !c.Bool("all") {
		return setup.Usagef("say which: IDs, --destination NAME, or --all")
	}
	if move.Limit < 0 {
		return setup.Usagef("--max %d: use a number from 1 on", move.Limit)
	}
	return withPipe(c, setup.PipeOptions{MustExist: true}, func(pipe *setup.Pipe) error {
		admin, err := pipe.Admin()
		if err != nil {
			return err
		}
		now, err := pipe.Store.Now(c.Context)
		if err != nil {
			return err
		}
		n, err := admin.Move(c.Context, now, move)
		if err != nil {
			return err
		}
		if int(n) < len(move.IDs) && move.Limit == 0 {
			return setup.Failf(setup.ExitData, "%d of %d put back; the others are no dead letters", n, len(move.IDs))
		}
		return say(c, "%d put back", n)
	})
}
