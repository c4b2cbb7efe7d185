// Package frame is the codec of STOMP 1.0, 1.1 and 1.2: bytes to frames and
// back, nothing else. It knows no connection, no destination and no engine.
//
//	r := frame.NewReader(conn, frame.Limits{})
//	f, err := r.Read()                 // CONNECT, before a version is agreed
//	r.SetVersion(frame.V12)            // from here on headers are unescaped
//	out := frame.Append(nil, frame.V12, &frame.Frame{Command: frame.Connected})
//
// A Reader reuses its buffer and the headers of its frame: a small frame costs
// no allocation, and what a peer announces (content-length) costs nothing until
// the bytes are there. Append and AppendHeader write into the caller's buffer.
//
// Where the specification is silent or the world is not as it says, the choice
// made is documented at the name concerned: Reader for what is accepted,
// AppendHeader for what cannot be expressed in an old version.
package frame

import (
	"bytes"
	"slices"
)

// Version is the protocol version agreed on a connection. The zero value is
// the time before: CONNECT, STOMP and CONNECTED are not escaped (S25).
type Version uint8

// The versions of the protocol.
const (
	V10 Version = iota + 1
	V11
	V12
)

// String returns the version as headers write it ("1.2"), and "" for the zero
// value.
func (v Version) String() string {
	switch v {
	case V10:
		return "1.0"
	case V11:
		return "1.1"
	case V12:
		return "1.2"
	}
	return ""
}

// Command is the first line of a frame.
type Command uint8

// The commands. Invalid is the zero value and never comes from a Reader.
const (
	Invalid Command = iota

	// Sent by clients.
	Connect
	Stomp // CONNECT under its newer name (S43)
	Send
	Subscribe
	Unsubscribe
	Ack
	Nack
	Begin
	Commit
	Abort
	Disconnect

	// Sent by servers.
	Connected
	Message
	Receipt
	ErrorCommand // ERROR; the name Error is the Go error of this package
)

var commandNames = [...]string{
	Connect:      "CONNECT",
	Stomp:        "STOMP",
	Send:         "SEND",
	Subscribe:    "SUBSCRIBE",
	Unsubscribe:  "UNSUBSCRIBE",
	Ack:          "ACK",
	Nack:         "NACK",
	Begin:        "BEGIN",
	Commit:       "COMMIT",
	Abort:        "ABORT",
	Disconnect:   "DISCONNECT",
	Connected:    "CONNECTED",
	Message:      "MESSAGE",
	Receipt:      "RECEIPT",
	ErrorCommand: "ERROR",
}

// maxCommand is the length of the longest command, UNSUBSCRIBE.
const maxCommand = 11

// String returns the command as it is sent ("SEND"), and "" for Invalid.
func (c Command) String() string {
	if int(c) < len(commandNames) {
		return commandNames[c]
	}
	return ""
}

// FromClient reports whether clients may send the command.
func (c Command) FromClient() bool { return c >= Connect && c <= Disconnect }

// HasBody reports whether frames of the command may have a body (S28).
func (c Command) HasBody() bool { return c == Send || c == Message || c == ErrorCommand }

// literal reports whether headers of the command are never escaped (S25).
func (c Command) literal() bool { return c == Connect || c == Stomp || c == Connected }

// ParseCommand returns the command spelled exactly (S8) by b, else Invalid.
func ParseCommand(b []byte) Command {
	switch string(b) {
	case "SEND":
		return Send
	case "ACK":
		return Ack
	case "NACK":
		return Nack
	case "MESSAGE":
		return Message
	case "RECEIPT":
		return Receipt
	case "CONNECT":
		return Connect
	case "STOMP":
		return Stomp
	case "SUBSCRIBE":
		return Subscribe
	case "UNSUBSCRIBE":
		return Unsubscribe
	case "BEGIN":
		return Begin
	case "COMMIT":
		return Commit
	case "ABORT":
		return Abort
	case "DISCONNECT":
		return Disconnect
	case "CONNECTED":
		return Connected
	case "ERROR":
		return ErrorCommand
	}
	return Invalid
}

// Field is one header, decoded.
type Field struct{ Name, Value []byte }

// Frame is one frame, decoded. Header keeps the order and the duplicates of
// the wire; what a frame from a Reader holds is valid until the next Read.
type Frame struct {
	Command Command
	Header  []Field
	Body    []byte

	ownBody bool
}

// Get returns the value of the first header called name (S38). The name is
// compared decoded and byte by byte (S8, S27).
func (f *Frame) Get(name string) (value []byte, ok bool) {
	for i := range f.Header {
		if string(f.Header[i].Name) == name {
			return f.Header[i].Value, true
		}
	}
	return nil, false
}

// OwnBody reports whether Body is memory of its own that the Reader will not
// touch again, so that it may be kept without a copy. It is so for bodies too
// big for the read buffer (over about 32 KiB).
func (f *Frame) OwnBody() bool { return f.ownBody }

// Clone returns a copy that outlives the next Read. It shares Body if that is
// memory of its own already (OwnBody).
func (f *Frame) Clone() *Frame {
	c := &Frame{Command: f.Command, Body: f.Body, ownBody: true}
	if !f.ownBody {
		c.Body = bytes.Clone(f.Body)
	}
	size := 0
	for i := range f.Header {
		size += len(f.Header[i].Name) + len(f.Header[i].Value)
	}
	text := make([]byte, 0, size)
	keep := func(b []byte) []byte {
		text = append(text, b...)
		return slices.Clip(text[len(text)-len(b):])
	}
	c.Header = make([]Field, len(f.Header))
	for i := range f.Header {
		c.Header[i] = Field{Name: keep(f.Header[i].Name), Value: keep(f.Header[i].Value)}
	}
	return c
}
