package stomp

import (
	"errors"
	"fmt"

	"github.com/mvalve/mvalve/stomp/frame"
)

// failure is why a connection ends with an ERROR frame: a short message and the
// details for its body (S121).
type failure struct {
	message, detail string
	receipt         string        // of the frame that failed (S122)
	versions        bool          // say which versions exist (S48)
	http            bool          // the peer speaks HTTP: answer so (I10)
	cause           error         // for the log
	about           frame.Command // the frame that failed
}

func (e *failure) Error() string { return "stomp: " + e.message + ": " + e.detail }

func (e *failure) Unwrap() error { return e.cause }

// refuse returns a failure with a detail made by format.
func refuse(message, format string, args ...any) *failure {
	return &failure{message: message, detail: fmt.Sprintf(format, args...)}
}

// errGoodbye ends a connection without an ERROR: after DISCONNECT.
var errGoodbye = errors.New("stomp: disconnected")

// asFailure returns what the peer is told about err, nil if nothing.
func asFailure(err error) *failure {
	if f, ok := errors.AsType[*failure](err); ok {
		return f
	}
	if fe, ok := errors.AsType[*frame.Error](err); ok {
		switch fe.Kind {
		case frame.HTTP:
			return &failure{http: true, message: "http request", detail: fe.Reason}
		case frame.TLS:
			return nil
		}
		return &failure{message: "malformed frame", detail: fe.Reason, receipt: fe.Receipt, about: fe.Command}
	}
	return nil
}
