package frame

import (
	"bytes"
	"fmt"
	"strconv"
)

// Kind says what sort of protocol error an Error is.
type Kind uint8

// The kinds of protocol errors.
const (
	Syntax  Kind = iota // the frame is malformed
	Limit               // a limit was exceeded; Error.Limit names it
	Unknown             // no such command (S66)
	HTTP                // an HTTP request came instead of a frame (I10)
	TLS                 // a TLS handshake came on a plain port
)

// Names of the limits in Error.Limit; commands offer them as flags.
const (
	LimitHeaderBytes = "max-header-bytes"
	LimitHeaders     = "max-headers"
	LimitBody        = "max-body"
)

// Error is a protocol error of the peer. The connection cannot go on: where
// the next frame begins is not known. Its texts quote no header value and no
// body.
type Error struct {
	Kind    Kind
	Reason  string  // short text for the peer; names the fix
	Limit   string  // for Kind Limit: LimitHeaderBytes, LimitHeaders or LimitBody
	Max     int     // for Kind Limit: its value
	Command Command // of the offending frame; Invalid if it was not known yet
	Receipt string  // the receipt the frame asked for, decoded, if it had been read (S122)
}

func (e *Error) Error() string { return "frame: " + e.Reason }

// fail makes an error the answer to this and every later Read. It returns
// false, as what scans does when it cannot go on.
func (r *Reader) fail(kind Kind, reason string) bool {
	r.err = &Error{Kind: kind, Reason: reason, Command: r.command, Receipt: r.receipt()}
	return false
}

func (r *Reader) failLimit(limit string, value int, reason string) bool {
	r.err = &Error{
		Kind: Limit, Reason: fmt.Sprintf("%s (limit %d, server flag --%s)", reason, value, limit),
		Limit: limit, Max: value, Command: r.command, Receipt: r.receipt(),
	}
	return false
}

// failCommand reports a first line that is no command, of which at least
// maxCommand+1 bytes or the whole are in line.
func (r *Reader) failCommand(line []byte) bool {
	switch {
	case isHTTP(line):
		return r.fail(HTTP, "this port speaks STOMP, not HTTP: use a STOMP client, or the HTTP port for WebSocket")
	case len(line) > 1 && line[0] == 0x16 && line[1] == 0x03:
		return r.fail(TLS, "this port does not speak TLS: connect without TLS, or to a server started with a certificate")
	}
	line = line[:min(len(line), maxCommand+1)]
	if c := ParseCommand(bytes.ToUpper(bytes.TrimSpace(line))); c != Invalid {
		return r.fail(Unknown, "unknown command "+strconv.Quote(string(line))+": write "+c.String())
	}
	return r.fail(Unknown, "unknown command "+strconv.Quote(string(line))+
		": a frame begins with a command such as SEND alone on its line; a body with NUL needs a right content-length before it")
}

func isHTTP(line []byte) bool {
	for _, method := range []string{"GET /", "POST /", "HEAD /", "PUT /", "DELETE /", "PATCH /", "OPTIONS ", "CONNECT ", "PRI * HTTP"} {
		if bytes.HasPrefix(line, []byte(method)) {
			return true
		}
	}
	return false
}
