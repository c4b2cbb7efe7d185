package setup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/queue/mysql"
	"github.com/mvalve/mvalve/queue/sqlite"
	"github.com/mvalve/mvalve/throttle"
)

// QueueFlags are --queue and the flags of the log.
func QueueFlags() []cli.Flag {
	return append([]cli.Flag{
		&cli.StringFlag{
			Name: "queue", Value: "sqlite:mvalve.db",
			Usage: "`URL` of the queue: sqlite:PATH, or mysql://user:password@host:port/database with special characters percent-encoded and optional ?tls=true and ?socket=PATH",
		},
	}, LogFlags()...)
}

// Pipe is an open queue.
type Pipe struct {
	Store queue.Store
	// Name is the queue's URL as people may see it: the path of a file is
	// absolute, and there is no password.
	Name    string
	Created bool // the file was made by this call
	Log     *slog.Logger
}

// PipeOptions say what OpenPipe may do.
type PipeOptions struct {
	// MustExist refuses to make a SQLite file: a mistyped path of a command
	// that only looks should not leave an empty queue behind.
	MustExist bool
	// Init makes the tables where Open does not.
	Init bool
}

// OpenPipe opens the queue that --queue names. The caller closes it.
func OpenPipe(c *cli.Context, options PipeOptions) (*Pipe, error) {
	log, err := Logger(c)
	if err != nil {
		return nil, err
	}
	scheme, rest, _ := strings.Cut(c.String("queue"), ":")
	switch scheme {
	case "sqlite":
		return openSQLite(c.Context, rest, options, log)
	case "mysql":
		return openMySQL(c.Context, c.String("queue"), options, log)
	case "memory":
		return &Pipe{Store: queue.NewMemory(), Name: "memory:", Created: true, Log: log}, nil
	}
	return nil, Usagef("--queue: unknown scheme %.40q; use sqlite:PATH or mysql://user:password@host:port/database", scheme)
}

func openSQLite(ctx context.Context, path string, options PipeOptions, log *slog.Logger) (*Pipe, error) {
	if path == "" {
		return nil, Usagef("--queue: no path in sqlite:; use sqlite:PATH such as sqlite:mvalve.db")
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, Failf(ExitInput, "--queue: %w", err)
	}
	pipe := &Pipe{Name: "sqlite:" + path, Log: log}
	_, err = os.Stat(path)
	pipe.Created = errors.Is(err, fs.ErrNotExist)
	if pipe.Created && options.MustExist {
		return nil, Failf(ExitUnavailable, "queue %s does not exist; check --queue, or make it with: mvalve init --queue %s", pipe.Name, pipe.Name)
	}
	if _, err := os.Stat(filepath.Dir(path)); errors.Is(err, fs.ErrNotExist) {
		return nil, Failf(ExitUnavailable, "queue %s: the folder %s does not exist; make it or check --queue", pipe.Name, filepath.Dir(path))
	}
	store, err := sqlite.Open(ctx, sqlite.Config{Path: path, Logger: log})
	if err != nil {
		return nil, fmt.Errorf("queue %s: %w", pipe.Name, err)
	}
	pipe.Store = store
	return pipe, nil
}

func openMySQL(ctx context.Context, text string, options PipeOptions, log *slog.Logger) (*Pipe, error) {
	cfg, err := mysql.ParseURL(text)
	if err != nil {
		return nil, Usagef("--queue: %w", err)
	}
	secrets.add(cfg.Password)
	secrets.add(url.QueryEscape(cfg.Password))
	cfg.Logger = log
	open := mysql.Open
	if options.Init {
		open = mysql.OpenForInit
	}
	store, err := open(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("queue %s: %w%s", cfg, err, advice(err, "mysql"))
	}
	return &Pipe{Store: store, Name: cfg.String(), Log: log}, nil
}

// advice is how to fix what keeps a queue from being opened.
func advice(err error, scheme string) string {
	switch {
	case errors.Is(err, queue.ErrUnavailable) && scheme == "mysql":
		return "; check that the server runs and that the address in --queue is right"
	case errors.Is(err, queue.ErrRefused):
		return "; check user, password and database in --queue"
	}
	return ""
}

// Announce prints the start line: which queue, and created or how many wait.
func (p *Pipe) Announce(c *cli.Context) {
	what := "created"
	if !p.Created {
		what = "opened" + p.waiting(c.Context)
	}
	fmt.Fprintf(c.App.ErrWriter, "%s: queue %s %s\n", c.App.Name, p.Name, what)
}

// manyWaiting is how far the start line counts: the start of a command does not
// wait for the count of a huge backlog.
const manyWaiting = 1000

// waiting says how many messages nobody holds.
func (p *Pipe) waiting(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	now, err := p.Store.Now(ctx)
	if err != nil {
		return ""
	}
	n, forever := 0, now.AddDate(100, 0, 0)
	for _, lane := range []queue.Lane{queue.Emergency, queue.Timed, queue.Incoming} {
		refs, _, err := p.Store.Scan(ctx, now, lane, queue.Cursor{}, forever, manyWaiting)
		if err != nil {
			return ""
		}
		n += len(refs)
	}
	if n >= manyWaiting {
		return fmt.Sprintf(", %d or more waiting", manyWaiting)
	}
	return fmt.Sprintf(", %d waiting", n)
}

// Rules returns the store of limits and holds, or an error of exit code 2 for a
// queue that has none.
func (p *Pipe) Rules() (throttle.RuleStore, error) {
	rules, ok := p.Store.(throttle.RuleStore)
	if !ok {
		return nil, Usagef("queue %s keeps no limits", p.Name)
	}
	return rules, nil
}

// Admin returns the store's administration, or an error of exit code 2.
func (p *Pipe) Admin() (queue.Admin, error) {
	admin, ok := p.Store.(queue.Admin)
	if !ok {
		return nil, Usagef("queue %s cannot be looked into", p.Name)
	}
	return admin, nil
}

// Close closes the queue.
func (p *Pipe) Close() error { return p.Store.Close() }
