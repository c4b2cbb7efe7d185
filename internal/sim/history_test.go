package sim

import (
	"fmt"
	"strings"
	"time"

	"github.com/mvalve/mvalve/queue"
)

// kind says what an event tells. Those marked "truth" are seen where they take
// effect, inside the store, whether or not the answer reaches anybody.
type kind uint8

const (
	kStart     kind = iota // a process opened
	kCrash                 // it died: nothing more of it takes effect
	kStop                  // it shut down in order
	kAsked                 // a producer called Insert
	kCommitted             // truth: the row is there (until: its lease, if any)
	kInserted              // Insert returned without an error
	kRefused               // Insert returned an error
	kLeased                // truth: the row belongs to the process until until
	kSettled               // truth: a settle took effect (verb)
	kLost                  // truth: a settle found its lease gone
	kDispatch              // Next returned the message, at stamp
	kEnds                  // a consumer calls what ends the delivery by verb
	kConfirmed             // ending the delivery returned without an error (verb)
	kEndFailed             // it returned an error
	kWaits                 // a consumer calls Next
	kServed                // and is back from it
	kRule                  // truth: rule stored under version
	kRulesSeen             // the process knows the rules of version
	kHold                  // truth: a hold is stored
	kHoldsSeen             // the process knows the holds stored up to version
	kHoldTold              // the process knows that its hold is stored
	kProbe                 // the process measured the clock, wrong by stamp, in until (µs)
	kFault                 // something went wrong on purpose
	kQuiet                 // no faults from here on
	kEnd                   // the run is over
)

var kindNames = [...]string{"start", "crash", "stop", "asked", "committed", "inserted", "refused", "leased", "settled",
	"lost", "dispatch", "ends", "confirmed", "end failed", "waits", "served", "rule", "rules seen", "hold", "holds seen", "hold told", "probe", "fault", "quiet", "end"}

// event is one line of a history. Which fields are set depends on its kind.
type event struct {
	at      time.Duration // true time since the start of the run
	clock   int64         // the back end's clock, µs
	kind    kind
	proc    int // incarnation of a process, from 1
	msg     int // number of the message, from 1
	dest    string
	table   queue.Lane
	verb    queue.Verb
	stamp   int64 // µs on the pipe's clock
	until   int64 // µs: of a lease or hold; of a retry: when it is due
	attempt int
	version int64
	who     int // consumer; of a probe: what the process was doing
	serial  int // of a delivery: how many there were of the message, with this one
	expires int64
	late    bool   // carried out after its caller gave up
	fault   *fault // of kFault, if it was planned
	rule    *ruleText
	text    string
}

// ruleText is what a rule says, as far as the oracle cares.
type ruleText struct {
	pattern string
	limit   *limitText // nil inherits
	paused  *bool
}

// limitText is a limit: at most max in any half-open window (µs), and one every
// pace µs where it is paced. max 0: none.
type limitText struct{ max, window, pace int64 }

func (e event) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%12.6f %-10s", e.at.Seconds(), kindNames[e.kind])
	if e.proc > 0 {
		fmt.Fprintf(&b, " p%d", e.proc)
	}
	if e.msg > 0 {
		fmt.Fprintf(&b, " m%d", e.msg)
	}
	if e.dest != "" {
		fmt.Fprintf(&b, " %s", e.dest)
	}
	if e.table != 0 {
		fmt.Fprintf(&b, " %s", e.table)
	}
	if e.verb != 0 {
		fmt.Fprintf(&b, " %s", verbNames[e.verb])
	}
	if e.attempt > 0 {
		fmt.Fprintf(&b, " attempt %d", e.attempt)
	}
	if e.stamp != 0 {
		fmt.Fprintf(&b, " stamp %s", shortTime(e.stamp))
	}
	if e.until != 0 {
		fmt.Fprintf(&b, " until %s", shortTime(e.until))
	}
	if e.version != 0 {
		fmt.Fprintf(&b, " v%d", e.version)
	}
	if e.late {
		b.WriteString(" late")
	}
	if e.text != "" {
		fmt.Fprintf(&b, " %s", e.text)
	}
	return b.String()
}

var verbNames = [...]string{"", "ack", "retry", "release", "extend", "kill"}

// shortTime leaves the day out.
func shortTime(micros int64) string { return time.UnixMicro(micros).UTC().Format("15:04:05.000000") }

// digest is a hash over what a history says happened, for telling whether two
// runs of a seed were the same.
func digest(events []event) uint64 {
	h := uint64(14695981039346656037)
	for _, e := range events {
		for _, c := range []byte(e.String()) {
			h = (h ^ uint64(c)) * 1099511628211
		}
	}
	return h
}
