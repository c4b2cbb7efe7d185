package demo

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"

	"github.com/mvalve/mvalve/cmd/internal/setup"
)

// row is what became of a destination.
type row struct {
	Destination string  `json:"destination"`
	Limit       string  `json:"limit"`
	Sent        int     `json:"sent"`
	Received    int     `json:"received"` // different messages
	Again       int     `json:"received_again"`
	Left        int     `json:"left"` // in the queue
	Lost        int     `json:"lost"` // neither received nor in the queue, or dead
	Allowed     float64 `json:"allowed_per_second"`
	Achieved    float64 `json:"achieved_per_second"`
	Most        int     `json:"most_in_interval"`
	Above       int     `json:"windows_above"`            // by arrivals
	Dispatched  int     `json:"windows_above_dispatched"` // by dispatches
	Emergencies int     `json:"emergencies"`
	P50         float64 `json:"emergency_p50_ms"`
	Max         float64 `json:"emergency_max_ms"`

	shown string // the limit without its guard
}

// result is what the demo prints at its end.
type result struct {
	Queue        string  `json:"queue"`
	State        string  `json:"state"`
	Readers      int     `json:"readers"`
	Seconds      float64 `json:"seconds"` // from the first insert to the last arrival
	Sent         int     `json:"sent"`
	Received     int     `json:"received"`
	Lost         int     `json:"lost"`
	Above        int     `json:"windows_above"`            // by arrivals
	Dispatched   int     `json:"windows_above_dispatched"` // by dispatches
	Finished     bool    `json:"finished"`                 // all messages arrived and none is left
	Destinations []row   `json:"destinations"`
}

// newRow judges a destination. sent says when each message was written on the
// receiver's clock, left how many are in the queue.
func newRow(t *target, a account, firsts map[string]int64, sent []sent, left int) row {
	r := row{
		Destination: t.name, Limit: t.limit.String(), shown: t.short(), Again: a.requests - a.messages, Left: left,
		Allowed: allowed(t.limit), Achieved: achieved(t, a), Most: a.report.Worst, Above: a.report.Above, Dispatched: a.above,
	}
	var latencies []int64
	for _, s := range sent {
		if s.target != t {
			continue
		}
		r.Sent++
		at, arrived := firsts[s.id]
		if arrived {
			r.Received++
		}
		if arrived && s.emergency {
			latencies = append(latencies, at-s.at)
		}
	}
	r.Lost = max(r.Sent-r.Received-left, 0)
	slices.Sort(latencies)
	if r.Emergencies = len(latencies); r.Emergencies > 0 {
		r.P50 = float64(latencies[len(latencies)/2]) / 1000
		r.Max = float64(latencies[len(latencies)-1]) / 1000
	}
	return r
}

// achieved returns the rate at which messages arrived while others waited, a second.
func achieved(t *target, a account) float64 {
	if a.report.Used > 0 {
		return a.report.Used * float64(t.limit.Max) / t.limit.Interval.Seconds()
	}
	if span := a.report.Last - a.report.First; span > 0 { // too few for a window and one more
		return float64(a.report.Count-1) / (float64(span) / 1e6)
	}
	return 0
}

// sum completes a result from its rows.
func (r *result) sum() {
	left := 0
	for _, d := range r.Destinations {
		r.Sent += d.Sent
		r.Received += d.Received
		r.Lost += d.Lost
		r.Above += d.Above
		r.Dispatched += d.Dispatched
		left += d.Left
	}
	r.Finished = left == 0 && r.Received == r.Sent
}

func (r *result) print(out io.Writer, asJSON bool) error {
	var err error
	if asJSON {
		err = json.NewEncoder(out).Encode(r)
	} else {
		err = r.table(out)
	}
	if err != nil {
		return setup.Failf(setup.ExitOutput, "standard output: %w", err)
	}
	return nil
}

func (r *result) table(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "DESTINATION\tLIMIT\tSENT\tRECEIVED\tALLOWED\tACHIEVED\tABOVE\tEMERGENCY")
	for _, d := range r.Destinations {
		fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%.2f/s\t%.2f/s\t%d\t%s\n", d.Destination, d.shown,
			d.Sent, d.Received, d.Allowed, d.Achieved, d.Above, d.emergency())
	}
	fmt.Fprintf(w, "\n%d sent, %d received by %d reader processes in %.1f s: %d lost, %d windows above.\n",
		r.Sent, r.Received, r.Readers, r.Seconds, r.Lost, r.Above)
	fmt.Fprintf(w, "ALLOWED: with a guard of %v. ABOVE: windows in which more arrived than the\n", guard)
	fmt.Fprintln(w, "limit allows. EMERGENCY: seconds from insert to arrival, median/longest.")
	if r.Above > 0 && r.Dispatched == 0 {
		fmt.Fprintf(w, "mvalve dispatched within the limits, but requests took more than %v longer\nthan others to arrive: this machine is busy.\n", guard)
	}
	return w.Flush()
}

// emergency is the median and the longest latency in seconds.
func (r row) emergency() string {
	if r.Emergencies == 0 {
		return "-"
	}
	return fmt.Sprintf("%.2f/%.2f", r.P50/1000, r.Max/1000)
}

// verdict returns why the demo failed, nil if it did not. Of the limits it judges
// what mvalve controls, the dispatches: how long a request travels is up to the
// machine.
func (r *result) verdict() error {
	switch {
	case r.Lost > 0 || r.Dispatched > 0:
		return setup.Failf(setup.ExitBug, "%d messages were lost, %d windows were above the limit by the moments of dispatch", r.Lost, r.Dispatched)
	case !r.Finished:
		return setup.Failf(setup.ExitUnfinished, "%d of %d messages did not arrive in time", r.Sent-r.Received, r.Sent)
	}
	return nil
}
