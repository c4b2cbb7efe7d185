package stomp

import (
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/mvalve/mvalve/stomp/frame"
)

func TestVersions(t *testing.T) {
	b := startBroker(t, brokerConfig{})
	for _, tt := range []struct{ command, accept, want string }{
		{"CONNECT", "", "1.0"},                           // S45
		{"CONNECT", "accept-version:1.2,1.1,1.0", "1.2"}, // S46
		{"CONNECT", "accept-version:1.0,1.1,2.0", "1.1"}, // S46
		{"CONNECT", "accept-version:1.1", "1.1"},
		{"STOMP", "accept-version:1.0,1.2", "1.2"}, // S43
		{"STOMP", "accept-version:1.1", "1.1"},     // I7
	} {
		c := b.dial()
		head := tt.command + "\n"
		if tt.accept != "" {
			head += tt.accept + "\n"
		}
		c.write(head + "receipt:no\n\n\x00") // S49: no host; S54: no RECEIPT
		f := c.expect(frame.Connected)
		if got := header(f, "version"); got != tt.want { // S47
			t.Errorf("%s %s: version %q, want %q", tt.command, tt.accept, got, tt.want)
		}
		if header(f, "session") == "" { // S44, S51
			t.Errorf("no session in %s", show(f))
		}
		if header(f, "server") != "mvalve" { // S52, I6
			t.Errorf("server %q", header(f, "server"))
		}
		c.nothingElse() // S54
	}
}

func TestSessionsDiffer(t *testing.T) { // S51
	b := startBroker(t, brokerConfig{})
	session := func() string {
		c := b.dial()
		c.write("CONNECT\n\n\x00")
		return header(c.expect(frame.Connected), "session")
	}
	if a, z := session(), session(); a == z {
		t.Errorf("both are %q", a)
	}
}

func TestConnectRefused(t *testing.T) {
	b := startBroker(t, brokerConfig{})
	t.Run("no common version", func(t *testing.T) { // S48
		c := b.dial()
		c.write("CONNECT\naccept-version:2.0,3\n\n\x00")
		f := c.fails("unsupported version")
		if header(f, "version") != "1.0,1.1,1.2" || len(f.Body) == 0 {
			t.Errorf("got %s", show(f))
		}
	})
	t.Run("first frame is not CONNECT", func(t *testing.T) { // S42
		c := b.dial()
		c.write("SEND\ndestination:/queue/a\nreceipt:7\n\n\x00")
		if f := c.fails("must be CONNECT"); header(f, "receipt-id") != "7" {
			t.Errorf("got %s", show(f))
		}
	})
	t.Run("second CONNECT", func(t *testing.T) { // S53
		c := b.connect(frame.V12)
		c.write("CONNECT\naccept-version:1.2\n\n\x00")
		c.fails("already connected")
	})
	t.Run("unknown command", func(t *testing.T) { // S66
		c := b.connect(frame.V11)
		c.write("JUMP\n\n\x00")
		c.fails("unknown command")
	})
	t.Run("command of servers", func(t *testing.T) { // S66
		for _, command := range []string{"MESSAGE", "RECEIPT", "ERROR", "CONNECTED"} {
			c := b.connect(frame.V12)
			c.write(command + "\n\n\x00")
			c.fails("unknown command")
		}
	})
	t.Run("lower case", func(t *testing.T) { // S8
		c := b.connect(frame.V12)
		c.write("send\ndestination:/queue/a\n\n\x00")
		c.fails("unknown command")
	})
}

func TestConnectBudget(t *testing.T) { // S55
	t.Run("nothing comes", func(t *testing.T) {
		b := startBroker(t, brokerConfig{config: Config{ConnectTimeout: 50 * time.Millisecond}})
		b.dial().closed()
	})
	b := startBroker(t, brokerConfig{config: Config{MaxConnections: 3}})
	t.Run("too many headers", func(t *testing.T) {
		c := b.dial()
		c.write("CONNECT\n" + strings.Repeat("a:b\n", 40) + "\n\x00")
		c.fails("limit")
		c.nc.Close()
	})
	t.Run("long header", func(t *testing.T) {
		c := b.dial()
		c.write("CONNECT\na:" + strings.Repeat("b", 9<<10))
		c.fails("limit")
		c.nc.Close()
	})
	t.Run("connections", func(t *testing.T) {
		eventually(t, "all gone", func() bool { return b.srv.Stats().Connections == 0 })
		for range 3 {
			b.connect(frame.V12)
		}
		tries := b.turnedAway("too many connections")
		if n := b.srv.Stats().Refused; n != int64(tries) {
			t.Errorf("%d of %d refused", n, tries)
		}
	})
}

func TestUnauthenticatedLimit(t *testing.T) { // S55
	b := startBroker(t, brokerConfig{config: Config{MaxUnauthenticated: 2, ConnectTimeout: time.Hour}})
	b.dial()
	b.dial()
	eventually(t, "both wait", func() bool { return b.srv.Stats().Unauthenticated == 2 })
	b.turnedAway("wait for CONNECT")
}

// turnedAway dials until it is told why it is not served, and returns how often: a
// server that comes to its one write late only closes.
func (b *broker) turnedAway(why string) int {
	b.t.Helper()
	for tries := 1; ; tries++ {
		c := b.dial()
		f, err := c.read()
		switch {
		case err == nil && f.Command == frame.ErrorCommand && strings.Contains(string(f.Body), why):
			c.closed()
			return tries
		case !errors.Is(err, io.EOF) || tries == 10:
			b.t.Fatalf("got %s, %v after %d tries; want an ERROR with %q", show(f), err, tries, why)
		}
	}
}

func TestHTTP(t *testing.T) { // I10
	b := startBroker(t, brokerConfig{})
	c := b.dial()
	c.write("GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	_ = c.nc.SetReadDeadline(time.Now().Add(patience))
	answer, err := io.ReadAll(c.nc)
	if err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 400 ") || !strings.Contains(string(answer), "STOMP") {
		t.Errorf("got %q, %v", answer, err)
	}
}

// users is an Authenticator of fixed users.
type users map[string]struct {
	passcode string
	access   Access
}

func (u users) Authenticate(login, passcode string) (Access, bool) {
	user, ok := u[login]
	return user.access, ok && user.passcode == passcode
}

func TestLogin(t *testing.T) { // S50
	b := startBroker(t, brokerConfig{auth: users{
		"u": {`a:b\`, Full}, "reader": {"x", Read}, "writer": {"x", Write},
	}})
	login := func(login, passcode string) *client {
		c := b.dial()
		c.write("CONNECT\naccept-version:1.2\nlogin:" + login + "\npasscode:" + passcode + "\n\nSEND\ndestination:/queue/a\n\nx\x00")
		c.v = frame.V12
		return c
	}
	connect := func(name string) *client {
		c := b.dial()
		c.write("CONNECT\naccept-version:1.2\nlogin:" + name + "\npasscode:x\n\n\x00")
		c.expect(frame.Connected)
		c.r.SetVersion(frame.V12)
		return c
	}
	for _, passcode := range []string{`a:b\`, `a\cb\\`} { // S25, I1
		c := b.dial()
		c.write("CONNECT\naccept-version:1.2\nlogin:u\npasscode:" + passcode + "\n\n\x00")
		c.expect(frame.Connected)
	}
	for _, c := range []*client{login("u", "wrong"), login("nobody", `a:b\`), login("", ""), login("u", "")} {
		c.fails("access refused")
	}
	if n := b.srv.Stats().AuthFailed; n != 4 {
		t.Errorf("%d failures counted", n)
	}
	c := connect("reader")
	c.frame("SEND", []string{"destination:/queue/a"}, "x")
	c.fails("may not send")
	c = connect("writer")
	c.send("/queue/a", "x")
	c.frame("SEND", []string{"destination:/control/count-msgs/queue/a", "receipt:1"}, "")
	c.fails("may not")
	if n := header(connect("reader").do("SEND", "destination:/control/count-msgs/queue/a"), "num-messages"); n != "1" {
		t.Errorf("the reader counts %q messages", n)
	}
	c = connect("writer")
	c.frame("SUBSCRIBE", []string{"destination:/queue/a", "id:1"}, "")
	c.fails("may not subscribe")
}

// far is a connection from another machine.
type far struct{ net.Conn }

func (far) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 1} }

func TestOnlyLocalWithoutUsers(t *testing.T) {
	b := startBroker(t, brokerConfig{})
	for _, remote := range []bool{false, true} {
		ours, theirs := net.Pipe()
		if remote {
			theirs = far{theirs}
		}
		go b.srv.ServeConn(theirs)
		c := &client{t: t, nc: ours, r: frame.NewReader(ours, frame.Limits{})}
		c.write("CONNECT\n\n\x00")
		if remote {
			c.expect(frame.ErrorCommand)
		} else {
			c.expect(frame.Connected)
		}
		ours.Close()
	}
}

func TestRapidConnections(t *testing.T) { // S111, S112
	b := startBroker(t, brokerConfig{})
	const n = 300
	for range n {
		c := b.dial()
		c.write("CONNECT\n\n\x00SEND\ndestination:/queue/rapid\n\nx\x00")
		c.nc.(*net.TCPConn).CloseWrite()
		c.expect(frame.Connected)
		c.nc.Close()
	}
	eventually(t, "all stored", func() bool {
		n2, err := b.srv.countMessages("rapid")
		return err == nil && n2 == n
	})
	eventually(t, "no connection left", func() bool { return b.srv.Stats().Connections == 0 })
}

func TestHeartBeatNegotiation(t *testing.T) {
	b := startBroker(t, brokerConfig{config: Config{HeartBeat: 20 * time.Second}})
	for _, tt := range []struct{ version, sent, want string }{
		{"1.2", "heart-beat:1000,1000", "20000,20000"},
		{"1.1", "heart-beat:0,1000", "20000,0"}, // I2
		{"1.2", "heart-beat:1000,0", "0,20000"},
		{"1.2", "x:y", "0,0"},                            // S56
		{"1.0", "heart-beat:1000,1000", ""},              // S65
		{"1.0", "heart-beat:rubbish", ""},                // S65
		{"1.2", "heart-beat:60000,30000", "30000,60000"}, // go-stomp waits for RECEIPTs as long as the second
		{"1.2", "heart-beat:2147483647,0", "0,2147483647"},
	} {
		c := b.dial()
		c.write("CONNECT\naccept-version:" + tt.version + "\n" + tt.sent + "\n\n\x00")
		if got := header(c.expect(frame.Connected), "heart-beat"); got != tt.want {
			t.Errorf("%s %s: %q, want %q", tt.version, tt.sent, got, tt.want)
		}
	}
	for _, bad := range []string{"1000:1000", "x,y", "-1,0", "1000", "", "1,2,3", "99999999999,0", "+1,0", "1.5,0"} { // S57
		c := b.dial()
		c.write("CONNECT\naccept-version:1.2\nheart-beat:" + bad + "\n\n\x00")
		c.fails("bad heart-beat")
	}
}

func TestHeartBeatsOfServer(t *testing.T) { // S59, S60, S64
	const interval = 50 * time.Millisecond
	virtually(t, brokerConfig{config: Config{HeartBeat: 10 * time.Millisecond}}, func(t *testing.T, b *broker) {
		c := b.dial()
		c.write("CONNECT\naccept-version:1.1\nheart-beat:0,50\n\n\x00")
		c.expect(frame.Connected)
		last := time.Now()
		_ = c.nc.SetReadDeadline(last.Add(patience))
		for range 100 {
			got := make([]byte, 2) // it comes alone
			n, err := c.nc.Read(got)
			if err != nil || string(got[:n]) != "\n" {
				t.Fatalf("got %q, %v", got[:n], err)
			}
			now := time.Now()
			if gap := now.Sub(last); gap > interval*4/5 || gap < interval*2/5 {
				t.Errorf("%v between two heart-beats of %v", gap, interval)
			}
			last = now
		}
		c.do("DISCONNECT") // it is still there: it promised nothing (S58)
	})
}

func TestHeartBeatsOfClient(t *testing.T) { // S58, S61, S62, S63
	const interval = 60 * time.Millisecond
	virtually(t, brokerConfig{config: Config{HeartBeat: interval}}, func(t *testing.T, b *broker) {
		for phase := time.Duration(0); phase < interval; phase += time.Millisecond {
			c := b.connect(frame.V12, "heart-beat:60,0")
			pass(phase)
			// Parts of one frame keep it alive (S61), and so do pauses of 1.5 intervals (S63).
			for _, part := range []string{"SE", "ND\ndestination:/queue/a\n", "\n", "\x00", "\n"} {
				c.write(part)
				pass(interval * 3 / 2)
			}
			start := time.Now()
			c.write("\n")
			c.fails("heart-beat missing")
			if took := time.Since(start); took < 2*interval || took > 3*interval {
				t.Errorf("closed after %v", took)
			}
		}
		if n := b.srv.Stats().HeartBeatTimeouts; n != interval.Milliseconds() {
			t.Errorf("%d time-outs", n)
		}
	})
}
