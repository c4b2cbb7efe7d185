package valve

import (
	"context"
	"hash/fnv"
	"os"
	"time"

	"github.com/mvalve/mvalve/queue"
)

// announce says that this reader lives and learns who else does.
func (r *Reader) announce() {
	reg, ok := r.store.(queue.Registry)
	if !ok {
		return
	}
	ctx, cancel := context.WithTimeout(r.ctx, 5*time.Second)
	defer cancel()
	host, _ := os.Hostname()
	p := queue.Presence{ID: r.id, Host: host, PID: os.Getpid(), Held: r.Stats().InFlight}
	if r.bell != nil {
		p.Address = r.bell.address()
	}
	now := r.clock.Now()
	p.Started = r.id.Time()
	live, err := reg.Announce(ctx, now, now.Add(-4*presenceGap), p)
	if err != nil {
		if r.ctx.Err() == nil {
			r.log.Warn("presence not announced", "err", err)
		}
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.peers = r.peers[:0]
	for _, q := range live {
		r.peers = append(r.peers, q.ID)
	}
}

// mine reports whether this reader is the one that should take destination's
// messages when several could: the highest rendezvous hash among live readers.
// It saves lost races and decides nothing about correctness. The mutex is held.
func (r *Reader) mine(destination string) bool {
	if len(r.peers) < 2 {
		return true
	}
	best, bestID := uint64(0), r.id
	for _, id := range r.peers {
		h := fnv.New64a()
		_, _ = h.Write(id[:])
		_, _ = h.Write([]byte(destination))
		if sum := mix(h.Sum64()); sum >= best {
			best, bestID = sum, id
		}
	}
	return bestID == r.id
}

// mix spreads the bits of FNV, whose last bytes move only the low ones
// (the finalizer of MurmurHash3).
func mix(x uint64) uint64 {
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	x *= 0xc4ceb9fe1a85ec53
	return x ^ x>>33
}
