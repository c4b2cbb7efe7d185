package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/mvalve/mvalve/cmd/internal/reader"
	"github.com/mvalve/mvalve/cmd/internal/setup"
)

const (
	readerName  = "reader"
	readerGrace = 3 * time.Second  // for requests under way when it ends
	killAfter   = 10 * time.Second // of a reader that does not end
	maxOutput   = 16 << 10         // bytes kept of what a reader writes
)

// readerCommand is mvalve-reader as a part of mvalve, so that the demo needs one
// program only. It ends, in order, when its standard input does: then whoever
// started it is gone or wants it to end.
func readerCommand() *cli.Command {
	app := reader.App()
	return &cli.Command{
		Name: readerName, Usage: "a reader process of the demo", Hidden: true, Flags: app.Flags,
		Action: func(c *cli.Context) error {
			ctx, end := context.WithCancelCause(c.Context)
			defer end(nil)
			go func() {
				_, _ = io.Copy(io.Discard, os.Stdin)
				end(setup.Signalled{Signal: syscall.SIGTERM})
			}()
			c.Context = ctx
			return app.Action(c)
		},
	}
}

// process is a reader that was started.
type process struct {
	cmd    *exec.Cmd
	stdin  io.Closer
	output output
	done   chan struct{}
	err    error // valid once done is closed
}

// startReader starts this program as a reader. The queue's URL may hold a
// password and goes by the environment, where other users do not see it. The end
// of ctx does not end the reader: stop does, in order.
func startReader(ctx context.Context, queueURL string, args []string, copyTo io.Writer) (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	p := &process{cmd: exec.CommandContext(context.WithoutCancel(ctx), self, append([]string{"demo", readerName}, args...)...), done: make(chan struct{})}
	p.output.also = copyTo
	p.cmd.Env = append(withoutFlags(os.Environ()), setup.EnvName("queue")+"="+queueURL)
	p.cmd.Stdout, p.cmd.Stderr = &p.output, &p.output
	p.cmd.WaitDelay = time.Second
	ownGroup(p.cmd)
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start a reader: %w", err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// withoutFlags removes the variables that stand for flags: those meant for the
// demo, or for somebody's reader, are not for these readers.
func withoutFlags(environ []string) []string {
	var out []string
	for _, v := range environ {
		if !strings.HasPrefix(v, setup.EnvName("")) {
			out = append(out, v)
		}
	}
	return out
}

// stop ends the readers in order, and by force those that do not end. It reports
// those that failed.
func stop(processes []*process) error {
	for _, p := range processes {
		_ = p.stdin.Close() // an error means that it has ended already
	}
	force := time.NewTimer(killAfter)
	defer force.Stop()
	var errs []error
	for _, p := range processes {
		select {
		case <-p.done:
		case <-force.C:
			for _, q := range processes {
				_ = q.cmd.Process.Kill()
			}
			<-p.done
		}
		if p.err != nil {
			errs = append(errs, p.failure())
		}
	}
	return errors.Join(errs...)
}

// failure says how the reader ended, with what it wrote last and its exit code.
func (p *process) failure() error {
	text := p.output.last()
	var exit *exec.ExitError
	if errors.As(p.err, &exit) && exit.ExitCode() > 0 {
		return setup.Failf(exit.ExitCode(), "reader process %d: %s", p.cmd.Process.Pid, text)
	}
	return fmt.Errorf("reader process %d: %w: %s", p.cmd.Process.Pid, p.err, text)
}

// output keeps the last of what a process writes, and passes it on if told to.
type output struct {
	also io.Writer // nil: nobody

	mu   sync.Mutex
	text []byte
}

// Write implements io.Writer.
func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.text = append(o.text, p...)
	if over := len(o.text) - maxOutput; over > 0 {
		o.text = append(o.text[:0], o.text[over:]...)
	}
	if o.also != nil {
		_, _ = o.also.Write(p) // the reader goes on without a listener
	}
	return len(p), nil
}

// last returns the last line.
func (o *output) last() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	lines := strings.Split(strings.TrimSpace(string(o.text)), "\n")
	return lines[len(lines)-1]
}
