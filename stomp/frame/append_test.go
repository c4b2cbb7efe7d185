package frame

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func fields(pairs ...string) []Field {
	var out []Field
	for i := 0; i < len(pairs); i += 2 {
		out = append(out, Field{Name: []byte(pairs[i]), Value: []byte(pairs[i+1])})
	}
	return out
}

func TestAppend(t *testing.T) {
	for _, c := range []struct {
		rule string
		v    versions
		f    Frame
		want string
	}{
		{"S7 no headers", all, Frame{Command: Disconnect}, "DISCONNECT\n\n\x00"},
		{"S9 UTF-8 unchanged", all, Frame{Command: Message, Header: fields("é", "☃𝄞")}, "MESSAGE\né:☃𝄞\n\n\x00"},
		{"S9 other bytes replaced", all, Frame{Command: Message, Header: fields("\xffa", "\xe2\x98 é\xf0\x9d")}, "MESSAGE\n?a:?? é??\n\n\x00"},
		{"S16 no blank after the colon", all, Frame{Command: Message, Header: fields("a", "b")}, "MESSAGE\na:b\n\n\x00"},
		{"S18 1.0 has no escapes", old, Frame{Command: Message, Header: fields(`a\n`, `b\c:`)}, "MESSAGE\na\\n:b\\c:\n\n\x00"},
		{"S24 reverse mapping", escape, Frame{Command: Message, Header: fields("a:\n\\", "b:\n\\")}, "MESSAGE\na\\c\\n\\\\:b\\c\\n\\\\\n\n\x00"},
		{"S24 on RECEIPT and ERROR", escape, Frame{Command: Receipt, Header: fields("receipt-id", "a:b")}, "RECEIPT\nreceipt-id:a\\cb\n\n\x00"},
		{"S24 CR in 1.2", versions{V12}, Frame{Command: ErrorCommand, Header: fields("a\r", "\r\n")}, "ERROR\na\\r:\\r\\n\n\n\x00"},
		{"S25 CONNECTED is not escaped", versions{0, V10, V11, V12}, Frame{Command: Connected, Header: fields("session", `a:\b`)}, "CONNECTED\nsession:a:\\b\n\n\x00"},
		{"S25 CONNECT neither", versions{0, V10, V11, V12}, Frame{Command: Connect, Header: fields("passcode", `a:\b`)}, "CONNECT\npasscode:a:\\b\n\n\x00"},
		{"S25 yet stays in its lines", versions{0, V12}, Frame{Command: Connected, Header: fields("a\nb:", "x\r\ny:z\x00")}, "CONNECTED\na?b?:x??y:z?\n\n\x00"},
		{"S26 LF, CR, NUL in 1.0", old, Frame{Command: Message, Header: fields("a\nb:\r", "x\n\ny\r\x00")}, "MESSAGE\na?b??:x??y??\n\n\x00"},
		{"S26 CR, NUL in 1.1", versions{V11}, Frame{Command: Message, Header: fields("a\r\x00", "x\r\n\x00")}, "MESSAGE\na??:x?\\n?\n\n\x00"},
		{"S26 NUL in 1.2", versions{V12}, Frame{Command: Message, Header: fields("a\x00", "\x00")}, "MESSAGE\na?:?\n\n\x00"},
		{"S26 a name cannot pass for another in 1.0", old, Frame{Command: Message, Header: fields("ack:1\nx", "y")}, "MESSAGE\nack?1?x:y\n\n\x00"},
		{"S12 no name, no header", all, Frame{Command: Message, Header: fields("", "x", "a", "")}, "MESSAGE\na:\n\n\x00"},
		{"S28 no body but in SEND, MESSAGE, ERROR", all, Frame{Command: Receipt, Header: fields("content-length", "1"), Body: []byte("x")}, "RECEIPT\n\n\x00"},
		{"S28 nor in CONNECTED", all, Frame{Command: Connected, Body: []byte("x")}, "CONNECTED\n\n\x00"},
		{"S35 content-length", all, Frame{Command: Message, Header: fields("a", "b"), Body: []byte("x\x00y")}, "MESSAGE\na:b\ncontent-length:3\n\nx\x00y\x00"},
		{"S35 its own, not another's", all, Frame{Command: Send, Header: fields("content-length", "99", "a", "b"), Body: []byte("0")}, "SEND\na:b\ncontent-length:1\n\n0\x00"},
		{"S37 empty body", all, Frame{Command: Message, Header: fields("content-length", "0")}, "MESSAGE\n\n\x00"},
		{"S38 order and duplicates", all, Frame{Command: Message, Header: fields("b", "1", "a", "2", "b", "3")}, "MESSAGE\nb:1\na:2\nb:3\n\n\x00"},
	} {
		for _, v := range c.v {
			if diff := cmp.Diff("before"+c.want, string(Append([]byte("before"), v, &c.f))); diff != "" {
				t.Errorf("%s: version %q:\n%s", c.rule, v, diff)
			}
		}
	}
}

// What is built by hand is what Append makes.
func TestAppendByHand(t *testing.T) {
	f := &Frame{Command: Message, Header: fields("destination", "/queue/a:b", "n", "-17", "x", "y\\z"), Body: []byte("body")}
	for _, v := range []Version{V10, V11, V12} {
		b := AppendCommand(nil, Message)
		b = AppendHeader(b, v, "destination", "/queue/a:b")
		b = AppendHeaderInt(b, "n", -17)
		b = AppendHeaderBytes(b, v, []byte("x"), []byte("y\\z"))
		b = AppendHeader(b, v, "", "nothing")
		b = AppendHeader(b, v, "content-length", "1")
		b = AppendHeaderBytes(b, v, []byte("content-length"), []byte("99"))
		b = AppendBody(b, []byte("body"))
		if diff := cmp.Diff(string(Append(nil, v, f)), string(b)); diff != "" {
			t.Errorf("%v: %s", v, diff)
		}
	}
}

// S24: values of every length and with the odd byte at every place.
func TestAppendHeaderEverywhere(t *testing.T) {
	want := map[Version]func(string) string{
		0:   strings.NewReplacer("\n", "?", "\r", "?", "\x00", "?", "\xff", "?").Replace,
		V10: strings.NewReplacer("\n", "?", "\r", "?", "\x00", "?", "\xff", "?").Replace,
		V11: strings.NewReplacer("\n", `\n`, ":", `\c`, `\`, `\\`, "\r", "?", "\x00", "?", "\xff", "?").Replace,
		V12: strings.NewReplacer("\n", `\n`, ":", `\c`, `\`, `\\`, "\r", `\r`, "\x00", "?", "\xff", "?").Replace,
	}
	for n := range 40 {
		plain := strings.Repeat("az\x7f \x01\t[]9;", 5)[:n]
		for at := range n + 1 {
			for _, odd := range []string{"", "\n", "\r", "\x00", ":", `\`, "\xff", "é", "\U0010ffff", "\n\n:"} {
				value := plain[:at] + odd + plain[at:]
				for v, escaped := range want {
					line := "n:" + escaped(value) + "\n"
					if got := string(AppendHeader(nil, v, "n", value)); got != line {
						t.Fatalf("%v: %q: got %q, want %q", v, value, got, line)
					}
					if got := string(AppendHeaderBytes(nil, v, []byte("n"), []byte(value))); got != line {
						t.Fatalf("%v: %q: got %q, want %q", v, value, got, line)
					}
				}
			}
		}
	}
}

func TestNames(t *testing.T) {
	for c := Connect; c <= ErrorCommand; c++ {
		if got := ParseCommand([]byte(c.String())); got != c {
			t.Errorf("%v parses to %v", c, got)
		}
		if want := c < Connected; c.FromClient() != want {
			t.Errorf("%v: from a client is %v", c, !want)
		}
	}
	if Invalid.String() != "" || Command(99).String() != "" || ParseCommand(nil) != Invalid || Invalid.FromClient() {
		t.Error("Invalid is a command")
	}
	if got := Version(0).String() + V10.String() + V11.String() + V12.String(); got != "1.01.11.2" {
		t.Error(got)
	}
}
