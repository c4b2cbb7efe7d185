// Package checker judges logs of dispatches after the fact: given when each
// message left, did any half-open window hold more than the limit allows?
//
// It is deliberately naive, shares no code with the limiter it judges and keeps
// every stamp in memory.
//
//	log, err := checker.ReadLog(os.Stdin)
//	for destination, stamps := range log {
//		report := checker.Check(destination, stamps, checker.Limit{Max: 10, Window: 30 * time.Second})
//		...
//	}
package checker

import (
	"slices"
	"time"
)

// Limit is at most Max stamps in any half-open window [t, t+Window). A guard is
// part of Window where dispatches are judged, and is left out where arrivals are.
type Limit struct {
	Max    int
	Window time.Duration // whole microseconds
}

// Report is the verdict on one destination. Stamps are microseconds since 1970 UTC.
type Report struct {
	Destination string
	Limit       Limit
	Count       int   // stamps in the log
	First, Last int64 // 0 without stamps
	Worst       int   // most stamps in one half-open window
	WorstAt     int64 // where the first such window starts
	Above       int   // windows starting at a stamp that hold more than Limit.Max
	AboveAt     int64 // where the first of them starts, 0 if there is none

	// Used is the share of the allowed rate that was used: Window divided by
	// the mean time from each stamp to the one Max places later. With a
	// backlog all the time it is 1 for a perfect limiter, however it spreads
	// the dispatches within a window. It is 0 when Count <= Max: then the log
	// is too short to tell. Idle time in the log lowers it.
	Used float64
}

// Check counts, for every stamp, how many stamps lie within Window from it
// on. stamps may be in any order; they are not changed.
func Check(destination string, stamps []int64, limit Limit) Report {
	report := Report{Destination: destination, Limit: limit, Count: len(stamps)}
	if len(stamps) == 0 {
		return report
	}
	sorted := slices.Sorted(slices.Values(stamps))
	report.First, report.Last = sorted[0], sorted[len(sorted)-1]

	window := limit.Window.Microseconds()
	end := 0 // the first stamp outside the window that starts at sorted[start]
	for start := range sorted {
		for end < len(sorted) && sorted[end] < sorted[start]+window {
			end++
		}
		inside := end - start
		if inside > report.Worst {
			report.Worst, report.WorstAt = inside, sorted[start]
		}
		if inside > limit.Max {
			if report.Above == 0 {
				report.AboveAt = sorted[start]
			}
			report.Above++
		}
	}
	report.Used = used(sorted, limit.Max, window)
	return report
}

func used(sorted []int64, limit int, window int64) float64 {
	pairs := len(sorted) - limit
	if limit <= 0 || pairs <= 0 {
		return 0
	}
	var total float64
	for i := range pairs {
		total += float64(sorted[i+limit] - sorted[i])
	}
	if total == 0 {
		return float64(len(sorted))
	}
	return float64(window) * float64(pairs) / total
}

// Fairness returns the smallest Jain index over all spans of the given length
// that start a tenth of it apart, and where that span starts. The index is 1 when
// every destination had the same number of dispatches and 1/n when one of n had
// all. Only the time in which every destination was busy counts: from the last
// of their first stamps to the first of their last ones. ok is false if that is
// shorter than one span.
func Fairness(log map[string][]int64, span time.Duration) (worst float64, at int64, ok bool) {
	if len(log) == 0 || span < 10*time.Microsecond {
		return 0, 0, false
	}
	sorted := make([][]int64, 0, len(log))
	from, to := int64(0), int64(0)
	for _, stamps := range log {
		if len(stamps) == 0 {
			return 0, 0, false
		}
		s := slices.Sorted(slices.Values(stamps))
		if len(sorted) == 0 {
			from, to = s[0], s[len(s)-1]
		}
		from, to = max(from, s[0]), min(to, s[len(s)-1])
		sorted = append(sorted, s)
	}
	length := span.Microseconds()
	for start := from; start+length <= to; start += length / 10 {
		index := jain(sorted, start, start+length)
		if !ok || index < worst {
			worst, at, ok = index, start, true
		}
	}
	return worst, at, ok
}

// jain returns (Σx)² / (n Σx²) over the numbers of stamps within [start, end).
func jain(sorted [][]int64, start, end int64) float64 {
	var sum, squares float64
	for _, stamps := range sorted {
		low, _ := slices.BinarySearch(stamps, start)
		high, _ := slices.BinarySearch(stamps, end)
		x := float64(high - low)
		sum += x
		squares += x * x
	}
	if squares == 0 {
		return 0
	}
	return sum * sum / (float64(len(sorted)) * squares)
}
