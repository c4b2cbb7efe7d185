package testserver

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"github.com/mvalve/mvalve/internal/testserver/locate"
)

// mariadbOptions are the options of every start: no configuration files, little
// memory, and the durability that production has.
func mariadbOptions(bin locate.Program, data string) ([]string, error) {
	share, err := bin.Share()
	if err != nil {
		return nil, err
	}
	return []string{
		"--no-defaults", // must be first
		"--datadir=" + data,
		"--tmpdir=" + data,
		"--lc-messages-dir=" + share,
		"--character-sets-dir=" + filepath.Join(share, "charsets"),
		"--pid-file=" + filepath.Join(data, "pid"),
		"--innodb-flush-log-at-trx-commit=1",
		"--innodb-buffer-pool-size=64M",
		"--innodb-log-file-size=32M",
		"--innodb-log-buffer-size=8M",
		"--loose-innodb-fast-shutdown=1",
		"--aria-pagecache-buffer-size=1M",
		"--key-buffer-size=1M",
		"--max-connections=500",
		"--skip-name-resolve",
		"--skip-log-bin",
		"--loose-skip-performance-schema",
	}, nil
}

// copyTemplate makes a data folder from a prepared one in the cache: copying
// takes a fraction of the time that creating the system tables takes. The
// template is named for the program and the options, so that an upgrade makes
// a new one; without a usable cache each server creates its own tables.
func copyTemplate(bin locate.Program, data string) error {
	cache, err := locate.CacheDir()
	if err != nil {
		return bootstrap(bin, data)
	}
	version, err := programVersion(bin)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return bootstrap(bin, data)
	}
	sum := sha256.Sum256([]byte(version + bootstrapAccount))
	template := filepath.Join(cache, "mariadb-"+hex.EncodeToString(sum[:8]))
	lock, err := lockFile(filepath.Join(cache, "lock"), syscall.LOCK_EX)
	if err != nil {
		return bootstrap(bin, data)
	}
	defer lock.Close()
	if _, err := os.Stat(template); err != nil {
		if err := makeTemplate(bin, template); err != nil {
			return err
		}
	}
	return copyTree(template, data)
}

// makeTemplate runs in our own temporary folder, which the servers' user may
// enter, and moves the result into the cache by copy and rename.
func makeTemplate(bin locate.Program, template string) error {
	dir, err := os.MkdirTemp("", dirPrefix)
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := chownServer(dir); err != nil {
		return err
	}
	made := filepath.Join(dir, "data")
	if err := bootstrap(bin, made); err != nil {
		return err
	}
	half := template + ".new"
	if err := os.RemoveAll(half); err != nil {
		return err
	}
	if err := copyTree(made, half); err != nil {
		return err
	}
	return os.Rename(half, template)
}

// programVersion tells builds apart: what the program says, and its file.
func programVersion(bin locate.Program) (string, error) {
	cmd := exec.Command(bin.Path, "--version")
	cmd.Env = append(os.Environ(), bin.Env...)
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s --version: %w", bin.Path, err)
	}
	info, err := os.Stat(bin.Path)
	if err != nil {
		return "", err
	}
	return fmt.Sprint(string(out), info.Size(), info.ModTime().UnixNano()), nil
}

// bootstrapAccount replaces the accounts of a fresh installation by ours.
const bootstrapAccount = "FLUSH PRIVILEGES;\n" +
	"CREATE USER '" + mariadbUser + "'@'%' IDENTIFIED BY '" + mariadbPassword + "';\n" +
	"GRANT ALL ON *.* TO '" + mariadbUser + "'@'%' WITH GRANT OPTION;\n" +
	"DROP USER IF EXISTS 'root'@'localhost', 'mariadb.sys'@'localhost';\n"

// bootstrap creates the system tables in the new folder data. It feeds the
// server's own SQL files to it, as the distribution's install script does,
// which cannot be used: it wants a user, paths and tools of an installation.
func bootstrap(bin locate.Program, data string) error {
	share, err := bin.Share()
	if err != nil {
		return err
	}
	var script bytes.Buffer
	script.WriteString("CREATE DATABASE mysql;\nUSE mysql;\nSET @auth_root_socket=NULL;\nSET @skip_auth_anonymous=1;\n")
	for _, part := range []string{"system_tables", "performance_tables", "system_tables_data"} {
		text, err := readEither(filepath.Join(share, "mysql_"+part+".sql"), filepath.Join(share, "mariadb_"+part+".sql"))
		if err != nil {
			return err
		}
		script.Write(text)
		script.WriteByte('\n')
	}
	script.WriteString(bootstrapAccount)
	if err := os.Mkdir(data, 0o700); err != nil {
		return err
	}
	if err := chownServer(data); err != nil {
		return err
	}
	options, err := mariadbOptions(bin, data)
	if err != nil {
		return err
	}
	cmd := exec.Command(bin.Path, append(options, "--bootstrap", "--loose-skip-networking")...)
	cmd.Env = append(os.Environ(), bin.Env...)
	cmd.Stdin = &script
	if cmd.SysProcAttr, err = attributes(); err != nil {
		return err
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("create system tables: %w: %s", err, out[max(0, len(out)-2000):])
	}
	return nil
}

// readEither reads the first of two names: MariaDB 11 renamed its files.
func readEither(a, b string) ([]byte, error) {
	text, err := os.ReadFile(a)
	if os.IsNotExist(err) {
		return os.ReadFile(b)
	}
	return text, err
}

// copyTree copies a data folder for the servers' user.
func copyTree(from, to string) error {
	return filepath.WalkDir(from, func(path string, entry os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		target := filepath.Join(to, rel)
		switch {
		case entry.IsDir():
			err = os.Mkdir(target, 0o700)
		case entry.Type().IsRegular():
			err = copyFile(path, target)
		default:
			return nil
		}
		if err != nil {
			return err
		}
		return chownServer(target)
	})
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		out.Close()
		return err
	}
	return out.Close()
}
