package testserver

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/mvalve/mvalve/internal/testserver/locate"
)

// How long a server may take to answer after its start, to stop, and to answer
// when it runs, on a machine that is busy with other things.
const (
	startTimeout  = 2 * time.Minute
	stopTimeout   = time.Minute
	answerTimeout = time.Minute
	pollInterval  = 10 * time.Millisecond
)

// process is a running server program.
type process struct {
	cmd  *exec.Cmd
	log  string
	done chan struct{} // closed when the program has ended
}

// start runs the program with its output in dir/log.
func start(p locate.Program, dir string, args ...string) (*process, error) {
	logPath := filepath.Join(dir, "log")
	out, err := os.OpenFile(logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(p.Path, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, out, out
	cmd.Env = append(os.Environ(), p.Env...)
	cmd.SysProcAttr, err = attributes()
	if err != nil {
		out.Close()
		return nil, err
	}
	proc := &process{cmd: cmd, log: logPath, done: make(chan struct{})}
	started := make(chan error)
	go func() {
		// The kernel sends the death signal when the *thread* that started the
		// child ends, so this one is kept until the child is gone.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer out.Close()
		err := cmd.Start()
		started <- err
		if err != nil {
			return
		}
		// The exit status of a server that a test kills says nothing; one that
		// ends too early is noticed by await, which shows the log.
		_ = cmd.Wait()
		close(proc.done)
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return proc, nil
}

// await polls ready until it returns nil, the program ends or time is up.
func (p *process) await(ready func() error) error {
	deadline := time.NewTimer(startTimeout)
	defer deadline.Stop()
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		err := ready()
		if err == nil {
			return nil
		}
		select {
		case <-p.done:
			return fmt.Errorf("%s ended while starting: %s", filepath.Base(p.cmd.Path), p.logTail())
		case <-deadline.C:
			return fmt.Errorf("%s did not answer for %v: %w: %s", filepath.Base(p.cmd.Path), startTimeout, err, p.logTail())
		case <-tick.C:
		}
	}
}

// logTail returns the end of what the program printed.
func (p *process) logTail() string {
	text, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return string(text[max(0, len(text)-2000):])
}

// kill ends the program at once and waits for its end. Safe to call twice.
func (p *process) kill() {
	p.signal(syscall.SIGKILL)
	<-p.done
}

// stop ends the program in good order.
func (p *process) stop() error {
	p.signal(syscall.SIGTERM)
	select {
	case <-p.done:
		return nil
	case <-time.After(stopTimeout):
		p.kill()
		return fmt.Errorf("%s did not stop for %v: %s", filepath.Base(p.cmd.Path), stopTimeout, p.logTail())
	}
}

// signal has nothing to report: it fails only when the program has ended.
func (p *process) signal(s syscall.Signal) { _ = p.cmd.Process.Signal(s) }

// attributes puts a server into its own process group (so that an interrupt on
// the terminal reaches only the tests), ties it to the life of this process and
// gives up root.
func attributes() (*syscall.SysProcAttr, error) {
	attr := &syscall.SysProcAttr{Setpgid: true}
	dieWithParent(attr)
	id, err := serverUser()
	if err != nil {
		return nil, err
	}
	attr.Credential = id
	return attr, nil
}

// serverUser is whom servers run as: nil (ourselves), or when we are root the
// first of mysql and nobody that exists.
var serverUser = sync.OnceValues(func() (*syscall.Credential, error) {
	if os.Geteuid() != 0 {
		return nil, nil //nolint:nilnil // nil is what SysProcAttr wants for "the same user"
	}
	for _, name := range []string{"mysql", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err := strconv.ParseUint(u.Uid, 10, 32)
		if err != nil {
			return nil, err
		}
		gid, err := strconv.ParseUint(u.Gid, 10, 32)
		if err != nil {
			return nil, err
		}
		return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
	}
	return nil, errors.New("running as root and no user mysql or nobody to run a server as")
})

// chownServer gives a file to the servers' user.
func chownServer(path string) error {
	id, err := serverUser()
	if err != nil || id == nil {
		return err
	}
	return os.Chown(path, int(id.Uid), int(id.Gid))
}
