package setup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"

	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/state"
)

// The exit codes of every command; those from 64 on are those of sysexits(3).
const (
	ExitDone        = 0
	ExitBug         = 1
	ExitUsage       = 2
	ExitData        = 65 // bad data
	ExitInput       = 66 // input not readable
	ExitUnavailable = 69 // back end unreachable
	ExitOutput      = 74 // output failed
	ExitUnfinished  = 75 // --wait ended with messages left
	ExitRefused     = 77 // refused by the back end
	ExitMismatch    = 78 // schema or state mismatch
)

// ExitError is an error with the exit code it asks for.
type ExitError struct {
	Code int
	Err  error
}

// Error returns the text of Err.
func (e *ExitError) Error() string { return e.Err.Error() }

// Unwrap returns Err.
func (e *ExitError) Unwrap() error { return e.Err }

// Failf returns an ExitError with a text made as by fmt.Errorf.
func Failf(code int, format string, args ...any) error {
	return &ExitError{Code: code, Err: fmt.Errorf(format, args...)}
}

// Usagef returns an error of exit code 2. The text names the flag or argument and
// the accepted form.
func Usagef(format string, args ...any) error { return Failf(ExitUsage, format, args...) }

// Signalled is the cause of a context that ended because of a signal.
type Signalled struct{ Signal syscall.Signal }

// Error names the signal.
func (s Signalled) Error() string {
	if s.Signal == syscall.SIGINT {
		return "stopped by SIGINT"
	}
	return "stopped by SIGTERM"
}

// Code returns the exit code of a process that the signal ended: 130 or 143.
func (s Signalled) Code() int { return 128 + int(s.Signal) }

// byError is asked in order; the first that matches names the code.
var byError = []struct {
	err  error
	code int
}{
	{queue.ErrRefused, ExitRefused},
	{queue.ErrSchema, ExitMismatch},
	{queue.ErrUnavailable, ExitUnavailable},
	{queue.ErrUnknown, ExitUnavailable},
	{state.ErrUnavailable, ExitUnavailable},
	{state.ErrUnknown, ExitUnavailable},
	{state.ErrConflict, ExitUnavailable},
	{queue.ErrInvalid, ExitData},
	{queue.ErrDuplicate, ExitData},
	{queue.ErrCorrupt, ExitData},
	{syscall.EPIPE, ExitOutput},
	{os.ErrPermission, ExitRefused},
	{context.DeadlineExceeded, ExitUnavailable},
}

// Code returns the exit code for err: what an ExitError in it asks for, else by
// the errors that the packages export, else 1.
func Code(err error) int {
	if err == nil {
		return ExitDone
	}
	var exit *ExitError
	if errors.As(err, &exit) {
		return exit.Code
	}
	var signalled Signalled
	if errors.As(err, &signalled) {
		return signalled.Code()
	}
	for _, e := range byError {
		if errors.Is(err, e.err) {
			return e.code
		}
	}
	return ExitBug
}

// line makes one line of a text, so that an error is one line on stderr.
func line(text string) string {
	return strings.Join(strings.FieldsFunc(text, func(r rune) bool { return r == '\n' || r == '\r' }), "; ")
}
