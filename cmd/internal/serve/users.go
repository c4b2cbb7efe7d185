package serve

import (
	"log/slog"

	"github.com/mvalve/mvalve/auth"
	"github.com/mvalve/mvalve/cmd/internal/setup"
	"github.com/mvalve/mvalve/stomp"
)

// openUsers reads the users file; nil without one: the server is for its own machine.
func openUsers(file string, log *slog.Logger) (stomp.Authenticator, error) {
	var none stomp.Authenticator
	if file == "" {
		return none, nil
	}
	users, err := auth.Open(file, log)
	if err != nil {
		return none, setup.Failf(setup.ExitInput, "--users: %w", err)
	}
	return door{users}, nil
}

// door lets the users of a file in through STOMP.
type door struct{ users *auth.Users }

// access is what each right allows.
var access = []struct {
	right  auth.Rights
	access stomp.Access
}{
	{auth.Send, stomp.Write}, {auth.Subscribe, stomp.Read},
}

// Authenticate implements stomp.Authenticator.
func (d door) Authenticate(login, passcode string) (all stomp.Access, ok bool) {
	user, ok := d.users.Check(login, passcode)
	if !ok {
		return 0, false
	}
	for _, a := range access {
		if user.Rights.Has(a.right) {
			all |= a.access
		}
	}
	return all, true
}
