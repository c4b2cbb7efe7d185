package setup

import (
	"context"

	"github.com/mvalve/mvalve/state/ruling"
)

// OpenLimiter opens the store that r names and follows the pipe's ruling. The
// caller closes it before the pipe.
func (p *Pipe) OpenLimiter(ctx context.Context, r Ruling) (*ruling.Store, error) {
	return ruling.Open(ctx, p.Store, r, p.openState)
}
