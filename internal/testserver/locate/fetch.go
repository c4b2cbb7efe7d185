package locate

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// rootName is the folder below CacheDir into which packages are unpacked.
const rootName = "root"

// wanted are the packages with the programs; the libraries they need follow
// from their dependencies.
var wanted = []string{"mariadb-server-core", "memcached"}

// never is what must come from the machine: the C library belongs to the dynamic
// loader that is already there, and a second one would not match it.
var never = []string{"libc6", "libc-bin"}

// errNoApt says that packages cannot be fetched here.
var errNoApt = errors.New("locate: not a Debian with apt-get, apt-cache and dpkg-deb")

// Fetch downloads the servers and their libraries as packages of this machine's
// distribution and unpacks them below CacheDir. It needs no root: apt-get keeps
// its lists and archives in the cache folder too. It is for Debian and its
// children; elsewhere it says what to install. Progress goes to log.
func Fetch(ctx context.Context, log io.Writer) error {
	err := Unpack(ctx, log, rootName, wanted...)
	if errors.Is(err, errNoApt) {
		return fmt.Errorf("%w: install MariaDB (mariadbd) and memcached, or set MVALVE_TEST_MYSQL and MVALVE_TEST_MEMCACHED", err)
	}
	return err
}

// Unpack downloads packages of this machine's distribution, with the libraries
// that they depend on, as Fetch does, and unpacks them into the folder name
// below CacheDir, in the place of what was there.
func Unpack(ctx context.Context, log io.Writer, name string, wanted ...string) error {
	for _, tool := range []string{"apt-get", "apt-cache", "dpkg-deb"} {
		if _, err := exec.LookPath(tool); err != nil {
			return errNoApt
		}
	}
	cache, err := CacheDir()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return fmt.Errorf("locate: %w", err)
	}
	work, err := os.MkdirTemp(cache, "fetch-")
	if err != nil {
		return fmt.Errorf("locate: %w", err)
	}
	defer os.RemoveAll(work)
	a := apt{dir: work, log: log}
	packages, err := a.resolve(ctx, wanted)
	if err != nil {
		return err
	}
	if err := a.download(ctx, packages); err != nil {
		return err
	}
	root := filepath.Join(work, "root")
	if err := a.unpack(ctx, root); err != nil {
		return err
	}
	return install(root, filepath.Join(cache, name))
}

// install puts a complete tree in place; a reader sees the old or the new one.
func install(from, to string) error {
	if err := os.Chmod(from, 0o755); err != nil {
		return fmt.Errorf("locate: %w", err)
	}
	old := from + ".old"
	if err := os.Rename(to, old); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("locate: %w", err)
	}
	if err := os.Rename(from, to); err != nil {
		return fmt.Errorf("locate: %w", err)
	}
	return nil
}

// apt runs the package tools with all state in one private folder.
type apt struct {
	dir string
	log io.Writer
}

// options point apt at private folders for everything it writes; its sources,
// keys and the list of installed packages stay the machine's.
func (a apt) options() []string {
	return []string{
		"-o", "Dir::State::Lists=" + filepath.Join(a.dir, "lists"),
		"-o", "Dir::Cache=" + filepath.Join(a.dir, "cache"),
		"-o", "Dir::Log=" + filepath.Join(a.dir, "log"),
		"-o", "Debug::NoLocking=true",
		"-o", "APT::Sandbox::User=",
		"-o", "Acquire::Languages=none",
		"-o", "Acquire::Retries=3",
	}
}

// resolve updates the private lists and returns the wanted packages with the
// libraries below them.
func (a apt) resolve(ctx context.Context, wanted []string) ([]string, error) {
	for _, dir := range []string{"lists/partial", "cache/archives/partial", "log", "debs"} {
		if err := os.MkdirAll(filepath.Join(a.dir, dir), 0o755); err != nil {
			return nil, fmt.Errorf("locate: %w", err)
		}
	}
	fmt.Fprintln(a.log, "fetching package lists")
	if _, err := a.run(ctx, a.dir, "apt-get", append(a.options(), "-qq", "update")...); err != nil {
		return nil, err
	}
	packages, next := slices.Clone(wanted), wanted
	for len(next) > 0 {
		args := append(a.options(), "depends", "--no-recommends", "--no-suggests", "--no-conflicts", "--no-breaks", "--no-replaces", "--no-enhances")
		out, err := a.run(ctx, a.dir, "apt-cache", append(args, next...)...)
		if err != nil {
			return nil, err
		}
		next = nil
		for _, name := range libraries(out) {
			if !slices.Contains(packages, name) {
				packages, next = append(packages, name), append(next, name)
			}
		}
	}
	return packages, nil
}

// libraries picks the library packages from the output of apt-cache depends.
// Virtual packages (in angle brackets) and alternatives after | are left out.
func libraries(depends []byte) []string {
	var names []string
	lines := bufio.NewScanner(bytes.NewReader(depends))
	for lines.Scan() {
		kind, name, ok := strings.Cut(strings.TrimSpace(lines.Text()), ": ")
		if !ok || (kind != "Depends" && kind != "PreDepends") {
			continue
		}
		name, _, _ = strings.Cut(name, ":") // name:arch
		if strings.HasPrefix(name, "lib") && !slices.Contains(never, name) {
			names = append(names, name)
		}
	}
	return names
}

func (a apt) download(ctx context.Context, packages []string) error {
	fmt.Fprintln(a.log, "fetching", strings.Join(packages, " "))
	args := append(a.options(), "-qq", "download")
	_, err := a.run(ctx, filepath.Join(a.dir, "debs"), "apt-get", append(args, packages...)...)
	return err
}

func (a apt) unpack(ctx context.Context, root string) error {
	debs, err := filepath.Glob(filepath.Join(a.dir, "debs", "*.deb"))
	if err != nil {
		return fmt.Errorf("locate: %w", err)
	}
	if len(debs) == 0 {
		return errors.New("locate: apt-get downloaded no package")
	}
	for _, deb := range debs {
		if _, err := a.run(ctx, a.dir, "dpkg-deb", "-x", deb, root); err != nil {
			return err
		}
	}
	return nil
}

// run returns what the tool printed; its complaints become part of the error.
func (a apt) run(ctx context.Context, dir, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C")
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("locate: %s: %w: %s", name, err, strings.TrimSpace(stderr.String()))
	}
	return out, nil
}
