package valve

import "time"

// A permit must be used within its slack, so only so many messages may be
// between taking permits and dispatch. How many depends on how quick stores and
// callers are at the moment; like a TCP sender (RFC 5681) the reader finds out:
// it widens while permits are used in time and halves when one lapsed.
const (
	aheadStart = 256
	aheadLeast = 128
	aheadMost  = 2 * jobItems
	// aheadPause is the least time between two halvings.
	aheadPause = 100 * time.Millisecond
)

// window bounds the messages of one class on the way to their dispatch.
type window struct {
	out    int     // on the way
	room   float64 // most on the way; 0: aheadStart
	lapsed bool    // a permit lapsed before: grow slowly
	halved time.Time
}

func (w *window) limit() int {
	if w.room == 0 {
		w.room = aheadStart
	}
	return int(w.room)
}

// used notes a dispatch in time.
func (w *window) used() {
	step := 1.0
	if w.lapsed {
		step = min(1, 64/float64(w.limit()))
	}
	w.room = min(float64(w.limit())+step, aheadMost)
}

// late notes a permit that lapsed.
func (w *window) late(now time.Time) {
	if now.Sub(w.halved) >= aheadPause {
		w.room = max(float64(w.limit())/2, aheadLeast)
		w.halved, w.lapsed = now, true
	}
}

// aheadBytes is the most bytes of bodies on the way; one message may exceed it.
const aheadBytes = 32 << 20

// goAhead counts e, of class c, as on the way. The mutex is held.
func (r *Reader) goAhead(e *entry, c class) {
	e.ahead, e.class = true, c
	r.ahead[c].out++
	r.bytes += e.ref.Size
}

// stopAhead ends goAhead. The mutex is held.
func (r *Reader) stopAhead(e *entry) {
	if e.ahead {
		e.ahead = false
		r.ahead[e.class].out--
		r.bytes -= e.ref.Size
	}
}
