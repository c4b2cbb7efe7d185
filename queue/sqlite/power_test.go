//go:build unix

package sqlite

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/mvalve/mvalve/queue"
)

const powerName = "mvalve.db"

// TestPowerCut lets two processes work on a file, cuts the power at moments of
// all kinds, loses, keeps or tears what was not synced, and opens what is left:
// it must be sound, hold everything that was receipted and of what was not
// receipted all or nothing. Then the work goes on from one of the cuts.
func TestPowerCut(t *testing.T) {
	chains, generations, cuts := 10, 3, 10
	switch {
	case os.Getenv("MVALVE_PROOF") == "long":
		chains, cuts = 100, 20
	case raceDetector:
		chains, generations = 2, 2
	}
	var sum tally
	for seed := range chains {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(uint64(seed), 4711))
			files, base := map[string][]byte(nil), facts{}
			for range generations {
				run := work(t, r, files, base, writerPragmas, 40)
				if t.Failed() {
					return
				}
				files, base = run.cuts(t, r, cuts, &sum)
			}
		})
	}
	t.Logf("%s", &sum)
	if sum.cuts >= 40 && (sum.open == 0 || sum.saving == 0 || sum.lost == 0) {
		t.Error("no cut hit a step under way, the log being written back, or unsynced writes: the test proves nothing")
	}
}

// tally is what the cuts of a test met.
type tally struct {
	cuts, events, facts int
	open                int // calls under way when the power went
	happened            int // those of them that turned out to be done
	saving              int // cuts while the log was written back
	unsound             int // cuts that left a file which SQLite does not take
	lost                int // cuts that lost something written
}

func (s *tally) String() string {
	return fmt.Sprintf("%d cuts within %d writes, syncs and changes of names; %d calls under way (%d of them had taken effect), "+
		"%d while the log was written back, %d that lost something; %d facts compared",
		s.cuts, s.events, s.open, s.happened, s.saving, s.lost, s.facts)
}

// run is what two processes did to a disk.
type run struct {
	d       *disk
	base    facts
	workers []*worker
	lie     lies
}

// another opens a store as another process would: with connections and a place
// at the turnstile of its own.
func another(t testing.TB, r *rand.Rand, path string) *Store {
	t.Helper()
	p, err := openPool(context.Background(), path, Config{Readers: 1})
	if err != nil {
		t.Fatal(err)
	}
	p.users = 1
	p.w.saveAt = 2 + r.IntN(30)
	p.w.walLimit = 1 << (14 + r.IntN(7))
	return &Store{pool: p}
}

// work starts with files, which hold base, and lets three workers in two
// processes do about n steps each.
func work(t *testing.T, r *rand.Rand, files map[string][]byte, base facts, pragmas []string, n int) *run {
	t.Helper()
	defer func(old []string) { writerPragmas = old }(writerPragmas)
	writerPragmas = pragmas
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	u := &run{d: newDisk(t, dir, files), base: base, lie: honest}
	path := filepath.Join(dir, powerName)
	a, b := another(t, r, path), another(t, r, path)
	for i, name := range []string{"first", "second", "third"} {
		w := &worker{name: name, d: u.d, s: a, r: rand.New(rand.NewPCG(r.Uint64(), uint64(i)))}
		w.facts = w.own(base)
		u.workers = append(u.workers, w)
	}
	for half := range 2 {
		u.workers[2].s = b
		var wg sync.WaitGroup
		for _, w := range u.workers {
			wg.Go(func() { w.work(n / 2) })
		}
		wg.Wait()
		if err := b.Close(); err != nil {
			t.Error(err)
		}
		if half == 0 {
			b = another(t, r, path)
		}
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	for _, w := range u.workers {
		if w.err != nil {
			t.Errorf("worker %s: %v", w.name, w.err)
		}
	}
	u.faithful(t)
	return u
}

// faithful checks that the disk saw everything that happened to the files.
func (u *run) faithful(t *testing.T) {
	t.Helper()
	for name, data := range u.d.cut(rand.New(rand.NewPCG(0, 0)), u.d.now(), survival{keep: 1}, honest) {
		real, err := os.ReadFile(filepath.Join(u.d.dir, name))
		if err != nil || !bytes.Equal(real, data) {
			t.Errorf("%s has %d bytes, the disk noted %d others: %v", name, len(real), len(data), err)
		}
	}
	if _, err := os.Stat(filepath.Join(u.d.dir, powerName+"-wal")); err == nil {
		t.Error("the last Close left a log")
	}
}

// cuts cuts the power n times and returns what one of them left.
func (u *run) cuts(t *testing.T, r *rand.Rand, n int, sum *tally) (files map[string][]byte, base facts) {
	t.Helper()
	goOn := r.IntN(n)
	sum.events += u.d.now()
	for i := range n {
		at, how := u.moment(r), survivals[r.IntN(len(survivals))]
		left := u.d.cut(r, at, how, u.lie)
		got, faults := u.judge(t, r, at, left, sum)
		for _, f := range faults {
			t.Errorf("cut after %d of %d events, what stays is %s:%s: %s", at, u.d.now(), how.name, sizes(left), f)
		}
		if t.Failed() {
			return nil, nil
		}
		sum.cuts++
		if u.saving(at) {
			sum.saving++
		}
		if i == goOn {
			files, base = left, got
		}
	}
	return files, base
}

// moment chooses when to cut: anywhere, or while the database file is written,
// which is rarer.
func (u *run) moment(r *rand.Rand) int {
	if r.IntN(2) == 0 {
		return r.IntN(len(u.d.events) + 1)
	}
	var saving []int
	for i := range u.d.events {
		if u.saving(i) {
			saving = append(saving, i)
		}
	}
	return saving[r.IntN(len(saving))]
}

// saving reports whether at a moment the last event was one of the database file.
func (u *run) saving(at int) bool {
	return at > 0 && u.d.events[at-1].kind <= truncated && u.d.events[at-1].ino == u.d.names[powerName]
}

// judge opens what a cut left and returns what is there and what is wrong.
func (u *run) judge(t *testing.T, r *rand.Rand, at int, left map[string][]byte, sum *tally) (got facts, faults []string) {
	t.Helper()
	path := filepath.Join(save(t, r, left), powerName)
	s, err := Open(t.Context(), Config{Path: path, Readers: 1})
	if err != nil {
		sum.unsound++
		return nil, []string{err.Error()}
	}
	faults, err = integrity(s)
	if err != nil {
		faults = append(faults, err.Error())
	}
	if len(faults) > 0 {
		sum.unsound++
	} else {
		got = examine(t, s)
		want := expect(u.base, u.workers, at, got)
		faults = compare(want, got)
		sum.facts += len(want)
		u.count(at, got, left, sum)
	}
	if len(faults) == 0 {
		var ids queue.IDSource // and it goes on
		if err := cycle(t.Context(), s, &ids, benchMessages(&ids, 5, 2)); err != nil {
			faults = append(faults, err.Error())
		}
	}
	if err := s.Close(); err != nil {
		faults = append(faults, err.Error())
	}
	return got, faults
}

func (u *run) count(at int, got facts, left map[string][]byte, sum *tally) {
	for _, w := range u.workers {
		for _, st := range w.steps {
			if st.begin < at && at < st.done {
				sum.open++
				if st.happened(expect(u.base, u.workers, st.begin, got), got) {
					sum.happened++
				}
			}
		}
	}
	all := u.d.cut(rand.New(rand.NewPCG(0, 0)), at, survival{keep: 1}, honest)
	for name, data := range all {
		if !bytes.Equal(left[name], data) {
			sum.lost++
			return
		}
	}
}

// TestPowerCutSeesMissingSync: the harness can fail. Where the disk only pretends
// to sync, or the connection does not ask for it, receipted messages are lost in
// a power cut, and that is what the harness says.
func TestPowerCutSeesMissingSync(t *testing.T) {
	instead := func(pragma string) []string {
		var list []string
		for _, p := range writerPragmas {
			if p == "synchronous=FULL" {
				p = pragma
			}
			list = append(list, p)
		}
		return list
	}
	cuts := 40
	if raceDetector {
		cuts = 20
	}
	suffix := func(text string) lies { return func(name string) bool { return strings.HasSuffix(name, text) } }
	for _, c := range []struct {
		name    string
		pragmas []string
		lie     lies
		sound   bool // the database itself must survive
	}{
		{"the log is not synced", writerPragmas, suffix("-wal"), false},
		{"the database is not synced", writerPragmas, suffix(".db"), false},
		{"nothing is synced", writerPragmas, func(string) bool { return true }, false},
		{"the directory is not synced", writerPragmas, func(name string) bool { return name == "" }, false},
		{"synchronous=NORMAL", instead("synchronous=NORMAL"), honest, true},
		{"synchronous=OFF", instead("synchronous=OFF"), honest, false},
	} {
		if raceDetector && !c.sound {
			continue // SQLite takes ten times as long
		}
		t.Run(c.name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(1, 4711))
			u := work(t, r, nil, facts{}, c.pragmas, 30)
			u.lie = c.lie
			var sum tally
			lost := 0
			for range cuts {
				at := u.moment(r)
				_, faults := u.judge(t, r, at, u.d.cut(r, at, survivals[0], u.lie), &sum)
				if len(faults) > 0 {
					lost++
				}
			}
			t.Logf("%d of %d cuts lost something receipted, %d of them damaged the database", lost, cuts, sum.unsound)
			if lost == 0 {
				t.Error("no loss was seen")
			}
			if c.sound && sum.unsound > 0 {
				t.Error("the database was damaged")
			}
		})
	}
}
