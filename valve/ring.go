package valve

import "slices"

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
type fifo struct {
	items []*destination
	first int // items before it were taken
}

// push puts d at the end, or at the front while its turn is not over.
func (f *fifo) push(d *destination) {
	switch {
	case d.deficit == 0:
		f.items = append(f.items, d)
	case f.first > 0:
		f.first--
		f.items[f.first] = d
	default:
		f.items = slices.Insert(f.items, 0, d)
	}
}

func (f *fifo) len() int { return len(f.items) - f.first }

func (f *fifo) peek() *destination {
	if f.len() == 0 {
		return nil
	}
	return f.items[f.first]
}

func (f *fifo) pop() *destination {
	if f.len() == 0 {
		return nil
	}
	d := f.items[f.first]
	f.items[f.first] = nil
	f.first++
	if f.first > len(f.items)/2 { // at most half of it is empty
		f.items = slices.Delete(f.items, 0, f.first)
		f.first = 0
	}
	return d
}
