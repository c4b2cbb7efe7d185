package memcached

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
)

// watchInterval is how often a server is asked whether it evicted values, and
// so how long an eviction may go unnoticed. Servers run with -M evict nothing.
const watchInterval = time.Second

// watchEvictions raises the marker of a server that evicted since the marker
// was written: any value that is missing now may have been evicted.
func (s *Store) watchEvictions(srv *server) {
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	reachable := true
	for {
		ctx, done := s.begin(s.closed)
		err := s.checkEvictions(ctx, srv)
		done()
		if s.closed.Err() != nil {
			return
		}
		switch {
		case err != nil && reachable:
			s.log.Error("memcached server does not answer; its destinations wait", "server", srv.name, "err", err)
		case err == nil && !reachable:
			s.log.Info("memcached server answers again", "server", srv.name)
		}
		reachable = err == nil
		select {
		case <-tick.C:
		case <-s.closed.Done():
			return
		}
	}
}

// checkEvictions looks once.
func (s *Store) checkEvictions(ctx context.Context, srv *server) error {
	count, err := srv.evictions(ctx)
	if err != nil {
		return err
	}
	snap, err := s.read(ctx, srv, nil)
	if err != nil {
		return err
	}
	if count <= snap.marker.evictions {
		return nil
	}
	lost, err := s.cfg.MarkerTime(ctx)
	if err != nil {
		return err
	}
	m := snap.marker
	m.evictions = count
	if lost.After(m.lost) {
		m.lost = lost
	}
	err = srv.do(ctx, func(c *memcache.Client) error {
		return c.CompareAndSwap(&memcache.Item{Key: srv.marker, Value: m.encode(), CasID: snap.marker.item.CasID})
	})
	if others(err) {
		return nil // another reader noticed first
	}
	if err == nil {
		s.log.Warn("memcached server evicts values: give it more memory and start it with -M", "server", srv.name, "evictions", count, "lost", m.lost)
	}
	return err
}

// maxStats bounds the answer to stats; real ones have some 3 KiB.
const maxStats = 64 << 10

// evictions asks the server how many values it has thrown out since its start.
// The client library has no such call, so this one has its own connection.
func (srv *server) evictions(ctx context.Context) (count uint64, err error) {
	conn, err := srv.dialer.DialContext(ctx, srv.Network(), srv.String())
	if err != nil {
		return 0, &dialError{err}
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if _, err := io.WriteString(conn, "stats\r\n"); err != nil {
		return 0, err
	}
	found := false
	answer := bufio.NewScanner(io.LimitReader(conn, maxStats))
	for answer.Scan() {
		line := answer.Text()
		if line == "END" {
			if !found {
				return 0, errors.New("stats name no evictions: is this memcached?")
			}
			return count, nil
		}
		name, value, ok := strings.Cut(strings.TrimPrefix(line, "STAT "), " ")
		if !ok {
			return 0, fmt.Errorf("unexpected answer to stats: %q", line)
		}
		if name == "evictions" {
			if count, err = strconv.ParseUint(value, 10, 64); err != nil {
				return 0, fmt.Errorf("stats: %w", err)
			}
			found = true
		}
	}
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	return 0, errors.Join(io.ErrUnexpectedEOF, answer.Err())
}
