package frame

import (
	"bytes"
	"errors"
	"io"
	"strconv"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
)

var fuzzLimits = Limits{HeaderBytes: 4096, Headers: 16, Body: 40_000}

// FuzzRead: whatever comes, a Reader does not panic, holds bounded memory,
// gives the same for single bytes as for the whole (S1), and what it accepts
// survives Append-then-Read in every version.
func FuzzRead(f *testing.F) {
	for _, s := range []string{
		"CONNECT\r\naccept-version:1.2\r\nlogin: me\r\n\r\n\x00\r\n",
		"SEND\na\\cb:x\\n\\r\\\\\ncontent-length:3\n\na\x00b\x00\nSEND\n\n\x00",
		"SEND\na:b\\\n\n\x00", "SEND\n\n" + strings.Repeat("x", 3000) + "\x00", "GET / HTTP/1.1\r\n\r\n",
		"MESSAGE\na:1\na:2\ncontent-length:40000\n\n" + strings.Repeat("\x00", 40_000) + "\x00",
		"ACK\nid:\xff\n\n\x00", "SEND\na:b\x00", "send\n\n\x00", "SEND\n:\n\n\x00",
	} {
		f.Add(uint8(V12), []byte(s))
		f.Add(uint8(V11), []byte(s))
		f.Add(uint8(V10), []byte(s))
		f.Add(uint8(0), []byte(s))
	}
	f.Fuzz(func(t *testing.T, version uint8, in []byte) {
		v := Version(version % 4)
		r := NewReader(bytes.NewReader(in), fuzzLimits)
		r.SetVersion(v)
		slow := NewReader(iotest.OneByteReader(bytes.NewReader(in)), fuzzLimits)
		slow.SetVersion(v)
		for {
			got, err := r.Read()
			other, otherErr := slow.Read()
			if held := len(r.buf) + cap(r.long); held > firstBody+2*fuzzLimits.Body+2*largeBuffer {
				t.Fatalf("%d bytes held", held)
			}
			if err != nil {
				sameError(t, err, otherErr)
				return
			}
			if otherErr != nil || text(got) != text(other) {
				t.Fatalf("in single bytes: %v", otherErr)
			}
			if len(got.Body) > fuzzLimits.Body || len(got.Header) > fuzzLimits.Headers {
				t.Fatalf("limits exceeded: %d bytes, %d headers", len(got.Body), len(got.Header))
			}
			for _, out := range []Version{0, V10, V11, V12} {
				survives(t, out, got)
			}
		}
	})
}

func sameError(t *testing.T, a, b error) {
	t.Helper()
	var protocol, other *Error
	if errors.As(a, &protocol) != errors.As(b, &other) || protocol == nil && !errors.Is(b, a) {
		t.Fatalf("%v as a whole, %v in single bytes", a, b)
	}
	if protocol != nil && (protocol.Reason == "" || strings.ContainsAny(protocol.Reason, "\r\n\x00")) {
		t.Fatalf("reason %q", protocol.Reason)
	}
}

// survives checks that f, appended in version v between two others, is read as
// what the version can say of it, and that appending that gives the same bytes.
func survives(t *testing.T, v Version, f *Frame) {
	t.Helper()
	wire := Append(nil, v, f)
	guard := Append(nil, v, &Frame{Command: Disconnect, Header: fields("receipt", "guard")})
	r := NewReader(io.MultiReader(bytes.NewReader(guard), bytes.NewReader(wire), bytes.NewReader(guard)), Limits{})
	r.SetVersion(v)
	read := func() *Frame {
		got, err := r.Read()
		if err != nil {
			t.Fatalf("%q in %q: %v", wire, v, err)
		}
		return got
	}
	read()
	got := read()
	if diff := cmp.Diff(expressed(v, f), text(got)); diff != "" {
		t.Fatalf("%q in %q:\n%s", wire, v, diff)
	}
	again := Append(nil, v, got)
	if v >= V11 && !bytes.Equal(wire, again) { // blanks are trimmed before
		t.Fatalf("%q, then %q", wire, again)
	}
	if got := read(); text(got) != `DISCONNECT "receipt"="guard" ""` {
		t.Fatalf("%q in %q leaves %s behind it", wire, v, text(got))
	}
	if _, err := r.Read(); !errors.Is(err, io.EOF) {
		t.Fatalf("%q in %q: %v behind it", wire, v, err)
	}
}

// expressed is text of what a peer of version v may see of f: an independent
// and slow account of AppendHeader.
func expressed(v Version, f *Frame) string {
	read := v
	if f.Command.literal() {
		v = 0
	}
	value := strings.NewReplacer("\x00", "?", "\r", "?", "\n", "?")
	name := strings.NewReplacer("\x00", "?", "\r", "?", "\n", "?", ":", "?")
	switch v {
	case V11:
		value = strings.NewReplacer("\x00", "?", "\r", "?")
		name = value
	case V12:
		value = strings.NewReplacer("\x00", "?")
		name = value
	}
	valid := func(s string) string { // byte by byte, unlike strings.ToValidUTF8
		var b strings.Builder
		for i, r := range s {
			if r == '\ufffd' && !strings.HasPrefix(s[i:], "\ufffd") {
				r = '?'
			}
			b.WriteRune(r)
		}
		return b.String()
	}
	e := Frame{Command: f.Command}
	trim := read < V11
	for _, h := range f.Header {
		if len(h.Name) == 0 || string(h.Name) == "content-length" {
			continue
		}
		n, x := name.Replace(valid(string(h.Name))), value.Replace(valid(string(h.Value)))
		if read == 0 && (n == "accept-version" && f.Command != Connected || n == "version" && f.Command == Connected) {
			trim = false
		}
		e.Header = append(e.Header, fields(n, x)...)
	}
	if trim {
		for i := range e.Header {
			e.Header[i].Value = []byte(strings.TrimLeft(string(e.Header[i].Value), " \t"))
		}
	}
	if f.Command.HasBody() && len(f.Body) > 0 {
		e.Header = append(e.Header, fields("content-length", strconv.Itoa(len(f.Body)))...)
		e.Body = f.Body
	}
	return text(&e)
}

// FuzzAppend: no bytes in headers or body break the framing (S24, S26), for
// clients that take a CR for an end of line neither.
func FuzzAppend(f *testing.F) {
	for _, s := range []string{"a", "a:b", "a\nb", "a\r\nb:c\n\nMESSAGE\n", "\x00", "\\", "\xff", "content-length", "é", "", " x", "12345678:", "1234567\n90\r"} {
		f.Add(uint8(Message), s, s, "receipt", s, []byte(s))
		f.Add(uint8(Connected), "version", "1.2", s, s, []byte(s))
	}
	f.Fuzz(func(t *testing.T, command uint8, n1, v1, n2, v2 string, body []byte) {
		frame := &Frame{Command: Connect + Command(command)%ErrorCommand, Header: fields(n1, v1, n2, v2), Body: body}
		for _, v := range []Version{0, V10, V11, V12} {
			survives(t, v, frame)
			line := AppendHeader(nil, v, n1, v1)
			if n1 == "" || n1 == "content-length" {
				if len(line) != 0 {
					t.Fatalf("%q for no name", line)
				}
				continue
			}
			if i := bytes.IndexAny(line, "\r\n\x00"); i != len(line)-1 {
				t.Fatalf("%q: byte %d", line, i)
			}
			if other := AppendHeaderBytes(nil, v, []byte(n1), []byte(v1)); !bytes.Equal(line, other) {
				t.Fatalf("%q as string, %q as bytes", line, other)
			}
		}
	})
}
