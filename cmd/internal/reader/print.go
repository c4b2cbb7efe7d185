package reader

import (
	"context"
	"io"
	"sync"

	"github.com/mvalve/mvalve/cmd/internal/jsonline"
	"github.com/mvalve/mvalve/cmd/internal/setup"
	"github.com/mvalve/mvalve/valve"
)

// printer writes each message as one line with one write.
type printer struct {
	mu   sync.Mutex
	out  io.Writer
	line []byte
}

func (p *printer) consume(_ context.Context, d *valve.Delivery) verdict {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.line = jsonline.Append(p.line[:0], d.Message, d.Attempt, d.DispatchedAt)
	_, err := p.out.Write(p.line)
	if cap(p.line) > 1<<20 {
		p.line = nil
	}
	if err != nil {
		return verdict{end: release, stop: setup.Failf(setup.ExitOutput, "standard output: %w; the message was given back", err)}
	}
	return verdict{end: ackLater}
}

func (p *printer) close(context.Context) error { return nil }
