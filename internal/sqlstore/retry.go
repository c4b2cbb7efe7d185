package sqlstore

import (
	"context"
	"math/rand/v2"
	"time"
)

// Retry runs fn until it succeeds, fails with an error that retryable refuses,
// attempts are used up, or ctx ends; it returns the last error of fn. Between
// attempts it waits a random time below a bound that doubles from 2 ms to 250 ms.
func Retry(ctx context.Context, attempts int, retryable func(error) bool, fn func() error) error {
	bound := 2 * time.Millisecond
	for i := 1; ; i++ {
		err := fn()
		if err == nil || i >= attempts || !retryable(err) {
			return err
		}
		timer := time.NewTimer(time.Duration(rand.Int64N(int64(bound)) + 1))
		select {
		case <-ctx.Done():
			timer.Stop()
			return err
		case <-timer.C:
		}
		bound = min(bound*2, 250*time.Millisecond)
	}
}
