package mysql

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"github.com/mvalve/mvalve/internal/sqlstore"
	"github.com/mvalve/mvalve/queue"
)

// claim marks those of refs that no other Lease of this Store works on, and
// returns their indices. All leases of a process carry one token, so the token
// alone does not tell two concurrent calls apart.
func (c *claims) claim(refs []queue.Ref) []int {
	mine := make([]int, 0, len(refs))
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range refs {
		if _, taken := c.ids[refs[i].ID]; !taken {
			c.ids[refs[i].ID] = struct{}{}
			mine = append(mine, i)
		}
	}
	return mine
}

func (c *claims) release(refs []queue.Ref, mine []int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, i := range mine {
		delete(c.ids, refs[i].ID)
	}
}

// Lease implements queue.Store. It reads the rows that are free, bodies
// included, then takes them with a conditional update, a transaction of its own:
// when it matched them all, they are won and no further trip is needed.
// Otherwise the rows are read again, and won are those that carry the token and
// exactly one attempt more than when they were free.
//
// The same rule settles an unknown outcome. Only rows that were seen free within
// this call, which no other call of the process can have leased since, are ever
// returned; so a row whose earlier lease this reader holds or has settled is
// not. A lost update that the server still carries out after the call gave up
// leaves rows leased until until, as the port says.
func (s *Store) Lease(ctx context.Context, now, until time.Time, token queue.ID, refs []queue.Ref) ([]queue.Leased, error) {
	if token.IsZero() {
		return nil, fmt.Errorf("%w: a lease needs a token", queue.ErrInvalid)
	}
	for i := range refs {
		if t := refs[i].Table; t < queue.Emergency || t > queue.Incoming {
			return nil, fmt.Errorf("%w: lease in table %v", queue.ErrInvalid, t)
		}
	}
	mine := s.leasing.claim(refs)
	if len(mine) == 0 {
		return nil, nil
	}
	defer s.leasing.release(refs, mine)
	won := make([]*queue.Leased, len(refs))
	free := make([]queue.Ref, 0, len(mine))
	for _, i := range mine {
		free = append(free, refs[i])
	}
	split := sqlstore.SplitRefs(free)
	for _, table := range []queue.Lane{queue.Emergency, queue.Timed, queue.Incoming} {
		for part := range chunks(split[table], maxKeys) {
			l := &lease{s: s, ctx: ctx, table: table, refs: free, now: queue.Micros(now), until: queue.Micros(until), token: token}
			if err := l.take(part); err != nil {
				return collect(won), err
			}
			for k, leased := range l.won {
				won[mine[k]] = leased
			}
		}
	}
	return collect(won), nil
}

func collect(won []*queue.Leased) []queue.Leased {
	n := 0
	for _, l := range won {
		if l != nil {
			n++
		}
	}
	leased := make([]queue.Leased, 0, n)
	for _, l := range won {
		if l != nil {
			leased = append(leased, *l)
		}
	}
	return leased
}

// lease is the work of Lease on one table.
type lease struct {
	s          *Store
	ctx        context.Context
	table      queue.Lane
	refs       []queue.Ref
	now, until int64
	token      queue.ID
	won        map[int]*queue.Leased // by index into refs
}

func (l *lease) take(part []int) error {
	var seen map[int]*queue.Leased // the rows as they were when free
	l.won = make(map[int]*queue.Leased, len(part))
	return l.s.retry(l.ctx, "lease", func(a *attempt) error {
		if seen == nil {
			free, err := l.readFree(part)
			if err != nil {
				return err
			}
			seen = free
		}
		rest := l.open(part, seen)
		if len(rest) == 0 {
			return nil
		}
		if a.unknown {
			if err := l.readWon(rest, seen); err != nil {
				return err
			}
			if rest = l.open(part, seen); len(rest) == 0 {
				a.unknown = false
				return nil
			}
		}
		before := a.unknown
		n, err := l.update(rest)
		a.unknown = before || faultOf(err) == faultLost
		switch {
		case err != nil:
			return err
		case n == int64(len(rest)):
			for _, i := range rest {
				l.win(i, seen[i])
			}
		case n > 0 || before:
			if err := l.readWon(rest, seen); err != nil {
				return err
			}
		}
		a.unknown = false
		return nil
	})
}

// open returns those of part that were free and are not known to be won.
func (l *lease) open(part []int, seen map[int]*queue.Leased) []int {
	rest := make([]int, 0, len(part))
	for _, i := range part {
		if seen[i] != nil && l.won[i] == nil {
			rest = append(rest, i)
		}
	}
	return rest
}

func (l *lease) win(i int, leased *queue.Leased) {
	leased.Ref.Attempts++
	leased.Message.Attempts = leased.Ref.Attempts
	leased.Message.LeaseToken = l.token
	leased.Message.LeaseUntil = queue.Time(l.until)
	l.won[i] = leased
}

// byID returns the index of each row that part names.
func (l *lease) byID(part []int) map[queue.ID]int {
	m := make(map[queue.ID]int, len(part))
	for _, i := range part {
		m[l.refs[i].ID] = i
	}
	return m
}

// readFree reads the rows that nobody holds at now.
func (l *lease) readFree(part []int) (map[int]*queue.Leased, error) {
	size := paddedSize(len(part))
	text := cached.get("free", l.table, size, func() string {
		return "SELECT " + sqlstore.Columns + " FROM " + sqlstore.Table(l.table) + byKey + " WHERE " +
			keyWhere(l.table, size) + " AND lease_until <= ?"
	})
	index := l.byID(part)
	free := make(map[int]*queue.Leased, len(part))
	var row sqlstore.Row
	dest := row.Dest()
	args := append(keyArgs(make([]any, 0, 2*size+1), l.table, l.refs, part, size), l.now)
	err := l.s.auto().query(l.ctx, text, args, func(rows *sql.Rows) error {
		if err := rows.Scan(dest...); err != nil {
			return err
		}
		m, damage := row.Message()
		i, asked := index[m.ID]
		if !asked {
			return nil
		}
		ref := l.refs[i]
		ref.Attempts = m.Attempts
		if damage == nil {
			damage = sqlstore.Fits(m, ref)
		}
		free[i] = &queue.Leased{Ref: ref, Message: m, Err: damage}
		return nil
	})
	return free, err
}

// update takes the rows of rest that are still free.
func (l *lease) update(rest []int) (int64, error) {
	size := paddedSize(len(rest))
	text := cached.get("lease", l.table, size, func() string {
		return "UPDATE " + sqlstore.Table(l.table) + byKey + " SET lease_token = ?, lease_until = ?, attempts = attempts + 1 WHERE " +
			keyWhere(l.table, size) + " AND lease_until <= ?"
	})
	args := append(make([]any, 0, 2*size+3), l.token[:], l.until)
	args = append(keyArgs(args, l.table, l.refs, rest, size), l.now)
	return l.s.auto().exec(l.ctx, text, args...)
}

// readWon wins those of rest that carry our lease now.
func (l *lease) readWon(rest []int, seen map[int]*queue.Leased) error {
	size := paddedSize(len(rest))
	text := cached.get("won", l.table, size, func() string {
		return "SELECT id, attempts FROM " + sqlstore.Table(l.table) + byKey + " WHERE " +
			keyWhere(l.table, size) + " AND lease_token = ? AND lease_until = ?"
	})
	index := l.byID(rest)
	args := append(keyArgs(make([]any, 0, 2*size+2), l.table, l.refs, rest, size), l.token[:], l.until)
	var id []byte
	var attempts int
	return l.s.auto().query(l.ctx, text, args, func(rows *sql.Rows) error {
		if err := rows.Scan(&id, &attempts); err != nil {
			return err
		}
		i, asked := index[queue.ID(id)]
		if asked && l.won[i] == nil && attempts == seen[i].Ref.Attempts+1 {
			l.win(i, seen[i])
		}
		return nil
	})
}
