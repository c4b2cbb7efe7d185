package setup

import (
	"fmt"

	"github.com/urfave/cli/v2"

	"github.com/mvalve/mvalve/state/ruling"
	"github.com/mvalve/mvalve/throttle"
)

// OpenState opens the store that counts the pipe's limits, as --state asks; see
// Rule. The caller closes it before the pipe.
func (p *Pipe) OpenState(c *cli.Context) (*ruling.Store, error) {
	rules, err := p.Rule(c.Context, c.String("state"))
	if err != nil {
		return nil, err
	}
	limiter, err := p.OpenLimiter(c.Context, rules)
	if err != nil {
		return nil, fmt.Errorf("state %s: %w; check that it runs, or move the pipe with: mvalve init --state queue: --queue %s", rules, err, p.Name)
	}
	return limiter, nil
}

// SetDefaultLimit stores --limit as the pipe's default if it has none yet, and
// warns when another one stands: two readers never apply two limits.
func (p *Pipe) SetDefaultLimit(c *cli.Context, limit throttle.Limit) error {
	rules, err := p.Rules()
	if err != nil {
		return err
	}
	now, err := p.Store.Now(c.Context)
	if err != nil {
		return err
	}
	stands, err := throttle.SetDefault(c.Context, rules, now, "*", limit)
	if err != nil {
		return fmt.Errorf("store the default limit: %w", err)
	}
	if stands.Limit != nil && *stands.Limit != limit {
		fmt.Fprintf(c.App.ErrWriter, "%s: --limit %s is not used: the pipe's default is %s; change it for all readers with: mvalve limit set '*' '%s' --queue %s\n",
			c.App.Name, limit, *stands.Limit, limit, p.Name)
	}
	return nil
}
