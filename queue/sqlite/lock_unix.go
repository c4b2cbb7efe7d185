//go:build unix

package sqlite

import (
	"errors"
	"os"
	"syscall"
)

// turnstile lets the processes that write to one file take turns. SQLite's own
// waiting is polling: beside a process that commits back to back the others
// hardly ever find the lock free. Here a process first takes the "next" file,
// then the "lock" file, then gives "next" back, so that whoever holds "next" is
// served before the present holder can come again.
//
// The locks are flock(2) locks on files of their own beside the database: they
// end with the process, and closing them does not touch SQLite's locks.
type turnstile struct{ next, main *os.File }

func openTurnstile(path string) (*turnstile, error) {
	next, err := os.OpenFile(path+"-next", os.O_RDWR|os.O_CREATE, 0o666)
	if err != nil {
		return nil, err
	}
	main, err := os.OpenFile(path+"-lock", os.O_RDWR|os.O_CREATE, 0o666)
	if err != nil {
		_ = next.Close()
		return nil, err
	}
	return &turnstile{next, main}, nil
}

// enter waits for this process's turn.
func (t *turnstile) enter() error {
	if err := flock(t.next, syscall.LOCK_EX); err != nil {
		return err
	}
	err := flock(t.main, syscall.LOCK_EX)
	if e := flock(t.next, syscall.LOCK_UN); err == nil {
		err = e
	}
	return err
}

func (t *turnstile) leave() error { return flock(t.main, syscall.LOCK_UN) }

// contended reports whether another process waits for its turn. The caller has
// entered.
func (t *turnstile) contended() bool {
	if err := flock(t.next, syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return errors.Is(err, syscall.EWOULDBLOCK)
	}
	_ = flock(t.next, syscall.LOCK_UN)
	return false
}

func (t *turnstile) close() {
	_ = t.next.Close()
	_ = t.main.Close()
}

func flock(f *os.File, how int) error {
	for {
		err := syscall.Flock(int(f.Fd()), how)
		if err != syscall.EINTR {
			return err
		}
	}
}
