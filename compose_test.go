package mvalve_test

import (
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"gopkg.in/yaml.v3"
)

// compose is what the test looks at of docker-compose.yml.
type compose struct {
	Services map[string]service `yaml:"services"`
	Volumes  map[string]any     `yaml:"volumes"`
}

type service struct {
	Image       string            `yaml:"image"`
	Command     []string          `yaml:"command"`
	Environment map[string]string `yaml:"environment"`
	Ports       []string          `yaml:"ports"`
	Volumes     []string          `yaml:"volumes"`
	Healthcheck struct {
		Test        []string      `yaml:"test"`
		Interval    time.Duration `yaml:"interval"`
		Timeout     time.Duration `yaml:"timeout"`
		StartPeriod time.Duration `yaml:"start_period"`
		Retries     int           `yaml:"retries"`
	} `yaml:"healthcheck"`
}

func loadCompose(t *testing.T) compose {
	t.Helper()
	f, err := os.Open("docker-compose.yml")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var c compose
	if err := yaml.NewDecoder(f).Decode(&c); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestComposeServices(t *testing.T) {
	c := loadCompose(t)
	if len(c.Services) != 2 {
		t.Errorf("%d services, want mariadb and memcached", len(c.Services))
	}
	for name, image := range map[string]string{"mariadb": "mariadb:11", "memcached": "memcached:1."} {
		s, ok := c.Services[name]
		if !ok {
			t.Errorf("no service %s", name)
			continue
		}
		if !strings.HasPrefix(s.Image, image) {
			t.Errorf("%s: image %q, want %s", name, s.Image, image)
		}
		h := s.Healthcheck
		if len(h.Test) < 2 || h.Interval <= 0 || h.Timeout <= 0 || h.Retries < 1 {
			t.Errorf("%s: incomplete health check %+v", name, h)
		}
	}
	if !slices.Contains(c.Services["memcached"].Command, "-M") {
		t.Errorf("memcached runs %q without -M: it would evict limits silently", c.Services["memcached"].Command)
	}
	env := c.Services["mariadb"].Environment
	for _, name := range []string{"MARIADB_DATABASE", "MARIADB_USER", "MARIADB_PASSWORD"} {
		if env[name] == "" {
			t.Errorf("mariadb: %s is not set", name)
		}
	}
}

// A developer's own MariaDB or memcached keeps its port, and nothing is open to
// the network.
func TestComposePorts(t *testing.T) {
	usual := map[string]string{"mariadb": "3306", "memcached": "11211"}
	for name, s := range loadCompose(t).Services {
		if len(s.Ports) != 1 {
			t.Errorf("%s: ports %q, want one", name, s.Ports)
			continue
		}
		host, inside, ok := strings.Cut(strings.TrimPrefix(s.Ports[0], "127.0.0.1:"), ":")
		if !ok || inside != usual[name] || !strings.HasPrefix(s.Ports[0], "127.0.0.1:") {
			t.Errorf("%s: port %q, want 127.0.0.1:HOST:%s", name, s.Ports[0], usual[name])
		}
		if port, err := net.LookupPort("tcp", host); err != nil || host == usual[name] || port < 20000 {
			t.Errorf("%s: host port %s is one that others use", name, host)
		}
	}
}

// schema.sql is mounted where the image applies it to a new database.
func TestComposeMounts(t *testing.T) {
	c := loadCompose(t)
	mounted := false
	for _, v := range c.Services["mariadb"].Volumes {
		from, rest, _ := strings.Cut(v, ":")
		if !strings.HasPrefix(from, ".") {
			if _, named := c.Volumes[from]; !named {
				t.Errorf("volume %s is not declared", from)
			}
			continue
		}
		if _, err := os.Stat(filepath.FromSlash(from)); err != nil {
			t.Errorf("mount %s: %v", v, err)
		}
		mounted = mounted || from == "./schema.sql" && rest == "/docker-entrypoint-initdb.d/schema.sql:ro"
	}
	if !mounted {
		t.Errorf("schema.sql is not mounted: %q", c.Services["mariadb"].Volumes)
	}
}
