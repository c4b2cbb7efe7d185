package auth

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/crypto/bcrypt"
)

// quick is a hash of the lowest cost.
func quick(passcode string) string {
	h, err := bcrypt.GenerateFromPassword([]byte(passcode), bcrypt.MinCost)
	if err != nil {
		panic(err)
	}
	return string(h)
}

// file writes a users file, with a time stamp old enough to be trusted.
func file(t *testing.T, path string, age time.Duration, lines ...string) string {
	t.Helper()
	if path == "" {
		path = filepath.Join(t.TempDir(), "users")
	}
	if err := os.WriteFile(path, []byte(strings.Join(lines, "\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	at := time.Now().Add(-age)
	if err := os.Chtimes(path, at, at); err != nil {
		t.Fatal(err)
	}
	return path
}

func open(t *testing.T, path string, log *slog.Logger) *Users {
	t.Helper()
	u, err := Open(path, log)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func TestCheck(t *testing.T) {
	seventyTwo := strings.Repeat("p", 72)
	path := file(t, "", time.Hour,
		"\ufeff# users of the test", "", "alice:"+quick("wonder land:\\"), "  bob : "+quick("b")+" : send , subscribe\r",
		"é:"+strings.Replace(quick("ü☃"), "$2a$", "$2y$", 1)+":send", "long:"+strings.Replace(quick(seventyTwo), "$2a$", "$2b$", 1)+":subscribe,admin")
	u := open(t, path, nil)
	for _, c := range []struct {
		login, passcode string
		want            User
		ok              bool
	}{
		{"alice", "wonder land:\\", User{"alice", All}, true},
		{"alice", "wonder land:", User{}, false},
		{"alice", "", User{}, false},
		{"alice", "wonder land:\\\x00", User{}, false},
		{"Alice", "wonder land:\\", User{}, false},
		{"bob", "b", User{"bob", Send | Subscribe}, true},
		{"bob", "b\x00b", User{}, false}, // the same key to bcrypt
		{"é", "ü☃", User{"é", Send}, true},
		{"long", seventyTwo, User{"long", Subscribe | Admin}, true},
		{"long", seventyTwo + "x", User{}, false},
		{"nobody", "b", User{}, false},
		{"", "", User{}, false},
		{"", "b", User{}, false},
		{"# users of the test", "b", User{}, false},
	} {
		for range 2 { // the second time from memory, if it was right
			got, ok := u.Check(c.login, c.passcode)
			if got != c.want || ok != c.ok {
				t.Errorf("%q %q: got %v %v, want %v %v", c.login, c.passcode, got, ok, c.want, c.ok)
			}
		}
	}
}

// A right passcode is hashed once, a wrong one each time, and whose it is makes
// no difference.
func TestCostOfChecks(t *testing.T) {
	path := file(t, "", time.Hour, "alice:"+quick("a"), "bob:"+quick("b"))
	u := open(t, path, nil)
	for range 100 {
		u.Check("alice", "a")
	}
	if diff := cmp.Diff(Stats{Users: 2, Hashed: 1, Cached: 99}, u.Stats()); diff != "" {
		t.Error(diff)
	}
	u.Check("alice", "b")
	u.Check("bob", "a") // alice's, not bob's
	u.Check("nobody", "a")
	u.Check("nobody", "a")
	u.Check("alice", "a")
	if diff := cmp.Diff(Stats{Users: 2, Hashed: 5, Cached: 100, Refused: 4}, u.Stats()); diff != "" {
		t.Error(diff)
	}
	// No passcode stays in memory, only its keyed hash.
	if seen := u.table.Load().accounts["alice"].seen.Load(); seen == nil || *seen == (open(t, path, nil)).sum("alice", "a") {
		t.Error("the hash does not depend on the key of the process")
	}
}

// The account that stands for unknown users costs as much as most known ones.
func TestNobody(t *testing.T) {
	for _, c := range []struct {
		costs map[int]int
		want  int
	}{
		{map[int]int{4: 1}, 4}, {map[int]int{5: 3, 12: 2}, 5}, {map[int]int{5: 2, 12: 2}, 12}, {map[int]int{10: 2, 4: 1}, 10},
	} {
		a := nobody(c.costs)
		if cost, err := checkHash(string(a.hash)); err != nil || cost != c.want {
			t.Errorf("%v: cost %d, %v", c.costs, cost, err)
		}
	}
	a := nobody(map[int]int{4: 1})
	if err := bcrypt.CompareHashAndPassword(a.hash, []byte("x")); !errors.Is(err, bcrypt.ErrMismatchedHashAndPassword) {
		t.Errorf("no real comparison: %v", err)
	}
}

// A thousand clients that come back at the same time cost one bcrypt, and no
// more than the slots at once.
func TestReconnectStorm(t *testing.T) {
	u := open(t, file(t, "", time.Hour, "alice:"+quick("a")), nil)
	var wg sync.WaitGroup
	for range 1000 {
		wg.Go(func() {
			if _, ok := u.Check("alice", "a"); !ok {
				t.Error("refused")
			}
		})
	}
	wg.Wait()
	if s := u.Stats(); s.Hashed > uint64(cap(u.slots)) || s.Hashed+s.Cached != 1000 {
		t.Errorf("%+v with %d slots", s, cap(u.slots))
	}
}

func TestReload(t *testing.T) {
	var out bytes.Buffer
	path := file(t, "", time.Hour, "alice:"+quick("old"))
	u := open(t, path, slog.New(slog.NewTextHandler(&out, nil)))
	now := time.Now()
	u.now = func() time.Time { return now }
	check := func(passcode string, want bool) {
		t.Helper()
		if _, ok := u.Check("alice", passcode); ok != want {
			t.Errorf("%s: %v\n%s", passcode, ok, out.String())
		}
	}
	later := func() { now = now.Add(checkInterval) }
	later()
	check("old", true)
	later()

	// Looked at once a second; the old passcode goes with the old file, though it
	// was known.
	check("old", true)
	file(t, path, 30*time.Minute, "alice:"+quick("new"))
	check("old", true)
	later()
	check("old", false)
	check("new", true)

	// A broken file changes nothing, and is complained about once.
	out.Reset()
	file(t, path, 20*time.Minute, "alice:"+quick("newer"), "bob:secret")
	for range 3 {
		later()
		check("new", true)
	}
	if got := out.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "line 2") || strings.Contains(got, "secret") {
		t.Errorf("log:\n%s", got)
	}
	if err := u.Reload(); err == nil || !strings.Contains(err.Error(), "line 2") {
		t.Errorf("Reload says %v", err)
	}

	// So does one that is gone.
	out.Reset()
	os.Remove(path)
	for range 3 {
		later()
		check("new", true)
	}
	if got := out.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, path) {
		t.Errorf("log:\n%s", got)
	}
	for range 2 {
		if err := u.Reload(); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("Reload says %v", err)
		}
	}

	// A file with a fresh time stamp is not trusted to stay as it was read.
	now = time.Now() // set back, too
	file(t, path, 0, "alice:"+quick("a"))
	stamp, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	later()
	check("a", true)
	file(t, path, 0, "alice:"+quick("b"))
	if err := os.Chtimes(path, stamp.ModTime(), stamp.ModTime()); err != nil {
		t.Fatal(err)
	}
	later()
	check("b", true)
}

// Checks and reloads at once: for the race detector, and nobody is refused.
func TestConcurrentReload(t *testing.T) {
	path := file(t, "", 0, "alice:"+quick("a"))
	u := open(t, path, nil)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 20 {
				if _, ok := u.Check("alice", "a"); !ok {
					t.Error("refused")
				}
			}
		})
	}
	for range 20 {
		if err := u.Reload(); err != nil {
			t.Error(err)
		}
	}
	wg.Wait()
}

func TestLongPasscodeIsLogged(t *testing.T) {
	var out bytes.Buffer
	u := open(t, file(t, "", time.Hour, "alice:"+quick("a")), slog.New(slog.NewTextHandler(&out, nil)))
	long := strings.Repeat("secret", 20)
	u.Check("alice", long)
	u.Check("mallory", long)
	if got := out.String(); !strings.Contains(got, "user=alice") || strings.Contains(got, "mallory") || strings.Contains(got, "secret") {
		t.Error(got)
	}
}

func TestHash(t *testing.T) {
	for _, passcode := range []string{"", strings.Repeat("x", 73), "a\x00b"} {
		if _, err := Hash(passcode); !errors.Is(err, ErrPasscode) {
			t.Errorf("%d bytes: %v", len(passcode), err)
		}
	}
	h, err := Hash("right")
	if err != nil {
		t.Fatal(err)
	}
	u := open(t, file(t, "", 0, "alice:"+h), nil)
	if _, ok := u.Check("alice", "right"); !ok {
		t.Error("refused")
	}
}

func TestParseErrors(t *testing.T) {
	good := quick("secret")
	for _, c := range []struct{ in, want string }{
		{"", "auth: FILE: no users: add one with htpasswd -B FILE NAME"},
		{"# nobody\n\n", "no users"},
		{"secret", "line 1: no colon: write name:hash"},
		{"\n# c\nalice", "line 3: no colon"},
		{":" + good, "not a name before the colon"},
		{"a\x01b:" + good, "not a name"},
		{"a\xffb:" + good, "not a name"},
		{strings.Repeat("a", 256) + ":" + good, "not a name"},
		{"alice:secret", `line 1: user "alice": not a bcrypt hash ($2y$, $2a$ or $2b$ and 60 characters): make one with htpasswd -B`},
		{"alice:", "not a bcrypt hash"},
		{"alice:$apr1$secret$xxxxxxxxxxxxxxxxxxxxxx", "make one with htpasswd -B"},
		{"alice:{SHA}secret", "make one with htpasswd -B"},
		{"alice:" + good[:59], "not a bcrypt hash"},
		{"alice:" + good + "x", "not a bcrypt hash"},
		{"alice:$2x" + good[3:], "not a bcrypt hash"},
		{"alice:$3a" + good[3:], "not a bcrypt hash"},
		{"alice:$2a$03" + good[6:], "not a bcrypt hash"},
		{"alice:$2a$xx" + good[6:], "not a bcrypt hash"},
		{"alice:$2a$17" + good[6:], "bcrypt cost 17 takes minutes: use 10 to 12"},
		{"alice:" + good[:20] + "!" + good[21:], "not a bcrypt hash"},
		{"alice:" + good + ":secret", "unknown role: after the second colon write send, subscribe, admin, all"},
		{"alice:" + good + ":", "unknown role"},
		{"alice:" + good + ":send,", "unknown role"},
		{"alice:" + good + ":Send", "unknown role"},
		{"alice:" + good + ":send:secret", "unknown role"},
		{"alice:" + good + "\nbob:" + good + "\nalice:" + good, `line 3: user "alice" is in line 1 already: remove one of the two`},
	} {
		_, err := parse("FILE", []byte(c.in))
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.HasPrefix(err.Error(), "auth: FILE: ") {
			t.Errorf("%q: got %v, want %q", c.in, err, c.want)
			continue
		}
		if s := err.Error(); strings.Contains(s, "secret") || strings.Contains(s, good[7:30]) {
			t.Errorf("a secret in %q", s)
		}
	}
}

func TestOpenErrors(t *testing.T) {
	dir := t.TempDir()
	if _, err := Open(filepath.Join(dir, "missing"), nil); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "missing") {
		t.Error(err)
	}
	if _, err := Open(dir, nil); err == nil {
		t.Error("a directory was read")
	}
	big := file(t, "", 0, strings.Repeat("#\n", maxFile/2+1))
	if _, err := Open(big, nil); err == nil || !strings.Contains(err.Error(), "16 MiB") {
		t.Error(err)
	}
}

func TestRights(t *testing.T) {
	for r, want := range map[Rights]string{0: "", Send: "send", Send | Admin: "send,admin", All: "all", Subscribe: "subscribe"} {
		if r.String() != want {
			t.Errorf("%d: %s", r, r)
		}
		if want == "" {
			continue
		}
		if got, err := parseRoles(want); err != nil || got != r {
			t.Errorf("%s: %v, %v", want, got, err)
		}
	}
	if !All.Has(Send|Admin) || Send.Has(All) || !Send.Has(Send) {
		t.Error("Has")
	}
}

// FuzzParse: a users file of any bytes gives either users that can be checked
// or an error of one line, and what is accepted survives being written.
func FuzzParse(f *testing.F) {
	good := quick("x")
	for _, s := range []string{"", "a:" + good, "# c\n\na:" + good + ":send,admin\r\nb:" + good, "a:b:c", "a:$2y$31$" + good[7:], ":\n:", "\ufeffa:" + good + ":all"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		got, err := parse("FILE", in)
		if err != nil {
			if strings.ContainsAny(err.Error(), "\n\r") || strings.Contains(err.Error(), good[7:]) {
				t.Fatalf("error %q", err)
			}
			return
		}
		var again strings.Builder
		for name, a := range got.accounts {
			if name != a.user.Name || name == "" || len(a.hash) != 60 || a.user.Rights == 0 || a.line == 0 {
				t.Fatalf("%q: %+v", name, a.user)
			}
			if cost, err := bcrypt.Cost(a.hash); err != nil || cost > maxCost {
				t.Fatalf("%q: cost %d, %v", name, cost, err)
			}
			fmt.Fprintf(&again, "%s:%s:%s\n", name, a.hash, a.user.Rights)
		}
		other, err := parse("FILE", []byte(again.String()))
		if err != nil || len(other.accounts) != len(got.accounts) {
			t.Fatalf("%q: %v", again.String(), err)
		}
		for name, a := range got.accounts {
			if o := other.accounts[name]; o == nil || o.user != a.user || !bytes.Equal(o.hash, a.hash) {
				t.Fatalf("%q was not kept", name)
			}
		}
	})
}

func BenchmarkCheckKnown(b *testing.B) {
	path := filepath.Join(b.TempDir(), "users")
	if err := os.WriteFile(path, []byte("alice:"+quick("a")), 0o600); err != nil {
		b.Fatal(err)
	}
	u, err := Open(path, nil)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, ok := u.Check("alice", "a"); !ok {
			b.Fatal("refused")
		}
	}
}
