package chaos_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"
)

// slot is a place for one process of a kind: when the process ends, whoever ended
// it, the next one is started.
type slot struct {
	name string
	argv []string
	env  []string
	dir  string // of the outputs
	// fed makes of what is to be sent a line of the process's standard input.
	// nil: the process has none.
	fed  func(*order) string
	sent func(*order) // notes what is about to be fed

	orders chan *order // capacity bounds how many wait for the process

	mu        sync.Mutex
	processes []*process // all that ever ran; the last one is live
	stopping  bool
	ended     chan struct{} // closed when the last one ended after stop
}

// process is one run of a slot's command. Its outputs are files, so that nothing
// of them is lost when it is killed.
type process struct {
	name   string
	cmd    *exec.Cmd
	out    string // the files of its outputs
	errs   string
	ledger string
	orders []*order // fed to it, in order; read it after done
	killed bool     // by us; guarded by the slot's mutex
	done   chan struct{}

	dispatched int // how many messages, as its log tells
}

// ledgerVariable names the file to which a process, or what it starts, appends
// its ledger. {process} of the slot's dir is its own.
const ledgerVariable = "MVALVE_CHAOS_LEDGER"

// open starts the slot's first process and keeps one running.
func (s *slot) open(t *testing.T) {
	t.Helper()
	s.orders, s.ended = make(chan *order, 40), make(chan struct{})
	p, err := s.start()
	if err != nil {
		t.Fatal(err)
	}
	go s.supervise(t, p)
	t.Cleanup(func() {
		s.stop(syscall.SIGKILL)
		<-s.ended
	})
}

func (s *slot) supervise(t *testing.T, p *process) {
	defer close(s.ended)
	for {
		<-p.done
		s.mu.Lock()
		stopping := s.stopping
		s.mu.Unlock()
		if stopping {
			return
		}
		var err error
		if p, err = s.start(); errors.Is(err, errStopping) {
			return
		} else if err != nil {
			t.Errorf("start %s: %v", s.name, err)
			return
		}
		if s.exitedBefore(p) {
			measure(100 * time.Millisecond) // a back end that is away
		}
	}
}

// exitedBefore reports whether the process before p ended by itself.
func (s *slot) exitedBefore(p *process) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := len(s.processes)
	return n > 1 && s.processes[n-1] == p && !s.processes[n-2].killed
}

var errStopping = errors.New("stopping")

func (s *slot) start() (*process, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopping {
		return nil, errStopping
	}
	p := &process{name: fmt.Sprintf("%s.%d", s.name, len(s.processes)), cmd: exec.Command(s.argv[0], s.argv[1:]...), done: make(chan struct{})}
	path := filepath.Join(s.dir, p.name)
	p.out, p.errs, p.ledger = path+".out", path+".err", path+".ledger"
	out, err := os.Create(p.out)
	if err != nil {
		return nil, err
	}
	errs, err := os.Create(p.errs)
	if err != nil {
		out.Close()
		return nil, err
	}
	p.cmd.Stdout, p.cmd.Stderr = out, errs
	p.cmd.Env = append(append(os.Environ(), s.env...), ledgerVariable+"="+p.ledger)
	p.cmd.SysProcAttr = dieWithParent()
	var in io.WriteCloser
	if s.fed != nil {
		if in, err = p.cmd.StdinPipe(); err != nil {
			return nil, err
		}
	}
	started := make(chan error)
	go func() {
		// The death signal comes when the starting thread ends: keep it.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer out.Close()
		defer errs.Close()
		err := p.cmd.Start()
		started <- err
		if err != nil {
			return
		}
		dead, feeding := make(chan struct{}), make(chan struct{})
		go func() { defer close(feeding); s.feed(p, in, dead) }()
		_ = p.cmd.Wait() // ProcessState tells
		close(dead)
		<-feeding
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	s.processes = append(s.processes, p)
	return p, nil
}

// feed writes what is to be sent to a process until it ends, or closes its
// input when there will be no more.
func (s *slot) feed(p *process, in io.WriteCloser, dead <-chan struct{}) {
	if in == nil {
		return
	}
	defer in.Close()
	for {
		select {
		case <-dead:
			return
		case o, ok := <-s.orders:
			if !ok {
				return
			}
			p.orders = append(p.orders, o)
			s.sent(o)
			if _, err := io.WriteString(in, s.fed(o)+"\n"); err != nil {
				return // it was killed
			}
		}
	}
}

// order gives the slot's processes an order if there is room for one.
func (s *slot) order(o *order) bool {
	select {
	case s.orders <- o:
		return true
	default:
		return false
	}
}

// atWork reports whether the live process has said anything: what it says first
// it says after it has learnt to end on SIGTERM.
func (s *slot) atWork() bool {
	info, err := os.Stat(s.live().errs)
	return err == nil && info.Size() > 0
}

func (s *slot) live() *process {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.processes[len(s.processes)-1]
}

// signal sends a signal to the live process.
func (s *slot) signal(sig syscall.Signal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.processes[len(s.processes)-1]
	if sig == syscall.SIGKILL {
		p.killed = true
	}
	err := p.cmd.Process.Signal(sig)
	if err != nil && !errors.Is(err, os.ErrProcessDone) {
		panic(err) // our own child
	}
}

// stop ends the slot with a signal to its process.
func (s *slot) stop(sig syscall.Signal) {
	s.mu.Lock()
	s.stopping = true
	s.mu.Unlock()
	s.signal(sig)
}

// last closes the input of a process that ends with it, and starts no other.
func (s *slot) last() {
	s.mu.Lock()
	s.stopping = true
	s.mu.Unlock()
	close(s.orders)
}
