package chaos_test

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"slices"
	"syscall"
	"time"

	"github.com/mvalve/mvalve/internal/testserver"
)

// kind is one way to make trouble.
type kind struct {
	name   string
	key    string // of what it troubles: one trouble at a time for each
	weight int
	longer bool // may last longer than a lease
	// start makes the trouble. undo ends it, nil if nothing is left to end; ok is
	// false if it could not be made now, or not for sure: with undo it may have been.
	start func(rng *rand.Rand) (undo func(), ok bool)
}

// step is one round of the plan.
type step struct {
	wait, lasts time.Duration
	kind        int
	seed        uint64
}

// plan says from the seed alone what happens when. The first troubles are of
// each kind, in random order, as far as there are rounds.
func plan(seed uint64, rounds int, kinds []kind, pace time.Duration) []step {
	rng := rand.New(rand.NewPCG(seed, 1))
	var wheel []int
	for i, k := range kinds {
		for range k.weight {
			wheel = append(wheel, i)
		}
	}
	first := rng.Perm(len(kinds))
	steps := make([]step, rounds)
	for i := range steps {
		s := &steps[i]
		s.wait = pace/2 + time.Duration(rng.Int64N(int64(pace)))
		s.lasts = 50*time.Millisecond + time.Duration(rng.Int64N(int64(800*time.Millisecond)))
		s.seed = rng.Uint64()
		if s.kind = wheel[rng.IntN(len(wheel))]; i < len(first) {
			s.kind = first[i]
		}
		if kinds[s.kind].longer && rng.IntN(3) == 0 {
			s.lasts = lease + time.Duration(rng.Int64N(int64(time.Second)))
		}
	}
	return steps
}

// ending is a trouble that goes on.
type ending struct {
	at   time.Time
	what string
	undo func()
}

// trouble carries out a plan.
func (h *harness) trouble(steps []step, kinds []kind) map[string]int {
	counts := make(map[string]int)
	active := make(map[string]ending)
	end := func(key string) {
		h.note("end of %s", active[key].what)
		active[key].undo()
		delete(active, key)
	}
	for n, s := range steps {
		next := time.Now().Add(s.wait)
		for {
			key, at := "", next
			for k, e := range active {
				if e.at.Before(at) {
					key, at = k, e.at
				}
			}
			measure(time.Until(at))
			if key == "" {
				break
			}
			end(key)
		}
		k := kinds[s.kind]
		if _, busy := active[k.key]; busy {
			end(k.key)
		}
		h.note("round %d: %s", n+1, k.name)
		undo, ok := k.start(rand.New(rand.NewPCG(s.seed, 2)))
		if undo != nil {
			active[k.key] = ending{time.Now().Add(s.lasts), k.name, undo}
		}
		if !ok {
			h.note("%s could not be done now", k.name)
			counts[k.name+" (not possible then)"]++
			continue
		}
		counts[k.name]++
		if (n+1)%100 == 0 {
			h.t.Logf("%d rounds in %v, %d deliveries that consumers told of so far", n+1, time.Since(h.began).Round(time.Second), h.ledger.count())
		}
		if h.t.Failed() {
			break
		}
	}
	// Each lasts as long as planned: in a short run many outlast the last round.
	for len(active) > 0 {
		first := slices.MinFunc(slices.Collect(maps.Keys(active)), func(a, b string) int { return active[a].at.Compare(active[b].at) })
		if !h.t.Failed() {
			measure(time.Until(active[first].at))
		}
		end(first)
	}
	return counts
}

// note adds a line to the log of troubles.
func (h *harness) note(format string, args ...any) {
	h.log = append(h.log, fmt.Sprintf("%s %9.3fs ", time.Now().UTC().Format("15:04:05.000000"), time.Since(h.began).Seconds())+fmt.Sprintf(format, args...))
}

// kinds are the troubles that this back end can have.
func (h *harness) kinds() []kind {
	var all []kind
	for _, s := range h.slots {
		all = append(all,
			kind{name: "kill -9 of " + s.name, key: "", weight: 4, start: func(*rand.Rand) (func(), bool) {
				s.signal(syscall.SIGKILL)
				return nil, true
			}},
			kind{name: "freeze of " + s.name, key: s.name, weight: 2, longer: true, start: func(*rand.Rand) (func(), bool) {
				p, from := s.live(), time.Now()
				_ = p.cmd.Process.Signal(syscall.SIGSTOP) // it may end this moment
				return func() {
					h.ledger.stopped(p.name, from)
					_ = p.cmd.Process.Signal(syscall.SIGCONT)
				}, true
			}})
	}
	for _, s := range h.brokers {
		all = append(all, h.network("clients of "+s.name, h.proxies["stomp "+s.name])...)
	}
	switch {
	case h.mariadb != nil:
		all = append(all, h.mariadbKinds()...)
	default:
		all = append(all, kind{name: "write lock held by a foreign process", key: database, weight: 4, longer: true,
			start: func(*rand.Rand) (func(), bool) { return h.hold(h.t) }})
	}
	if h.memcached != nil {
		all = append(all, h.memcachedKinds()...)
	}
	if h.disk != "" {
		all = append(all, kind{name: "disk full", key: database, weight: 4, start: func(*rand.Rand) (func(), bool) {
			free, err := fill(h.disk)
			if err != nil {
				h.t.Errorf("fill the disk: %v", err)
				return nil, false
			}
			return func() { free(); h.revive() }, true
		}})
	}
	return all
}

// database is the key of troubles that the database itself has.
const database = "database"

// network is what a proxy can do to connections.
func (h *harness) network(who string, ps ...*testserver.Proxy) []kind {
	each := func(do func(*testserver.Proxy)) func(*rand.Rand) (func(), bool) {
		return func(rng *rand.Rand) (func(), bool) {
			p := ps[rng.IntN(len(ps))]
			do(p)
			return func() { p.Resume(h.t) }, true
		}
	}
	key := "network of " + who
	return []kind{
		{name: "cut: " + who, key: key, weight: 1, start: each((*testserver.Proxy).Cut)},
		{name: "stall: " + who, key: key, weight: 1, longer: true, start: each((*testserver.Proxy).Stall)},
		{name: "answers stalled: " + who, key: key, weight: 1, longer: true, start: each((*testserver.Proxy).StallReplies)},
		{name: "answers stalled and lost: " + who, key: key, weight: 1, start: func(rng *rand.Rand) (func(), bool) {
			p := ps[rng.IntN(len(ps))]
			p.StallReplies()
			return func() { p.Drop(); p.Resume(h.t) }, true
		}},
		{name: "connections reset: " + who, key: key, weight: 1, start: func(rng *rand.Rand) (func(), bool) {
			ps[rng.IntN(len(ps))].Drop()
			return nil, true
		}},
	}
}

// plainUser is the user, and its password, that the processes connect as: one
// that a server that is set read-only refuses.
const plainUser = "plain"

func (h *harness) mariadbKinds() []kind {
	var before []*testserver.Proxy
	for _, s := range h.slots {
		before = append(before, h.proxies[s.name])
	}
	all := h.network("one process and MariaDB", before...)
	everybody := func(do func(*testserver.Proxy)) {
		for _, p := range before {
			do(p)
		}
	}
	resume := func() { everybody(func(p *testserver.Proxy) { p.Resume(h.t) }) }
	return append(all,
		kind{name: "cut: all and MariaDB", key: "network", weight: 2, start: func(*rand.Rand) (func(), bool) {
			everybody((*testserver.Proxy).Cut)
			return resume, true
		}},
		kind{name: "answers stalled: all and MariaDB", key: "network", weight: 2, start: func(*rand.Rand) (func(), bool) {
			everybody((*testserver.Proxy).StallReplies)
			return resume, true
		}},
		kind{name: "kill -9 of MariaDB", key: database, weight: 3, start: func(*rand.Rand) (func(), bool) {
			h.mariadb.Kill(h.t)
			return func() { h.mariadb.Restart(h.t) }, true
		}},
		kind{name: "freeze of MariaDB", key: database, weight: 2, longer: true, start: func(*rand.Rand) (func(), bool) {
			h.mariadb.Freeze(h.t)
			return func() { h.mariadb.Thaw(h.t) }, true
		}},
		kind{name: "KILL of connections", key: "", weight: 4, start: func(rng *rand.Rand) (func(), bool) { return nil, h.killConnections(rng, "KILL ") }},
		kind{name: "KILL QUERY of connections", key: "", weight: 4, start: func(rng *rand.Rand) (func(), bool) { return nil, h.killConnections(rng, "KILL QUERY ") }},
		kind{name: "read-only", key: database, weight: 4, start: h.readOnly},
		kind{name: "tables locked for a backup", key: database, weight: 2, start: h.backup},
	)
}

// root executes a statement as the server's administrator, without proxy.
func (h *harness) root(statement string) bool {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_, err := h.admin.ExecContext(ctx, statement)
	if err != nil {
		h.note("%s: %v", statement, err)
	}
	return err == nil
}

// insist repeats what must be done before the run can go on.
func (h *harness) insist(what string, do func() bool) {
	if !waitFor(do) {
		h.t.Errorf("%s: not done in %v", what, patience)
	}
}

// readOnly sets the server read-only, for which it waits until nobody commits.
// When that takes too long it may become read-only later: undo sees to that too.
func (h *harness) readOnly(*rand.Rand) (func(), bool) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	setter, err := h.admin.Conn(ctx)
	if err != nil {
		return nil, false
	}
	defer setter.Close()
	var id int64
	if err := setter.QueryRowContext(ctx, "SELECT CONNECTION_ID()").Scan(&id); err != nil {
		return nil, false
	}
	_, err = setter.ExecContext(ctx, "SET GLOBAL read_only = 1")
	if err == nil {
		return func() { h.insist("read-only off", func() bool { return h.root("SET GLOBAL read_only = 0") }) }, true
	}
	h.note("SET GLOBAL read_only = 1: %v", err)
	return func() {
		h.insist("read-only off", func() bool {
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			defer cancel()
			_, _ = h.admin.ExecContext(ctx, fmt.Sprint("KILL ", id)) // it may have ended
			var left int
			err := h.admin.QueryRowContext(ctx, "SELECT COUNT(*) FROM information_schema.processlist WHERE id = ?", id).Scan(&left)
			return err == nil && left == 0 && h.root("SET GLOBAL read_only = 0")
		})
	}, false
}

// killConnections kills a random part of the processes' connections.
func (h *harness) killConnections(rng *rand.Rand, statement string) bool {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	rows, err := h.admin.QueryContext(ctx, "SELECT id FROM information_schema.processlist WHERE user = ?", plainUser)
	if err != nil {
		return false
	}
	defer rows.Close()
	var ids []int64
	for rows.Next() {
		var id int64
		if rows.Scan(&id) == nil {
			ids = append(ids, id)
		}
	}
	if rows.Err() != nil {
		return false
	}
	share := rng.IntN(4)
	for _, id := range ids {
		if rng.IntN(4) <= share {
			_, _ = h.admin.ExecContext(ctx, statement+fmt.Sprint(id)) // it may have ended
		}
	}
	return true
}

// backup holds the lock that a backup takes.
func (h *harness) backup(*rand.Rand) (func(), bool) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	held, err := h.admin.Conn(ctx)
	if err != nil {
		return nil, false
	}
	if _, err := held.ExecContext(ctx, "FLUSH TABLES WITH READ LOCK"); err != nil {
		held.Close()
		return nil, false
	}
	return func() {
		_, _ = held.ExecContext(context.Background(), "UNLOCK TABLES") // the server may have been killed
		held.Close()
	}, true
}

// revive starts MariaDB again if it gave up on a full disk.
func (h *harness) revive() {
	if h.mariadb == nil || h.root("DO 1") {
		return
	}
	h.crashed++
	h.note("MariaDB gave up on the full disk")
	h.mariadb.Restart(h.t)
}

func (h *harness) memcachedKinds() []kind {
	const key = "memcached"
	return append(h.network("all and memcached", h.proxies["memcached"]),
		kind{name: "kill -9 of memcached", key: key, weight: 3, start: func(*rand.Rand) (func(), bool) {
			h.memcached.Kill(h.t)
			return func() { h.memcached.Restart(h.t) }, true
		}},
		kind{name: "freeze of memcached", key: key, weight: 2, longer: true, start: func(*rand.Rand) (func(), bool) {
			h.memcached.Freeze(h.t)
			return func() { h.memcached.Thaw(h.t) }, true
		}},
		kind{name: "flush_all of memcached", key: key, weight: 3, start: func(*rand.Rand) (func(), bool) {
			h.memcached.Flush(h.t)
			return nil, true
		}},
		kind{name: "memcached full of junk", key: key, weight: 3, start: func(*rand.Rand) (func(), bool) {
			return func() {
				h.insist("delete the junk", func() bool { return h.junk("delete junk%d noreply\r\n") })
			}, h.junk("set junk%d 0 0 1500 noreply\r\n" + string(make([]byte, 1500)) + "\r\n")
		}},
	)
}

// junk sends a command for each of many keys, more than the server has memory for.
func (h *harness) junk(format string) bool {
	nc, err := net.DialTimeout("tcp", h.memcached.Addr, 20*time.Second)
	if err != nil {
		return false
	}
	defer nc.Close()
	if nc.SetDeadline(time.Now().Add(20*time.Second)) != nil {
		return false
	}
	var text []byte
	for i := range 12 << 20 / 1500 {
		text = fmt.Appendf(text, format, i)
	}
	text = append(text, "version\r\n"...)
	go nc.Write(text)
	answer := make([]byte, 64<<10)
	for {
		n, err := nc.Read(answer) // errors "out of memory" come before the version
		if err != nil {
			return false
		}
		if bytes.Contains(answer[:n], []byte("VERSION")) {
			return true
		}
	}
}
