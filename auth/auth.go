// Package auth knows who may use the doors: a file of users with bcrypt hashes,
// as Apache's htpasswd makes it, and what each of them may do.
//
//	# name:hash[:role,role]         htpasswd -B -c users alice
//	alice:$2y$10$...
//	shop:$2y$10$...:send
//	worker:$2y$10$...:subscribe
//
// A user without roles may do everything. Other kinds of hashes are refused
// when the file is read.
//
//	users, err := auth.Open("users", logger)
//	user, ok := users.Check(login, passcode)
//
// It keeps no sessions and makes no accounts.
package auth

import (
	"errors"
	"strings"

	"golang.org/x/crypto/bcrypt"
)

// Rights are what a user may do; they combine with |.
type Rights uint8

// The rights, each with the role that gives it.
const (
	Send      Rights = 1 << iota // "send": put messages into destinations and topics
	Subscribe                    // "subscribe": take messages out of them
	Admin                        // "admin": look at and change the valve itself
	All       = Send | Subscribe | Admin
)

var roles = []struct {
	name   string
	rights Rights
}{{"send", Send}, {"subscribe", Subscribe}, {"admin", Admin}, {"all", All}}

// Has reports whether all of want are among r.
func (r Rights) Has(want Rights) bool { return r&want == want }

// String returns the roles, as a users file has them.
func (r Rights) String() string {
	if r == All {
		return "all"
	}
	var names []string
	for _, role := range roles {
		if role.rights != All && r.Has(role.rights) {
			names = append(names, role.name)
		}
	}
	return strings.Join(names, ",")
}

// User is somebody who has shown the right passcode.
type User struct {
	Name   string
	Rights Rights
}

// MaxPasscode is how many bytes of a passcode bcrypt looks at. A longer one is
// refused, never cut: cut, it would match whatever its end.
const MaxPasscode = 72

// ErrPasscode says that a passcode cannot be hashed.
var ErrPasscode = errors.New("auth: a passcode has 1 to 72 bytes and no NUL")

// Hash returns the hash of a passcode for a users file, or ErrPasscode.
func Hash(passcode string) (string, error) {
	if !hashable(passcode) {
		return "", ErrPasscode
	}
	h, err := bcrypt.GenerateFromPassword([]byte(passcode), bcrypt.DefaultCost)
	return string(h), err
}

func hashable(passcode string) bool {
	return passcode != "" && len(passcode) <= MaxPasscode && !strings.Contains(passcode, "\x00")
}
