// Command fetch makes sure that the tests find the STOMP clients of other
// languages. It does nothing when they are there, else it downloads them into a
// cache folder, without root.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"

	"github.com/mvalve/mvalve/internal/foreign"
	"github.com/mvalve/mvalve/internal/testserver/locate"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "fetch:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	fetched := foreign.Fetch(ctx, os.Stderr)
	missing := []error{fetched}
	for _, find := range []func() (locate.Program, error){foreign.Node, foreign.Perl, foreign.Python} {
		p, err := find()
		if err != nil {
			missing = append(missing, err)
			continue
		}
		fmt.Println("STOMP client:", p.Path, p.Env)
	}
	return errors.Join(missing...)
}
