package mysql_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mvalve/mvalve"
	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/queue/mysql"
)

func TestParseURL(t *testing.T) {
	for _, c := range []struct {
		url  string
		want mysql.Config
	}{
		{"mysql://u:p@db.example:3307/mail", mysql.Config{Addr: "db.example:3307", User: "u", Password: "p", Database: "mail"}},
		{"mysql://a%40b:p%3A%2F%40%3F%23%25@h/my%20db?tls=skip-verify",
			mysql.Config{Addr: "h:3306", User: "a@b", Password: "p:/@?#%", Database: "my db", TLS: "skip-verify"}},
		{"mysql://u@[::1]:3306/d", mysql.Config{Addr: "[::1]:3306", User: "u", Database: "d"}},
		{"mysql://u@/d?socket=/run/my.sock&max_conns=4", mysql.Config{User: "u", Database: "d", Socket: "/run/my.sock", MaxConns: 4}},
		{"mysql:///d", mysql.Config{Database: "d"}},
	} {
		got, err := mysql.ParseURL(c.url)
		if err != nil {
			t.Errorf("%s: %v", c.url, err)
		} else if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s: %s", c.url, diff)
		}
	}
}

func TestParseURLRefuses(t *testing.T) {
	const secret = "s3cr3t"
	for _, bad := range []string{
		"postgres://u:s3cr3t@h/d", "mysql://u:s3cr3t@h", "mysql://u:s3cr3t@h/", "mysql://u:s3cr3t@h/a/b",
		"mysql://u:s3cr3t@h:port/d", "mysql://u:s3cr3t%@h/d", "mysql://u:s3cr3t@h/d?tls=maybe", "mysql://u:s3cr3t@h/d?nosuch=1",
		"mysql://u:s3cr3t@h/d?max_conns=1", "mysql://u:s3cr3t@h/d?max_conns=x", "mysql:u:s3cr3t@h/d", "mysql://u:s3cr3t@h/d?a=%zz",
		"mysql://u:s3cr3t#x@h/d", "mysql://u:s3cr3t/x@h/d", "",
	} {
		_, err := mysql.ParseURL(bad)
		if !errors.Is(err, queue.ErrInvalid) {
			t.Errorf("%s: %v", bad, err)
			continue
		}
		if strings.Contains(err.Error(), secret) {
			t.Errorf("%s: the password is in %v", bad, err)
		}
	}
}

func TestSplitStatements(t *testing.T) {
	n := 0
	for statement := range mysql.SplitStatements(mvalve.Schema) {
		n++
		if strings.HasSuffix(statement, ";") || strings.Contains(statement, "--") ||
			!strings.HasPrefix(statement, "CREATE TABLE IF NOT EXISTS q_") && !strings.HasPrefix(statement, "INSERT INTO q_meta") {
			t.Errorf("statement %d: %s", n, statement)
		}
	}
	if n != 12 {
		t.Errorf("%d statements, want 11 tables and the version", n)
	}
}
