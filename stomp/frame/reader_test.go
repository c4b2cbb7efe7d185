package frame

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
)

// text shows a frame: command, headers, body, each quoted.
func text(f *Frame) string {
	var s strings.Builder
	s.WriteString(f.Command.String())
	for _, h := range f.Header {
		fmt.Fprintf(&s, " %q=%q", h.Name, h.Value)
	}
	fmt.Fprintf(&s, " %q", f.Body)
	return s.String()
}

// readAll returns the frames as text and the error that ended them, nil for
// io.EOF. Each frame is read as a copy, and asked for by Buffered before.
func readAll(r *Reader) (frames []string, err error) {
	var last *Frame
	for {
		if last != nil {
			before := text(last)
			r.Buffered() // must leave the last frame alone
			if after := text(last); after != before {
				return frames, fmt.Errorf("Buffered changed the frame %s to %s", before, after)
			}
		}
		f, err := r.Read()
		if errors.Is(err, io.EOF) {
			return frames, nil
		}
		if err != nil {
			return frames, err
		}
		frames = append(frames, text(f))
		last = f
	}
}

// sources gives the stream in one piece, in single bytes (S1), and in pieces
// that end anywhere; the last with its error beside the data.
func sources(in string) map[string]io.Reader {
	return map[string]io.Reader{
		"whole":  strings.NewReader(in),
		"bytes":  iotest.OneByteReader(strings.NewReader(in)),
		"halves": iotest.HalfReader(strings.NewReader(in)),
		"sevens": &pieces{strings.NewReader(in), 7},
		"eof":    iotest.DataErrReader(strings.NewReader(in)),
	}
}

type pieces struct {
	io.Reader
	n int
}

func (p *pieces) Read(b []byte) (int, error) { return p.Reader.Read(b[:min(len(b), p.n)]) }

type versions []Version

var (
	all    = versions{V10, V11, V12}
	old    = versions{V10}
	escape = versions{V11, V12}
	before = versions{0}
)

func TestRead(t *testing.T) {
	for _, c := range []struct {
		rule string
		v    versions
		in   string
		want []string
	}{
		{"S1 frames in one segment", all, "SEND\na:1\n\nx\x00SEND\na:2\n\ny\x00", []string{`SEND "a"="1" "x"`, `SEND "a"="2" "y"`}},
		{"S2 LF ends lines", all, "BEGIN\ntransaction:t\n\n\x00", []string{`BEGIN "transaction"="t" ""`}},
		{"S3 CRLF ends lines", versions{V12}, "SEND\r\na:1\r\n\r\nx\x00\r\n\r\nACK\r\nid:1\r\n\r\n\x00", []string{`SEND "a"="1" "x"`, `ACK "id"="1" ""`}},
		{"S4 CRLF before the version is known", before, "CONNECT\r\naccept-version:1.2\r\n\r\n\x00", []string{`CONNECT "accept-version"="1.2" ""`}},
		{"S4 leniently in 1.0 and 1.1, too", versions{V10, V11}, "SEND\r\na:1\r\n\r\nx\x00", []string{`SEND "a"="1" "x"`}},
		{"S4 a CR inside a value is data", all, "SEND\na:b\rc\n\n\x00", []string{`SEND "a"="b\rc" ""`}},
		{"S5 EOLs after NUL", all, "SEND\n\n\x00\n\n\n\nSEND\n\n\x00\n", []string{`SEND ""`, `SEND ""`}},
		{"S6 EOLs before the first frame", before, "\n\r\n\nSTOMP\naccept-version:1.1\n\n\x00", []string{`STOMP "accept-version"="1.1" ""`}},
		{"S7 no headers", all, "DISCONNECT\n\n\x00", []string{`DISCONNECT ""`}},
		{"S8 header names keep their case", all, "SEND\nDestination:a\ndestination:b\n\n\x00", []string{`SEND "Destination"="a" "destination"="b" ""`}},
		{"S9 UTF-8", all, "SEND\ndestination:/queue/é☃𝄞\nключ:值\n\n\x00", []string{`SEND "destination"="/queue/é☃𝄞" "ключ"="值" ""`}},
		{"S13 empty value", all, "SEND\na:\n\n\x00", []string{`SEND "a"="" ""`}},
		{"S14 S15 colon in a value", all, "SEND\na:b:c::\n\n\x00", []string{`SEND "a"="b:c::" ""`}},
		{"S16 no trimming", escape, "SEND\n a : b \n\n\x00", []string{`SEND " a "=" b " ""`}},
		{"S16 nor in a CONNECT for 1.1 or 1.2", before, "CONNECT\naccept-version:1.2\npasscode: x\n\n\x00", []string{`CONNECT "accept-version"="1.2" "passcode"=" x" ""`}},
		{"S17 1.0 is trimmed on the left", old, "SEND\ndestination: \t/a \ncontent-length: 2\n\nxy\x00", []string{`SEND "destination"="/a " "content-length"="2" "xy"`}},
		{"S17 so is a CONNECT for 1.0", before, "CONNECT\nlogin: me\n\n\x00", []string{`CONNECT "login"="me" ""`}},
		{"S17 and a CONNECTED from 1.0", before, "CONNECTED\nsession: 7\n\n\x00", []string{`CONNECTED "session"="7" ""`}},
		{"S18 1.0 has no escapes", old, "SEND\na\\c:x\\ny\\t\\\n\n\x00", []string{`SEND "a\\c"="x\\ny\\t\\" ""`}},
		{"S19 escapes in names and values", escape, "SEND\na\\cb\\n\\\\:x\\ny\\cz\\\\n\n\n\x00", []string{`SEND "a:b\n\\"="x\ny:z\\n" ""`}},
		{"S21 CR in 1.2", versions{V12}, "SEND\na\\r:\\r\\n\n\n\x00", []string{`SEND "a\r"="\r\n" ""`}},
		{"S25 CONNECT is not unescaped", before, "CONNECT\naccept-version:1.2\npasscode:a\\cb\\\\\n\n\x00", []string{`CONNECT "accept-version"="1.2" "passcode"="a\\cb\\\\" ""`}},
		{"S25 in no version", all, "CONNECT\naccept-version:1.2\npasscode:a\\cb\\\n\n\x00STOMP\nx:\\t\n\n\x00CONNECTED\nx:\\t\n\n\x00",
			[]string{`CONNECT "accept-version"="1.2" "passcode"="a\\cb\\" ""`, `STOMP "x"="\\t" ""`, `CONNECTED "x"="\\t" ""`}},
		{"S29 1.0 ignores the body of other frames", versions{0, V10}, "SUBSCRIBE\nid:1\ncontent-length:3\n\nxyz\x00ACK\nid:1\n\nxyz\x00", []string{`SUBSCRIBE "id"="1" "content-length"="3" ""`, `ACK "id"="1" ""`}},
		{"S30 content-length counts NULs", all, "SEND\ncontent-length:5\n\na\x00b\x00\n\x00\nSEND\n\n\x00", []string{`SEND "content-length"="5" "a\x00b\x00\n"`, `SEND ""`}},
		{"S32 else the body ends at NUL", all, "SEND\n\na\n\nb\x00SEND\n\n\x00", []string{`SEND "a\n\nb"`, `SEND ""`}},
		{"S33 content-length on any frame", all, "ACK\nid:1\ncontent-length:0\n\n\x00DISCONNECT\n\n\x00", []string{`ACK "id"="1" "content-length"="0" ""`, `DISCONNECT ""`}},
		{"S33 also on CONNECT", before, "CONNECT\ncontent-length:0\n\n\x00", []string{`CONNECT "content-length"="0" ""`}},
		{"S34 leading zeros are digits", all, "SEND\ncontent-length:003\n\nabc\x00", []string{`SEND "content-length"="003" "abc"`}},
		{"S37 bodies are bytes", all, "SEND\n\n\xff\r\n\r\n\\n\x00SEND\n\n0\x00SEND\ncontent-length:1\n\n0\x00SEND\ncontent-length:0\n\n\x00",
			[]string{`SEND "\xff\r\n\r\n\\n"`, `SEND "0"`, `SEND "content-length"="1" "0"`, `SEND "content-length"="0" ""`}},
		{"S38 repeated headers stay, the first counts", all, "SEND\na:1\na:2\ncontent-length:1\ncontent-length:9\n\nx\x00", []string{`SEND "a"="1" "a"="2" "content-length"="1" "content-length"="9" "x"`}},
		{"S60 S61 heart-beats between frames", all, "\nSEND\n\n\x00\n\n\r\n\nSEND\n\n\x00\n", []string{`SEND ""`, `SEND ""`}},
		{"every command", all, "SEND\n\n\x00SUBSCRIBE\n\n\x00UNSUBSCRIBE\n\n\x00ACK\n\n\x00NACK\n\n\x00BEGIN\n\n\x00COMMIT\n\n\x00ABORT\n\n\x00DISCONNECT\n\n\x00MESSAGE\n\n\x00RECEIPT\n\n\x00ERROR\n\n\x00CONNECTED\n\n\x00CONNECT\n\n\x00STOMP\n\n\x00",
			[]string{`SEND ""`, `SUBSCRIBE ""`, `UNSUBSCRIBE ""`, `ACK ""`, `NACK ""`, `BEGIN ""`, `COMMIT ""`, `ABORT ""`, `DISCONNECT ""`, `MESSAGE ""`, `RECEIPT ""`, `ERROR ""`, `CONNECTED ""`, `CONNECT ""`, `STOMP ""`}},
	} {
		for _, v := range c.v {
			for name, src := range sources(c.in) {
				t.Run(c.rule+"/"+v.String()+name, func(t *testing.T) {
					r := NewReader(src, Limits{})
					r.SetVersion(v)
					got, err := readAll(r)
					if diff := cmp.Diff(c.want, got); diff != "" || err != nil {
						t.Errorf("%q: error %v, difference:\n%s", c.in, err, diff)
					}
				})
			}
		}
	}
}

func TestReadRefuses(t *testing.T) {
	limits := Limits{HeaderBytes: 100, Headers: 3, Body: 10}
	for _, c := range []struct {
		rule   string
		v      versions
		in     string
		kind   Kind
		reason string // a part of it
	}{
		{"S8 lower case command", all, "send\n\n\x00", Unknown, "write SEND"},
		{"S10 not UTF-8", all, "SEND\na:\xff\n\n\x00", Syntax, "not UTF-8"},
		{"S11 no colon", all, "SEND\ndestination\n\n\x00", Syntax, "write name:value"},
		{"S12 no name", all, "SEND\n:x\n\n\x00", Syntax, "write name:value"},
		{`S20 \r in 1.1`, versions{V11}, "SEND\na:\\r\n\n\x00", Syntax, "STOMP 1.1 has"},
		{`S22 \t`, escape, "SEND\na:b\\tc\n\n\x00", Syntax, "undefined escape"},
		{`S22 in a name`, escape, "SEND\na\\x:b\n\n\x00", Syntax, "undefined escape"},
		{"S23 lone backslash", escape, "SEND\na:b\\\n\n\x00", Syntax, "single backslash"},
		{"S23 in a name", escape, "SEND\na\\:b\n\n\x00", Syntax, "single backslash"},
		{"S29 body of another frame", escape, "SUBSCRIBE\nid:1\n\nx\x00", Syntax, "SUBSCRIBE has no body"},
		{"S29 with content-length", escape, "ACK\nid:1\ncontent-length:1\n\nx\x00", Syntax, "ACK has no body"},
		{"S31 body longer than content-length", all, "SEND\ncontent-length:2\n\nabc\x00", Syntax, "count the body in bytes"},
		{"S34 empty", all, "SEND\ncontent-length:\n\n\x00", Syntax, "decimal digits"},
		{"S34 word", all, "SEND\ncontent-length:two\n\n\x00", Syntax, "decimal digits"},
		{"S34 negative", all, "SEND\ncontent-length:-1\n\n\x00", Syntax, "decimal digits"},
		{"S34 signed", all, "SEND\ncontent-length:+1\n\n\x00", Syntax, "decimal digits"},
		{"S34 hexadecimal", all, "SEND\ncontent-length:0x1\n\n\x00", Syntax, "decimal digits"},
		{"S34 blank", escape, "SEND\ncontent-length: 1\n\nx\x00", Syntax, "decimal digits"},
		{"S34 overflow", all, "SEND\ncontent-length:18446744073709551617\n\nx\x00", Limit, "--max-body"},
		{"S39 header bytes", all, "SEND\na:" + strings.Repeat("x", 100) + "\n\n\x00", Limit, "(limit 100, server flag --max-header-bytes)"},
		{"S39 header bytes, in short lines", all, "SEND\na:" + strings.Repeat("x", 50) + "\nb:" + strings.Repeat("x", 50) + "\n\n\x00", Limit, "--max-header-bytes"},
		{"S39 header bytes, no end", all, "SEND\na:" + strings.Repeat("x", 1000), Limit, "--max-header-bytes"},
		{"S39 headers", all, "SEND\na:1\nb:1\nc:1\nd:1\n\n\x00", Limit, "(limit 3, server flag --max-headers)"},
		{"S39 body", all, "SEND\n\n12345678901\x00", Limit, "(limit 10, server flag --max-body)"},
		{"S39 body that is dropped", old, "ACK\n\n12345678901\x00", Limit, "--max-body"},
		{"S41 content-length", all, "SEND\ncontent-length:11\n\n", Limit, "(limit 10, server flag --max-body)"},
		{"S66 unknown command", all, "PUBLISH\n\n\x00", Unknown, `unknown command "PUBLISH"`},
		{"S66 without end of line", all, strings.Repeat("A", 5000), Unknown, `unknown command "AAAAAAAAAAAA"`},
		{"S66 blank", all, " SEND\n\n\x00", Unknown, "write SEND"},
		{"S66 control bytes are quoted", all, "\x1b[2J\n", Unknown, `"\x1b[2J"`},
		{"S66 rest of a body", all, "SEND\n\na\x00b\x00", Unknown, "content-length"},
		{"I10 HTTP", all, "GET / HTTP/1.1\r\nHost: x\r\n\r\n", HTTP, "not HTTP"},
		{"I10 HTTP tunnel", all, "CONNECT a.example:61613 HTTP/1.1\r\n\r\n", HTTP, "not HTTP"},
		{"TLS hello", all, "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03abcdefghijklm", TLS, "does not speak TLS"},
		{"NUL ends the frame inside the headers", all, "SEND\ndestination:/a\x00", Syntax, "empty line"},
		{"NUL on a line of its own", all, "SEND\ndestination:/a\n\x00SEND\n\n\x00", Syntax, "empty line"},
		{"NUL in a header", all, "SEND\na:b\x00c\n\n\x00", Syntax, "empty line"},
		{"NUL in the command", all, "SEND\x00\n\n\x00", Unknown, "unknown command"},
	} {
		for _, v := range c.v {
			for name, src := range sources("\n" + c.in) {
				t.Run(c.rule+"/"+v.String()+name, func(t *testing.T) {
					r := NewReader(src, limits)
					r.SetVersion(v)
					_, err := readAll(r)
					e, ok := errors.AsType[*Error](err)
					if !ok || e.Kind != c.kind || !strings.Contains(e.Reason, c.reason) {
						t.Fatalf("%q: got %v, want kind %d and %q", c.in, err, c.kind, c.reason)
					}
					if _, again := r.Read(); !errors.Is(again, err) || !r.Buffered() {
						t.Errorf("the next Read gave %v", again)
					}
				})
			}
		}
	}
}

// S40: at the limit is within it.
func TestLimitsInclusive(t *testing.T) {
	in := "SEND\na:1\ncontent-length:10\n\n1234567890\x00SEND\na:1\nb:2\nc:3456789012\n\n1234567890\x00"
	for name, src := range sources(in) {
		r := NewReader(src, Limits{HeaderBytes: 28, Headers: 3, Body: 10})
		if got, err := readAll(r); err != nil || len(got) != 2 {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

// S40: one byte, one header less is exceeded.
func TestLimitsExact(t *testing.T) {
	in := "SEND\na:1\ncontent-length:10\n\n1234567890\x00"
	for limit, lim := range map[string]Limits{
		LimitHeaderBytes: {HeaderBytes: 27, Headers: 2, Body: 10},
		LimitHeaders:     {HeaderBytes: 28, Headers: 1, Body: 10},
		LimitBody:        {HeaderBytes: 28, Headers: 2, Body: 9},
	} {
		for name, src := range sources(in) {
			_, err := readAll(NewReader(src, lim))
			if e, ok := errors.AsType[*Error](err); !ok || e.Limit != limit {
				t.Errorf("%s, %s: %v", limit, name, err)
			}
		}
	}
}

// S122: an error knows the receipt the frame asked for.
func TestErrorNamesReceipt(t *testing.T) {
	for _, c := range []struct {
		v        Version
		in, want string
	}{
		{V12, "SEND\nreceipt:a\\cb\nx:\\t\n\n\x00", "a:b"},
		{V12, "SEND\nx:\\t\nreceipt:a\\cb\n\n\x00", "a:b"},
		{V12, "SEND\nreceipt:a\\cb\nx\n\n\x00", "a:b"},
		{V12, "SEND\nreceipt:r\ncontent-length:99999999999\n\n", "r"},
		{V12, "SEND\nreceipt:r\ncontent-length:1\n\nxx\x00", "r"},
		{V12, "SUBSCRIBE\nreceipt:r\n\nxx\x00", "r"},
		{V12, "SEND\nreceipt:\\t\n\n\x00", ""},
		{V12, "SEND\nx\nreceipt:r\n\n\x00", ""},
		{V12, "SEND\nreceipt:r\n\n\x00SEND\nx\n", ""}, // of another frame
		{V10, "SEND\nreceipt: a\\cb\nx\n\n\x00", "a\\cb"},
		{V12, "STOMP\nreceipt:a\\cb\nx\n\n\x00", "a\\cb"},
	} {
		for name, src := range sources(c.in) {
			r := NewReader(src, Limits{})
			r.SetVersion(c.v)
			_, err := readAll(r)
			e, ok := errors.AsType[*Error](err)
			if !ok || e.Receipt != c.want {
				t.Errorf("%s: %q: receipt %q, want %q (%v)", name, c.in, e.Receipt, c.want, err)
			}
			if want := ParseCommand([]byte(c.in[:strings.IndexByte(c.in, '\n')])); e.Command != want {
				t.Errorf("%q: command %v, want %v", c.in, e.Command, want)
			}
		}
	}
}

func TestEndOfStream(t *testing.T) {
	for in, want := range map[string]error{
		"": io.EOF, "\n\n": io.EOF, "SEND\n\n\x00\n": io.EOF,
		"SE": io.ErrUnexpectedEOF, "SEND\na:b": io.ErrUnexpectedEOF, "SEND\n\nbody": io.ErrUnexpectedEOF,
		"SEND\ncontent-length:9\n\nbody": io.ErrUnexpectedEOF, "\r": io.ErrUnexpectedEOF,
		"SEND\ncontent-length:99999\n\n" + strings.Repeat("x", 50000): io.ErrUnexpectedEOF,
	} {
		for name, src := range sources(in) {
			r := NewReader(src, Limits{})
			var err error
			for err == nil {
				_, err = r.Read()
			}
			if !errors.Is(err, want) {
				t.Errorf("%s: %.30q: got %v, want %v", name, in, err, want)
			}
			if _, again := r.Read(); !errors.Is(again, err) {
				t.Errorf("%s: %.30q: then %v", name, in, again)
			}
		}
	}
}

// S37: bodies of all sizes around what the buffers hold, both ways to end them,
// with frames before and behind.
func TestBodySizes(t *testing.T) {
	for _, size := range []int{0, 1, smallBuffer - 40, smallBuffer, largeBuffer - 100, largeBuffer, largeBuffer + 1, firstBody - 1, firstBody, firstBody + 1, 300_000, 1 << 20} {
		for _, counted := range []bool{true, false} {
			body := bytes.Repeat([]byte("0123456789abcdef"), size/16+1)[:size]
			head := "SEND\nid:2\n"
			if counted {
				head += fmt.Sprintf("content-length:%d\n", size)
				if size > 3 {
					body[size/2], body[size-1] = 0, 0
				}
			}
			in := "SEND\nid:1\n\nbefore\x00" + head + "\n" + string(body) + "\x00\nSEND\nid:3\n\nafter\x00"
			for name, src := range map[string]io.Reader{"whole": strings.NewReader(in), "pieces": &pieces{strings.NewReader(in), 1009}, "eof": iotest.DataErrReader(strings.NewReader(in))} {
				r := NewReader(src, Limits{})
				r.SetVersion(V12)
				for i, want := range []string{"before", string(body), "after"} {
					f, err := r.Read()
					if err != nil {
						t.Fatalf("%d %v %s: %v", size, counted, name, err)
					}
					if i == 1 {
						r.Buffered()
					}
					if id, _ := f.Get("id"); string(id) != fmt.Sprint(i+1) || string(f.Body) != want {
						t.Fatalf("%d %v %s: frame %d: id %s, body of %d bytes, want %d", size, counted, name, i, id, len(f.Body), len(want))
					}
				}
				if _, err := r.Read(); !errors.Is(err, io.EOF) {
					t.Errorf("%d: %v at the end", size, err)
				}
			}
		}
	}
}

func TestLongHeaders(t *testing.T) {
	value := strings.Repeat("v", 60<<10)
	in := "SEND\na:" + value + "\n\n" + value + "\x00SEND\na:" + value + "\ncontent-length:61440\n\n" + value + "\x00"
	for name, src := range map[string]io.Reader{"whole": strings.NewReader(in), "pieces": &pieces{strings.NewReader(in), 999}} {
		r := NewReader(src, Limits{})
		for range 2 {
			f, err := r.Read()
			if err != nil {
				t.Fatal(name, err)
			}
			if a, _ := f.Get("a"); string(a) != value || string(f.Body) != value {
				t.Errorf("%s: header of %d bytes, body of %d", name, len(a), len(f.Body))
			}
		}
	}
}

func TestClone(t *testing.T) {
	big := strings.Repeat("x", 100_000)
	r := NewReader(strings.NewReader("SEND\na:1\nb:2\n\nbody\x00SEND\na:3\n\n"+big+"\x00SEND\na:4\n\n\x00"), Limits{})
	var kept []*Frame
	for range 3 {
		f, err := r.Read()
		if err != nil {
			t.Fatal(err)
		}
		if want := len(f.Body) == len(big); f.OwnBody() != want {
			t.Errorf("OwnBody is %v for %d bytes", f.OwnBody(), len(f.Body))
		}
		kept = append(kept, f.Clone())
	}
	r.Read()
	got := []string{text(kept[0]), text(kept[1]), text(kept[2])}
	want := []string{`SEND "a"="1" "b"="2" "body"`, `SEND "a"="3" "` + big + `"`, `SEND "a"="4" ""`}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestVersionChangesBetweenFrames(t *testing.T) {
	r := NewReader(strings.NewReader("CONNECT\naccept-version:1.2\nx:\\n\n\n\x00SEND\nx:\\n\n\n\x00"), Limits{})
	f, err := r.Read()
	if err != nil {
		t.Fatal(err)
	}
	if x, _ := f.Get("x"); string(x) != `\n` {
		t.Errorf("CONNECT: %q", x)
	}
	r.SetVersion(V12)
	if !r.Buffered() {
		t.Error("the SEND is not seen")
	}
	if f, err = r.Read(); err != nil {
		t.Fatal(err)
	}
	if x, _ := f.Get("x"); string(x) != "\n" {
		t.Errorf("SEND: %q", x)
	}
	if r.Buffered() {
		t.Error("nothing is buffered")
	}
}
