package throttle

import (
	"slices"
	"sort"
	"time"
)

// Why the window check is exact
//
// A permit has a stamp p and is dispatched at some s in [p, p+slack], or not at
// all. The ring holds for every permit an upper bound hi of its s: p+slack until
// its reader reports, s afterwards. A new permit p is legal if at most Max-1
// others have hi > p-I, I being the window. Then no window [t, t+I) ever holds
// more than Max dispatches:
//
// Suppose it holds Max+1, and let p be the one of these permits that was granted
// last (the compare-and-swap store puts grants in order), dispatched at s. For
// each of the Max others the ring then had hi >= its dispatch >= t, and
// p-I <= s-I < t because s < t+I. So all Max others had hi > p-I: the grant was
// not legal. Nothing in this asks for stamps in order, so permits may be taken
// ahead, reported late, and granted by readers whose clocks differ.
//
// Entries with hi <= high-I are forgotten, high being the largest now that any
// grant saw; no later stamp is before high, so they would not be counted anyway.
// A clock that is behind waits, it never reopens a window.

// easyShare: permits are easy while less than one part of so many of the window
// is used.
const easyShare = 4

const (
	ringSize    = 1024 // largest Max that is counted stamp by stamp
	ringEntries = 2048 // entries in a value: a window and the permits that are out
	minSlack    = 5_000
	maxSlack    = 50_000
	maxEasy     = 250_000 // slack while there is room
	minRun      = 5_000
	maxRun      = 25_000
	maxAsked    = 100_000 // the longest run, for a reader that is slow
)

// entry says that n dispatches happen at hi at the latest (µs). Open ones wait
// for a report of the real stamp.
type entry struct {
	hi, n int64
	open  bool
}

// past says that until a time (µs) a limit applied of max per window (µs).
type past struct{ max, window, until int64 }

// ring is the state of one destination. Times are µs since 1970.
type ring struct {
	limit   Limit
	version int64  // of the rules
	era     int64  // reports of permits of another era do not count
	nonce   uint64 // of the last write
	moved   bool   // the state went on in the other store
	high    int64  // largest now seen
	tat     int64  // theoretical arrival time, paced only
	forgot  int64  // hi of the latest entry dropped for want of room

	closed int64 // nothing before, whatever the limit
	closer int64 // stamp whose dispatch closes for hold, 0 if none is out
	hold   int64

	pasts []past // earlier limits, latest first

	entries []entry // in order of hi
	total   int64   // sum of n
}

// window returns I in µs.
func (l Limit) window() int64 { return int64((l.Interval + l.Guard) / time.Microsecond) }

// slack returns how long after its stamp a permit may be used, in µs: 1/20 of
// the interval, but not less than answers of a store and timers are late.
func (l Limit) slack() int64 {
	if l.IsNone() {
		return maxSlack
	}
	return min(maxSlack, max(minSlack, int64(l.Interval/time.Microsecond)/20))
}

// easy returns the slack of permits that are granted while most of the window is
// free: they may be late, because nobody waits for their slots. Then a store
// that is slow for a moment costs no permits.
func (l Limit) easy() int64 {
	if l.Max < easyShare { // no limit has Max 0
		return l.slack()
	}
	return max(l.slack(), min(maxEasy, int64(l.Interval/time.Microsecond)/4))
}

// run returns how far ahead of now permits are given at least, in µs. What a
// reader that dies has taken ahead is lost, so runs are short; asking again half
// a run before a slot gets free hides the way to the store.
func (l Limit) run() int64 {
	if l.IsNone() {
		return maxRun
	}
	return min(maxRun, max(minRun, int64(l.Interval/time.Microsecond)/4))
}

// runFor is run for a reader that needs lead from asking to its dispatch.
func (l Limit) runFor(lead time.Duration) int64 {
	return max(l.run(), min(l.longestRun(), 2*int64(lead/time.Microsecond)))
}

// longestRun is how far ahead of now a permit may be that any reader was given:
// an interval, but not more than maxAsked.
func (l Limit) longestRun() int64 {
	return max(l.run(), min(maxAsked, int64(l.Interval/time.Microsecond)))
}

// bucket returns the width to which stamps are rounded up, 1 for none.
func (l Limit) bucket() int64 {
	if l.Max <= ringSize {
		return 1
	}
	return max(1, (l.window()+ringSize-1)/ringSize)
}

// spacing returns T of the paced mode, 0 in the others.
func (l Limit) spacing() int64 {
	if l.Mode != Paced || l.Max < 2 {
		return 0
	}
	return (l.window() + l.Max - 2) / (l.Max - 1)
}

// stamp is a permit: to be used in [p, p+slack] (µs).
type stamp struct{ p, slack int64 }

// latest returns the hi of a permit.
func (r *ring) latest(s stamp) int64 { return r.roundUp(s.p + s.slack) }

func (r *ring) roundUp(t int64) int64 {
	w := r.limit.bucket()
	if w == 1 {
		return t
	}
	return (t + w - 1) / w * w
}

// closedUntil returns until when the destination is closed at least and at most.
func (r *ring) closedUntil() (lo, hi int64) {
	lo, hi = r.closed, r.closed
	if r.closer != 0 {
		lo = max(lo, r.closer+r.hold)
		hi = max(hi, r.closer+r.limit.slack()+r.hold)
	}
	return lo, hi
}

// find returns the index of the first entry with at least this hi.
func (r *ring) find(hi int64) int {
	return sort.Search(len(r.entries), func(i int) bool { return r.entries[i].hi >= hi })
}

// findOpen returns the index of the open entry of permits with this hi, or -1.
func (r *ring) findOpen(hi int64) int {
	for i := r.find(hi); i < len(r.entries) && r.entries[i].hi == hi; i++ {
		if r.entries[i].open {
			return i
		}
	}
	return -1
}

// add counts n more dispatches at hi.
func (r *ring) add(hi, n int64, open bool) {
	r.total += n
	i := len(r.entries)
	if i > 0 && r.entries[i-1].hi >= hi {
		i = r.find(hi)
	}
	for ; i < len(r.entries) && r.entries[i].hi == hi; i++ {
		if r.entries[i].open == open {
			r.entries[i].n += n
			return
		}
	}
	r.entries = slices.Insert(r.entries, i, entry{hi, n, open})
}

// remove takes one dispatch out of entry i.
func (r *ring) remove(i int) {
	r.total--
	if r.entries[i].n--; r.entries[i].n == 0 {
		r.entries = slices.Delete(r.entries, i, i+1)
	}
}

// prune forgets what no stamp at or after now can meet, and what is too much.
func (r *ring) prune(now int64) {
	edge := now - r.limit.window()
	i := 0
	for i < len(r.entries) && (r.entries[i].hi <= edge || len(r.entries)-i > ringEntries) {
		if r.entries[i].hi > edge {
			r.forgot = max(r.forgot, r.entries[i].hi)
		}
		r.total -= r.entries[i].n
		i++
	}
	r.entries = r.entries[i:]
	if r.forgot <= edge {
		r.forgot = 0
	}
}

// report notes that the permit was dispatched at s.
func (r *ring) report(permit stamp, s int64) {
	hi := r.latest(permit)
	if s < permit.p || s > permit.p+permit.slack {
		s = max(s, hi) // the caller broke the rules: count what is worse
	}
	if i := r.findOpen(hi); i >= 0 {
		r.remove(i)
		r.add(r.roundUp(s), 1, false)
	}
	if r.closer == permit.p {
		r.closed, r.closer = max(r.closed, s+r.hold), 0
	}
}

// giveBack removes a permit that will not be used: its slot is free again.
func (r *ring) giveBack(permit stamp) {
	if i := r.findOpen(r.latest(permit)); i >= 0 {
		r.remove(i)
		r.tat -= r.limit.spacing() // so is its place in the pace
	}
	if r.closer == permit.p {
		r.closer = 0
	}
}

// grant adds one permit, so that every open stamp stays unique where stamps are
// counted one by one, and returns its stamp: p or a little later. A permit that
// closes the destination has the usual slack, which closedUntil relies on.
func (r *ring) grant(p int64, closes bool) stamp {
	s := stamp{p, r.limit.slack()}
	if r.limit.IsNone() {
		return s
	}
	if !closes && easyShare*(r.total+1) <= r.limit.Max {
		s.slack = r.limit.easy()
	}
	if r.limit.bucket() == 1 {
		for r.findOpen(r.latest(s)) >= 0 {
			s.p++
		}
	}
	r.add(r.latest(s), 1, true)
	return s
}

// take appends up to want stamps that are legal and at most run ahead of now.
// With fewer, next is when asking again makes sense. With hold, there is at most
// one, later than all that is out, and its dispatch closes the destination.
func (r *ring) take(stamps []stamp, now, run int64, want int, hold int64) (_ []stamp, next int64) {
	horizon, lead := now+run, run/2
	r.high = max(r.high, now)
	r.prune(r.high)
	closedLo, closedHi := r.closedUntil()
	base, baseLo := max(r.high, closedHi), max(r.high, closedLo)
	if r.forgot != 0 {
		base = max(base, r.forgot+r.limit.window())
	}
	if hold > 0 {
		base = max(base, r.lastOpen())
	}
	released, count := 0, int64(0) // entries[:released] sum up to count
	for range want {
		p, lo := base, baseLo
		if over := r.total - (r.limit.Max - 1); over > 0 && !r.limit.IsNone() {
			for count < over {
				count += r.entries[released].n
				released++
			}
			free := r.entries[released-1]
			p = max(p, free.hi+r.limit.window())
			if free.open {
				free.hi -= r.limit.easy() + r.limit.bucket() - 1
			}
			lo = max(lo, free.hi+r.limit.window())
		}
		if t := r.limit.spacing(); t > 0 {
			p, lo = max(p, r.tat-t), max(lo, r.tat-t)
		}
		if p > horizon {
			return stamps, nextAsk(now, lo, p, lead)
		}
		granted := r.grant(p, hold > 0)
		p = granted.p
		if t := r.limit.spacing(); t > 0 {
			r.tat = max(p, r.tat) + t
		}
		stamps = append(stamps, granted)
		base, baseLo = max(base, p), max(baseLo, p)
		if hold > 0 {
			r.closed, r.closer, r.hold = closedHi, p, hold
			if want > 1 {
				next = p + hold - lead
			}
			return stamps, next
		}
	}
	return stamps, 0
}

// nextAsk returns when to ask for a slot that is free between lo and p: first
// early enough for lo, then for p.
func nextAsk(now, lo, p, lead int64) int64 {
	if lo-lead > now {
		return lo - lead
	}
	return p - lead
}

// charge appends want stamps from now on, whatever the limit says.
func (r *ring) charge(stamps []stamp, now int64, want int, hold int64) []stamp {
	r.high = max(r.high, now)
	p := now
	for range want {
		granted := r.grant(p, true)
		p = granted.p
		stamps = append(stamps, granted)
	}
	if hold > 0 && want > 0 {
		_, r.closed = r.closedUntil()
		r.closer, r.hold = stamps[0].p, hold
	}
	if t := r.limit.spacing(); t > 0 {
		r.tat = max(p, r.tat) + t*int64(want)
	}
	r.prune(r.high)
	return stamps
}

// lastOpen returns until when a permit that is out may be dispatched.
func (r *ring) lastOpen() int64 {
	for i := len(r.entries) - 1; i >= 0; i-- {
		if r.entries[i].open {
			return r.entries[i].hi + 1
		}
	}
	return 0
}

// crowded reports whether a slot more or less would soon matter.
func (r *ring) crowded() bool { return 2*r.total >= r.limit.Max }
