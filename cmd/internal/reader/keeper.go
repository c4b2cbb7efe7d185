package reader

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/mvalve/mvalve/valve"
)

// keeper extends the leases of what is under way. A delivery is handed out with
// at least half its lease left; it is extended before a quarter has passed.
type keeper struct {
	lease time.Duration
	log   *slog.Logger

	mu  sync.Mutex
	due map[*valve.Delivery]time.Time
}

func newKeeper(lease time.Duration, log *slog.Logger) *keeper {
	return &keeper{lease: lease, log: log, due: make(map[*valve.Delivery]time.Time)}
}

func (k *keeper) add(d *valve.Delivery) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.due[d] = time.Now().Add(k.lease / 8)
}

func (k *keeper) remove(d *valve.Delivery) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.due, d)
}

// run extends until ctx ends.
func (k *keeper) run(ctx context.Context) {
	tick := time.NewTicker(k.lease / 8)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			k.extend(ctx)
		}
	}
}

func (k *keeper) extend(ctx context.Context) {
	now := time.Now()
	var wg sync.WaitGroup
	k.mu.Lock()
	for d, due := range k.due {
		if now.Before(due) {
			continue
		}
		k.due[d] = now.Add(k.lease / 3)
		// Together, so that they share a commit.
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, k.lease/4)
			defer cancel()
			err := d.Extend(ctx, k.lease)
			if err != nil && !errors.Is(err, valve.ErrLeaseLost) && ctx.Err() == nil {
				k.log.Warn("lease not extended", "message_id", d.Message.ID, "destination", d.Message.Destination, "err", err)
			}
		})
	}
	k.mu.Unlock()
	wg.Wait()
}
