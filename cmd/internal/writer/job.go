package writer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/mvalve/mvalve/cmd/internal/jsonline"
	"github.com/mvalve/mvalve/cmd/internal/setup"
	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/valve"
)

// A commit is made of so many lines or bytes, or so long after its first line.
const (
	batchLines = 1000
	batchBytes = 4 << 20
	batchDelay = 20 * time.Millisecond
)

// job is one run: a goroutine reads and parses, this one gathers, another commits.
type job struct {
	o      *options
	w      *valve.Writer
	out    io.Writer
	bar    *bar
	parser jsonline.Parser

	inserted int  // messages committed
	last     item // the last line committed
}

// batch is what one commit writes.
type batch struct {
	items    []item // with a message
	last     item   // the last line, blank ones included
	messages []*queue.Message
	size     int
	bytes    int64
}

func (b *batch) add(it item) {
	b.last = it
	b.bytes += it.bytes
	if it.message == nil {
		return
	}
	b.items = append(b.items, it)
	b.messages = append(b.messages, it.message)
	b.size += it.message.Size()
}

func (j *job) run(ctx context.Context) error {
	if j.o.body != nil {
		m, err := j.parser.Message([]byte(*j.o.body))
		if err != nil {
			return setup.Failf(setup.ExitData, "--body: %s", plain(err))
		}
		b := &batch{}
		b.add(item{message: m, name: "--body", line: 1, total: 1})
		return j.settle(b, j.insert(ctx, b))
	}
	reading, stop := context.WithCancel(ctx)
	defer stop()
	items := make(chan item, 16)
	go j.read(reading, items)
	if j.o.atomic {
		return j.runAtomic(ctx, items)
	}
	return j.runBatches(ctx, items)
}

// runBatches gathers a batch while the one before is committed.
func (j *job) runBatches(ctx context.Context, items <-chan item) error {
	var (
		next    = &batch{}
		flying  *batch
		landed  = make(chan error, 1)
		timer   = time.NewTimer(batchDelay)
		due     bool
		bad     error
		stopped = ctx.Done()
	)
	defer timer.Stop()
	for {
		full := len(next.messages) >= batchLines || next.size >= batchBytes
		ready := due || full || items == nil
		if flying == nil && ready && next.last.total > 0 {
			flying, next, due = next, &batch{}, false
			go func() { landed <- j.insert(ctx, flying) }()
			continue
		}
		if flying == nil && items == nil {
			return j.end(ctx, bad)
		}
		source := items
		if full {
			source = nil
		}
		select {
		case it, ok := <-source:
			switch {
			case !ok:
				items = nil
			case it.err != nil:
				items, bad = nil, j.lineError(it)
			default:
				if next.last.total == 0 {
					timer.Reset(batchDelay)
				}
				next.add(it)
			}
		case <-timer.C:
			due = next.last.total > 0
		case <-stopped:
			items, stopped = nil, nil
		case err := <-landed:
			if err = j.settle(flying, err); err != nil {
				return err
			}
			flying = nil
		}
	}
}

// end returns why the run ended, with what is committed.
func (j *job) end(ctx context.Context, bad error) error {
	if bad != nil {
		return setup.Failf(setup.Code(bad), "%w; %s", bad, j.committed())
	}
	if s, ok := setup.WasSignalled(ctx); ok {
		return setup.Failf(s.Code(), "%w; %s", s, j.committed())
	}
	return nil
}

// committed says how far the input is committed and how to go on behind it.
func (j *job) committed() string {
	if j.last.total == 0 {
		if j.o.skip > 0 {
			return fmt.Sprintf("nothing of this run is committed; resume with --skip %d", j.o.skip)
		}
		return "no line is committed"
	}
	lines := "1 line is"
	if n := j.last.total - j.o.skip; n > 1 {
		lines = fmt.Sprintf("%d lines are", n)
	}
	return fmt.Sprintf("%s committed, the last is %s; resume with --skip %d", lines, j.last, j.last.total)
}

// lineError names file, line and, from the parser, field.
func (j *job) lineError(it item) error {
	code := setup.Code(it.err)
	return setup.Failf(code, "%s: %s", it, plain(it.err))
}

// plain is the text of an error without the prefix of package queue.
func plain(err error) string {
	text := strings.TrimPrefix(err.Error(), "valve: insert: ")
	return strings.TrimPrefix(text, queue.ErrInvalid.Error()+": ")
}

// insert commits a batch. It is not ended by a signal: what was read is written.
func (j *job) insert(ctx context.Context, b *batch) error {
	return j.w.Insert(context.WithoutCancel(ctx), b.messages...)
}

// settle books a batch whose commit returned err. When one of several lines is
// refused, the lines before it are committed and it is named.
func (j *job) settle(b *batch, err error) error {
	switch {
	case err == nil:
		return j.book(b)
	case !errors.Is(err, queue.ErrInvalid) && !errors.Is(err, queue.ErrDuplicate):
		unsure := ""
		if errors.Is(err, queue.ErrUnknown) {
			unsure = fmt.Sprintf("; whether the lines up to %s are too is not known", b.last)
		}
		return setup.Failf(setup.Code(err), "%w; %s%s", err, j.committed(), unsure)
	}
	for _, it := range b.items {
		one := &batch{}
		one.add(it)
		err := j.insert(context.Background(), one)
		if errors.Is(err, queue.ErrInvalid) || errors.Is(err, queue.ErrDuplicate) {
			return setup.Failf(setup.ExitData, "%w; %s", j.lineError(item{name: it.name, line: it.line, err: err}), j.committed())
		}
		if err != nil {
			return j.settle(one, err)
		}
		if err := j.book(one); err != nil {
			return err
		}
	}
	j.last = b.last
	return nil // every line went in alone: the refusal was of their sum
}

// book counts what is committed and prints the ids.
func (j *job) book(b *batch) error {
	j.inserted += len(b.messages)
	j.last = b.last
	j.bar.add(b.bytes)
	if !j.o.ids {
		return nil
	}
	var ids bytes.Buffer
	for _, m := range b.messages {
		ids.WriteString(m.ID.String() + "\n")
	}
	if _, err := j.out.Write(ids.Bytes()); err != nil {
		return setup.Failf(setup.ExitOutput, "standard output: %w; %s", err, j.committed())
	}
	return nil
}

// runAtomic reads everything and commits it in one transaction.
func (j *job) runAtomic(ctx context.Context, items <-chan item) error {
	const nothing = "nothing is committed"
	all := &batch{}
	for {
		select {
		case it, ok := <-items:
			switch {
			case !ok:
				return j.insertAtomic(ctx, all)
			case it.err != nil:
				bad := j.lineError(it)
				return setup.Failf(setup.Code(bad), "%w; %s", bad, nothing)
			}
			all.add(it)
			if len(all.messages) > valve.MaxInsert || all.size > valve.MaxInsertBytes {
				return setup.Failf(setup.ExitData, "%s: --atomic takes at most %d messages and %d MiB; %s", it, valve.MaxInsert, valve.MaxInsertBytes>>20, nothing)
			}
		case <-ctx.Done():
			if s, ok := setup.WasSignalled(ctx); ok {
				return setup.Failf(s.Code(), "%w; %s", s, nothing)
			}
			return ctx.Err()
		}
	}
}

func (j *job) insertAtomic(ctx context.Context, all *batch) error {
	if s, ok := setup.WasSignalled(ctx); ok {
		return setup.Failf(s.Code(), "%w; nothing is committed", s)
	}
	err := j.insert(ctx, all)
	switch {
	case errors.Is(err, queue.ErrUnknown):
		return setup.Failf(setup.Code(err), "%w; whether all lines or none are committed is not known", err)
	case err != nil:
		return setup.Failf(setup.Code(err), "%s; nothing is committed", plain(err))
	}
	return j.book(all)
}
