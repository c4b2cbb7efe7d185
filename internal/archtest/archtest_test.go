package archtest

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/mvalve/mvalve"

// rule says what the packages that match may import beside the standard library
// (outside test files): packages of the module by path below its root, others
// by import path. An entry that ends in /... stands for everything below, too.
type rule struct {
	packages string
	imports  []string
}

// The ports, and everything the engine is made of: what a door may know.
var (
	ports  = []string{"queue", "state", "throttle", "feed"}
	engine = append([]string{"valve", "auth"}, ports...)
)

// rules: the first that matches a package decides.
var rules = []rule{
	// Commands: the only code that names a driver.
	{"cmd/...", []string{
		"cmd/...", "valve", "stomp/...", "atom", "console", "auth",
		"queue/...", "state/...", "throttle", "feed/...",
		"internal/checker", "internal/bench",
		"github.com/urfave/cli/v2", "github.com/schollz/progressbar/v3", "github.com/vbauerster/mpb/v8/...", "golang.org/x/...",
		"github.com/coder/websocket", "github.com/coreos/go-systemd/v22/daemon",
	}},

	// Doors know the engine and the ports, not each other and no driver.
	{"stomp/frame", nil},
	{"stomp", append([]string{"stomp/frame"}, engine...)},
	{"atom", engine},
	{"console", engine},
	{"auth", []string{"golang.org/x/crypto/..."}},

	{"valve", append([]string{"state/ruling"}, ports...)},

	// Suites and drivers, each below its port.
	{"queue/queuetest", []string{"queue", "state", "throttle", "github.com/google/go-cmp/..."}},
	{"state/statetest", []string{"state", "github.com/google/go-cmp/..."}},
	{"feed/feedtest", []string{"feed", "github.com/google/go-cmp/..."}},
	{"throttle/throttletest", []string{"throttle", "github.com/google/go-cmp/..."}},
	{"queue/mysql", []string{".", "queue", "state", "throttle", "feed", "internal/sqlstore", "github.com/go-sql-driver/mysql"}},
	{"queue/sqlite", []string{".", "queue", "state", "throttle", "feed", "internal/sqlstore", "modernc.org/sqlite/...", "golang.org/x/sys/..."}},
	{"state/ruling", []string{"queue", "state"}},
	{"state/memcached", []string{"state", "github.com/bradfitz/gomemcache/memcache"}},

	// Ports: the standard library only; throttle paces with x/time/rate.
	{"queue", nil},
	{"state", nil},
	{"feed", nil},
	{"throttle", []string{"state", "golang.org/x/time/rate"}},

	// Internals.
	{"internal/sqlstore", ports},
	{"internal/checker", nil},
	{"internal/stomptest", []string{"stomp/frame"}},
	{"internal/archtest", nil},
	{"internal/foreign/...", []string{"internal/foreign", "internal/testserver/locate"}},
	{"internal/testserver/...", []string{"internal/testserver/...", "github.com/go-sql-driver/mysql"}},

	// The root package embeds the schema.
	{".", nil},
}

func TestImportsPointDown(t *testing.T) {
	for _, p := range sources(t) {
		if strings.HasSuffix(p.file, "_test.go") {
			continue
		}
		r := ruleFor(p.dir)
		if r == nil {
			t.Errorf("%s: package %s has no rule in internal/archtest: say there what it may import", p.file, p.dir)
			continue
		}
		for _, imported := range p.imports {
			if !allowed(r, imported) {
				t.Errorf("%s imports %s, which %s may not know (docs/design.md, Map)", p.file, imported, p.dir)
			}
		}
	}
}

// TestDriversInTests: tests of the engine and the doors may use drivers, tests
// of ports may not; a port whose test needs one has its suite in the wrong place.
func TestDriversInTests(t *testing.T) {
	drivers := []string{"queue/mysql", "queue/sqlite", "state/memcached"}
	for _, p := range sources(t) {
		if !slices.Contains(ports, p.dir) {
			continue
		}
		for _, imported := range p.imports {
			if slices.Contains(drivers, strings.TrimPrefix(imported, module+"/")) {
				t.Errorf("%s imports the driver %s", p.file, imported)
			}
		}
	}
}

func TestNoCgo(t *testing.T) {
	for _, p := range sources(t) {
		if slices.Contains(p.imports, "C") {
			t.Errorf("%s uses cgo", p.file)
		}
	}
}

func TestNoGrabBags(t *testing.T) {
	for _, p := range sources(t) {
		if slices.Contains([]string{"util", "utils", "common", "helpers", "types", "misc"}, path.Base(p.dir)) {
			t.Errorf("%s: a package is named for what it provides, not %s", p.file, path.Base(p.dir))
		}
	}
}

// TestRules keeps the test honest: what it must refuse is refused.
func TestRules(t *testing.T) {
	for _, c := range []struct {
		dir, imported string
		want          bool
	}{
		{"queue", "context", true},
		{"queue", module + "/state", false},
		{"queue", "github.com/google/uuid", false},
		{"throttle", "golang.org/x/time/rate", true},
		{"throttle", module + "/queue", false},
		{"valve", module + "/queue", true},
		{"valve", module + "/queue/mysql", false},
		{"valve", module + "/stomp", false},
		{"stomp", module + "/valve", true},
		{"stomp", module + "/atom", false},
		{"stomp/frame", module + "/queue", false},
		{"queue/mysql", module + "/valve", false},
		{"state/memcached", "github.com/go-sql-driver/mysql", false},
		{"cmd/mvalve", module + "/state/memcached", true},
		{"internal/checker", module + "/throttle", false},
	} {
		if got := allowed(ruleFor(c.dir), c.imported); got != c.want {
			t.Errorf("may %s import %s? %v, want %v", c.dir, c.imported, got, c.want)
		}
	}
}

func ruleFor(dir string) *rule {
	for i := range rules {
		if matches(rules[i].packages, dir) {
			return &rules[i]
		}
	}
	return nil
}

func matches(pattern, name string) bool {
	prefix, below := strings.CutSuffix(pattern, "/...")
	return name == prefix || below && strings.HasPrefix(name, prefix+"/")
}

func allowed(r *rule, imported string) bool {
	if imported == "C" {
		return false
	}
	first, _, _ := strings.Cut(imported, "/")
	if !strings.Contains(first, ".") {
		return true // the standard library
	}
	name := imported
	if imported == module {
		name = "."
	} else if below, ok := strings.CutPrefix(imported, module+"/"); ok {
		name = below
	}
	return slices.ContainsFunc(r.imports, func(pattern string) bool { return matches(pattern, name) })
}

// source is a Go file of the module.
type source struct {
	file, dir string // below the root
	imports   []string
}

func sources(t *testing.T) []source {
	t.Helper()
	root := moduleRoot(t)
	var found []source
	err := filepath.WalkDir(root, func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		base := entry.Name()
		if entry.IsDir() && name != root && (strings.HasPrefix(base, ".") || base == "testdata" || base == "bin") {
			return filepath.SkipDir
		}
		if entry.IsDir() || !strings.HasSuffix(base, ".go") {
			return nil
		}
		rel, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		s := source{file: filepath.ToSlash(rel), dir: filepath.ToSlash(filepath.Dir(rel))}
		for _, spec := range parsed.Imports {
			imported, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			s.imports = append(s.imports, imported)
		}
		found = append(found, s)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(found) == 0 {
		t.Fatal("no Go files found")
	}
	return found
}

func moduleRoot(t *testing.T) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			t.Fatal("no go.mod above the test")
		}
		dir = parent
	}
}
