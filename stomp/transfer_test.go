package stomp

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/mvalve/mvalve/stomp/frame"
)

func TestBodies(t *testing.T) { // S30, S32, S35, S37
	b := startBroker(t, brokerConfig{})
	c := b.connect(frame.V12)
	c.subscribe("s", "/queue/a", "auto")
	for _, body := range []string{"", "0", " ", "\r\n", "\x00", "a\x00b\xff", "\n\n", strings.Repeat("x\x00", 100_000), strings.Repeat("y", 3<<20)} {
		c.frame("SEND", []string{"destination:/queue/a"}, body)
		m := c.message(body)
		if length := header(m, "content-length"); body == "" && length != "" || body != "" && length != fmt.Sprint(len(body)) {
			t.Errorf("content-length %q for %d bytes", length, len(body))
		}
	}
	c.write("SEND\ndestination:/queue/a\n\nwithout length\r\n\x00") // S32
	c.message("without length\r\n")
}

func TestOneByteAtATime(t *testing.T) { // S1, S5, S6
	b := startBroker(t, brokerConfig{})
	c := b.dial()
	wire := "\n\r\nCONNECT\naccept-version:1.2\n\n\x00\n\nSEND\r\ndestination:/queue/a\r\nreceipt:1\r\ncontent-length:3\r\n\r\na\x00b\x00\n\nDISCONNECT\nreceipt:2\n\n\x00"
	for i := range len(wire) {
		c.write(wire[i : i+1])
	}
	c.expect(frame.Connected)
	for _, id := range []string{"1", "2"} {
		if f := c.expect(frame.Receipt); header(f, "receipt-id") != id || len(f.Body) > 0 { // S28, S114
			t.Errorf("got %s", show(f))
		}
	}
	c.closed()
	c = b.dial() // the same in one segment
	c.write(wire)
	c.expect(frame.Connected)
	c.expect(frame.Receipt)
	c.expect(frame.Receipt)
	c.closed()
}

func TestMalformedFrames(t *testing.T) {
	b := startBroker(t, brokerConfig{config: Config{Frame: frame.Limits{HeaderBytes: 4 << 10, Headers: 20, Body: 1 << 10}}})
	for name, wire := range map[string]string{
		"S11 no colon":           "SEND\ndestination\n\n\x00",
		"S12 empty name":         "SEND\n:x\n\n\x00",
		"S10 invalid UTF-8":      "SEND\ndestination:/queue/\xff\n\n\x00",
		"S22 undefined escape":   "SEND\ndestination:/queue/a\\t\n\n\x00",
		"S23 lone backslash":     "SEND\ndestination:/queue/a\\\n\n\x00",
		"S29 body on SUBSCRIBE":  "SUBSCRIBE\nid:1\ndestination:/queue/a\ncontent-length:1\n\nx\x00",
		"S31 no NUL after body":  "SEND\ndestination:/queue/a\ncontent-length:1\n\nxyz\x00",
		"S34 negative length":    "SEND\ndestination:/queue/a\ncontent-length:-1\n\nx\x00",
		"S34 signed length":      "SEND\ndestination:/queue/a\ncontent-length:+1\n\nx\x00",
		"S34 overflowing length": "SEND\ndestination:/queue/a\ncontent-length:99999999999999999999\n\nx\x00",
		"S40 many headers":       "SEND\n" + strings.Repeat("a:b\n", 30) + "\n\x00",
		"S40 long header":        "SEND\na:" + strings.Repeat("b", 5<<10) + "\n\n\x00",
		"S41 announced body":     "SEND\ndestination:/queue/a\ncontent-length:2000\n\n",
		"S40 body":               "SEND\ndestination:/queue/a\n\n" + strings.Repeat("b", 2000),
	} {
		t.Run(name, func(t *testing.T) {
			c := b.connect(frame.V12)
			c.t = t
			c.write("SEND\ndestination:/queue/good\nreceipt:good\n\nx\x00" + wire)
			c.expect(frame.Receipt) // what came before counts (S112, S116)
			f := c.fails("malformed frame")
			if header(f, "content-type") != "text/plain" || len(f.Body) == 0 || header(f, "content-length") == "" { // S36, S121
				t.Errorf("got %s", show(f))
			}
		})
	}
	c := b.connect(frame.V12)
	c.write("SEND\nreceipt:r\\c1\ndestination:/queue/a\\x\n\n\x00")
	if f := c.fails("escape"); header(f, "receipt-id") != "r:1" { // S122
		t.Errorf("got %s", show(f))
	}
}

func TestHeadersTravel(t *testing.T) { // S9, S13, S15, S16, S19, S21, S24, S36, S69, S70
	b := startBroker(t, brokerConfig{})
	c := b.connect(frame.V12)
	c.subscribe("a:1", `/queue/gr\cün/weiß`, "client") // S27: sent as written, compared decoded
	c.frame("SEND", []string{
		`destination:/queue/gr\cün/weiß`, "content-type:application/x;y=\"z\"", `x\cy:a\nb\rc\\d\ce`, "empty:",
		" padded : v ", "raw:a:b", "x\\cy:second", "priority:7", "persistent:false", "correlation-id:c1",
	}, "body")
	_ = c.nc.SetReadDeadline(time.Now().Add(patience))
	m := c.expect(frame.Message)
	want := map[string]string{
		"destination": "/queue/gr:ün/weiß", "subscription": "a:1", "content-type": `application/x;y="z"`,
		"x:y": "a\nb\rc\\d:e", "empty": "", " padded ": " v ", "raw": "a:b", "priority": "7", "persistent": "false", "correlation-id": "c1",
	}
	for name, value := range want {
		if got, ok := m.Get(name); !ok || string(got) != value {
			t.Errorf("%q is %q, want %q", name, got, value)
		}
	}
	repeated := 0
	for _, h := range m.Header {
		if string(h.Name) == "x:y" {
			repeated++
		}
	}
	if repeated != 2 { // S38: preserved, the first one is the value
		t.Errorf("%d of two repeated headers", repeated)
	}
	for _, name := range []string{"receipt", "transaction"} { // S71
		if _, ok := m.Get(name); ok {
			t.Errorf("%s was forwarded", name)
		}
	}
}

func TestNothingIsInvented(t *testing.T) { // S36
	b := startBroker(t, brokerConfig{})
	c := b.connect(frame.V12)
	c.subscribe("s", "/queue/a", "auto")
	c.frame("SEND", []string{"destination:/queue/a"}, "x")
	if m := c.message("x"); header(m, "content-type") != "" {
		t.Errorf("got %s", show(m))
	}
}

func TestNoSpoofing(t *testing.T) { // S71
	b := startBroker(t, brokerConfig{})
	c := b.connect(frame.V12)
	c.subscribe("s", "/queue/a", "client")
	c.frame("SEND", []string{"destination:/queue/a", "message-id:mine", "subscription:other", "ack:mine", "redelivered:true", "x-delivery-count:9", "transaction-id:kept"}, "x")
	m := c.message("x")
	for _, name := range []string{"message-id", "subscription", "ack", "redelivered", "x-delivery-count"} {
		n := 0
		for _, h := range m.Header {
			if string(h.Name) == name {
				n++
			}
		}
		if n != 1 {
			t.Errorf("%d of %s in %s", n, name, show(m))
		}
	}
	if header(m, "message-id") == "mine" || header(m, "subscription") != "s" || header(m, "redelivered") != "false" || header(m, "x-delivery-count") != "1" || header(m, "transaction-id") != "kept" {
		t.Errorf("got %s", show(m))
	}
}

func TestOldVersionsStayFramed(t *testing.T) { // S18, S26
	b := startBroker(t, brokerConfig{})
	old := b.connect(frame.V10)
	old.subscribe("s", "/queue/a", "auto")
	c := b.connect(frame.V12)
	c.send("/queue/a", "x", `evil:a\ninjected\cyes\n\nbody`, `plain:a\\nb`)
	m := old.message("x")
	if _, ok := m.Get("injected"); ok {
		t.Errorf("a header was injected: %s", show(m))
	}
	old.frame("SEND", []string{"destination:/queue/a", `raw:a\nb`, "lead:  x"}, "y")
	if m := old.message("y"); header(m, "raw") != `a\nb` || header(m, "lead") != "x" { // S17, S18
		t.Errorf("got %s", show(m))
	}
	v11 := b.connect(frame.V11)
	v11.subscribe("s", "/queue/b", "auto")
	c.send("/queue/b", "z", `cr:a\rb`)
	if m := v11.message("z"); strings.Contains(header(m, "cr"), "\r") {
		t.Errorf("CR in 1.1: %q", header(m, "cr"))
	}
}

func TestSendRefused(t *testing.T) {
	b := startBroker(t, brokerConfig{})
	for _, v := range []frame.Version{frame.V10, frame.V11, frame.V12} {
		for what, headers := range map[string][]string{
			"no destination":      {"x:y"}, // S67
			"unknown destination": {"destination:/feed/a"},
			"/queue/NAME":         {"destination:nowhere"}, // lists what exists
			"pattern":             {"destination:/queue/a*"},
			"bad priority":        {"destination:/queue/a", "priority:high"},
			"bad expires":         {"destination:/queue/a", "expires:soon"},
			"bad x-delay":         {"destination:/queue/a", "x-delay:-1"},
			"not repeated":        {"destination:/queue/a", "AMQ_SCHEDULED_CRON:* * * * *"},
			"255":                 {"destination:/queue/" + strings.Repeat("n", 256)},
			"X-Mvalve-Duration":   {"destination:/queue/a", "X-Mvalve-Duration:long"},
			"control command":     {"destination:/control/stop"},
		} {
			c := b.connect(v)
			c.frame("SEND", append(headers, "receipt:77"), "x")
			if f := c.fails(what); header(f, "receipt-id") != "77" { // S68, S115, S122
				t.Errorf("%s: got %s", what, show(f))
			}
		}
	}
}

func TestBadMessageAmongGood(t *testing.T) { // S115: each SEND has its own answer
	b := startBroker(t, brokerConfig{})
	c := b.connect(frame.V12)
	c.write("SEND\ndestination:/queue/a\nreceipt:1\n\nx\x00SEND\ndestination:/queue/a\nX-Mvalve-Duration:bad\nreceipt:2\n\ny\x00SEND\ndestination:/queue/a\nreceipt:3\n\nz\x00")
	if f := c.expect(frame.Receipt); header(f, "receipt-id") != "1" {
		t.Errorf("got %s", show(f))
	}
	if f := c.fails("X-Mvalve-Duration"); header(f, "receipt-id") != "2" {
		t.Errorf("got %s", show(f))
	}
}

func TestPriority(t *testing.T) {
	b := startBroker(t, brokerConfig{})
	c := b.connect(frame.V12)
	for _, p := range []string{"0", "9", "4", "", "7", "12"} {
		if p == "" {
			c.send("/queue/p", "none")
			continue
		}
		c.send("/queue/p", p, "priority:"+p)
	}
	c.send("/queue/p", "emergency", "X-Mvalve-Emergency:1", "priority:0")
	c.subscribe("s", "/queue/p", "client-individual", "prefetch-count:1")
	for _, want := range []string{"emergency", "9", "12", "7", "4", "none", "0"} {
		m := c.message(want)
		c.frame("ACK", []string{"id:" + header(m, "ack")}, "")
	}
}

func TestDelays(t *testing.T) {
	b := startBroker(t, brokerConfig{})
	c := b.connect(frame.V12)
	c.subscribe("s", "/queue/d", "auto")
	for _, h := range []string{"AMQ_SCHEDULED_DELAY:300", "x-delay:300", "deliver-after:0.3", "AMQ_SCHEDULED_TIME:", "X-Mvalve-Duration:0.3"} {
		start := time.Now()
		if strings.HasSuffix(h, ":") {
			h += fmt.Sprint(start.Add(300 * time.Millisecond).UnixMilli())
		}
		c.send("/queue/d", h, h)
		m := c.message(h)
		if took := time.Since(start); took < 290*time.Millisecond {
			t.Errorf("%s: came after %v", h, took)
		}
		name, value, _ := strings.Cut(h, ":")
		if header(m, name) != value {
			t.Errorf("%s did not travel: %s", h, show(m))
		}
	}
}

func TestExpiry(t *testing.T) {
	b := startBroker(t, brokerConfig{})
	c := b.connect(frame.V12)
	c.send("/queue/e", "past", fmt.Sprintf("expires:%d", time.Now().Add(-time.Hour).UnixMilli()))
	c.send("/queue/e", "soon", "expiration:1")
	c.send("/queue/e", "never", "expires:0")
	c.send("/queue/e", "later", fmt.Sprintf("expires:%d", time.Now().Add(time.Hour).UnixMilli()))
	<-time.After(20 * time.Millisecond)
	c.subscribe("s", "/queue/e", "auto")
	c.send("/queue/e", "last")
	c.message("never")
	c.message("later")
	c.message("last")
}

func TestPipe(t *testing.T) {
	b := startBroker(t, brokerConfig{})
	c := b.connect(frame.V12)
	c.subscribe("all", "/pipe", "auto")
	c.subscribe("some", "/queue/app.*", "auto")
	c.frame("SEND", []string{"destination:/pipe", "X-Mvalve-Destination:elsewhere"}, "x")
	m := c.message("x")
	if header(m, "destination") != "/queue/elsewhere" || header(m, "subscription") != "all" || header(m, "X-Mvalve-Destination") != "elsewhere" {
		t.Errorf("got %s", show(m))
	}
	c.frame("SEND", []string{"destination:/queue/a", "x-mvalve-destination:b"}, "y")
	if m := c.message("y"); header(m, "destination") != "/queue/b" {
		t.Errorf("got %s", show(m))
	}
	c.do("UNSUBSCRIBE", "id:all")
	c.frame("SEND", []string{"destination:/queue/app.one"}, "z")
	if m := c.message("z"); header(m, "destination") != "/queue/app.one" || header(m, "subscription") != "some" {
		t.Errorf("got %s", show(m))
	}
	c.send("/queue/other", "nobody")
	c.send("/queue/app.two", "last")
	c.message("last")
	c = b.connect(frame.V12)
	c.frame("SEND", []string{"destination:/pipe"}, "x")
	c.fails("X-Mvalve-Destination")
}

func TestNamesAreOpaque(t *testing.T) { // no name means anything to a store or a pattern
	b := startBroker(t, brokerConfig{})
	c := b.connect(frame.V12)
	names := []string{"x' OR '1'='1", "a*b", "a?b", `a\\b`, "../../etc/passwd", "a/b/c", "%s", "\"; DROP TABLE q_incoming; --", "Ünï", " lead", "A", "a"}
	for i, name := range names {
		c.subscribe(fmt.Sprint(i), "/queue/"+name, "auto")
	}
	c.send("/queue/axb", "for nobody")
	for i, name := range names {
		c.frame("SEND", []string{"destination:/queue/" + name}, name)
		if m := c.message(name); header(m, "subscription") != fmt.Sprint(i) {
			t.Errorf("%s went to %s", name, show(m))
		}
	}
	if n, err := b.srv.countMessages("axb"); err != nil || n != 1 {
		t.Errorf("%d messages that nobody asked for are left, %v", n, err)
	}
}
