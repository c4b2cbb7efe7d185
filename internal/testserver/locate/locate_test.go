package locate

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestLibraries(t *testing.T) {
	const out = `mariadb-server-core
  Depends: mariadb-common
  Depends: libaio1t64
  PreDepends: libc6
  Depends: libpam0g:any
 |Depends: libsystemd0
    libelogind0
  Depends: <libvirtual>
  Suggests: libsuggested
  Depends: libssl3
`
	want := []string{"libaio1t64", "libpam0g", "libssl3"}
	if got := libraries([]byte(out)); !slices.Equal(got, want) {
		t.Errorf("libraries = %v, want %v", got, want)
	}
}

// TestFindInCache unpacks a pretended program: what is neither on PATH nor
// where distributions put it comes from the cache, with its libraries.
func TestFindInCache(t *testing.T) {
	cache := t.TempDir()
	t.Setenv("MVALVE_TEST_CACHE", cache)
	const name = "mvalve-no-such-server"
	if _, err := find(name); !errors.Is(err, ErrNotFound) {
		t.Fatalf("empty cache: %v, want ErrNotFound", err)
	}
	root := filepath.Join(cache, rootName)
	libs := filepath.Join(root, "usr/lib/x86_64-linux-gnu")
	share := filepath.Join(root, "usr/share/mariadb")
	for _, dir := range []string{libs, share, filepath.Join(root, "usr/sbin")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(root, "usr/sbin", name)
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := find(name); !errors.Is(err, ErrNotFound) {
		t.Errorf("a file that cannot be run: %v, want ErrNotFound", err)
	}
	if err := os.Chmod(path, 0o755); err != nil {
		t.Fatal(err)
	}
	p, err := find(name)
	if err != nil {
		t.Fatal(err)
	}
	if p.Path != path || len(p.Env) != 1 || !strings.HasPrefix(p.Env[0], "LD_LIBRARY_PATH="+libs) {
		t.Errorf("found %+v, want %s with the libraries in %s", p, path, libs)
	}
	if _, err := p.Share(); err == nil {
		t.Error("Share without table files: no error")
	}
	if err := os.WriteFile(filepath.Join(share, "mariadb_system_tables.sql"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if dir, err := p.Share(); err != nil || dir != share {
		t.Errorf("Share = %s, %v; want %s", dir, err, share)
	}
}
