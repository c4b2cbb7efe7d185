//go:build unix

package sqlite

import (
	"path/filepath"
	"sync"
	"testing"
	"unsafe"

	"modernc.org/libc"
	sqlite3 "modernc.org/sqlite/lib"
)

// The layer between SQLite and the file system that the power cut tests need.
// It is a VFS that becomes the default of the test binary: it hands everything
// on to SQLite's own, so that the driver, its locks and its fsync(2) are the real
// ones, and notes for the files of a disk (see there) what is written, truncated,
// synced, made and deleted.

// shim is the state of the VFS; SQLite calls it from many goroutines.
var shim struct {
	once sync.Once
	real *sqlite3.Tsqlite3_vfs
	name uintptr // of the VFS, a C string
	dir  func(*libc.TLS, uintptr, uintptr) int32

	mu      sync.Mutex
	disks   map[string]*disk // by directory
	files   map[uintptr]*openFile
	methods map[uintptr]uintptr    // SQLite's table of methods to ours
	dirSync map[*libc.TLS]dirSyncs // directories opened to be synced, by thread
}

type dirSyncs struct {
	d    *disk
	upTo int
}

// openFile is a file that SQLite has open on a disk.
type openFile struct {
	d       *disk
	ino     int
	methods *sqlite3.Tsqlite3_io_methods // SQLite's
}

// at returns what lies at an address of the library's memory.
func at[T any](p uintptr) *T { return *(**T)(unsafe.Pointer(&p)) }

// entry returns the form in which the library keeps fn, which must be a function
// declared at top level, in its tables; function is the inverse.
func entry[F any](fn F) uintptr { return *(*uintptr)(unsafe.Pointer(&fn)) }

func function[F any](p uintptr) F { return *(*F)(unsafe.Pointer(&p)) }

type (
	openFunc     = func(tls *libc.TLS, vfs, path, file uintptr, flags int32, out uintptr) int32
	deleteFunc   = func(tls *libc.TLS, vfs, path uintptr, dirSync int32) int32
	writeFunc    = func(tls *libc.TLS, file, buf uintptr, n int32, offset int64) int32
	truncateFunc = func(tls *libc.TLS, file uintptr, size int64) int32
	syncFunc     = func(tls *libc.TLS, file uintptr, flags int32) int32
	closeFunc    = func(tls *libc.TLS, file uintptr) int32
	dirFunc      = func(tls *libc.TLS, path, fd uintptr) int32
	setCallFunc  = func(tls *libc.TLS, vfs, name, fn uintptr) int32
	getCallFunc  = func(tls *libc.TLS, vfs, name uintptr) uintptr
)

// install makes the shim the default VFS, once per process.
func install(t testing.TB) {
	shim.once.Do(func() {
		shim.disks, shim.files = make(map[string]*disk), make(map[uintptr]*openFile)
		shim.methods, shim.dirSync = make(map[uintptr]uintptr), make(map[*libc.TLS]dirSyncs)
		tls := libc.NewTLS() // lives as long as the process
		real := sqlite3.Xsqlite3_vfs_find(tls, 0)
		shim.real = at[sqlite3.Tsqlite3_vfs](real)
		cString := func(s string) uintptr {
			p, err := libc.CString(s)
			if err != nil {
				t.Fatal(err)
			}
			return p
		}
		shim.name = cString("powercut")
		openDirectory := cString("openDirectory")
		old := function[getCallFunc](shim.real.FxGetSystemCall)(tls, real, openDirectory)
		shim.dir = function[dirFunc](old)
		if rc := function[setCallFunc](shim.real.FxSetSystemCall)(tls, real, openDirectory, entry[dirFunc](shimOpenDirectory)); rc != 0 {
			t.Fatalf("openDirectory: %d", rc)
		}
		ours := libc.Xmalloc(tls, libc.Tsize_t(unsafe.Sizeof(*shim.real)))
		vfs := at[sqlite3.Tsqlite3_vfs](ours)
		*vfs = *shim.real
		vfs.FpNext, vfs.FzName = 0, shim.name
		vfs.FxOpen, vfs.FxDelete = entry[openFunc](shimOpen), entry[deleteFunc](shimDelete)
		if rc := sqlite3.Xsqlite3_vfs_register(tls, ours, 1); rc != sqlite3.SQLITE_OK {
			t.Fatalf("register: %d", rc)
		}
	})
}

// diskOf returns the disk on which a path lies, nil if it is none of ours.
func diskOf(path string) *disk {
	shim.mu.Lock()
	defer shim.mu.Unlock()
	return shim.disks[filepath.Dir(path)]
}

func fileOf(file uintptr) *openFile {
	shim.mu.Lock()
	defer shim.mu.Unlock()
	return shim.files[file]
}

func shimOpen(tls *libc.TLS, vfs, path, file uintptr, flags int32, out uintptr) int32 {
	real := function[openFunc](shim.real.FxOpen)
	if path == 0 {
		return real(tls, vfs, path, file, flags, out)
	}
	name := libc.GoString(path)
	d := diskOf(name)
	if d == nil {
		return real(tls, vfs, path, file, flags, out)
	}
	d.deleting.Lock()
	defer d.deleting.Unlock()
	d.mu.Lock()
	defer d.mu.Unlock()
	rc := real(tls, vfs, path, file, flags, out)
	if rc != sqlite3.SQLITE_OK {
		return rc
	}
	f := at[sqlite3.Tsqlite3_file](file)
	shim.mu.Lock()
	defer shim.mu.Unlock()
	ours := shim.methods[f.FpMethods]
	if ours == 0 {
		ours = libc.Xmalloc(tls, libc.Tsize_t(unsafe.Sizeof(sqlite3.Tsqlite3_io_methods{})))
		m := at[sqlite3.Tsqlite3_io_methods](ours)
		*m = *at[sqlite3.Tsqlite3_io_methods](f.FpMethods)
		m.FxWrite, m.FxTruncate = entry[writeFunc](shimWrite), entry[truncateFunc](shimTruncate)
		m.FxSync, m.FxClose = entry[syncFunc](shimSync), entry[closeFunc](shimClose)
		shim.methods[f.FpMethods] = ours
	}
	shim.files[file] = &openFile{d, d.inode(filepath.Base(name)), at[sqlite3.Tsqlite3_io_methods](f.FpMethods)}
	f.FpMethods = ours
	return rc
}

func shimClose(tls *libc.TLS, file uintptr) int32 {
	f := fileOf(file)
	shim.mu.Lock()
	delete(shim.files, file) // before its address can be used again
	shim.mu.Unlock()
	return function[closeFunc](f.methods.FxClose)(tls, file)
}

func shimWrite(tls *libc.TLS, file, buf uintptr, n int32, offset int64) int32 {
	f := fileOf(file)
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	rc := function[writeFunc](f.methods.FxWrite)(tls, file, buf, n, offset)
	if rc == sqlite3.SQLITE_OK {
		data := unsafe.Slice(at[byte](buf), n)
		f.d.add(event{kind: wrote, ino: f.ino, at: offset, data: append([]byte(nil), data...)})
	}
	return rc
}

func shimTruncate(tls *libc.TLS, file uintptr, size int64) int32 {
	f := fileOf(file)
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	rc := function[truncateFunc](f.methods.FxTruncate)(tls, file, size)
	if rc == sqlite3.SQLITE_OK {
		f.d.add(event{kind: truncated, ino: f.ino, at: size})
	}
	return rc
}

// shimSync notes a sync when it has ended, for what was written before it began.
func shimSync(tls *libc.TLS, file uintptr, flags int32) int32 {
	f := fileOf(file)
	upTo := f.d.now()
	rc := function[syncFunc](f.methods.FxSync)(tls, file, flags)
	if rc == sqlite3.SQLITE_OK {
		f.d.mu.Lock()
		f.d.add(event{kind: synced, ino: f.ino, upTo: upTo})
		f.d.mu.Unlock()
	}
	dirSynced(tls)
	return rc
}

// shimOpenDirectory is called when SQLite is about to sync a directory.
func shimOpenDirectory(tls *libc.TLS, path, fd uintptr) int32 {
	if d := diskOf(libc.GoString(path)); d != nil {
		upTo := d.now()
		shim.mu.Lock()
		shim.dirSync[tls] = dirSyncs{d, upTo}
		shim.mu.Unlock()
	}
	return shim.dir(tls, path, fd)
}

// dirSynced notes that the directory which this thread opened has been synced.
func dirSynced(tls *libc.TLS) {
	shim.mu.Lock()
	s, ok := shim.dirSync[tls]
	delete(shim.dirSync, tls)
	shim.mu.Unlock()
	if ok {
		s.d.mu.Lock()
		s.d.add(event{kind: dirSync, upTo: s.upTo})
		s.d.mu.Unlock()
	}
}

func shimDelete(tls *libc.TLS, vfs, path uintptr, sync int32) int32 {
	name := libc.GoString(path)
	d := diskOf(name)
	real := function[deleteFunc](shim.real.FxDelete)
	if d == nil {
		return real(tls, vfs, path, sync)
	}
	rc := func() int32 {
		d.deleting.Lock() // shimOpenDirectory takes mu
		defer d.deleting.Unlock()
		rc := real(tls, vfs, path, sync)
		if rc == sqlite3.SQLITE_OK {
			d.unlink(filepath.Base(name))
		}
		return rc
	}()
	shim.mu.Lock()
	_, opened := shim.dirSync[tls]
	shim.mu.Unlock()
	if opened && rc == sqlite3.SQLITE_OK { // the deletion itself is synced, too
		shim.mu.Lock()
		shim.dirSync[tls] = dirSyncs{d, d.now()}
		shim.mu.Unlock()
		dirSynced(tls)
	}
	return rc
}
