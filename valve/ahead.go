package valve

const (
	// aheadMessages is the most messages of limited destinations, per class,
	// between taking permits and dispatch. A permit lapses when stores and
	// callers need longer than its slack for what is before it.
	aheadMessages = 512
	// aheadBytes is the most bytes of bodies on the way to their dispatch; one
	// message may exceed it.
	aheadBytes = 32 << 20
)

// room is how many more messages of class c may be on the way. The mutex is held.
func (r *Reader) room(c class) int {
	if c == unlimited {
		return jobItems
	}
	return aheadMessages - r.ahead[c]
}

// goAhead counts e, of class c, as on the way. The mutex is held.
func (r *Reader) goAhead(e *entry, c class) {
	e.ahead, e.class = true, c
	r.ahead[c]++
	r.bytes += e.ref.Size
}

// stopAhead ends goAhead. The mutex is held.
func (r *Reader) stopAhead(e *entry) {
	if e.ahead {
		e.ahead = false
		r.ahead[e.class]--
		r.bytes -= e.ref.Size
	}
}
