package mysql_test

import (
	"errors"
	"net"
	"strings"
	"testing"

	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/queue/mysql"
)

// FuzzParseURL: accepted URLs name an address and a database, refused ones are
// refused without telling the password.
func FuzzParseURL(f *testing.F) {
	for _, s := range []string{
		"mysql://user:password@host:3307/database", "mysql://u:p%40ss@[::1]/d?tls=true&max_conns=4", "mysql:///d?socket=/run/x.sock",
		"mysql://u:secretword@host:99999999/d", "mysql:u:secretword@x/d", "mysql://u:secretword%zz@x/d", "mysql://u:p@x/d?max_conns=1e9", "sqlite:x",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		c, err := mysql.ParseURL(s)
		if err != nil {
			if !errors.Is(err, queue.ErrInvalid) {
				t.Fatalf("%q: %v", s, err)
			}
			if strings.Contains(s, "secretword") && strings.Contains(err.Error(), "secretword") && !strings.Contains(s, "?") {
				t.Fatalf("%q: the error tells the password: %v", s, err)
			}
			return
		}
		if c.Database == "" || c.MaxConns < 0 || c.MaxConns == 1 {
			t.Fatalf("%q: %+v", s, c)
		}
		if c.Addr != "" {
			if _, port, err := net.SplitHostPort(c.Addr); err != nil || port == "" {
				t.Fatalf("%q: address %q, %v", s, c.Addr, err)
			}
		}
	})
}
