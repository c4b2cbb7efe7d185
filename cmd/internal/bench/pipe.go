package bench

import (
	"context"
	"crypto/rand"
	"fmt"
	"path/filepath"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/mvalve/mvalve/cmd/internal/setup"
	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/throttle"
	"github.com/mvalve/mvalve/valve"
)

// pipe is an open, empty pipe with a writer and, once opened, a reader.
type pipe struct {
	s      *session
	url    string
	opened *setup.Pipe
	prefix string      // of destinations
	store  queue.Store // counts calls
	counts *calls
	rules  throttle.RuleStore
	writer *valve.Writer
	reader *valve.Reader
}

// open returns an empty pipe: a new SQLite file, or the queue that was named.
func (s *session) open() (*pipe, error) {
	url := s.c.String("queue")
	if s.folder != "" {
		s.files++
		url = "sqlite:" + filepath.Join(s.folder, fmt.Sprintf("bench%d.db", s.files))
	}
	opened, err := openURL(s.c, url)
	if err != nil {
		return nil, err
	}
	p := &pipe{s: s, url: url, opened: opened, prefix: "bench-" + rand.Text()[:6] + "-"}
	if err := p.prepare(); err != nil {
		_ = opened.Close()
		return nil, err
	}
	return p, nil
}

func (p *pipe) prepare() error {
	ctx := p.s.c.Context
	if init, ok := p.opened.Store.(queue.Initializer); ok {
		if err := init.Init(ctx); err != nil {
			return fmt.Errorf("make the tables: %w", err)
		}
	}
	var err error
	if p.store, p.counts, err = watch(p.opened.Store); err != nil {
		return err
	}
	if p.rules, err = p.opened.Rules(); err != nil {
		return err
	}
	rules, _, err := p.rules.LoadRules(ctx)
	if err != nil {
		return err
	}
	for _, r := range rules {
		if r.Limit != nil && r.Limit.Max > 0 {
			return setup.Usagef("queue %s has a limit for %s; bench needs a queue of its own", p.opened.Name, r.Pattern)
		}
	}
	if err := p.checkEmpty(ctx); err != nil {
		return err
	}
	p.writer, err = valve.NewWriter(ctx, p.store, valve.WriterConfig{Logger: p.opened.Log})
	return err
}

func (p *pipe) checkEmpty(ctx context.Context) error {
	admin, err := p.opened.Admin()
	if err != nil {
		return err
	}
	for lane := queue.Emergency; lane <= queue.Dead; lane++ {
		letters, err := admin.Peek(ctx, lane, "", queue.Cursor{}, 1)
		if err != nil {
			return err
		}
		if len(letters) > 0 {
			return setup.Usagef("queue %s is not empty; bench needs a queue of its own", p.opened.Name)
		}
	}
	return nil
}

// read opens the reader beside the writer, which hands over what it commits; cfg
// may be zero.
func (p *pipe) read(cfg valve.ReaderConfig) error {
	cfg.Writer = p.writer
	return p.readAlone(cfg)
}

// readAlone opens the reader as if the writer were another process's.
func (p *pipe) readAlone(cfg valve.ReaderConfig) error {
	cfg.Logger = p.opened.Log
	var err error
	p.reader, err = valve.OpenReader(p.s.c.Context, p.store, cfg)
	return err
}

// limit sets the limit of a pattern, which no other pipe should share: a changed
// limit counts what the old one allowed.
func (p *pipe) limit(pattern, text string) error {
	limit, err := throttle.ParseLimit(text)
	if err != nil {
		return err
	}
	ctx := p.s.c.Context
	now, err := p.store.Now(ctx)
	if err != nil {
		return err
	}
	_, err = throttle.SetLimit(ctx, p.rules, now, pattern, limit)
	return err
}

// close ends writer and reader and empties a queue that was named.
func (p *pipe) close() error {
	if p.reader != nil {
		_ = p.reader.Close()
	}
	_ = p.writer.Close()
	err := error(nil)
	if p.s.folder == "" {
		err = p.purge()
	}
	if e := p.opened.Close(); err == nil {
		err = e
	}
	return err
}

// purge removes messages and limits; it may be asked to after a signal.
func (p *pipe) purge() error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(p.s.c.Context), 10*time.Minute)
	defer cancel()
	admin, err := p.opened.Admin()
	if err != nil {
		return err
	}
	now, err := p.store.Now(ctx)
	if err != nil {
		return err
	}
	for lane := queue.Emergency; lane <= queue.Dead; lane++ {
		for {
			n, err := admin.Move(ctx, now, queue.Move{From: lane, Purge: true, Limit: 10_000})
			if err != nil {
				return fmt.Errorf("purge: %w", err)
			}
			if n == 0 {
				break
			}
		}
	}
	rules, _, err := p.rules.LoadRules(ctx)
	if err != nil {
		return err
	}
	for _, r := range rules {
		if r.Limit == nil {
			continue
		}
		if _, err := throttle.RemoveLimit(ctx, p.rules, now, r.Pattern); err != nil {
			return err
		}
	}
	return nil
}

// with runs fn on an empty pipe.
func (s *session) with(fn func(p *pipe) error) error {
	p, err := s.open()
	if err != nil {
		return err
	}
	err = fn(p)
	if e := p.close(); err == nil {
		err = e
	}
	return err
}

// openURL opens the queue at url as --queue would.
func openURL(c *cli.Context, url string) (*setup.Pipe, error) {
	if err := c.Set("queue", url); err != nil {
		return nil, err
	}
	return setup.OpenPipe(c, setup.PipeOptions{Init: true})
}
