package throttle

import (
	"cmp"
	"slices"
)

// longestWindows is how many old windows within the new one are followed entry
// by entry; more are counted window by window.
const longestWindows = 512

// maxPasts is how many earlier limits a ring remembers.
const maxPasts = 4

// full makes the window count as used up at the given time. Until then was, too,
// may have been in force; another limit must not take that for empty.
func (r *ring) full(at int64, was Limit) {
	r.entries = append(r.entries[:0], entry{hi: at, n: max(r.limit.Max, 1)})
	r.total = r.entries[0].n
	r.forgot = max(r.forgot, at)
	if !was.IsNone() && was != r.limit {
		p := past{was.Max, was.window(), at}
		if !r.limit.IsNone() {
			p = p.or(past{r.limit.Max, r.limit.window(), at})
		}
		r.pasts = []past{p}
	}
}

// change puts the ring under another limit at now. Dispatches of the past still
// count. What the ring has forgotten under the old limit, but the new one would
// still count, is taken to be the densest past the old limit allowed. Reports of
// permits that are out do not count any more: they stay at their latest.
func (r *ring) change(limit Limit, version, now int64) {
	old := r.limit
	r.high = max(r.high, now)
	r.version, r.moved = version, false
	if old == limit {
		return
	}
	_, r.closed = r.closedUntil()
	r.closer, r.hold = 0, 0
	r.limit, r.tat = limit, 0
	r.era = max(r.era+1, r.high)
	latest := slices.Clone(r.entries)
	slices.Reverse(latest)
	if !limit.IsNone() && (old.IsNone() || limit.window() > old.window()) {
		latest = r.remember(latest, old, limit)
	}
	if !old.IsNone() {
		until := r.high
		if n := len(r.entries); n > 0 { // permits that are out may be used later than now
			until = max(until, r.entries[n-1].hi)
		}
		r.pushPast(past{old.Max, old.window(), until})
	}
	if limit.IsNone() { // what was before it is in pasts
		latest, r.forgot = nil, 0
	}
	r.rebuild(latest)
}

// remember extends entries, latest first, by the past that old and the limits
// before it allowed at most, as far back as limit counts.
func (r *ring) remember(latest []entry, old, limit Limit) []entry {
	edge, top := r.high-limit.window(), r.high-old.window()
	bound := edge
	if len(r.pasts) > 0 {
		bound = max(edge, r.pasts[0].until)
	}
	now := past{old.Max, old.window(), top}
	switch {
	case old.IsNone(): // nothing counted
	case limit.window()/old.window() < longestWindows:
		latest = densest(latest, now, limit.Max, bound)
	default:
		latest = densestWindows(latest, now, limit.Max, bound)
	}
	for i, p := range r.pasts {
		bound = edge
		if i+1 < len(r.pasts) {
			bound = max(edge, r.pasts[i+1].until)
		}
		p.until = min(p.until, top)
		latest = densestWindows(latest, p, limit.Max, bound)
	}
	r.cut(latest, limit.Max)
	return latest
}

// cut notes that the past was followed only until entries, latest first, held
// enough for the limit: another one must not take what is before for empty.
// For the limit itself this changes nothing, it waits for the same entry.
func (r *ring) cut(latest []entry, enough int64) {
	if dispatches(latest) >= enough {
		r.forgot = max(r.forgot, latest[len(latest)-1].hi)
	}
}

// dispatches returns how many dispatches entries stand for.
func dispatches(entries []entry) (n int64) {
	for _, e := range entries {
		n += e.n
	}
	return n
}

// or returns a past that allows what p or q did, until p's end.
func (p past) or(q past) past { return past{max(p.max, q.max), min(p.window, q.window), p.until} }

// pushPast notes an earlier limit. Where there are too many, one that allows
// what the two oldest did takes their place.
func (r *ring) pushPast(p past) {
	r.pasts = slices.Insert(r.pasts, 0, p)
	if n := len(r.pasts); n > maxPasts {
		a, b := r.pasts[n-2], r.pasts[n-1]
		r.pasts[n-2] = a.or(b)
		r.pasts = r.pasts[:n-1]
	}
}

// rebuild makes the ring of entries, all closed.
func (r *ring) rebuild(latest []entry) {
	slices.SortStableFunc(latest, func(a, b entry) int { return cmp.Compare(b.hi, a.hi) })
	r.entries, r.total = r.entries[:0], 0
	for _, e := range latest {
		hi := r.roundUp(e.hi)
		if i := len(r.entries) - 1; i >= 0 && r.entries[i].hi == hi {
			r.entries[i].n += e.n
		} else {
			r.entries = append(r.entries, entry{hi: hi, n: e.n})
		}
		r.total += e.n
	}
	slices.Reverse(r.entries)
}

// densest extends entries, latest first, by what p allowed before them down to
// edge: the entry p.max places earlier than another is at least a window
// earlier, and none is after p.until. It stops when there are enough.
func densest(latest []entry, p past, enough, edge int64) []entry {
	total := dispatches(latest)
	top := p.until
	skip := total - p.max // so many of the latest have their successor in the ring
	if skip < 0 && top > edge {
		latest = append(latest, entry{hi: top, n: -skip})
		total -= skip
	}
	for i := 0; i < len(latest) && total < enough; i++ {
		e := latest[i]
		if skip > 0 {
			s := min(skip, e.n)
			skip, e.n = skip-s, e.n-s
		}
		if e.n == 0 {
			continue
		}
		e.hi = min(top, e.hi-p.window)
		if e.hi <= edge {
			break
		}
		latest = append(latest, entry{hi: e.hi, n: e.n})
		total += e.n
		top = e.hi
	}
	return latest
}

// densestWindows is densest with all of a window at its end, several windows
// together where there are too many.
func densestWindows(latest []entry, p past, enough, edge int64) []entry {
	total := dispatches(latest)
	windows := max(0, (p.until-edge)/p.window+1)
	step := max(1, (windows+longestWindows-1)/longestWindows)
	for at := p.until; at > edge && total < enough; at -= step * p.window {
		n := min(step*p.max, enough)
		latest = append(latest, entry{hi: at, n: n})
		total += n
	}
	return latest
}

// assume fills the ring of a value that was absent at now with the densest past
// that old allowed up to last.
func (r *ring) assume(old Limit, last, now int64) {
	if old.IsNone() || r.limit.IsNone() || last <= now-r.limit.window() {
		return
	}
	latest := densestWindows(nil, past{old.Max, old.window(), last}, r.limit.Max, now-r.limit.window())
	r.cut(latest, r.limit.Max)
	r.rebuild(latest)
	r.pasts = []past{{old.Max, old.window(), last}}
}
