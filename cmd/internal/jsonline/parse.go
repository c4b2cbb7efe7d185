// Package jsonline is the line format of the commands: one message as one JSON
// object. What [Append] writes, [Parser] accepts.
package jsonline

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/mvalve/mvalve/queue"
)

// MaxLine is the longest line in bytes: a body of queue.MaxBody in which every
// byte is an escape of six, and the rest.
const MaxLine = 6*queue.MaxBody + 8<<20

// Parser turns lines into messages.
type Parser struct {
	// Defaults are used for what a line does not say. Delay and TTL count from Now.
	Defaults Defaults
	// Now is the pipe's clock.
	Now func() time.Time
	// MaxBody is the largest body in bytes; 0: queue.MaxBody.
	MaxBody int
}

// Defaults are what a message has unless its line says otherwise.
type Defaults struct {
	Destination string
	Lane        queue.Lane
	Priority    queue.Priority
	Delay, TTL  time.Duration
	Headers     queue.Headers // each used unless the line has one of that name
}

// known maps every field to the function that reads it. What the reader adds and
// the writer has no use for is accepted and ignored.
var known = map[string]func(*fields, json.RawMessage) error{
	"destination":   func(f *fields, v json.RawMessage) error { return text(v, &f.Destination) },
	"body":          (*fields).body,
	"body_base64":   (*fields).bodyBase64,
	"headers":       (*fields).headers,
	"lane":          (*fields).lane,
	"priority":      (*fields).priority,
	"delay":         func(f *fields, v json.RawMessage) error { return duration(v, &f.delay) },
	"ttl":           func(f *fields, v json.RawMessage) error { return duration(v, &f.ttl) },
	"ready_at":      func(f *fields, v json.RawMessage) error { return instant(v, &f.ReadyAt) },
	"expires_at":    func(f *fields, v json.RawMessage) error { return instant(v, &f.ExpiresAt) },
	"id":            (*fields).id,
	"attempt":       ignore,
	"enqueued_at":   ignore,
	"dispatched_at": ignore,
}

func ignore(*fields, json.RawMessage) error { return nil }

// fields is a message being read.
type fields struct {
	queue.Message
	delay, ttl *time.Duration
	hasLevel   bool
}

// Parse reads one line. Errors wrap queue.ErrInvalid and name the field.
func (p *Parser) Parse(data []byte) (*queue.Message, error) {
	if !utf8.Valid(data) {
		return nil, fmt.Errorf("%w: the line is not UTF-8; send such a body as body_base64", queue.ErrInvalid)
	}
	var raw map[string]json.RawMessage
	if err := json.Unmarshal(data, &raw); err != nil {
		return nil, fmt.Errorf("%w: %s", queue.ErrInvalid, explain(err))
	}
	if raw == nil {
		return nil, fmt.Errorf("%w: not a JSON object such as {\"destination\":\"mail.example\",\"body\":\"...\"}", queue.ErrInvalid)
	}
	var f fields
	for name, value := range raw {
		read, ok := known[name]
		if !ok {
			return nil, fieldError(name, "unknown; known are "+strings.Join(slices.Sorted(maps.Keys(known)), ", "))
		}
		if string(value) == "null" {
			continue
		}
		if err := read(&f, value); err != nil {
			return nil, fieldError(name, err.Error())
		}
	}
	for _, pair := range [][2]string{{"delay", "ready_at"}, {"ttl", "expires_at"}, {"body", "body_base64"}} {
		if given(raw, pair[0]) && given(raw, pair[1]) {
			return nil, fieldError(pair[1], "given together with "+pair[0]+"; use one of them")
		}
	}
	return p.finish(&f)
}

func given(raw map[string]json.RawMessage, name string) bool {
	value, ok := raw[name]
	return ok && string(value) != "null"
}

// Message returns a message that has only a body and the defaults.
func (p *Parser) Message(body []byte) (*queue.Message, error) {
	return p.finish(&fields{Message: queue.Message{Body: body}})
}

// finish fills in the defaults and checks the whole.
func (p *Parser) finish(f *fields) (*queue.Message, error) {
	m, d := &f.Message, &p.Defaults
	if m.Destination == "" {
		m.Destination = d.Destination
	}
	if m.Lane == queue.LaneUnset {
		m.Lane = d.Lane
	}
	if !f.hasLevel {
		m.Priority = d.Priority
	}
	if f.delay == nil && m.ReadyAt.IsZero() && d.Delay > 0 {
		f.delay = &d.Delay
	}
	if f.ttl == nil && m.ExpiresAt.IsZero() && d.TTL > 0 {
		f.ttl = &d.TTL
	}
	if f.delay != nil && *f.delay > 0 {
		m.ReadyAt = p.Now().Add(*f.delay)
	}
	if f.ttl != nil {
		m.ExpiresAt = p.Now().Add(*f.ttl)
	}
	var defaults queue.Headers
	for _, h := range d.Headers {
		if _, ok := m.Headers.Get(h.Name); !ok {
			defaults = append(defaults, h)
		}
	}
	m.Headers = append(defaults, m.Headers...)
	return m, p.check(m)
}

// check is Message.Validate with the name of the field in front.
func (p *Parser) check(m *queue.Message) error {
	err := m.Validate(p.MaxBody)
	if err == nil {
		return nil
	}
	name := "message"
	if m.Lane == queue.Incoming && !m.ReadyAt.IsZero() {
		name = "lane"
	}
	for _, field := range []string{"destination", "body", "headers", "lane", "priority", "delay"} {
		if strings.HasPrefix(reason(err), field) {
			name = field
			break
		}
	}
	return fieldError(name, reason(err))
}

// reason is the text of an error of package queue without its prefix.
func reason(err error) string {
	return strings.TrimPrefix(err.Error(), queue.ErrInvalid.Error()+": ")
}

func fieldError(name, why string) error {
	return fmt.Errorf("%w: field %q: %s", queue.ErrInvalid, name, why)
}

func explain(err error) string {
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) {
		return fmt.Sprintf("not JSON: %v at byte %d", syntax, syntax.Offset)
	}
	return "not a JSON object such as {\"destination\":\"mail.example\",\"body\":\"...\"}"
}

func text(value json.RawMessage, to *string) error {
	if len(value) == 0 || value[0] != '"' || json.Unmarshal(value, to) != nil {
		return errors.New("not a string")
	}
	// The decoder replaces what is half of a pair; what it should have been is lost.
	if strings.ContainsRune(*to, utf8.RuneError) && loneSurrogate(value) {
		return errors.New("holds half of a \\u surrogate pair, which is no character; use body_base64 for binary data")
	}
	return nil
}

// loneSurrogate reports whether a JSON string has an escape of half a pair.
func loneSurrogate(value json.RawMessage) bool {
	for i := 0; i+1 < len(value); i++ {
		if value[i] != '\\' {
			continue
		}
		i++ // now at what is escaped
		if value[i] != 'u' {
			continue
		}
		high := bytes.ToLower(value[i+1 : i+5])
		i += 4
		if high[0] != 'd' || high[1] < '8' {
			continue
		}
		if high[1] >= 'c' || i+6 >= len(value) || value[i+1] != '\\' || value[i+2] != 'u' {
			return true
		}
		low := bytes.ToLower(value[i+3 : i+7])
		if low[0] != 'd' || low[1] < 'c' {
			return true
		}
		i += 6
	}
	return false
}

func (f *fields) body(value json.RawMessage) error {
	var s string
	err := text(value, &s)
	f.Body = []byte(s)
	return err
}

func (f *fields) bodyBase64(value json.RawMessage) error {
	var s string
	if err := text(value, &s); err != nil {
		return err
	}
	body, err := base64.StdEncoding.DecodeString(s)
	f.Body = body
	if err != nil {
		return errors.New("not base64 (RFC 4648, section 4)")
	}
	return nil
}

func (f *fields) lane(value json.RawMessage) error {
	var s string
	if err := text(value, &s); err != nil {
		return err
	}
	lane, err := queue.ParseLane(s)
	if err != nil {
		return errors.New(reason(err))
	}
	f.Lane = lane
	return nil
}

func (f *fields) priority(value json.RawMessage) error {
	var level int
	if err := json.Unmarshal(value, &level); err != nil || level < 0 || level > 9 {
		return errors.New("not a number from 0 (last) to 9 (first)")
	}
	f.Priority, f.hasLevel = queue.Level(level), true
	return nil
}

func (f *fields) id(value json.RawMessage) error {
	var s string
	if err := text(value, &s); err != nil {
		return err
	}
	id, err := queue.ParseID(s)
	if err != nil {
		return errors.New(reason(err))
	}
	f.ID = id
	return nil
}

func duration(value json.RawMessage, to **time.Duration) error {
	var s string
	if text(value, &s) == nil {
		if d, err := time.ParseDuration(s); err == nil && d >= 0 {
			*to = &d
			return nil
		}
	}
	return fmt.Errorf("%.40s is not a duration such as \"3s\" or \"1h30m\"", value)
}

func instant(value json.RawMessage, to *time.Time) error {
	var s string
	if text(value, &s) == nil {
		if t, err := time.Parse(time.RFC3339Nano, s); err == nil {
			*to = t
			return nil
		}
	}
	return fmt.Errorf("%.40s is not a time such as \"2006-01-02T15:04:05Z\" (RFC 3339)", value)
}
