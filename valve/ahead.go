package valve

import "time"

const (
	// aheadMessages is the most messages of limited destinations, per class,
	// between taking permits and dispatch. A permit lapses when stores and
	// callers need longer than its slack for what is before it.
	aheadMessages = 512
	// relaxedSlack: permits with at least this slack lapse later, so that
	// messages of destinations that got such count as a relaxedShare of one.
	relaxedSlack = 200 * time.Millisecond
	relaxedShare = 8
	// aheadBytes is about the most bytes of bodies on the way to their dispatch.
	// Of them one subscription may have subBytes; once all are used up, it may
	// have lastBytes, so that none waits for others that do not take theirs. One
	// message may exceed each.
	aheadBytes = 32 << 20
	subBytes   = 4 << 20
	lastBytes  = 64 << 10
)

// fits reports whether a subscription with so many bytes ahead may have size more.
// The mutex is held.
func (r *Reader) fits(ahead, size int) bool {
	most := subBytes
	if r.bytes >= aheadBytes {
		most = lastBytes
	}
	return ahead == 0 || ahead+size <= most
}

// weight is what a message of d counts towards aheadMessages, in shares.
func (d *destination) weight() int {
	if d.relaxed {
		return 1
	}
	return relaxedShare
}

// room is how many more messages of class c that weigh so much may be on the
// way. The mutex is held.
func (r *Reader) room(c class, weight int) int {
	if c == unlimited {
		return jobItems
	}
	return (aheadMessages*relaxedShare - r.ahead[c]) / weight
}

// goAhead counts e, of class c, as on the way. The mutex is held.
func (r *Reader) goAhead(e *entry, c class) {
	e.weight, e.class = int8(e.dest.weight()), c
	r.ahead[c] += int(e.weight)
	r.bytes += e.ref.Size
	e.sub.ahead += e.ref.Size
}

// stopAhead ends goAhead. The mutex is held.
func (r *Reader) stopAhead(e *entry) {
	if e.weight > 0 {
		r.ahead[e.class] -= int(e.weight)
		r.bytes -= e.ref.Size
		e.weight = 0
		if e.sub.ahead -= e.ref.Size; e.sub.parked != nil {
			e.sub.freed()
			r.wakeUp()
		}
	}
}
