package auth

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"log/slog"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/bcrypt"
)

// checkInterval is how often at most Check looks whether the file has changed.
const checkInterval = time.Second

// Users are the users of one file. All methods may be called concurrently.
type Users struct {
	path  string
	log   *slog.Logger
	key   [32]byte      // of account.seen; random, never leaves the process
	slots chan struct{} // bcrypts at the same time
	now   func() time.Time

	table   atomic.Pointer[table]
	checked atomic.Int64 // when the file was looked at last, in ns

	mu         sync.Mutex // one reload at a time
	read       version
	content    [sha256.Size]byte
	unreadable bool // and that was said

	hashed, cached, refused atomic.Uint64
}

// version tells whether a file is the one that was read.
type version struct {
	modified time.Time
	size     int64
	at       time.Time // when it was read
}

// same reports whether the file is surely unchanged: a file that had just been
// written when it was read may have been written again within its time stamp.
func (v version) same(info os.FileInfo) bool {
	return v.modified.Equal(info.ModTime()) && v.size == info.Size() && v.at.Sub(v.modified) > 2*checkInterval
}

// Stats count since Open.
type Stats struct {
	Users   int    // in the file now
	Hashed  uint64 // checks that cost a bcrypt
	Cached  uint64 // checks that did not
	Refused uint64 // checks that failed
}

// Open reads a users file. An error names the line and the fix. Later changes
// of the file are noticed by Check; what is wrong with them is logged to log
// (nil discards), and the users known before stay.
func Open(path string, log *slog.Logger) (*Users, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	u := &Users{path: path, log: log, now: time.Now}
	// A flood of wrong passcodes leaves a core for those who are in.
	u.slots = make(chan struct{}, max(1, runtime.GOMAXPROCS(0)-1))
	if _, err := rand.Read(u.key[:]); err != nil {
		return nil, err
	}
	if err := u.Reload(); err != nil {
		return nil, err
	}
	return u, nil
}

// Check reports whether passcode is that of the user login, and what the user
// may do.
//
// It takes the time of one bcrypt, the same for a login that does not exist,
// and waits for its turn if many are checked at once. Only a passcode that was
// right before, with the file unchanged, is known at once. A passcode of more
// than MaxPasscode bytes is refused.
func (u *Users) Check(login, passcode string) (User, bool) {
	u.refresh()
	t := u.table.Load()
	a := t.accounts[login]
	known := a != nil
	if !hashable(passcode) {
		if known && len(passcode) > MaxPasscode {
			u.log.Warn("passcode refused: longer than the 72 bytes bcrypt looks at", "user", login)
		}
		u.refused.Add(1)
		return User{}, false
	}
	if !known {
		a = t.nobody
	}
	sum := u.sum(login, passcode)
	if a.knows(&sum) {
		u.cached.Add(1)
		return a.user, true
	}
	u.slots <- struct{}{}
	defer func() { <-u.slots }()
	if a.knows(&sum) { // somebody in front with the same passcode
		u.cached.Add(1)
		return a.user, true
	}
	u.hashed.Add(1)
	right := bcrypt.CompareHashAndPassword(a.hash, []byte(passcode)) == nil
	if !right || !known {
		u.refused.Add(1)
		return User{}, false
	}
	a.seen.Store(&sum)
	return a.user, true
}

func (a *account) knows(sum *[32]byte) bool {
	seen := a.seen.Load()
	return seen != nil && hmac.Equal(seen[:], sum[:])
}

// sum is what is remembered of a right passcode.
func (u *Users) sum(login, passcode string) (sum [32]byte) {
	h := hmac.New(sha256.New, u.key[:])
	h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(login))))
	h.Write([]byte(login))
	h.Write([]byte(passcode))
	h.Sum(sum[:0])
	return sum
}

// Stats returns the counters.
func (u *Users) Stats() Stats {
	return Stats{
		Users:  len(u.table.Load().accounts),
		Hashed: u.hashed.Load(), Cached: u.cached.Load(), Refused: u.refused.Load(),
	}
}

// refresh looks whether the file has changed, unless somebody just did.
func (u *Users) refresh() {
	now, last := u.now().UnixNano(), u.checked.Load()
	// A clock set back must not put this off for long.
	if age := now - last; age >= 0 && age < int64(checkInterval) || !u.checked.CompareAndSwap(last, now) {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	info, err := os.Stat(u.path)
	if err == nil && u.read.same(info) {
		return
	}
	if err := u.reload(); err != nil {
		u.log.Error("users file not read, the users before stay", "err", err)
	}
}

// Reload reads the file now. After an error the users before stay.
func (u *Users) Reload() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.checked.Store(u.now().UnixNano())
	u.unreadable, u.content = false, [sha256.Size]byte{}
	return u.reload()
}

// reload reads the file; the caller holds mu. Content that was read before, good
// or bad, is not parsed again, and what was wrong is said once.
func (u *Users) reload() error {
	data, info, err := readFile(u.path)
	if err != nil {
		if u.unreadable {
			return nil
		}
		u.unreadable, u.read, u.content = true, version{}, [sha256.Size]byte{}
		return err
	}
	u.unreadable = false
	u.read = version{modified: info.ModTime(), size: info.Size(), at: u.now()}
	content := sha256.Sum256(data)
	if content == u.content {
		return nil
	}
	u.content = content
	t, err := parse(u.path, data)
	if err != nil {
		return err
	}
	if u.table.Swap(t) != nil {
		u.log.Info("users file read", "users", len(t.accounts))
	}
	return nil
}
