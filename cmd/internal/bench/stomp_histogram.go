package bench

import (
	"math/bits"
	"sync/atomic"
)

// histogram counts durations in buckets 3 % wide, without allocation. It may be
// read while it is written.
type histogram struct {
	count [64 * steps]atomic.Int64
}

// steps is how many buckets a power of two has.
const steps = 32

func bucket(ns int64) int {
	v := uint64(max(ns, 0))
	if v < steps {
		return int(v)
	}
	shift := bits.Len64(v) - 6 // v>>shift is within steps and 2*steps-1
	return (shift+1)*steps + int(v>>shift) - steps
}

// middle returns the duration in the middle of a bucket.
func middle(bucket int) int64 {
	if bucket < 2*steps {
		return int64(bucket)
	}
	shift := bucket/steps - 1
	low := int64(steps+bucket%steps) << shift
	return low + int64(1)<<shift/2
}

func (h *histogram) add(ns int64) { h.count[bucket(ns)].Add(1) }

// empty reports whether the histograms hold nothing.
func empty(all ...*histogram) bool {
	for _, h := range all {
		for i := range h.count {
			if h.count[i].Load() > 0 {
				return false
			}
		}
	}
	return true
}

// quantile returns the duration in milliseconds that the part p of all in the
// histograms stays below; 0 if there are none.
func quantile(p float64, all ...*histogram) float64 {
	var sum [64 * steps]int64
	total := int64(0)
	for _, h := range all {
		for i := range h.count {
			n := h.count[i].Load()
			sum[i] += n
			total += n
		}
	}
	rank := min(int64(p*float64(total)), total-1)
	for i, n := range sum {
		if rank < n {
			return float64(middle(i)) / 1e6
		}
		rank -= n
	}
	return 0
}
