package valve

// rings are the eligible destinations of one class, in turn.
type rings struct {
	normal, express fifo    // express: those with an emergency
	turn            int     // picks so far
	passed          float64 // virtual time: picks, each divided by how many wait
}

func (q *rings) len() int { return q.normal.len() + q.express.len() }

// pop takes the next destination, mostly one with an emergency.
func (q *rings) pop() *destination {
	q.passed += 1 / float64(q.len())
	q.turn++
	if d := q.express.peek(); d != nil && (q.turn%expressShare != 0 || q.normal.len() == 0) {
		q.express.pop()
		d.inExpress = false
		return d
	}
	d := q.normal.pop()
	d.inRing = false
	return d
}

// fifo is a queue of destinations.
type fifo struct{ items []*destination }

func (f *fifo) push(d *destination) { f.items = append(f.items, d) }
func (f *fifo) len() int            { return len(f.items) }

func (f *fifo) peek() *destination {
	if len(f.items) == 0 {
		return nil
	}
	return f.items[0]
}

func (f *fifo) pop() *destination {
	if len(f.items) == 0 {
		return nil
	}
	d := f.items[0]
	f.items[0] = nil
	f.items = f.items[1:]
	return d
}
