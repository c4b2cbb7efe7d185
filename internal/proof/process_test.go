package proof_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

// process is a command under test. Its output goes to files, so that nothing of
// it is lost when it is killed.
type process struct {
	name string
	cmd  *exec.Cmd
	out  string // the file of its standard output
	errs string
	done chan struct{}
	err  error // after done
}

// start starts a command. The test kills it in the end if it still runs, and
// shows its standard error if it failed.
func start(t *testing.T, stdin *os.File, env []string, name string, args ...string) *process {
	t.Helper()
	dir := t.TempDir()
	p := &process{
		name: filepath.Base(name), cmd: exec.Command(name, args...), done: make(chan struct{}),
		out: filepath.Join(dir, "stdout"), errs: filepath.Join(dir, "stderr"),
	}
	out, err := os.Create(p.out)
	if err != nil {
		t.Fatal(err)
	}
	errs, err := os.Create(p.errs)
	if err != nil {
		t.Fatal(err)
	}
	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = stdin, out, errs
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.SysProcAttr = dieWithParent()
	started := make(chan error)
	go func() {
		// The death signal comes when the starting thread ends: keep it.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := p.cmd.Start()
		started <- err
		if err == nil {
			p.err = p.cmd.Wait()
			close(p.done)
		}
		out.Close()
		errs.Close()
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.kill()
		if text := p.stderr(); t.Failed() && text != "" {
			t.Logf("stderr of %s (%d): %s", p.name, p.cmd.Process.Pid, text[max(0, len(text)-1500):])
		}
	})
	return p
}

func (p *process) stdout() []byte {
	text, err := os.ReadFile(p.out)
	if err != nil {
		return nil // the folder of a test that has ended
	}
	return text
}

func (p *process) stderr() string {
	text, err := os.ReadFile(p.errs)
	if err != nil {
		return ""
	}
	return string(text)
}

// whole is what it has printed up to the last end of a line: it may be printing, or
// have been killed while it did.
func (p *process) whole() []byte {
	text := p.stdout()
	return text[:bytes.LastIndexByte(text, '\n')+1]
}

// lines is how many whole lines it has printed.
func (p *process) lines() int { return bytes.Count(p.stdout(), []byte("\n")) }

// atWork reports whether a reader or a consumer has got as far as taking messages:
// it has printed a line, or said that there is nothing to do, or logged a dispatch.
// A signal that comes earlier ends it, but not in good order.
func (p *process) atWork() bool {
	said := p.stderr()
	return p.lines() > 0 || strings.Contains(said, ": nothing may go yet: ") || strings.Contains(said, ": nothing to do yet; ") || strings.Contains(said, " msg=dispatched ")
}

func (p *process) running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// kill ends it as a crash does and waits for its end.
func (p *process) kill() {
	if p.running() {
		_ = p.cmd.Process.Kill() // it may end by itself meanwhile
	}
	<-p.done
}

func (p *process) signal(t *testing.T, s os.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		t.Errorf("%s: %v: %v", p.name, s, err)
	}
}

// stop ends it in good order; exit code 0 is expected.
func (p *process) stop(t *testing.T) {
	t.Helper()
	if !p.running() {
		t.Errorf("%s ended by itself: %v: %s", p.name, p.err, p.stderr())
		return
	}
	p.signal(t, syscall.SIGTERM)
	p.wait(t, patience)
}

// wait waits until it ends with exit code 0.
func (p *process) wait(t *testing.T, limit time.Duration) {
	t.Helper()
	select {
	case <-p.done:
	case <-time.After(limit):
		t.Errorf("%s did not end within %v", p.name, limit)
		p.kill()
	}
	if p.err != nil {
		t.Errorf("%s: %v: %s", p.name, p.err, p.stderr())
	}
}

// stopAll stops readers and consumers at once, none before it is at work.
func stopAll(t *testing.T, ps ...*process) {
	t.Helper()
	for _, p := range ps {
		waitFor(t, patience, p.name+" is at work", func() bool { return p.atWork() || !p.running() })
	}
	for _, p := range ps {
		if p.running() {
			p.signal(t, syscall.SIGTERM)
		} else {
			t.Errorf("%s ended by itself: %v: %s", p.name, p.err, p.stderr())
		}
	}
	for _, p := range ps {
		p.wait(t, patience)
	}
}
