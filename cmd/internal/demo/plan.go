package demo

import (
	"fmt"
	"time"

	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/throttle"
)

// guard is how much later than another one a request may arrive without harm.
// Three reader processes and the receiver start on a machine that may be busy.
const guard = 250 * time.Millisecond

// The shape of the load, as shares of the time in which messages flow.
const (
	emergencyEnd  = 0.85 // no emergency is written after it
	timedEnd      = 0.6  // no message becomes due after it: then a backlog remains
	mostEmergency = 7    // per destination
)

// target is a destination of the demo.
type target struct {
	name  string
	limit throttle.Limit

	incoming, timed, emergencies int // how many messages of each lane
}

func (t *target) total() int { return t.incoming + t.timed + t.emergencies }

// short is the limit without its guard.
func (t *target) short() string {
	l := t.limit
	l.Guard = 0
	return l.String()
}

// newTargets plans destinations that are busy for span from their first message
// on: limits of each mode, slow and quick.
func newTargets(prefix string, span time.Duration) []*target {
	targets := []*target{
		{name: prefix + ".mail", limit: throttle.Limit{Max: 10, Interval: time.Second, Guard: guard}},
		{name: prefix + ".crawl", limit: throttle.Limit{Max: 1, Interval: 500 * time.Millisecond, Mode: throttle.Strict, Guard: guard}},
		{name: prefix + ".hook", limit: throttle.Limit{Max: 30, Interval: 2 * time.Second, Mode: throttle.Paced, Guard: guard}},
	}
	for _, t := range targets {
		n := fits(t.limit, span)
		t.emergencies = min(mostEmergency, n/4)
		t.timed = n / 4
		t.incoming = n - t.timed - t.emergencies
	}
	return targets
}

// fits returns how many messages the limit lets out within span, the one at its
// end included.
func fits(l throttle.Limit, span time.Duration) int {
	if l.Mode == throttle.Paced {
		return 1 + int(span/(l.Window()/time.Duration(l.Max-1)))
	}
	return int(l.Max) * (1 + int(span/l.Window()))
}

// allowed is how many a second a limit allows.
func allowed(l throttle.Limit) float64 { return float64(l.Max) / l.Window().Seconds() }

// backlog returns what is written at once: all incoming messages, and the timed
// ones, which become due one after the other.
func backlog(targets []*target, now time.Time, span time.Duration) []*queue.Message {
	var all []*queue.Message
	for _, t := range targets {
		for i := range t.incoming {
			all = append(all, newMessage(t, queue.Incoming, i))
		}
		for i := range t.timed {
			m := newMessage(t, queue.Timed, i)
			m.ReadyAt = now.Add(time.Duration(timedEnd * float64(span) * float64(i+1) / float64(t.timed)))
			all = append(all, m)
		}
	}
	return all
}

// emergencies returns what is written while the others flow, destinations in turn.
func emergencies(targets []*target) []*queue.Message {
	var all []*queue.Message
	for i := range mostEmergency {
		for _, t := range targets {
			if i < t.emergencies {
				all = append(all, newMessage(t, queue.Emergency, i))
			}
		}
	}
	return all
}

func newMessage(t *target, lane queue.Lane, i int) *queue.Message {
	return &queue.Message{
		Destination: t.name, Lane: lane,
		Headers: queue.Headers{{Name: "Content-Type", Value: "text/plain"}},
		Body:    fmt.Appendf(nil, "%s message %d for %s\n", lane, i+1, t.name),
	}
}
