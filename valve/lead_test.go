package valve

import (
	"testing"
	"time"
)

// What is asked for covers all but rare jobs, follows a store that gets slower
// or faster, and one that hangs does not matter for long.
func TestLeadFollowsTheStore(t *testing.T) {
	var l lead
	if got := l.estimate(); got != 0 {
		t.Fatalf("of nothing: %v", got)
	}
	feed := func(n int, around time.Duration) {
		for i := range n {
			l.add(around + time.Duration(i%5-2)*around/10)
		}
	}
	within := func(what string, low, high time.Duration) {
		t.Helper()
		if got := l.estimate(); got < low || got > high {
			t.Errorf("%s: %v, want %v to %v", what, got, low, high)
		}
	}
	feed(50, 5*time.Millisecond)
	within("steady", 6*time.Millisecond, 9*time.Millisecond)
	feed(30, 30*time.Millisecond)
	within("slower", 36*time.Millisecond, 60*time.Millisecond)
	l.add(time.Minute)
	within("hanging", 36*time.Millisecond, 2*longestLead)
	feed(60, 5*time.Millisecond)
	within("quick again", 6*time.Millisecond, 9*time.Millisecond)
}
