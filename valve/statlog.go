package valve

import (
	"sync"
	"time"

	"github.com/mvalve/mvalve/queue"
)

// Actions in q_statslog.
const (
	actionEnqueue  = "enqueue"
	actionDequeue  = "dequeue"
	actionAck      = "ack"
	actionThrottle = "throttle"
	actionRetry    = "retry"
	actionDead     = "dead"
	actionExpire   = "expire"
)

// statlogKeys is how many different lines a statlog gathers before it writes
// them early.
const statlogKeys = 10_000

// statlog sums what happens per action, destination and second, and writes it
// about once a second. What was not written when a process dies is lost; the
// messages themselves never depend on it.
type statlog struct {
	now   func() time.Time
	write func([]queue.Stat)

	mu     sync.Mutex
	counts map[statKey]int64
	timer  *time.Timer
	wg     sync.WaitGroup
	closed bool
}

type statKey struct {
	action, destination string
	second              int64
}

// add counts n occurrences of action at destination.
func (s *statlog) add(action, destination string, n int64) {
	s.addAt(action, destination, s.now().Unix(), n)
}

func (s *statlog) addAt(action, destination string, second, n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	if s.counts == nil {
		s.counts = make(map[statKey]int64)
	}
	s.counts[statKey{action, destination, second}] += n
	switch {
	case len(s.counts) == statlogKeys:
		if s.timer != nil {
			s.timer.Reset(0)
		}
	case s.timer == nil:
		s.timer = time.AfterFunc(time.Second, s.flush)
	}
}

// addAll counts one occurrence of action for each message.
func (s *statlog) addAll(action string, messages []*queue.Message) {
	second := s.now().Unix()
	for start := 0; start < len(messages); {
		end := start + 1
		for end < len(messages) && messages[end].Destination == messages[start].Destination {
			end++
		}
		s.addAt(action, messages[start].Destination, second, int64(end-start))
		start = end
	}
}

func (s *statlog) flush() {
	s.mu.Lock()
	counts := s.counts
	s.counts, s.timer = nil, nil
	s.wg.Add(1)
	s.mu.Unlock()
	defer s.wg.Done()
	if len(counts) == 0 {
		return
	}
	lines := make([]queue.Stat, 0, len(counts))
	for k, n := range counts {
		lines = append(lines, queue.Stat{Action: k.action, Destination: k.destination, Count: n, At: time.Unix(k.second, 0).UTC()})
	}
	s.write(lines)
}

// close writes what is left and waits for writes under way.
func (s *statlog) close() {
	s.mu.Lock()
	s.closed = true
	if s.timer != nil {
		s.timer.Stop()
	}
	s.mu.Unlock()
	s.flush()
	s.wg.Wait()
}
