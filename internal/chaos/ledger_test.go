package chaos_test

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/mvalve/mvalve/internal/checker"
)

// ledger is what is known outside of the pipe: facts that producers, consumers
// and the logs of processes tell, none of them read from the pipe's tables.
// Bodies are unique: the key of a message before it has an id.
type ledger struct {
	mu         sync.Mutex
	sent       map[string]*sending  // by body
	messages   map[string]*message  // by id
	changed    map[string]time.Time // destinations whose limit was taken away, and when
	deliveries int
	stops      []stop
}

// stop is a time during which a process could do nothing, on this machine's clock (µs).
type stop struct {
	process  string
	from, to int64
}

// sending is one message as its producer knows it.
type sending struct {
	by        string
	id        string // as the producer was told; empty if it was not
	committed bool   // the producer was told so
}

// message is one id in the pipe.
type message struct {
	body, destination string
	dispatches        []dispatch
	deliveries        []*delivery
}

// dispatch is what the log of a process tells: it is written before the consumer
// has the message. Times are microseconds since 1970.
type dispatch struct {
	process string
	attempt int
	at      int64 // the stamp, on the pipe's clock
	logged  int64 // this machine's clock
}

// delivery is what a consumer tells.
type delivery struct {
	process string
	attempt int   // only where at is not told
	at      int64 // the stamp; 0: this kind of consumer is not told
	began   bool  // the consumer began to acknowledge it
	acked   int64 // when it knew that the acknowledgement is durable; 0: never
	back    bool  // the consumer gave it back, or wanted to
	// unsure: a lease that was lost is acknowledged like any other (STOMP rule
	// S92), so that acked counts only as long as the lease cannot have ended.
	unsure bool
}

func newLedger() *ledger {
	return &ledger{sent: make(map[string]*sending), messages: make(map[string]*message), changed: make(map[string]time.Time)}
}

// send notes that a producer tries to commit body.
func (l *ledger) send(body, by string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sent[body] = &sending{by: by}
}

// commit notes that a producer was told that body is committed, with an id if it
// was told one.
func (l *ledger) commit(body, id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.sent[body]
	if s == nil {
		s = &sending{by: "nobody"}
		l.sent[body] = s
	}
	s.committed, s.id = true, id
}

func (l *ledger) message(id string) *message {
	m := l.messages[id]
	if m == nil {
		m = &message{}
		l.messages[id] = m
	}
	return m
}

func (l *ledger) dispatched(id, destination string, d dispatch) {
	l.mu.Lock()
	defer l.mu.Unlock()
	m := l.message(id)
	m.destination = destination
	m.dispatches = append(m.dispatches, d)
}

func (l *ledger) delivered(id, body string, d *delivery) {
	l.mu.Lock()
	defer l.mu.Unlock()
	m := l.message(id)
	m.body = body
	m.deliveries = append(m.deliveries, d)
	l.deliveries++
}

// stopped notes that a process was stopped from a time until now.
func (l *ledger) stopped(process string, from time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stops = append(l.stops, stop{process, from.UnixMicro(), time.Now().UnixMicro()})
}

// zombies is how many of the stops were longer than a lease.
func (l *ledger) zombies() (n int) {
	for _, s := range l.stops {
		if time.Duration(s.to-s.from)*time.Microsecond > lease {
			n++
		}
	}
	return n
}

// change changes a delivery that was noted.
func (l *ledger) change(how func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	how()
}

// The kinds of broken promises.
const (
	lost     = "committed and lost"
	dropped  = "delivered, not acknowledged, and gone"
	again    = "acknowledged and delivered again"
	overlap  = "delivered again within half a lease"
	doubled  = "stored twice"
	mixed    = "another message than its producer was told"
	invented = "never sent"
	unlogged = "delivered without a line in the log of dispatches"
	above    = "windows above the limit"
	ahead    = "dispatched by a clock that is ahead"
	behind   = "dispatched by a clock that is behind"
)

// verdict is what the ledger says in the end.
type verdict struct {
	broken map[string]int    // by kind
	first  map[string]string // an example each

	sent, committed, delivered, deliveries, dispatches, acked, late, lateAgain, redelivered, windows int
	aheadMost, behindMost                                                                            time.Duration
	reports                                                                                          []checker.Report
	// apart are the reports by this machine's clock instead of the stamps, over
	// three quarters of each window: a log line may be late, and a clock that is
	// wrong shows all the same.
	apart map[string]checker.Report
}

func (v *verdict) bad(kind, format string, args ...any) {
	v.broken[kind]++
	if v.first[kind] == "" {
		v.first[kind] = fmt.Sprintf(format, args...)
	}
}

const (
	// clockError is how far a process may be wrong about the pipe's clock when
	// it could measure it only while connections were stalled.
	clockError = 2 * time.Second
	// stampError is the same for the distance of two stamps within half a lease:
	// each process measures as soon as it starts.
	stampError = 50 * time.Millisecond
	// lateError is how long a process that nobody stopped may need from the stamp
	// to its line in the log on a machine that stalls. What is later has a clock
	// that is behind.
	lateError = 6 * time.Second
)

// judge judges a pipe that is empty. Only processes that keep what they took,
// unless their ledger says otherwise, are judged by the distance of deliveries.
func (l *ledger) judge(limits map[string]checker.Limit, lease time.Duration, keeps func(process string) bool) *verdict {
	l.mu.Lock()
	defer l.mu.Unlock()
	v := &verdict{broken: make(map[string]int), first: make(map[string]string), apart: make(map[string]checker.Report), sent: len(l.sent), deliveries: l.deliveries}
	bodies := make(map[string]string, len(l.messages))
	stamps, logged := make(map[string][]int64), make(map[string][]int64)
	for id, m := range l.messages {
		l.judgeMessage(v, id, m, lease, keeps)
		for _, d := range m.dispatches {
			if changed := l.changed[m.destination]; changed.IsZero() || d.at < changed.UnixMicro() {
				stamps[m.destination] = append(stamps[m.destination], d.at)
				logged[m.destination] = append(logged[m.destination], d.logged)
			}
		}
		if m.body == "" {
			continue // dispatched by a process that was killed then
		}
		if other, ok := bodies[m.body]; ok {
			v.bad(doubled, "%q as %s and %s", m.body, other, id)
		}
		bodies[m.body] = id
		switch s := l.sent[m.body]; {
		case s == nil:
			v.bad(invented, "%s %q", id, m.body)
		case s.id != "" && s.id != id:
			v.bad(mixed, "%q is %s, its producer was told %s", m.body, id, s.id)
		}
	}
	for body, s := range l.sent {
		if s.committed {
			v.committed++
			if bodies[body] == "" {
				v.bad(lost, "%q of %s, id %q", body, s.by, s.id)
			}
		}
	}
	for destination, limit := range limits {
		r := checker.Check(destination, stamps[destination], limit)
		v.reports = append(v.reports, r)
		v.apart[destination] = checker.Check(destination, logged[destination], checker.Limit{Max: limit.Max, Window: limit.Window * 3 / 4})
		v.windows += r.Count
		if r.Above > 0 {
			v.bad(above, "%s: %d windows of %v above %d, the worst with %d at %s", destination, r.Above, limit.Window, limit.Max, r.Worst,
				time.UnixMicro(r.WorstAt).UTC().Format(time.RFC3339Nano))
		}
	}
	slices.SortFunc(v.reports, func(a, b checker.Report) int { return cmp.Compare(a.Destination, b.Destination) })
	return v
}

func (l *ledger) judgeMessage(v *verdict, id string, m *message, lease time.Duration, keeps func(string) bool) {
	slices.SortFunc(m.dispatches, func(a, b dispatch) int { return cmp.Compare(a.at, b.at) })
	v.dispatches += len(m.dispatches)
	v.redelivered += max(0, len(m.dispatches)-1)
	began, acked, late, back := false, int64(0), int64(0), make(map[int64]bool)
	for _, d := range m.deliveries {
		began = began || d.began
		switch {
		case d.acked == 0:
		case d.unsure && !m.inTime(d, lease/2):
			late = d.acked
		case acked == 0 || d.acked < acked:
			acked = d.acked
		}
		if d.at == 0 {
			continue
		}
		back[d.at] = d.back
		if !slices.ContainsFunc(m.dispatches, func(x dispatch) bool { return x.at == d.at }) {
			v.bad(unlogged, "%s by %s", id, d.process)
		}
	}
	if len(m.deliveries) > 0 {
		v.delivered++
	}
	if acked != 0 {
		v.acked++
	}
	if late != 0 {
		v.late++
		if m.dispatches[len(m.dispatches)-1].logged > late {
			v.lateAgain++
		}
	}
	if !began {
		v.bad(dropped, "%s %q to %s: %+v", id, m.body, m.destination, m.dispatches)
	}
	for i, d := range m.dispatches {
		if acked != 0 && d.logged > acked && !l.overtaken(m, d, acked) {
			v.bad(again, "%s to %s: acknowledged at %d, again %v later by %s; %+v", id, m.destination, acked, time.Duration(d.logged-acked)*time.Microsecond, d.process, m.dispatches)
		}
		early := time.Duration(d.at-d.logged) * time.Microsecond
		if v.aheadMost = max(v.aheadMost, early); early > clockError {
			v.bad(ahead, "%s by %s: %v", id, d.process, early)
		}
		late := -early - time.Duration(l.idle(d))*time.Microsecond
		if v.behindMost = max(v.behindMost, late); late > lateError {
			v.bad(behind, "%s by %s: %v, stops left out", id, d.process, late)
		}
		if i == 0 {
			continue
		}
		before := m.dispatches[i-1]
		if gap := time.Duration(d.at-before.at) * time.Microsecond; gap < lease/2-stampError && keeps(before.process) && !back[before.at] {
			v.bad(overlap, "%s to %s: %v after, %+v", id, m.destination, gap, m.dispatches)
		}
	}
}

// overtaken reports whether d was decided under a lease before the one that was
// acknowledged, and its process was stopped for most of the time between that and its line in the log.
func (l *ledger) overtaken(m *message, d dispatch, acked int64) bool {
	return slices.ContainsFunc(m.dispatches, func(x dispatch) bool {
		return x.attempt > d.attempt && x.at > d.at && x.logged <= acked
	}) && l.idle(d) > (d.logged-d.at)/2
}

// idle returns for how many microseconds the process of d was stopped between its
// stamp and its line in the log.
func (l *ledger) idle(d dispatch) (total int64) {
	for _, s := range l.stops {
		if s.process == d.process {
			total += max(0, min(s.to, d.logged)-max(s.from, d.at))
		}
	}
	return total
}

// inTime reports whether d was acknowledged within a span from its dispatch, which
// only the log of the process behind it knows.
func (m *message) inTime(d *delivery, within time.Duration) bool {
	for _, x := range m.dispatches { // sorted: the first is the one that may have ended
		if strings.HasPrefix(x.process, d.process+".") && x.attempt == d.attempt {
			return time.Duration(d.acked-min(x.at, x.logged))*time.Microsecond < within
		}
	}
	return false
}

// promises are the kinds with how many cases of each were looked at.
func (v *verdict) promises() []promise {
	return []promise{
		{lost, v.committed, "messages that were committed for sure"},
		{dropped, v.delivered, "messages delivered"},
		{again, v.acked, "messages acknowledged for sure"},
		{overlap, v.redelivered, "dispatches of a message that had one"},
		{doubled, v.delivered, "messages delivered"},
		{mixed, v.delivered, "messages delivered"},
		{invented, v.delivered, "messages delivered"},
		{unlogged, v.deliveries, "deliveries"},
		{above, v.windows, "windows"},
		{ahead, v.dispatches, "dispatches"},
		{behind, v.dispatches, "dispatches"},
	}
}

// promise is a kind of broken promise and how often it could have been found.
type promise struct {
	kind string
	of   int
	what string
}

// String is the figures of a verdict.
func (v *verdict) String() string {
	return fmt.Sprintf("%d messages sent, %d of them committed for sure, %d delivered, %d dispatches (%d of them again), %d acknowledged for sure, %d perhaps too late (%d of these came again); %d windows judged; stamps ahead of log lines by %v at most, behind by %v besides stops",
		v.sent, v.committed, v.delivered, v.dispatches, v.redelivered, v.acked, v.late, v.lateAgain, v.windows, v.aheadMost, v.behindMost)
}
