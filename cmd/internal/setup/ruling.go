package setup

import (
	"context"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/state/ruling"
)

// alive is how long ago a reader may have been seen to count as alive.
const alive = 10 * time.Second

// Ruling names the one store that counts a pipe's limits.
type Ruling = ruling.Ruling

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
		r := Ruling{Scheme: ruling.Memcached}
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
	for _, c := range s {
		if c != '.' && c != '-' && c != '_' && (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') {
			return false
		}
	}
	return s != ""
}

// Rule settles which store counts the pipe's limits: the first reader says so,
// all others follow. wanted is the value of --state, "" for whatever rules.
// A store other than the one that rules is refused with exit code 78.
func (p *Pipe) Rule(ctx context.Context, wanted string) (Ruling, error) {
	want := Ruling{Scheme: ruling.Queue}
	if p.Name == "memory:" {
		want.Scheme = ruling.Memory
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
	rules, stored, err := ruling.Read(ctx, meta)
	if err != nil {
		return Ruling{}, fmt.Errorf("read which store counts the limits: %w", err)
	}
	if stored == "" {
		if rules, err = p.setRuling(ctx, meta, "", want, Ruling{}); err != nil {
			return Ruling{}, err
		}
	}
	if wanted != "" && !want.Same(rules) {
		return Ruling{}, Failf(ExitMismatch, "--state %s, but the limits of this pipe are counted in %s; leave --state out, or move the pipe with: mvalve init --queue %s --state %s", want, rules, p.Name, want)
	}
	if rules.Scheme == ruling.Memory {
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
	rules, stored, err := ruling.Read(ctx, meta)
	if err != nil {
		return Ruling{}, false, err
	}
	if stored != "" && want.Same(rules) {
		return rules, false, nil
	}
	if want.Scheme == ruling.Memory {
		if err := p.refuseLive(ctx, "the pipe cannot move to memory: while"); err != nil {
			return Ruling{}, false, err
		}
	}
	now, err := p.setRuling(ctx, meta, stored, want, rules)
	if err == nil && !want.Same(now) {
		err = Failf(ExitMismatch, "somebody else just moved the pipe to %s; try again", now)
	}
	return now, true, err
}

// setRuling replaces before, stored as old, and returns what then stands.
func (p *Pipe) setRuling(ctx context.Context, meta queue.Meta, old string, want, before Ruling) (Ruling, error) {
	next, err := ruling.Next(ctx, p.Store, want, before)
	if err != nil {
		return Ruling{}, err
	}
	if next.Scheme == ruling.Memcached { // a pipe whose limits nobody can count would stand still
		probe, err := p.openState(ctx, next)
		if err != nil {
			return Ruling{}, fmt.Errorf("state %s: %w; check that the servers run and the addresses are right", want, err)
		}
		_ = probe.Close()
	}
	return ruling.Set(ctx, meta, old, next)
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
		return Ruling{Scheme: ruling.Memory}, nil
	}
	rules, stored, err := ruling.Read(ctx, meta)
	if err == nil && stored == "" {
		rules = Ruling{Scheme: ruling.Queue, Epoch: 1}
	}
	return rules, err
}

// Readers returns how many readers are alive.
func (p *Pipe) Readers(ctx context.Context) (int, error) {
	readers, _, err := p.readers(ctx, alive)
	return len(readers), err
}
