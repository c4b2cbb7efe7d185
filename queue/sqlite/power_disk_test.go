//go:build unix

package sqlite

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
)

// eventKind says what happened to a disk.
type eventKind uint8

const (
	wrote     eventKind = iota // data at at
	truncated                  // to at
	synced                     // the file's events before upTo
	made                       // name, as file ino
	unlinked                   // name
	dirSync                    // names before upTo
)

type event struct {
	kind eventKind
	ino  int
	at   int64
	upTo int
	data []byte
	name string
}

// disk is a directory whose files are written through the shim. It keeps
// everything that happened in order, so that one run can be cut at any moment,
// as often as one likes, and be asked what a disk may then hold.
type disk struct {
	dir      string
	deleting sync.Mutex // held while a name is made or deleted and that is noted; before mu

	mu     sync.Mutex
	base   map[int][]byte // contents at the start, durable
	names  map[string]int // of the files now
	start  map[string]int // names at the start, durable
	events []event
	inodes int
}

// newDisk makes dir, with files, a disk.
func newDisk(t testing.TB, dir string, files map[string][]byte) *disk {
	t.Helper()
	install(t)
	d := &disk{dir: dir, base: make(map[int][]byte), names: make(map[string]int)}
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
		d.names[name] = d.inodes
		d.base[d.inodes] = data
		d.inodes++
	}
	d.start = maps.Clone(d.names)
	shim.mu.Lock()
	shim.disks[dir] = d
	shim.mu.Unlock()
	t.Cleanup(func() {
		shim.mu.Lock()
		defer shim.mu.Unlock()
		delete(shim.disks, dir)
	})
	return d
}

// add appends an event; the caller holds mu.
func (d *disk) add(e event) { d.events = append(d.events, e) }

// now returns the number of events so far: a moment at which power can be cut.
func (d *disk) now() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.events)
}

// inode returns the file of a name, which it makes. The caller holds mu.
func (d *disk) inode(name string) int {
	ino, ok := d.names[name]
	if !ok {
		ino = d.inodes
		d.inodes++
		d.names[name] = ino
		d.add(event{kind: made, ino: ino, name: name})
	}
	return ino
}

func (d *disk) unlink(name string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.names, name)
	d.add(event{kind: unlinked, name: name})
}

// survival says what becomes of that which was not synced when the power goes.
type survival struct {
	name    string
	keep    float64 // chance of each piece to get to the disk; negative: chosen per cut
	ordered bool    // only a prefix of the events of each file
	sector  int     // bytes that get there as one; 0: whole writes
	garbage float64 // chance of a sector that did not get there to hold anything
}

var survivals = []survival{
	{name: "nothing unsynced", keep: 0},
	{name: "everything", keep: 1},
	{name: "a prefix", keep: 1, ordered: true},
	{name: "any writes", keep: -1},
	{name: "torn at 512 bytes", keep: -1, sector: 512},
	{name: "torn at 4 KiB", keep: -1, sector: 4096},
	{name: "torn prefix", keep: -1, ordered: true, sector: 512},
	{name: "torn, with garbage", keep: -1, sector: 512, garbage: 0.3},
}

// lies names the files whose syncs a disk only pretends to do: none, those of
// the log, of the database, or all.
type lies func(name string) bool

func honest(string) bool { return false }

// cut returns the files of the disk when the power went after n events.
func (d *disk) cut(r *rand.Rand, n int, how survival, lie lies) map[string][]byte {
	d.mu.Lock()
	events := d.events[:n]
	d.mu.Unlock()
	nameOf := make(map[int]string)
	for name, ino := range d.start {
		nameOf[ino] = name
	}
	dirUpTo, upTo := 0, make(map[int]int) // what is durable
	for _, e := range events {
		switch e.kind {
		case made:
			nameOf[e.ino] = e.name
		case synced:
			if !lie(nameOf[e.ino]) {
				upTo[e.ino] = max(upTo[e.ino], e.upTo)
			}
		case dirSync:
			if !lie("") {
				dirUpTo = max(dirUpTo, e.upTo)
			}
		}
	}
	if how.keep < 0 {
		how.keep = r.Float64()
	}
	files := make(map[string][]byte)
	for name, ino := range d.survivingNames(r, events, dirUpTo, how) {
		files[name] = d.survivingData(r, events, ino, upTo[ino], how)
	}
	return files
}

// survivingNames returns the directory: every name is what it was at some moment
// since the directory was synced.
func (d *disk) survivingNames(r *rand.Rand, events []event, upTo int, how survival) map[string]int {
	names := maps.Clone(d.start)
	stuck := make(map[string]bool) // from here on nothing happened to it
	for i, e := range events {
		if e.kind != made && e.kind != unlinked || stuck[e.name] {
			continue
		}
		if i >= upTo && r.Float64() >= how.keep {
			stuck[e.name] = true
			continue
		}
		if e.kind == made {
			names[e.name] = e.ino
		} else {
			delete(names, e.name)
		}
	}
	return names
}

// survivingData returns the contents of a file of which the events before upTo
// are durable.
func (d *disk) survivingData(r *rand.Rand, events []event, ino, upTo int, how survival) []byte {
	data := slices.Clone(d.base[ino])
	last := len(events)
	if how.ordered && last > upTo {
		last = upTo + r.IntN(last-upTo+1)
	}
	for i, e := range events[:last] {
		if e.ino != ino || e.kind != wrote && e.kind != truncated {
			continue
		}
		switch {
		case e.kind == truncated && (i < upTo || how.ordered || r.Float64() < how.keep):
			data = resize(data, e.at)
		case e.kind == truncated:
		case i < upTo:
			data = write(data, e.at, e.data)
		case how.sector == 0:
			if how.ordered || r.Float64() < how.keep {
				data = write(data, e.at, e.data)
			}
		default:
			data = tear(r, data, e, how)
		}
	}
	return data
}

// tear writes those sectors of a write that get to the disk.
func tear(r *rand.Rand, data []byte, e event, how survival) []byte {
	for from := 0; from < len(e.data); {
		n := min(how.sector-int(e.at+int64(from))%how.sector, len(e.data)-from)
		switch part := e.data[from : from+n]; {
		case r.Float64() < how.keep:
			data = write(data, e.at+int64(from), part)
		case r.Float64() < how.garbage:
			junk := make([]byte, n)
			for i := range junk {
				junk[i] = byte(r.Uint32())
			}
			data = write(data, e.at+int64(from), junk)
		}
		from += n
	}
	return data
}

func write(data []byte, at int64, part []byte) []byte {
	if end := at + int64(len(part)); end > int64(len(data)) {
		data = resize(data, end)
	}
	copy(data[at:], part)
	return data
}

// resize cuts data or adds zeros.
func resize(data []byte, size int64) []byte {
	if size <= int64(len(data)) {
		return data[:size]
	}
	old := int64(len(data))
	data = slices.Grow(data, int(size-old))[:size]
	clear(data[old:])
	return data
}

// save writes files into a directory of their own, with garbage where the shared
// memory of the dead processes was, and returns it.
func save(t testing.TB, r *rand.Rand, files map[string][]byte) string {
	t.Helper()
	dir := t.TempDir()
	if r.IntN(2) == 0 {
		junk := make([]byte, 32<<10)
		for i := range junk {
			junk[i] = byte(r.Uint32())
		}
		files = maps.Clone(files)
		files[powerName+"-shm"] = junk
	}
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// sizes describes files for a message.
func sizes(files map[string][]byte) string {
	text := ""
	for _, name := range slices.Sorted(maps.Keys(files)) {
		text += fmt.Sprintf(" %s %d", name, len(files[name]))
	}
	return text
}
