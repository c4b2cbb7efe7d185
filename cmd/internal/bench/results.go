package bench

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
)

// figure is what one case of a benchmark found, once per round.
type figure struct {
	bench, name, unit string
	goal              goal
	values            []float64
}

// goal is what a figure should reach; the zero goal asks for nothing.
type goal struct {
	sign  string // "≥" or "≤"
	value float64
}

func atLeast(v float64) goal { return goal{"≥", v} }
func atMost(v float64) goal  { return goal{"≤", v} }

func (g goal) String() string {
	if g.sign == "" {
		return ""
	}
	return g.sign + " " + number(g.value)
}

func (g goal) met(v float64) bool {
	switch g.sign {
	case "≥":
		return v >= g.value
	case "≤":
		return v <= g.value
	}
	return true
}

// results are the figures in the order in which they were first noted.
type results struct{ figures []*figure }

func (r *results) add(bench, name, unit string, value float64, g goal) {
	for _, f := range r.figures {
		if f.bench == bench && f.name == name {
			f.values = append(f.values, value)
			return
		}
	}
	r.figures = append(r.figures, &figure{bench, name, unit, g, []float64{value}})
}

func (f *figure) median() float64 {
	v := slices.Sorted(slices.Values(f.values))
	if n := len(v); n%2 == 0 {
		return (v[n/2-1] + v[n/2]) / 2
	}
	return v[len(v)/2]
}

// number prints a value with three digits that count, and whole ones whole.
func number(v float64) string {
	switch {
	case v >= 100 || v == float64(int64(v)):
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	case v >= 0.1:
		return fmt.Sprintf("%.3f", v)
	}
	return fmt.Sprintf("%.2g", v)
}

// line is a figure in the form of --json.
type line struct {
	Bench  string    `json:"bench"`
	Case   string    `json:"case"`
	Value  float64   `json:"value"` // the median
	Unit   string    `json:"unit"`
	Goal   string    `json:"goal,omitempty"`
	Met    *bool     `json:"met,omitempty"`
	Values []float64 `json:"values"`
}

func (r *results) write(w io.Writer, asJSON bool) error {
	if asJSON {
		enc := json.NewEncoder(w)
		enc.SetEscapeHTML(false)
		for _, f := range r.figures {
			l := line{Bench: f.bench, Case: f.name, Value: f.median(), Unit: f.unit, Goal: f.goal.String(), Values: f.values}
			if f.goal.sign != "" {
				met := f.goal.met(l.Value)
				l.Met = &met
			}
			if err := enc.Encode(l); err != nil {
				return err
			}
		}
		return nil
	}
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "BENCHMARK\tCASE\tMEDIAN\tUNIT\tGOAL\t")
	for _, f := range r.figures {
		verdict := ""
		if f.goal.sign != "" && !f.goal.met(f.median()) {
			verdict = "missed"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%v\t%s\n", f.bench, f.name, number(f.median()), f.unit, f.goal, verdict)
	}
	return t.Flush()
}
