package stomp

import (
	"net"
	"strings"
)

// Access is what a client may do.
type Access uint8

// The kinds of access; they combine.
const (
	Read  Access = 1 << iota // SUBSCRIBE, and the counts of /control/
	Write                    // SEND
	Full  = Read | Write
)

// Authenticator knows users. It is called from many goroutines.
type Authenticator interface {
	// Authenticate reports whether passcode is the login's, in a time that does
	// not tell how much of it is right, and what the user may do.
	Authenticate(login, passcode string) (access Access, ok bool)
}

// authenticate decides about a CONNECT. Without users, only peers on this
// machine are let in.
func (c *conn) authenticate(login, passcode string) error {
	s := c.srv
	if s.Auth == nil {
		if !local(c.nc.RemoteAddr()) {
			return refuse("access refused", "this server has no users and accepts only connections from its own machine")
		}
		c.access = Full
		return nil
	}
	s.authSlots <- struct{}{} // hashing a passcode is work: not for all at once
	defer func() { <-s.authSlots }()
	access, ok := s.Auth.Authenticate(login, passcode)
	if !ok && strings.ContainsRune(login+passcode, '\\') {
		// Some clients escape CONNECT, too (I1).
		access, ok = s.Auth.Authenticate(unescape(login), unescape(passcode))
	}
	if !ok {
		s.stats.AuthFailed.Add(1)
		return refuse("access refused", "login and passcode do not match a user of this server")
	}
	c.access = access
	return nil
}

var unescaper = strings.NewReplacer(`\\`, `\`, `\c`, ":", `\n`, "\n", `\r`, "\r")

func unescape(s string) string { return unescaper.Replace(s) }

// local reports whether a peer is on this machine: loopback, or no network at all.
func local(a net.Addr) bool {
	switch a := a.(type) {
	case *net.TCPAddr:
		return a.IP.IsLoopback()
	case *net.UnixAddr:
		return true
	}
	return a != nil && a.Network() == "pipe"
}
