// Package foreign proves mvalve serve with other people's STOMP clients: its
// tests run the built command as a process and talk to it with go-stomp, with
// @stomp/stompjs in Node over WebSocket and TCP, with Perl's Net::Stomp and with
// Python's stomp.py. What differs between clients is the point; what the
// protocol asks of a server is tested in package stomp.
//
// The code here finds those clients: installed, or in the cache folder of the
// tests, which [Fetch] fills without root.
package foreign

import (
	"context"
	"crypto/sha256"
	_ "embed"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/mvalve/mvalve/internal/testserver/locate"
)

// The modules for Node, with the hashes of their archives.
var (
	//go:embed testdata/node/package.json
	manifest []byte
	//go:embed testdata/node/package-lock.json
	lock []byte
)

// unpacked is the folder below locate.CacheDir for the packages of the
// distribution.
const unpacked = "clients"

// Node finds node and the modules of testdata/node.
func Node() (locate.Program, error) {
	path, err := exec.LookPath("node")
	if err != nil {
		return locate.Program{}, fmt.Errorf("%w: node: install Node 18 or newer", locate.ErrNotFound)
	}
	modules, err := nodeModules()
	if err != nil {
		return locate.Program{}, err
	}
	if _, err := os.Stat(modules); err != nil {
		return locate.Program{}, fmt.Errorf("%w: modules for node", locate.ErrNotFound)
	}
	return locate.Program{Path: path, Env: []string{"NODE_PATH=" + modules}}, nil
}

// nodeModules is where the modules of exactly this lock file are kept.
func nodeModules() (string, error) {
	cache, err := locate.CacheDir()
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(append(append([]byte{}, manifest...), lock...))
	return filepath.Join(cache, fmt.Sprintf("node-%x", sum[:6]), "node_modules"), nil
}

// Perl finds a perl that has Net::Stomp.
func Perl() (locate.Program, error) {
	env, err := unpackedPath("PERL5LIB", "usr/share/perl5", "usr/lib/*/perl5/*")
	if err != nil {
		return locate.Program{}, err
	}
	// The packages are for the distribution's own program.
	return try([]string{"/usr/bin/perl", "perl"}, env, "-MNet::Stomp", "-e1")
}

// Python finds a Python that has stomp.py.
func Python() (locate.Program, error) {
	env, err := unpackedPath("PYTHONPATH", "usr/lib/python3/dist-packages")
	if err != nil {
		return locate.Program{}, err
	}
	return try([]string{"/usr/bin/python3", "python3"}, env, "-c", "import stomp; stomp.Connection12")
}

// unpackedPath is a search path with the folders below the unpacked packages.
func unpackedPath(variable string, patterns ...string) ([]string, error) {
	cache, err := locate.CacheDir()
	if err != nil {
		return nil, err
	}
	var dirs []string
	for _, pattern := range patterns {
		found, _ := filepath.Glob(filepath.Join(cache, unpacked, pattern)) // only a bad pattern fails
		dirs = append(dirs, found...)
	}
	if len(dirs) == 0 {
		return nil, nil
	}
	if own := os.Getenv(variable); own != "" {
		dirs = append(dirs, own)
	}
	return []string{variable + "=" + strings.Join(dirs, ":")}, nil
}

// try returns the first of the programs that runs with the arguments.
func try(names, env []string, args ...string) (locate.Program, error) {
	var tried []string
	for _, name := range names {
		path, err := exec.LookPath(name)
		if err != nil {
			continue
		}
		cmd := exec.Command(path, args...) //nolint:noctx // it loads a library and ends
		cmd.Env = append(os.Environ(), env...)
		if err := cmd.Run(); err == nil {
			return locate.Program{Path: path, Env: env}, nil
		}
		tried = append(tried, path)
	}
	return locate.Program{}, fmt.Errorf("%w: %s %s (%v)", locate.ErrNotFound, names[len(names)-1], strings.Join(args, " "), tried)
}

// Fetch brings the clients that are missing into the cache folder: modules with
// npm, the rest from packages of the distribution. Node, npm, perl and python3
// themselves must be there. Progress goes to log.
func Fetch(ctx context.Context, log io.Writer) error {
	if _, err := Node(); err != nil {
		if err := fetchModules(ctx, log); err != nil {
			return err
		}
	}
	_, noPerl := Perl()
	_, noPython := Python()
	if noPerl == nil && noPython == nil {
		return nil
	}
	return locate.Unpack(ctx, log, unpacked, "libnet-stomp-perl", "python3-stomp")
}

// fetchModules has npm install what the lock file says, no scripts, and puts
// the complete folder in its place.
func fetchModules(ctx context.Context, log io.Writer) error {
	modules, err := nodeModules()
	if err != nil {
		return err
	}
	to := filepath.Dir(modules)
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	work, err := os.MkdirTemp(filepath.Dir(to), "npm-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	if err := os.Chmod(work, 0o755); err != nil {
		return err
	}
	for name, text := range map[string][]byte{"package.json": manifest, "package-lock.json": lock} {
		if err := os.WriteFile(filepath.Join(work, name), text, 0o644); err != nil {
			return err
		}
	}
	fmt.Fprintln(log, "fetching modules for node")
	cmd := exec.CommandContext(ctx, "npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error")
	cmd.Dir, cmd.Stderr = work, log
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("foreign: npm ci: %w", err)
	}
	if err := os.Rename(work, to); err != nil && !os.IsExist(err) {
		return err
	}
	return nil
}
