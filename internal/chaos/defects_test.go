package chaos_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// defects are put into a copy of the code, one at a time. The harness must find
// each, and say what is wrong.
var defects = []struct {
	name, file string
	old, bad   string // bad takes the place of every old
	rounds     int
	want       string // what the harness must say
}{
	{
		"a window holds one too many", "throttle/ring.go",
		"r.total - (r.limit.Max - 1); over > 0", "r.total - r.limit.Max; over > 0", 30, above,
	},
	{
		"a lease is ended without its token", "queue/sqlite/apply.go",
		`" AND lease_token = ?"`, `" AND (1 OR lease_token = ?)"`, 100, again,
	},
	{
		"what is leased is leased again", "queue/sqlite/apply.go",
		` AND lease_until <= ?"`, ` AND (1 OR lease_until <= ?)"`, 30, overlap,
	},
	{
		"a RECEIPT comes before the commit", "valve/writer.go",
		"	err := w.apply(all)\n",
		"	for _, i := range plain {\n		i.done(nil)\n		i.done = func(error) {}\n	}\n	err := w.apply(all)\n", 100, lost,
	},
	{
		"no destination pass", "valve/refill.go",
		"!r.idle() && r.pass(asked)", "false", 30, "not empty",
	},
}

// TestSeededDefects shows that the harness finds what it is there for:
//
//	MVALVE_CHAOS_DEFECTS=1 go test -v -timeout 60m -run TestSeededDefects ./internal/chaos
func TestSeededDefects(t *testing.T) {
	if os.Getenv("MVALVE_CHAOS_DEFECTS") == "" {
		t.Skip("takes ten minutes: MVALVE_CHAOS_DEFECTS=1")
	}
	for _, d := range defects {
		t.Run(d.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.CopyFS(dir, os.DirFS("../..")); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(dir, d.file)
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			broken := strings.ReplaceAll(string(text), d.old, d.bad)
			if broken == string(text) {
				t.Fatalf("%s has no %q any more: put the defect elsewhere", d.file, d.old)
			}
			if err := os.WriteFile(path, []byte(broken), 0o600); err != nil {
				t.Fatal(err)
			}
			run := exec.CommandContext(t.Context(), "go", "test", "-count=1", "-timeout=30m", "-run=TestChaos/sqlite", "./internal/chaos")
			run.Dir = dir
			run.Env = append(os.Environ(), "MVALVE_CHAOS_DEFECTS=", "TMPDIR="+t.TempDir(), fmt.Sprintf("MVALVE_CHAOS_ROUNDS=%d", d.rounds))
			out, err := run.CombinedOutput()
			if err == nil || !strings.Contains(string(out), d.want) {
				t.Fatalf("not found (%v): %s", err, out[max(0, len(out)-4000):])
			}
			for line := range strings.Lines(string(out)) {
				if strings.Contains(line, d.want) {
					t.Logf("found: %.200s", strings.TrimSpace(line))
					break
				}
			}
		})
	}
}
