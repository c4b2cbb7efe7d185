package sim

import (
	"context"
	"fmt"
	"hash/fnv"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/valve"
)

// The store of the exhaustive search of the valve, as one reader sees it, and what
// tells the states of a run apart.

// Apply implements queue.Store. Only what ends leases can go wrong.
func (a *valveActor) Apply(ctx context.Context, now time.Time, c *queue.Change) (queue.Outcome, error) {
	x := a.x
	settles := slices.Clone(c.Settle)
	change := *c
	change.Settle = settles
	for i := range settles {
		if x.fenceless {
			settles[i].Until = time.Time{}
		}
	}
	call := &storeCall{actor: a.n, what: func(stamp func(time.Time) string) string {
		var b strings.Builder
		for _, s := range settles {
			fmt.Fprintf(&b, "%s m%d until %s at %s in %d %s;", valveVerbs[s.Verb], x.number(s.Ref.ID), stamp(s.Until), stamp(s.At), s.Ref.Table, stamp(queue.Time(s.Ref.ReadyAt)))
		}
		return b.String()
	}}
	var out queue.Outcome
	effect := func() (err error) {
		out, err = x.store.Apply(context.Background(), now, &change)
		if err != nil {
			return err
		}
		x.mu.Lock()
		defer x.mu.Unlock()
		x.commits++
		for i, s := range settles {
			m := x.number(s.Ref.ID)
			switch {
			case slices.Contains(out.Lost, i):
			case s.Verb == queue.Ack:
				x.truth[m].gone, x.truth[m].by = true, a.n
			case s.Verb == queue.Retry, s.Verb == queue.Release:
				x.truth[m].backs[a.n]++
			}
		}
		return nil
	}
	err := a.call(ctx, call, len(settles) > 0, effect)
	if err != nil {
		return queue.Outcome{}, err
	}
	return out, nil
}

// Lease implements queue.Store.
func (a *valveActor) Lease(ctx context.Context, now, until time.Time, token queue.ID, refs []queue.Ref) ([]queue.Leased, error) {
	refs = slices.Clone(refs)
	if a.x.blind {
		now = now.Add(time.Hour)
	}
	call := &storeCall{actor: a.n, what: func(stamp func(time.Time) string) string {
		var b strings.Builder
		fmt.Fprintf(&b, "lease %s until %s", stamp(now), stamp(until))
		for _, r := range refs {
			fmt.Fprintf(&b, " m%d in %d %s;", a.x.number(r.ID), r.Table, stamp(queue.Time(r.ReadyAt)))
		}
		return b.String()
	}}
	var won []queue.Leased
	err := a.call(ctx, call, true, func() (err error) {
		won, err = a.x.store.Lease(context.Background(), now, until, token, refs)
		return err
	})
	if err != nil {
		return nil, err
	}
	return won, nil
}

// call carries out what a call does, with the trouble that it is to have.
func (a *valveActor) call(ctx context.Context, c *storeCall, may bool, effect func() error) error {
	x := a.x
	x.mu.Lock()
	t, dead := a.armed, a.dead
	if may {
		a.armed = allWell
	} else {
		t = allWell
	}
	x.mu.Unlock()
	switch {
	case dead:
		return queue.ErrUnavailable
	case t == lostAnswer:
		_ = effect()
		return queue.ErrUnknown
	case t == doneLater:
		x.mu.Lock()
		defer x.mu.Unlock()
		c.do, c.fresh = func() { _ = effect() }, true
		x.pending = append(x.pending, c)
		return queue.ErrUnknown
	case t == refused:
		return queue.ErrUnavailable
	case t == slowCall:
		if !x.wait(ctx, c) || a.isDead() {
			return queue.ErrUnknown
		}
		return effect()
	case t == slowAnswer:
		err := effect()
		c.do = func() {} // for the key
		if !x.wait(ctx, c) {
			return queue.ErrUnknown
		}
		return err
	}
	return effect()
}

// wait keeps a call until it may go on; false: its caller has given up.
func (x *valveTree) wait(ctx context.Context, c *storeCall) bool {
	c.resume, c.fresh = make(chan struct{}), true
	x.mu.Lock()
	x.stuck = append(x.stuck, c)
	x.mu.Unlock()
	select {
	case <-c.resume:
		return true
	case <-ctx.Done():
		x.mu.Lock()
		x.stuck = slices.DeleteFunc(x.stuck, func(o *storeCall) bool { return o == c })
		x.mu.Unlock()
		return false
	}
}

func (a *valveActor) isDead() bool {
	a.x.mu.Lock()
	defer a.x.mu.Unlock()
	return a.dead
}

// Scan implements queue.Store.
func (a *valveActor) Scan(ctx context.Context, now time.Time, table queue.Lane, after queue.Cursor, upTo time.Time, n int) ([]queue.Ref, queue.Cursor, error) {
	return a.x.store.Scan(ctx, now, table, after, upTo, n)
}

// Heads implements queue.Store.
func (a *valveActor) Heads(ctx context.Context, now time.Time, q queue.HeadQuery) ([]queue.Ref, string, error) {
	return a.x.store.Heads(ctx, now, q)
}

// Dirty implements queue.DirtyChecker: any change of the store counts. It keeps
// the polls of the readers cheap.
func (a *valveActor) Dirty(context.Context) (int64, error) {
	a.x.mu.Lock()
	defer a.x.mu.Unlock()
	return a.x.commits, nil
}

// Now implements queue.Store.
func (a *valveActor) Now(context.Context) (time.Time, error) { return time.Now(), nil }

// Close implements queue.Store.
func (a *valveActor) Close() error { return nil }

// key is over the store, the calls that are under way or may still be carried
// out, what consumers hold, and all that the readers know of single messages.
// Times count by their order and by how far they are off. Which reader is which
// makes no difference.
func (x *valveTree) key() uint64 {
	order := make([]int, len(x.actors))
	for i := range order {
		order[i] = i
	}
	best := ""
	permute(order, 0, func() {
		if s := x.describe(order); best == "" || s < best {
			best = s
		}
	})
	h := fnv.New64a()
	_, _ = h.Write([]byte(best))
	return h.Sum64()
}

func permute(list []int, from int, do func()) {
	if from == len(list) {
		do()
	}
	for i := from; i < len(list); i++ {
		list[from], list[i] = list[i], list[from]
		permute(list, from+1, do)
		list[from], list[i] = list[i], list[from]
	}
}

// describe writes the state down, with the readers in an order.
func (x *valveTree) describe(order []int) string {
	now := time.Now()
	var times []int64
	x.write(order, func(t time.Time) string {
		times = append(times, queue.Micros(t))
		return ""
	})
	slices.Sort(times)
	times = slices.Compact(times)
	return x.write(order, func(t time.Time) string {
		if t.IsZero() {
			return "-"
		}
		rank, _ := slices.BinarySearch(times, queue.Micros(t))
		off := "past"
		if len(x.pending) > 0 || t.After(now) {
			off = t.Sub(now).Round(valveGrid).String()
		}
		return fmt.Sprint(rank, off)
	})
}

func (x *valveTree) write(order []int, stamp func(time.Time) string) string {
	var b strings.Builder
	fmt.Fprintln(&b, x.faults, x.expiries, x.backs, x.extensions, x.crashes, x.bad)
	place := make([]int, len(order))
	for i, n := range order {
		place[n] = i
	}
	for m := range x.ids {
		row, table := x.row(m)
		fmt.Fprint(&b, "\nm", m, x.truth[m].gone, x.truth[m].acked, table)
		if row != nil {
			who := slices.IndexFunc(x.actors, func(a *valveActor) bool { return a.r.ID() == row.LeaseToken })
			if who >= 0 {
				who = place[who]
			}
			fmt.Fprint(&b, who, stamp(row.ReadyAt), stamp(row.LeaseUntil))
		}
	}
	for _, n := range order {
		a := x.actors[n]
		fmt.Fprint(&b, "\nr", a.dead)
		if a.dead {
			continue
		}
		fmt.Fprint(&b, a.waits())
		for _, h := range a.held() {
			fmt.Fprint(&b, "\n h", h.msg, h.again, h.unsure, h.busy, x.truth[h.msg].backs[n] == h.backs, stamp(h.until), known(reflect.ValueOf(h.d).Elem().FieldByName("entry"), stamp))
		}
		for _, id := range x.ids {
			fmt.Fprint(&b, "\n k", known(knownOf(a.r).MapIndex(reflect.ValueOf(id)), stamp), stamp(reachOf(a.r, id)))
		}
	}
	for _, list := range [][]*storeCall{x.pending, x.stuck} {
		b.WriteString("\nc")
		for _, c := range list {
			fmt.Fprint(&b, place[c.actor], c.do != nil, c.fresh, c.what(stamp))
		}
	}
	return b.String()
}

func knownOf(r *valve.Reader) reflect.Value {
	return field(field(reflect.ValueOf(r).Elem(), "x").Elem(), "known")
}

func reachOf(r *valve.Reader, id queue.ID) time.Time {
	t := field(reflect.ValueOf(r).Elem(), "reach").MapIndex(reflect.ValueOf(id))
	if !t.IsValid() {
		return time.Time{}
	}
	return reflectTime(t)
}

// reflectTime copies a time out of a field that is not exported.
func reflectTime(v reflect.Value) time.Time {
	p := reflect.New(v.Type()).Elem()
	for i := range v.NumField() {
		if f := v.Field(i); f.Kind() == reflect.Uint64 {
			reflect.NewAt(f.Type(), p.Field(i).Addr().UnsafePointer()).Elem().SetUint(f.Uint())
		} else if f.Kind() == reflect.Int64 {
			reflect.NewAt(f.Type(), p.Field(i).Addr().UnsafePointer()).Elem().SetInt(f.Int())
		}
	}
	return p.Interface().(time.Time).UTC()
}

// known writes down all that an entry of a reader says about its message.
func known(entry reflect.Value, stamp func(time.Time) string) string {
	if !entry.IsValid() || entry.IsNil() {
		return "none"
	}
	var b strings.Builder
	e := entry.Elem()
	for i := range e.NumField() {
		f := e.Field(i)
		switch {
		case e.Type().Field(i).Name == "class", e.Type().Field(i).Name == "weight": // for the share of destinations
		case f.Type() == reflect.TypeFor[time.Time]():
			b.WriteString(stamp(reflectTime(f)))
		case f.Kind() == reflect.Bool, f.CanInt(), f.CanUint():
			fmt.Fprint(&b, " ", f)
		}
	}
	ref := field(e, "ref")
	fmt.Fprint(&b, " ", field(ref, "Table"), stamp(queue.Time(field(ref, "ReadyAt").Int())))
	return b.String()
}
