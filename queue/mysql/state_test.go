package mysql_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mvalve/mvalve/internal/testserver"
	"github.com/mvalve/mvalve/queue/mysql"
	"github.com/mvalve/mvalve/state"
	"github.com/mvalve/mvalve/state/statetest"
)

func plusOne(_ int, old state.Entry) []byte {
	n, _ := strconv.Atoi(string(old.Data))
	return []byte(strconv.Itoa(n + 1))
}

func readState(t *testing.T, s state.Store, keys ...string) []string {
	t.Helper()
	entries, errs := s.Get(t.Context(), keys)
	if errs != nil {
		t.Fatal(errs)
	}
	values := make([]string, len(keys))
	for i := range entries {
		values[i] = string(entries[i].Data)
		if !entries[i].Lost.IsZero() {
			t.Fatalf("%s: a database has lost nothing, got %v", keys[i], entries[i].Lost)
		}
	}
	return values
}

func ttls(n int) []time.Duration {
	d := make([]time.Duration, n)
	for i := range d {
		d[i] = time.Minute
	}
	return d
}

// Two processes' stores add one to overlapping sets of keys, most of them new at
// first: every sum comes out.
func TestStateCountsUnderContention(t *testing.T) {
	a := open(t)
	b := must[*mysql.Store](t)(mysql.Open(t.Context(), config(t, a.server)))
	defer b.Close()
	keys := make([]string, 300) // more than one transaction
	for i := range keys {
		keys[i] = fmt.Sprintf("k%03d", (i*7)%300)
	}
	stores := []state.Store{a.State(), b.State()}
	const rounds = 6
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for r := range rounds {
				part := keys
				if r%2 == 1 {
					part = keys[100:101] // a hot single key
				}
				if errs := stores[w%2].Update(t.Context(), time.Now(), part, ttls(len(part)), plusOne); errs != nil {
					t.Errorf("update: %v", errs)
				}
			}
		})
	}
	wg.Wait()
	for i, v := range readState(t, stores[0], keys...) {
		want := 4 * rounds / 2
		if i == 100 {
			want = 4 * rounds
		}
		if v != strconv.Itoa(want) {
			t.Fatalf("%s is %s, want %d", keys[i], v, want)
		}
	}
}

func TestStateKeys(t *testing.T) {
	s := open(t).State()
	now := time.Now()
	keys := []string{"b", "a", "b", "c"}
	update := func(now time.Time, fn func(int, state.Entry) []byte) {
		t.Helper()
		if errs := s.Update(t.Context(), now, keys, []time.Duration{time.Second, time.Minute, time.Second, time.Minute}, fn); errs != nil {
			t.Fatal(errs)
		}
	}
	update(now, func(i int, old state.Entry) []byte {
		if keys[i] == "c" {
			return nil
		}
		return plusOne(i, old)
	})
	if got := fmt.Sprint(readState(t, s, "a", "b", "c")); got != "[1 2 ]" {
		t.Fatalf("a key named twice, one left alone: %s", got)
	}
	update(now.Add(time.Second), plusOne) // b has expired
	if got := fmt.Sprint(readState(t, s, "a", "b", "c")); got != "[2 2 1]" {
		t.Fatalf("after b expired: %s", got)
	}
	if err := s.Delete(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(readState(t, s, "a", "b", "c")); got != "[ 2 1]" {
		t.Fatalf("after delete: %s", got)
	}
}

// Connections are cut all the time; an answer that was lost is looked up by the
// version, so nothing is counted twice or not at all, and with nobody else
// writing the store can always tell.
func TestStateSurvivesCutConnections(t *testing.T) {
	server := testserver.MariaDB(t)
	proxy := testserver.NewProxy(t, server.Addr)
	s := openOn(t, server)
	c := config(t, server)
	c.Addr = proxy.Addr
	cut := must[*mysql.Store](t)(mysql.Open(t.Context(), c))
	defer cut.Close()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var through atomic.Int64
	var wg sync.WaitGroup
	cuts := often(t, proxy.Drop)
	wg.Go(func() { cuts.run(ctx, &through) })
	const rounds = 300
	enough := false
	keys := []string{"x", "y"}
	var counted [2]int
	for i := 0; i < rounds || !enough; i++ {
		select {
		case <-cuts.enough:
			enough = true
		default:
		}
		n := 1 + i%2
		errs := cut.State().Update(t.Context(), time.Now(), keys[:n], ttls(2)[:n], plusOne)
		for k := range n {
			switch {
			case errs == nil || errs[k] == nil:
				counted[k]++
				through.Add(1)
			case !errors.Is(errs[k], state.ErrUnavailable): // that says: not done
				t.Error(errs[k])
			}
		}
	}
	stop()
	wg.Wait()
	if got := readState(t, s.State(), "x", "y"); got[0] != strconv.Itoa(counted[0]) || got[1] != strconv.Itoa(counted[1]) {
		t.Fatalf("x is %s after %d updates, y is %s after %d", got[0], counted[0], got[1], counted[1])
	}
	if counted[0] < rounds*3/4 { // on a slow machine an update may be cut off again and again
		t.Errorf("only %d of %d updates came through", counted[0], rounds)
	}
}

func TestState(t *testing.T) {
	statetest.Run(t, func(t *testing.T) state.Store { return open(t).State() })
}

// TestDamagedStateIsNotAbsent: a value that has lost all its bytes is not taken
// for one that never was: that would open a window.
func TestDamagedStateIsNotAbsent(t *testing.T) {
	s := open(t)
	st := s.State()
	if errs := st.Update(t.Context(), time.Now(), []string{"k"}, ttls(1), plusOne); errs != nil {
		t.Fatal(errs)
	}
	if _, err := s.db.ExecContext(t.Context(), "UPDATE q_state SET value = ''"); err != nil {
		t.Fatal(err)
	}
	entries, errs := st.Get(t.Context(), []string{"k"})
	if errs != nil || entries[0].Data == nil {
		t.Errorf("Get: %+v, %v", entries, errs)
	}
	errs = st.Update(t.Context(), time.Now(), []string{"k"}, ttls(1), func(_ int, old state.Entry) []byte {
		if old.Data == nil {
			t.Error("Update sees no value")
		}
		return nil
	})
	if errs != nil {
		t.Error(errs)
	}
}
