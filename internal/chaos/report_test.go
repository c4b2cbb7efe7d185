package chaos_test

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// report prints the figures and fails for every promise that was broken.
func (h *harness) report(rounds int, span time.Duration, counts map[string]int, v *verdict) {
	t := h.t
	t.Helper()
	t.Logf("CHAOS_SEED=%d, %d rounds in %v (all together %v)", h.seed, rounds, span.Round(time.Millisecond), time.Since(h.began).Round(time.Millisecond))
	var lines []string
	total := 0
	for _, name := range slices.Sorted(maps.Keys(counts)) {
		lines = append(lines, fmt.Sprintf("%5d  %s", counts[name], name))
		total += counts[name]
	}
	t.Logf("%d troubles:\n%s", total, strings.Join(lines, "\n"))
	if h.noDisk != nil {
		t.Logf("no full disks: %v", h.noDisk)
	}
	if h.crashed > 0 {
		t.Logf("MariaDB gave up on a full disk %d times and was started again", h.crashed)
	}
	t.Log(v)
	lines = nil
	for _, p := range v.promises() {
		lines = append(lines, fmt.Sprintf("%5d of %6d %s: %s", v.broken[p.kind], p.of, p.what, p.kind))
	}
	t.Logf("broken promises:\n%s", strings.Join(lines, "\n"))
	t.Logf("%d freezes of processes, %d of them longer than a lease", len(h.ledger.stops), h.ledger.zombies())
	for _, r := range v.reports {
		apart := v.apart[r.Destination]
		t.Logf("%-10s %4d in %-7v %6d dispatches, fullest window %d, above %d; of three quarters by this machine's clock: fullest %d, above %d",
			r.Destination, r.Limit.Max, r.Limit.Window, r.Count, r.Worst, r.Above, apart.Worst, apart.Above)
	}
	h.judgeExits()
	for kind, n := range v.broken {
		t.Errorf("%s: %d; the first: %s", kind, n, v.first[kind])
	}
	if v.delivered == 0 || v.committed == 0 || v.acked == 0 {
		t.Error("nothing was sent, delivered or acknowledged: the run proves nothing")
	}
	if t.Failed() {
		path := filepath.Join(h.dir, "troubles")
		if err := os.WriteFile(path, []byte(strings.Join(h.log, "\n")+"\n"), 0o600); err != nil {
			t.Error(err)
		}
		h.keepFiles()
		t.Logf("the log of troubles is in %s; its end:\n%s", path, strings.Join(h.log[max(0, len(h.log)-60):], "\n"))
	}
}

// judgeExits fails if a process that nobody killed ended in another way than with
// success, or by saying that its back end is away (69) or refuses it (77): a writer
// at any time, others only when they start. Once they are at work they wait.
func (h *harness) judgeExits() {
	counts := make(map[string]int)
	for _, s := range h.slots {
		for _, p := range s.processes {
			code := p.cmd.ProcessState.ExitCode()
			if !p.killed {
				counts[fmt.Sprintf("%s: %v", s.name, p.cmd.ProcessState)]++
			}
			switch {
			case p.killed, code == 0:
			case (code == 69 || code == 77) && (s == h.writer || p.dispatched == 0):
			default:
				h.t.Errorf("%s: %v after %d dispatches", p.name, p.cmd.ProcessState, p.dispatched)
			}
		}
	}
	for _, exit := range slices.Sorted(maps.Keys(counts)) {
		h.t.Logf("%4d times %s", counts[exit], exit)
	}
}

// keepFiles saves a SQLite file from the small disk, which goes with the test.
func (h *harness) keepFiles() {
	if h.mariadb != nil || h.disk == "" {
		return
	}
	files, _ := filepath.Glob(filepath.Join(h.disk, "pipe.db*")) // only a bad pattern fails
	for _, path := range files {
		text, err := os.ReadFile(path)
		if err == nil {
			err = os.WriteFile(filepath.Join(h.dir, filepath.Base(path)), text, 0o600)
		}
		if err != nil {
			h.t.Error(err)
		}
	}
}
