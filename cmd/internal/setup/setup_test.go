package setup

import (
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/urfave/cli/v2"

	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/state"
)

func TestArrange(t *testing.T) {
	app := &cli.App{
		Flags:    []cli.Flag{&cli.BoolFlag{Name: "json"}, &cli.StringFlag{Name: "queue", Aliases: []string{"q"}}},
		Commands: []*cli.Command{{Name: "limit", Subcommands: []*cli.Command{{Name: "set", Flags: []cli.Flag{&cli.IntFlag{Name: "weight"}}}}}},
	}
	for in, want := range map[string]string{
		"p file --json":                          "p --json -- file",
		"p a -q x b":                             "p -q x -- a b",
		"p a --queue=x b":                        "p --queue=x -- a b",
		"p -- --json":                            "p -- --json",
		"p - --json":                             "p --json -- -",
		"p --queue":                              "p --queue",
		"p --queue x limit set d -1/s":           "p limit set --queue x -- d -1/s",
		"p limit --weight 3 set d 1/s strict":    "p limit set --weight 3 -- d 1/s strict",
		"p limit set --queue x":                  "p limit set --queue x",
		"p limit --generate-bash-completion":     "p limit --generate-bash-completion",
		"p f --qu --generate-bash-completion":    "p --qu f --generate-bash-completion",
		"p a --queue --generate-bash-completion": "p --queue a --generate-bash-completion",
	} {
		if got := strings.Join(Arrange(app, strings.Fields(in)), " "); got != want {
			t.Errorf("%q becomes %q, want %q", in, got, want)
		}
	}
}

func TestCode(t *testing.T) {
	for _, c := range []struct {
		err  error
		want int
	}{
		{nil, 0},
		{errors.New("x"), ExitBug},
		{Usagef("x"), ExitUsage},
		{fmt.Errorf("a: %w", Failf(ExitInput, "x")), ExitInput},
		{errors.Join(nil, fmt.Errorf("a: %w", queue.ErrInvalid)), ExitData},
		{fmt.Errorf("a: %w", queue.ErrDuplicate), ExitData},
		{fmt.Errorf("a: %w", queue.ErrUnavailable), ExitUnavailable},
		{fmt.Errorf("a: %w", queue.ErrUnknown), ExitUnavailable},
		{fmt.Errorf("a: %w", state.ErrUnavailable), ExitUnavailable},
		{fmt.Errorf("a: %w", queue.ErrRefused), ExitRefused},
		{fmt.Errorf("a: %w", queue.ErrSchema), ExitMismatch},
		{fmt.Errorf("a: %w", &os.PathError{Op: "write", Err: syscall.EPIPE}), ExitOutput},
		{Signalled{syscall.SIGINT}, 130},
		{Signalled{syscall.SIGTERM}, 143},
	} {
		if got := Code(c.err); got != c.want {
			t.Errorf("%v: %d, want %d", c.err, got, c.want)
		}
	}
}

func TestParseState(t *testing.T) {
	for text, want := range map[string]string{
		"queue:": "queue:", "memory:": "memory:",
		"memcached://a:1,b:2":    "memcached://a:1,b:2",
		"memcached://a":          "memcached://a:11211",
		"memcached://[::1]:1,b/": "memcached://[::1]:1,b:11211",
		"memcached://":           "",
		"memcached://u:p@a:1":    "",
		"memcached://a:1,,b":     "",
		"queue":                  "",
		"redis://a":              "",
		"memcached://a:1?x=1":    "",
	} {
		r, err := ParseState(text)
		if (err == nil) != (want != "") || err == nil && r.String() != want {
			t.Errorf("%q: %q, %v", text, r, err)
		}
		if err != nil && Code(err) != ExitUsage {
			t.Errorf("%q: exit code %d", text, Code(err))
		}
	}
	a, _ := ParseState("memcached://a:1,b:2")
	b, _ := ParseState("memcached://b:2,a:1")
	if !a.Same(b) {
		t.Error("the order of servers means something")
	}
}

func TestSecretsAreHidden(t *testing.T) {
	var list secretList
	list.add("s3cret/pass")
	list.add(url.QueryEscape("s3cret/pass"))
	list.add("ab") // too short to hide without garbling
	var out strings.Builder
	log := slog.New(slog.NewTextHandler(list.writer(&out), nil))
	log.Error("x", "err", "dial s3cret/pass and s3cret%2Fpass about")
	if got := out.String(); strings.Contains(got, "s3cret") || !strings.Contains(got, "about") {
		t.Error(got)
	}
}

// pipe returns a pipe on a queue in memory that other than the scheme memory:
// may be ruled by any store.
func pipe() *Pipe {
	return &Pipe{Store: queue.NewMemory(), Name: "test:", Log: slog.New(slog.DiscardHandler)}
}

func TestRuleIsSetOnce(t *testing.T) {
	ctx := t.Context()
	p := pipe()
	first, err := p.Rule(ctx, "")
	if err != nil || first.String() != "queue:" || first.Epoch != 1 || first.Pipe == "" {
		t.Fatalf("%+v, %v", first, err)
	}
	again, err := p.Rule(ctx, "queue:")
	if diff := cmp.Diff(first, again); err != nil || diff != "" {
		t.Errorf("%v %s", err, diff)
	}
	_, err = p.Rule(ctx, "memory:")
	if Code(err) != ExitMismatch || !strings.Contains(err.Error(), "memory:") || !strings.Contains(err.Error(), "counted in queue:") {
		t.Errorf("another store: %v", err)
	}
	moved, changed, err := p.Move(ctx, "memory:")
	if err != nil || !changed || moved.Epoch != 2 || moved.Pipe != first.Pipe {
		t.Errorf("%+v %v %v", moved, changed, err)
	}
	if _, changed, err := p.Move(ctx, "memory:"); err != nil || changed {
		t.Errorf("moving to where it is: %v %v", changed, err)
	}
	if r, err := p.Rule(ctx, ""); err != nil || r.String() != "memory:" {
		t.Errorf("%v %v", r, err)
	}
	announce(t, p, time.Second)
	if _, err := p.Rule(ctx, ""); Code(err) != ExitMismatch || !strings.Contains(err.Error(), "reader 7 on h") {
		t.Errorf("memory: beside a live reader: %v", err)
	}
}

// announce makes a reader that was seen so long ago.
func announce(t *testing.T, p *Pipe, ago time.Duration) {
	t.Helper()
	now, err := p.Store.Now(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	seen := now.Add(-ago)
	presence := queue.Presence{ID: queue.MinID(now), Host: "h", PID: 7}
	if _, err := p.Store.(queue.Registry).Announce(t.Context(), seen, seen, presence); err != nil {
		t.Fatal(err)
	}
}

func TestRuleOfADeadReaderDoesNotHinder(t *testing.T) {
	p := pipe()
	announce(t, p, time.Minute)
	if _, err := p.Rule(t.Context(), "memory:"); err != nil {
		t.Error(err)
	}
}

func TestConcurrentFirstReadersAgree(t *testing.T) {
	p := pipe()
	rulings := make(chan Ruling, 8)
	for range cap(rulings) {
		go func() {
			r, _ := p.Rule(t.Context(), "")
			rulings <- r
		}()
	}
	want := <-rulings
	for range cap(rulings) - 1 {
		if diff := cmp.Diff(want, <-rulings); diff != "" {
			t.Error(diff)
		}
	}
}

func TestLastUse(t *testing.T) {
	p := pipe()
	if at, err := p.lastUse(t.Context()); err != nil || !at.IsZero() {
		t.Errorf("a fresh pipe was used at %v, %v", at, err)
	}
	announce(t, p, 30*time.Minute)
	now, _ := p.Store.Now(t.Context())
	if at, err := p.lastUse(t.Context()); err != nil || now.Sub(at) < 29*time.Minute || now.Sub(at) > 30*time.Minute {
		t.Errorf("last used %v ago, %v", now.Sub(at), err)
	}
	announce(t, p, 0)
	if at, err := p.lastUse(t.Context()); err != nil || now.Sub(at) > time.Second {
		t.Errorf("with a live reader last used %v ago, %v", now.Sub(at), err)
	}
	announce(t, p, -50*time.Millisecond) // a reader's clock is a little ahead
	if at, err := p.lastUse(t.Context()); err != nil || at.Sub(now) > 5*time.Second {
		t.Errorf("beside a reader that is a little ahead last used %v ahead, %v", at.Sub(now), err)
	}
	announce(t, p, -time.Minute) // the database's clock went back since
	if at, err := p.lastUse(t.Context()); err != nil || at.Sub(now) < time.Minute {
		t.Errorf("after the clock went back last used %v ahead, %v", at.Sub(now), err)
	}

	p = pipe() // all readers left in order
	now, _ = p.Store.Now(t.Context())
	dispatched := []queue.Stat{{Action: "dequeue", Destination: "d", Count: 1, At: now}}
	if _, err := p.Store.Apply(t.Context(), now, &queue.Change{Log: dispatched}); err != nil {
		t.Fatal(err)
	}
	if at, err := p.lastUse(t.Context()); err != nil || now.Sub(at) > time.Second {
		t.Errorf("after recent dispatches last used %v ago, %v", now.Sub(at), err)
	}
}

func TestEveryFlagHasAVariable(t *testing.T) {
	flags := append(QueueFlags(), StateFlag())
	withEnv(flags)
	var names []string
	for _, f := range flags {
		names = append(names, f.(cli.DocGenerationFlag).GetEnvVars()...)
	}
	want := []string{"MVALVE_QUEUE", "MVALVE_LOG_LEVEL", "MVALVE_LOG_FORMAT", "MVALVE_STATE"}
	if !slices.Equal(names, want) {
		t.Errorf("%q", names)
	}
}

func TestMoveToAStoreThatIsNotThere(t *testing.T) {
	p := pipe()
	if _, err := p.Rule(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	if _, _, err := p.Move(t.Context(), "memcached://127.0.0.1:1"); Code(err) != ExitUnavailable {
		t.Fatalf("moved to a memcached that is not there: %v", err)
	}
	if r, err := p.Ruling(t.Context()); err != nil || r.Scheme != "queue" {
		t.Errorf("%v, %v", r, err)
	}
}
