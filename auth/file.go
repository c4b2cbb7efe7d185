package auth

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync/atomic"
	"unicode"
	"unicode/utf8"

	"golang.org/x/crypto/bcrypt"
)

const (
	maxFile = 16 << 20 // bytes of a users file
	maxName = 255      // bytes of a name
	maxCost = 16       // some seconds; the default of htpasswd -B is 5, ours 10
)

// account is one line of the file.
type account struct {
	user User
	hash []byte
	line int
	seen atomic.Pointer[[32]byte] // keyed hash of the passcode, once it was right
}

// table is what one version of the file says. Users replaces it as a whole, so
// that what was seen with an old hash is forgotten with it.
type table struct {
	accounts map[string]*account
	nobody   *account // to compare with when there is no such user
}

// readFile reads at most maxFile bytes.
func readFile(path string) ([]byte, os.FileInfo, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, fmt.Errorf("auth: users file: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, nil, fmt.Errorf("auth: users file: %w", err)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, nil, fmt.Errorf("auth: users file: %w", err)
	}
	if len(data) > maxFile {
		return nil, nil, fmt.Errorf("auth: %s: more than 16 MiB: is this a users file?", path)
	}
	return data, info, nil
}

// parse reads a users file. Its errors name the file, the line and the fix, and
// quote nothing that may be a secret.
func parse(path string, data []byte) (*table, error) {
	t := &table{accounts: make(map[string]*account)}
	costs := make(map[int]int)
	number := 0
	data = bytes.TrimPrefix(data, []byte("\ufeff"))
	for text := range bytes.Lines(data) {
		number++
		text = bytes.TrimSpace(text)
		if len(text) == 0 || text[0] == '#' {
			continue
		}
		a, cost, err := parseLine(string(text))
		if err == nil {
			if other := t.accounts[a.user.Name]; other != nil {
				err = fmt.Errorf("user %q is in line %d already: remove one of the two", a.user.Name, other.line)
			}
		}
		if err != nil {
			return nil, fmt.Errorf("auth: %s: line %d: %w", path, number, err)
		}
		a.line = number
		t.accounts[a.user.Name] = a
		costs[cost]++
	}
	if len(t.accounts) == 0 {
		return nil, fmt.Errorf("auth: %s: no users: add one with htpasswd -B %s NAME", path, path)
	}
	t.nobody = nobody(costs)
	return t, nil
}

func parseLine(text string) (a *account, cost int, err error) {
	name, rest, ok := strings.Cut(text, ":")
	if !ok {
		return nil, 0, errors.New("no colon: write name:hash or name:hash:role,role")
	}
	name = strings.TrimSpace(name)
	bad := func(r rune) bool { return unicode.IsControl(r) || r == unicode.ReplacementChar }
	if name == "" || len(name) > maxName || !utf8.ValidString(name) || strings.ContainsFunc(name, bad) {
		return nil, 0, errors.New("not a name before the colon: use 1 to 255 bytes of UTF-8 without control characters")
	}
	hash, list, limited := strings.Cut(rest, ":")
	hash = strings.TrimSpace(hash)
	if cost, err = checkHash(hash); err != nil {
		return nil, 0, fmt.Errorf("user %q: %w", name, err)
	}
	rights := All
	if limited {
		if rights, err = parseRoles(list); err != nil {
			return nil, 0, fmt.Errorf("user %q: %w", name, err)
		}
	}
	return &account{user: User{Name: name, Rights: rights}, hash: []byte(hash)}, cost, nil
}

// checkHash accepts what bcrypt will not fail on, and returns its cost.
func checkHash(hash string) (cost int, err error) {
	remedy := errors.New("not a bcrypt hash ($2y$, $2a$ or $2b$ and 60 characters): make one with htpasswd -B")
	const alphabet = "./ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
	if len(hash) != 60 || hash[0:2] != "$2" || !strings.Contains("aby", hash[2:3]) || hash[3] != '$' || hash[6] != '$' ||
		strings.Trim(hash[7:], alphabet) != "" {
		return 0, remedy
	}
	if cost, err = bcrypt.Cost([]byte(hash)); err != nil {
		return 0, remedy
	}
	if cost > maxCost {
		return 0, fmt.Errorf("bcrypt cost %d takes minutes: use 10 to 12 (htpasswd -B -C 10)", cost)
	}
	return cost, nil
}

func parseRoles(list string) (Rights, error) {
	var rights Rights
next:
	for name := range strings.SplitSeq(list, ",") {
		for _, role := range roles {
			if strings.TrimSpace(name) == role.name {
				rights |= role.rights
				continue next
			}
		}
		return 0, errors.New("unknown role: after the second colon write send, subscribe, admin, all, or several with commas; without the colon a user may do everything")
	}
	return rights, nil
}

// nobody returns an account that no passcode opens. Looking at it takes as long
// as at most users of the file: it has the cost that is most frequent there.
func nobody(costs map[int]int) *account {
	best := bcrypt.DefaultCost
	for cost, n := range costs {
		if n > costs[best] || n == costs[best] && cost > best {
			best = cost
		}
	}
	// Salt and hash are arbitrary, and the hash of nothing known.
	return &account{hash: fmt.Appendf(nil, "$2b$%02d$%s", best, "mvalveNobodyHasThisSalt.mvalveNobodyHasThisHash.......")[:60]}
}
