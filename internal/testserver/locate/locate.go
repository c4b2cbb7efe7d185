// Package locate finds the server programs that the tests start: on the machine,
// or unpacked from distribution packages in a cache folder. [Fetch] fills that
// folder without root. It starts nothing.
package locate

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// ErrNotFound says that neither the machine nor the cache folder has the program.
var ErrNotFound = errors.New("locate: program not found")

// Program is a server program and what it needs to run.
type Program struct {
	Path string
	// Env is added to the environment: the library path of unpacked packages.
	Env []string
}

// CacheDir is where unpacked packages and prepared data folders are kept:
// MVALVE_TEST_CACHE, else mvalve-test below the user's cache folder. Root keeps
// them in /var/cache instead, because servers do not run as root and other
// users may not enter root's home.
func CacheDir() (string, error) {
	if dir := os.Getenv("MVALVE_TEST_CACHE"); dir != "" {
		return filepath.Abs(dir)
	}
	if os.Geteuid() == 0 {
		return "/var/cache/mvalve-test", nil
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("locate: no cache folder, set MVALVE_TEST_CACHE: %w", err)
	}
	return filepath.Join(dir, "mvalve-test"), nil
}

// MariaDB finds mariadbd.
func MariaDB() (Program, error) { return find("mariadbd") }

// Memcached finds memcached.
func Memcached() (Program, error) { return find("memcached") }

// find looks on PATH first, then where distributions put daemons (which is
// often not on the PATH of a user), then in the cache folder.
func find(name string) (Program, error) {
	if path, err := exec.LookPath(name); err == nil && executable(path) {
		path, err = filepath.Abs(path)
		return Program{Path: path}, err
	}
	for _, dir := range []string{"/usr/sbin", "/usr/local/sbin", "/usr/libexec", "/usr/bin", "/usr/local/bin", "/opt/homebrew/bin"} {
		if path := filepath.Join(dir, name); executable(path) {
			return Program{Path: path}, nil
		}
	}
	cache, err := CacheDir()
	if err != nil {
		return Program{}, err
	}
	root := filepath.Join(cache, rootName)
	for _, dir := range []string{"usr/sbin", "usr/libexec", "usr/bin"} {
		if path := filepath.Join(root, dir, name); executable(path) {
			return Program{Path: path, Env: libraryPath(root)}, nil
		}
	}
	return Program{}, fmt.Errorf("%w: %s", ErrNotFound, name)
}

func executable(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o111 != 0
}

// libraryPath lists the folders below root that hold shared libraries.
func libraryPath(root string) []string {
	var dirs []string
	for _, pattern := range []string{"usr/lib/*-linux-*", "lib/*-linux-*", "usr/lib", "lib"} {
		found, _ := filepath.Glob(filepath.Join(root, pattern)) // only a bad pattern fails
		dirs = append(dirs, found...)
	}
	if len(dirs) == 0 {
		return nil
	}
	return []string{"LD_LIBRARY_PATH=" + strings.Join(dirs, ":")}
}

// Share returns the folder that holds MariaDB's SQL files and messages.
func (p Program) Share() (string, error) {
	prefix := filepath.Dir(filepath.Dir(p.Path))
	for _, name := range []string{"mysql", "mariadb"} {
		dir := filepath.Join(prefix, "share", name)
		for _, file := range []string{"mysql_system_tables.sql", "mariadb_system_tables.sql"} {
			if _, err := os.Stat(filepath.Join(dir, file)); err == nil {
				return dir, nil
			}
		}
	}
	return "", fmt.Errorf("locate: %s has no system table files below %s/share", p.Path, prefix)
}
