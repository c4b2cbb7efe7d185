// Package setup is what the commands share: flags, signals, exit codes, and the
// only place that names drivers ([OpenPipe]: one switch on the URL scheme).
package setup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"
)

// Main runs app on the process's arguments and ends the process with the exit
// code of what it returns.
func Main(app *cli.App) {
	os.Exit(Run(app, os.Args))
}

// Run runs app and returns the exit code; an error is printed as one line.
// SIGINT or SIGTERM ends the context with the cause Signalled; a second one ends
// the process at once. A write to a closed pipe is an error (EPIPE), not the end.
func Run(app *cli.App, args []string) int {
	dropEmptyVariables()
	Strict(app)
	app.Version = version()
	app.Writer, app.ErrWriter = os.Stdout, os.Stderr
	ctx, stop := withSignals(context.Background())
	defer stop()
	err := app.RunContext(ctx, Arrange(app, args))
	s, signalled := WasSignalled(ctx)
	select {
	case <-Aborted(ctx):
		return s.Code() // the second signal, and the process ended in time
	default:
	}
	if err == nil {
		return ExitDone
	}
	if signalled && errors.Is(err, context.Canceled) {
		err = s // while a connection was being made, say
	}
	if text := line(secrets.hide(err.Error())); text != "" {
		fmt.Fprintf(os.Stderr, "%s: %s\n", app.Name, text)
	}
	return Code(err)
}

// dropEmptyVariables makes a variable that is set to nothing one that is not set.
func dropEmptyVariables() {
	for _, v := range os.Environ() {
		if name, value, _ := strings.Cut(v, "="); value == "" && strings.HasPrefix(name, "MVALVE_") {
			_ = os.Unsetenv(name)
		}
	}
}

func withSignals(parent context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(parent)
	// SIGPIPE is received and dropped: ignoring it would be inherited by the
	// processes that the reader starts.
	pipes := make(chan os.Signal, 1)
	signal.Notify(pipes, syscall.SIGPIPE)
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	done := make(chan struct{})
	aborted := make(chan struct{})
	go func() {
		for n := 0; ; n++ {
			select {
			case s := <-signals:
				cause := Signalled{s.(syscall.Signal)}
				if n > 0 {
					close(aborted)
					<-time.After(abortTime)
					os.Exit(cause.Code())
				}
				cancel(cause)
			case <-pipes:
				n--
			case <-done:
				return
			}
		}
	}()
	return context.WithValue(ctx, abortKey{}, aborted), func() {
		signal.Stop(signals)
		signal.Stop(pipes)
		close(done)
		cancel(nil)
	}
}

// abortTime is what is left after the second signal to end other processes.
const abortTime = 100 * time.Millisecond

type abortKey struct{}

// Aborted returns a channel that is closed by the second signal: the process ends
// a moment later, whatever is under way.
func Aborted(ctx context.Context) <-chan struct{} {
	aborted, _ := ctx.Value(abortKey{}).(chan struct{})
	return aborted
}

// WasSignalled returns the signal that ended ctx, if one did.
func WasSignalled(ctx context.Context) (Signalled, bool) {
	var s Signalled
	ok := errors.As(context.Cause(ctx), &s)
	return s, ok
}

// version is what the build says: the module's version, or the commit.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			return "development " + s.Value
		}
	}
	return "development"
}

// LogFlags are --log-level and --log-format.
func LogFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "log-level", Value: "warn", Usage: "least `LEVEL` logged on stderr: debug, info, warn or error"},
		&cli.StringFlag{Name: "log-format", Value: "text", Usage: "`FORMAT` of the log: text or json"},
	}
}

// Logger makes the logger that the flags of LogFlags ask for.
func Logger(c *cli.Context) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.String("log-level"))); err != nil {
		return nil, Usagef("--log-level %q: use debug, info, warn or error", c.String("log-level"))
	}
	options := &slog.HandlerOptions{Level: level}
	out := secrets.writer(c.App.ErrWriter)
	switch format := c.String("log-format"); format {
	case "text":
		return slog.New(slog.NewTextHandler(out, options)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(out, options)), nil
	default:
		return nil, Usagef("--log-format %q: use text or json", format)
	}
}

// secrets are the passwords this process was given. Errors and logs pass through
// it, in case a library quotes what it was given.
var secrets secretList

type secretList struct{ old []string }

func (s *secretList) add(secret string) {
	if len(secret) >= 3 { // a shorter one would garble every line and hide nothing
		s.old = append(s.old, secret, "***")
	}
}

func (s *secretList) hide(text string) string {
	return strings.NewReplacer(s.old...).Replace(text)
}

func (s *secretList) writer(w io.Writer) io.Writer { return hidingWriter{s, w} }

type hidingWriter struct {
	secrets *secretList
	w       io.Writer
}

func (h hidingWriter) Write(p []byte) (int, error) {
	if _, err := io.WriteString(h.w, h.secrets.hide(string(p))); err != nil {
		return 0, err
	}
	return len(p), nil
}
