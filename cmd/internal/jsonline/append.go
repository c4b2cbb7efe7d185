package jsonline

import (
	"bytes"
	"encoding/json"
	"time"
	"unicode/utf8"

	"github.com/mvalve/mvalve/queue"
)

// TimeFormat is RFC 3339 with microseconds, in UTC.
const TimeFormat = "2006-01-02T15:04:05.000000Z"

// line is the object in the order of its fields.
type line struct {
	ID           string     `json:"id"`
	Destination  string     `json:"destination"`
	Lane         string     `json:"lane"`
	Priority     int        `json:"priority"`
	Attempt      int        `json:"attempt"`
	EnqueuedAt   string     `json:"enqueued_at"`
	DispatchedAt string     `json:"dispatched_at,omitempty"`
	ExpiresAt    string     `json:"expires_at,omitempty"`
	Headers      [][]string `json:"headers,omitempty"`
	Body         *string    `json:"body,omitempty"`
	BodyBase64   []byte     `json:"body_base64,omitempty"`
}

// Append appends the line of a message, with its newline. attempt is 1 for the
// first; a zero dispatchedAt is left out. The body is text where it is UTF-8,
// else base64.
func Append(dst []byte, m *queue.Message, attempt int, dispatchedAt time.Time) []byte {
	l := line{
		ID: m.ID.String(), Destination: m.Destination, Lane: m.Lane.String(), Priority: m.Priority.Level(),
		Attempt: attempt, EnqueuedAt: FormatTime(m.EnqueuedAt), DispatchedAt: FormatTime(dispatchedAt),
		ExpiresAt: FormatTime(m.ExpiresAt), Headers: Pairs(m.Headers),
	}
	if utf8.Valid(m.Body) {
		body := string(m.Body)
		l.Body = &body
	} else {
		l.BodyBase64 = m.Body
	}
	buffer := bytes.NewBuffer(dst)
	encoder := json.NewEncoder(buffer)
	encoder.SetEscapeHTML(false)
	_ = encoder.Encode(l) // strings, numbers and bytes always encode
	return buffer.Bytes()
}

// FormatTime returns t in TimeFormat, "" for the zero time.
func FormatTime(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(TimeFormat)
}
