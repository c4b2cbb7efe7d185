package throttle

import "slices"

// longestWindows is how many old windows within the new one are followed entry
// by entry; more are counted window by window.
const longestWindows = 512

// full makes the window count as used up at the given time.
func (r *ring) full(at int64) {
	r.entries = append(r.entries[:0], entry{hi: at, n: max(r.limit.Max, 1)})
	r.total = r.entries[0].n
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
	if limit.IsNone() {
		r.entries, r.total, r.forgot = r.entries[:0], 0, 0
		return
	}
	latest := slices.Clone(r.entries)
	slices.Reverse(latest)
	if !old.IsNone() && limit.window() > old.window() {
		top := r.high - old.window()
		if limit.window()/old.window() < longestWindows {
			latest = densest(latest, old, limit, top, r.high)
		} else {
			latest = densestWindows(latest, old, limit, top, r.high)
		}
	}
	r.rebuild(latest)
}

// rebuild makes the ring of entries given latest first, all closed.
func (r *ring) rebuild(latest []entry) {
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

// densest extends entries, latest first, by what old allowed before them: the
// entry Max places earlier than another is at least a window earlier, and none
// is after top. It ends with what limit does not count at now any more.
func densest(latest []entry, old, limit Limit, top, now int64) []entry {
	total := int64(0)
	for _, e := range latest {
		total += e.n
	}
	edge := now - limit.window()
	skip := total - old.Max // so many of the latest have their successor in the ring
	if skip < 0 {
		latest = append(latest, entry{hi: top, n: -skip})
		total -= skip
	}
	for i := 0; i < len(latest) && total < limit.Max; i++ {
		e := latest[i]
		if skip > 0 {
			s := min(skip, e.n)
			skip, e.n = skip-s, e.n-s
		}
		if e.n == 0 {
			continue
		}
		e.hi = min(top, e.hi-old.window())
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
func densestWindows(latest []entry, old, limit Limit, top, now int64) []entry {
	total := int64(0)
	for _, e := range latest {
		total += e.n
	}
	edge := now - limit.window()
	windows := max(0, (top-edge)/old.window()+1)
	step := (windows + longestWindows - 1) / longestWindows
	for at := top; at > edge && total < limit.Max; at -= step * old.window() {
		n := min(step*old.Max, limit.Max)
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
	r.rebuild(densestWindows(nil, old, r.limit, last, now))
}
