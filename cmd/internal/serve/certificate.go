package serve

import (
	"crypto/tls"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/mvalve/mvalve/cmd/internal/setup"
)

// recheck is how long a certificate is used without a look at its file.
var recheck = 10 * time.Second // tests lower it

// certificate is the server's certificate; it follows its files when they
// change, so that a renewal needs no restart.
type certificate struct {
	cert, key string // files
	log       *slog.Logger

	mu      sync.Mutex
	loaded  *tls.Certificate
	times   [2]time.Time // of the files when loaded
	checked time.Time
}

func openCertificate(cert, key string, log *slog.Logger) (*certificate, error) {
	c := &certificate{cert: cert, key: key, log: log}
	if err := c.load(); err != nil {
		return nil, setup.Failf(setup.ExitInput, "--tls-cert, --tls-key: %w", err)
	}
	return c, nil
}

// config returns what a listener needs; next are its protocols, as in ALPN.
func (c *certificate) config(next ...string) *tls.Config {
	return &tls.Config{GetCertificate: c.get, MinVersion: tls.VersionTLS12, NextProtos: next}
}

func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Since(c.checked) > recheck && c.changed() {
		if err := c.load(); err != nil {
			c.log.Error("renewed certificate not usable, the old one stays", "err", err)
		} else {
			c.log.Info("certificate renewed")
		}
	}
	return c.loaded, nil
}

func (c *certificate) changed() bool {
	c.checked = time.Now()
	times, err := c.modified()
	return err == nil && times != c.times
}

func (c *certificate) modified() (times [2]time.Time, err error) {
	for i, name := range []string{c.cert, c.key} {
		info, err := os.Stat(name)
		if err != nil {
			return times, err
		}
		times[i] = info.ModTime()
	}
	return times, nil
}

func (c *certificate) load() error {
	times, err := c.modified()
	if err != nil {
		return err
	}
	pair, err := tls.LoadX509KeyPair(c.cert, c.key)
	if err != nil {
		return err
	}
	c.loaded, c.times, c.checked = &pair, times, time.Now()
	return nil
}
