package setup

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/mvalve/mvalve/queue"
)

// rulingKey is where q_meta says which store counts a pipe's limits.
const rulingKey = "limiter"

// alive is how long ago a reader may have been seen to count as alive.
const alive = 10 * time.Second

// Ruling names the one store that counts a pipe's limits. It holds no secrets.
type Ruling struct {
	Scheme  string   `json:"scheme"` // queue, memory or memcached
	Servers []string `json:"servers,omitempty"`
	Pipe    string   `json:"pipe"`  // keeps pipes apart that share servers
	Epoch   int64    `json:"epoch"` // raised by every change; 1 is the first
	Since   int64    `json:"since"` // microseconds UTC on the back end's clock
}

// String returns the ruling in the form of --state.
func (r Ruling) String() string {
	if r.Scheme == "memcached" {
		return "memcached://" + strings.Join(r.Servers, ",")
	}
	return r.Scheme + ":"
}

// same reports whether two rulings name the same store; the order of servers
// does not matter, since keys find their server by rendezvous hashing.
func (r Ruling) same(other Ruling) bool {
	return r.Scheme == other.Scheme && slices.Equal(slices.Sorted(slices.Values(r.Servers)), slices.Sorted(slices.Values(other.Servers)))
}

// StateFlag is --state.
func StateFlag() cli.Flag {
	return &cli.StringFlag{
		Name:        "state",
		DefaultText: "what the pipe says, else queue:",
		Usage:       "`URL` of the store in which all readers of the pipe count its limits: queue: (the queue's own database), memcached://host:port,host:port, or memory: (one reader only)",
	}
}

// ParseState reads the value of --state.
func ParseState(text string) (Ruling, error) {
	const form = "use queue:, memory: or memcached://host:port,host:port"
	switch {
	case text == "queue:" || text == "memory:":
		return Ruling{Scheme: strings.TrimSuffix(text, ":")}, nil
	case strings.HasPrefix(text, "memcached://"):
		r := Ruling{Scheme: "memcached"}
		list := strings.TrimSuffix(strings.TrimPrefix(text, "memcached://"), "/")
		for server := range strings.SplitSeq(list, ",") {
			if strings.ContainsAny(server, "@/?") {
				return Ruling{}, Usagef("--state: a server is neither host nor host:port; %s", form)
			}
			host, port, err := net.SplitHostPort(server)
			if err != nil {
				host, port = strings.Trim(server, "[]"), "11211"
			}
			if !isHost(host) || strings.Trim(port, "0123456789") != "" || port == "" {
				return Ruling{}, Usagef("--state: server %q is not host:port; %s", server, form)
			}
			r.Servers = append(r.Servers, net.JoinHostPort(host, port))
		}
		return r, nil
	}
	scheme, _, _ := strings.Cut(text, ":")
	return Ruling{}, Usagef("--state: unknown scheme %.40q; %s", scheme, form)
}

// isHost reports whether s can be a host: an IP address or a name. Anything else,
// such as a stray bracket, would be read as another server once it is stored.
func isHost(s string) bool {
	if net.ParseIP(s) != nil {
		return true
	}
	odd := func(c rune) bool {
		return !(c == '.' || c == '-' || c == '_' || '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z')
	}
	return s != "" && !strings.ContainsFunc(s, odd)
}

// readRuling returns what q_meta says and its stored form, "" if nothing yet.
func readRuling(ctx context.Context, meta queue.Meta) (Ruling, string, error) {
	stored, err := meta.Meta(ctx, rulingKey)
	if err != nil || stored == "" {
		return Ruling{}, stored, err
	}
	var r Ruling
	if err := json.Unmarshal([]byte(stored), &r); err != nil {
		return Ruling{}, stored, fmt.Errorf("%w: q_meta %s is damaged: %w", queue.ErrSchema, rulingKey, err)
	}
	return r, stored, nil
}

// Rule settles which store counts the pipe's limits: the first reader says so,
// all others follow. wanted is the value of --state, "" for whatever rules.
// A store other than the one that rules is refused with exit code 78.
func (p *Pipe) Rule(ctx context.Context, wanted string) (Ruling, error) {
	want := Ruling{Scheme: "queue"}
	if p.Name == "memory:" {
		want.Scheme = "memory"
	}
	if wanted != "" {
		var err error
		if want, err = ParseState(wanted); err != nil {
			return Ruling{}, err
		}
	}
	meta, ok := p.Store.(queue.Meta)
	if !ok {
		return want, nil
	}
	rules, stored, err := readRuling(ctx, meta)
	if err != nil {
		return Ruling{}, fmt.Errorf("read which store counts the limits: %w", err)
	}
	if stored == "" {
		if rules, err = p.setRuling(ctx, meta, "", want, Ruling{}); err != nil {
			return Ruling{}, err
		}
	}
	if wanted != "" && !want.same(rules) {
		return Ruling{}, Failf(ExitMismatch, "--state %s, but the limits of this pipe are counted in %s; leave --state out, or move the pipe with: mvalve init --queue %s --state %s", want, rules, p.Name, want)
	}
	if rules.Scheme == "memory" {
		if err := p.refuseLive(ctx, "memory: counts for one reader only, and"); err != nil {
			return Ruling{}, err
		}
	}
	return rules, nil
}

// Move makes wanted the store that counts, as `mvalve init --state` does, and
// reports whether that changed anything. A change raises the epoch: readers that
// run switch to it within two seconds, and everything counted before is taken
// as lost.
func (p *Pipe) Move(ctx context.Context, wanted string) (Ruling, bool, error) {
	want, err := ParseState(wanted)
	if err != nil {
		return Ruling{}, false, err
	}
	meta, ok := p.Store.(queue.Meta)
	if !ok {
		return Ruling{}, false, Usagef("queue %s does not keep which store counts", p.Name)
	}
	rules, stored, err := readRuling(ctx, meta)
	if err != nil {
		return Ruling{}, false, err
	}
	if stored != "" && want.same(rules) {
		return rules, false, nil
	}
	if want.Scheme == "memory" {
		if err := p.refuseLive(ctx, "the pipe cannot move to memory: while"); err != nil {
			return Ruling{}, false, err
		}
	}
	now, err := p.setRuling(ctx, meta, stored, want, rules)
	if err == nil && !want.same(now) {
		err = Failf(ExitMismatch, "somebody else just moved the pipe to %s; try again", now)
	}
	return now, true, err
}

// setRuling replaces before, stored as old, and returns what then stands.
func (p *Pipe) setRuling(ctx context.Context, meta queue.Meta, old string, want, before Ruling) (Ruling, error) {
	now, err := p.Store.Now(ctx)
	if err != nil {
		return Ruling{}, err
	}
	want.Pipe, want.Epoch, want.Since = before.Pipe, before.Epoch+1, queue.Micros(now)
	if want.Pipe == "" {
		want.Pipe = rand.Text()[:12]
	}
	if want.Scheme == "memcached" { // a pipe whose limits nobody can count would stand still
		probe, err := p.openState(ctx, want)
		if err != nil {
			return Ruling{}, fmt.Errorf("state %s: %w; check that the servers run and the addresses are right", want, err)
		}
		_ = probe.Close()
	}
	value, err := json.Marshal(want)
	if err != nil {
		return Ruling{}, err
	}
	stands, err := meta.SetMeta(ctx, rulingKey, old, string(value))
	if err != nil {
		return Ruling{}, fmt.Errorf("store which store counts the limits: %w", err)
	}
	var ruling Ruling
	if err := json.Unmarshal([]byte(stands), &ruling); err != nil {
		return Ruling{}, fmt.Errorf("%w: q_meta %s is damaged: %w", queue.ErrSchema, rulingKey, err)
	}
	return ruling, nil
}

// refuseLive returns an error of exit code 78 when another reader is alive.
func (p *Pipe) refuseLive(ctx context.Context, why string) error {
	readers, now, err := p.readers(ctx, alive)
	if err != nil || len(readers) == 0 {
		return err
	}
	r := readers[0]
	return Failf(ExitMismatch, "%s reader %d on %s was alive %.1f s ago; stop it, or use --state queue:", why, r.PID, r.Host, now.Sub(r.SeenAt).Seconds())
}

// readers returns the readers seen within the last d.
func (p *Pipe) readers(ctx context.Context, d time.Duration) ([]queue.Presence, time.Time, error) {
	registry, ok := p.Store.(queue.Registry)
	if !ok {
		return nil, time.Time{}, nil
	}
	now, err := p.Store.Now(ctx)
	if err != nil {
		return nil, now, err
	}
	readers, err := registry.Announce(ctx, now, now.Add(-d), queue.Presence{})
	if err != nil {
		return nil, now, fmt.Errorf("look for live readers: %w", err)
	}
	return readers, now, nil
}

// Ruling returns which store counts the pipe's limits without claiming it: what
// q_meta says, else what the first reader would choose.
func (p *Pipe) Ruling(ctx context.Context) (Ruling, error) {
	meta, ok := p.Store.(queue.Meta)
	if !ok {
		return Ruling{Scheme: "memory"}, nil
	}
	ruling, stored, err := readRuling(ctx, meta)
	if err == nil && stored == "" {
		ruling = Ruling{Scheme: "queue", Epoch: 1}
	}
	return ruling, err
}

// Readers returns how many readers are alive.
func (p *Pipe) Readers(ctx context.Context) (int, error) {
	readers, _, err := p.readers(ctx, alive)
	return len(readers), err
}
