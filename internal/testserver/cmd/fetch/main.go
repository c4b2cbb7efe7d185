// Command fetch makes sure that the tests find MariaDB and memcached. It does
// nothing when they are there, else it downloads and unpacks the distribution's
// packages into a cache folder, without root.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"

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
	err := check()
	if errors.Is(err, locate.ErrNotFound) {
		if err = locate.Fetch(ctx, os.Stderr); err == nil {
			err = check()
		}
	}
	return err
}

// check names what the tests will use.
func check() error {
	for _, s := range []struct {
		env  string
		find func() (locate.Program, error)
	}{{"MVALVE_TEST_MYSQL", locate.MariaDB}, {"MVALVE_TEST_MEMCACHED", locate.Memcached}} {
		p, err := s.find()
		switch {
		case os.Getenv(s.env) != "":
			fmt.Println("test server:", s.env, "from the environment")
		case err != nil:
			return err
		default:
			fmt.Println("test server:", p.Path)
		}
	}
	return nil
}
