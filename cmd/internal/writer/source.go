package writer

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/mvalve/mvalve/cmd/internal/jsonline"
	"github.com/mvalve/mvalve/cmd/internal/setup"
	"github.com/mvalve/mvalve/queue"
)

// item is one line of the input, or the error that ends it.
type item struct {
	message *queue.Message // nil for a blank line
	name    string         // of the file
	line    int            // in the file, from 1
	total   int            // in the whole input, from 1
	bytes   int64          // length of the line
	err     error
}

func (i item) String() string { return fmt.Sprintf("%s:%d", i.name, i.line) }

// read sends the lines of all files to items and closes it; the first error is
// the last item. It ends early with ctx.
func (j *job) read(ctx context.Context, items chan<- item) {
	defer close(items)
	total := 0
	for _, name := range j.o.files {
		if !j.readFile(ctx, name, &total, items) {
			return
		}
	}
}

func (j *job) readFile(ctx context.Context, name string, total *int, items chan<- item) bool {
	file := os.Stdin
	if name == "-" {
		name = "stdin"
	} else {
		opened, err := os.Open(name)
		if err != nil {
			return j.send(ctx, items, item{name: name, line: 1, err: setup.Failf(setup.ExitInput, "%w", err)})
		}
		defer opened.Close()
		file = opened
	}
	lines := lineReader{r: bufio.NewReaderSize(file, 256<<10)}
	for number := 1; ; number++ {
		data, err := lines.next()
		if errors.Is(err, io.EOF) {
			return true
		}
		*total++
		if err == nil && *total <= j.o.skip {
			continue
		}
		it := item{name: name, line: number, total: *total, bytes: int64(len(data)), err: err}
		if err == nil {
			it.message, it.err = j.parse(data)
		}
		if !j.send(ctx, items, it) || it.err != nil {
			return false
		}
	}
}

// parse returns nil without an error for a blank line, which only JSON may have.
func (j *job) parse(data []byte) (*queue.Message, error) {
	data = bytes.TrimSuffix(bytes.TrimSuffix(data, []byte("\n")), []byte("\r"))
	if j.o.format == "lines" {
		return j.parser.Message(bytes.Clone(data))
	}
	if len(bytes.TrimSpace(data)) == 0 {
		return nil, nil //nolint:nilnil // a blank line is neither a message nor an error
	}
	return j.parser.Parse(data)
}

func (j *job) send(ctx context.Context, items chan<- item, it item) bool {
	if it.message != nil && j.o.limiter != nil {
		if j.o.limiter.Wait(ctx) != nil {
			return false
		}
	}
	select {
	case items <- it:
		return true
	case <-ctx.Done():
		return false
	}
}

// lineReader reads lines of bounded length.
type lineReader struct {
	r    *bufio.Reader
	long []byte
}

// next returns the next line with its end, valid until the next call, or io.EOF.
func (l *lineReader) next() ([]byte, error) {
	data, err := l.r.ReadSlice('\n')
	if err == nil {
		return data, nil
	}
	l.long = append(l.long[:0], data...)
	for errors.Is(err, bufio.ErrBufferFull) {
		if len(l.long) > jsonline.MaxLine {
			return nil, fmt.Errorf("%w: the line has more than %d bytes", queue.ErrInvalid, jsonline.MaxLine)
		}
		data, err = l.r.ReadSlice('\n')
		l.long = append(l.long, data...)
	}
	if errors.Is(err, io.EOF) && len(l.long) > 0 {
		err = nil // the last line may lack its end
	}
	if err != nil && !errors.Is(err, io.EOF) {
		err = setup.Failf(setup.ExitInput, "%w", err)
	}
	return l.long, err
}
