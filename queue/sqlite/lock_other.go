//go:build !unix

package sqlite

// turnstile does nothing where there is no flock: SQLite's own locks keep
// processes apart, but do not share the file fairly.
type turnstile struct{}

func openTurnstile(string) (*turnstile, error) { return &turnstile{}, nil }

func (*turnstile) enter() error { return nil }
func (*turnstile) leave() error { return nil }
func (*turnstile) close()       {}

func (*turnstile) contended() bool { return false }
