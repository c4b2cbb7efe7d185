package stomp

import (
	"bytes"
	"math"
	"strconv"
	"time"

	"github.com/mvalve/mvalve/stomp/frame"
)

// versions is what an ERROR offers when there is no common version (S48).
const versions = "1.0,1.1,1.2"

func itoa(n int) string { return strconv.Itoa(n) }

// handshake reads CONNECT or STOMP and answers it.
func (c *conn) handshake() error {
	cfg := &c.srv.cfg
	_ = c.nc.SetReadDeadline(time.Now().Add(cfg.ConnectTimeout))
	f, err := c.r.Read()
	if err != nil {
		return err
	}
	if f.Command != frame.Connect && f.Command != frame.Stomp {
		return about(refuse("not connected", "the first frame must be CONNECT or STOMP"), f) // S42
	}
	accept, _ := f.Get("accept-version")
	version := bestVersion(accept)
	if version == 0 {
		e := refuse("unsupported version", "this server speaks STOMP %s; accept-version names none of them", versions)
		e.versions = true // S48
		return e
	}
	sends, wants, err := heartBeat(f)
	if err != nil && version > frame.V10 {
		return err
	}
	login, _ := f.Get("login")
	passcode, _ := f.Get("passcode")
	if err := c.authenticate(string(login), string(passcode)); err != nil {
		return err
	}
	c.authenticated()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ending != nil {
		return c.ending
	}
	c.version = version
	c.room()
	c.buf = appendConnected(c.buf, c, sends, wants)
	c.r.SetVersion(version)
	c.r.SetLimits(cfg.Frame)
	_ = c.nc.SetReadDeadline(time.Time{})
	if version > frame.V10 { // S65
		c.startBeats(sends, wants)
	}
	c.kick()
	return nil
}

// appendConnected appends CONNECTED, whose headers are not escaped (S25).
func appendConnected(dst []byte, c *conn, sends, wants int64) []byte {
	dst = frame.AppendCommand(dst, frame.Connected)
	dst = frame.AppendHeader(dst, 0, "version", c.version.String()) // S47
	dst = frame.AppendHeader(dst, 0, "session", c.session)          // S44, S51
	dst = frame.AppendHeader(dst, 0, "server", c.srv.cfg.Name)      // S52
	if c.version > frame.V10 {
		// Only beats that are really sent or wanted are announced: some clients
		// start a timer for whatever the header says (I2). For the same reason the
		// intervals are those agreed on, not ours: go-stomp gives a RECEIPT no
		// longer than the second number.
		ours, theirs := c.agreed(wants).Milliseconds(), c.agreed(sends).Milliseconds()
		dst = frame.AppendHeader(dst, 0, "heart-beat", strconv.FormatInt(ours, 10)+","+strconv.FormatInt(theirs, 10))
	}
	return frame.AppendBody(dst, nil)
}

// bestVersion returns the highest version of a list that exists here, zero if
// none does (S45, S46).
func bestVersion(accept []byte) frame.Version {
	if accept == nil {
		return frame.V10
	}
	best := frame.Version(0)
	for v := range bytes.SplitSeq(accept, []byte{','}) {
		switch string(bytes.TrimSpace(v)) {
		case "1.0":
			best = max(best, frame.V10)
		case "1.1":
			best = max(best, frame.V11)
		case "1.2":
			best = max(best, frame.V12)
		}
	}
	return best
}

// heartBeat reads how often, in milliseconds, the client can send and wants to
// hear something; 0 is never (S56, S57).
func heartBeat(f *frame.Frame) (sends, wants int64, err error) {
	value, ok := f.Get("heart-beat")
	if !ok {
		return 0, 0, nil
	}
	a, b, ok := bytes.Cut(value, []byte{','})
	sends, okA := millis(a)
	wants, okB := millis(b)
	if !ok || !okA || !okB {
		return 0, 0, about(refuse("bad heart-beat", "heart-beat must be two numbers of milliseconds such as 10000,10000"), f)
	}
	return sends, wants, nil
}

// millis reads a number of milliseconds below 2^31.
func millis(b []byte) (int64, bool) {
	if len(b) == 0 || len(b) > 10 {
		return 0, false
	}
	n := int64(0)
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = 10*n + int64(c-'0')
	}
	return n, n <= math.MaxInt32
}
