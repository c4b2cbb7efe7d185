package valve

import "time"

// lead estimates how long a job needs from asking the limiter until its messages
// may leave: mean and mean deviation of what the last jobs needed, as TCP
// estimates round trips (RFC 6298, section 2). The zero value knows nothing.
type lead struct {
	mean, deviation time.Duration
}

// longestLead bounds one sample: a store that hangs for once says nothing about
// the next job.
const longestLead = 250 * time.Millisecond

// add notes what one job needed.
func (l *lead) add(took time.Duration) {
	took = min(took, longestLead)
	if l.mean == 0 {
		l.mean, l.deviation = took, took/2
		return
	}
	l.deviation += ((l.mean - took).Abs() - l.deviation) / 4
	l.mean += (took - l.mean) / 8
}

// estimate returns what nearly no job exceeds.
func (l *lead) estimate() time.Duration { return l.mean + 4*l.deviation }
