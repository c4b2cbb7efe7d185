// Package statetest is the suite that every state.Store passes.
package statetest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/mvalve/mvalve/state"
)

// Run runs the suite. open returns a store for one test and arranges its end;
// stores it returns for different tests may share what they keep. The suite uses
// the clock of the machine as now.
func Run(t *testing.T, open func(t *testing.T) state.Store) {
	for _, tc := range []struct {
		name string
		test func(*testing.T, suite)
	}{
		{"absent", testAbsent},
		{"replace", testReplace},
		{"leave alone", testLeaveAlone},
		{"batch", testBatch},
		{"many keys", testManyKeys},
		{"binary", testBinary},
		{"large", testLarge},
		{"delete", testDelete},
		{"lifetime", testLifetime},
		{"long lifetime", testLongLifetime},
		{"concurrent", testConcurrent},
		{"concurrent batches", testConcurrentBatches},
		{"canceled", testCanceled},
		{"close twice", func(t *testing.T, s suite) {
			if err := errors.Join(s.Close(), s.Close()); err != nil {
				t.Error(err)
			}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.test(t, suite{open(t), fmt.Sprintf("suite/%016x/", rand.Uint64())})
		})
	}
}

// suite is a store and a prefix that no other test uses.
type suite struct {
	state.Store
	prefix string
}

func (s suite) keys(n int) []string {
	keys := make([]string, n)
	for i := range keys {
		keys[i] = fmt.Sprintf("%skey-%d", s.prefix, (i*7919)%n) // not in order
	}
	return keys
}

func lives(n int, ttl time.Duration) []time.Duration {
	ttls := make([]time.Duration, n)
	for i := range ttls {
		ttls[i] = ttl
	}
	return ttls
}

// put stores value under key.
func (s suite) put(t *testing.T, key string, value []byte, ttl time.Duration) {
	t.Helper()
	errs := s.Update(t.Context(), time.Now(), []string{key}, []time.Duration{ttl},
		func(int, state.Entry) []byte { return bytes.Clone(value) })
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// get returns what is stored under key, by Get and by Update, which must agree.
func (s suite) get(t *testing.T, key string) []byte {
	t.Helper()
	entries, errs := s.Get(t.Context(), []string{key})
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	if len(entries) != 1 {
		t.Fatalf("Get returned %d entries for one key", len(entries))
	}
	seen := s.seen(t, key)
	if !bytes.Equal(entries[0].Data, seen) || (entries[0].Data == nil) != (seen == nil) {
		t.Fatalf("Get returned %.40x, Update saw %.40x", entries[0].Data, seen)
	}
	return seen
}

// seen returns what Update finds under key.
func (s suite) seen(t *testing.T, key string) (data []byte) {
	t.Helper()
	errs := s.Update(t.Context(), time.Now(), []string{key}, []time.Duration{time.Minute},
		func(_ int, old state.Entry) []byte { data = bytes.Clone(old.Data); return nil })
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	return data
}

func testAbsent(t *testing.T, s suite) {
	if got := s.get(t, s.prefix+"nothing"); got != nil {
		t.Errorf("absent key has data %x", got)
	}
	if _, errs := s.Get(t.Context(), nil); errors.Join(errs...) != nil {
		t.Error("Get of no keys:", errs)
	}
	if errs := s.Update(t.Context(), time.Now(), nil, nil, nil); errors.Join(errs...) != nil {
		t.Error("Update of no keys:", errs)
	}
}

func testReplace(t *testing.T, s suite) {
	key := s.prefix + "k"
	for _, v := range []string{"one", "two, which is longer", "3"} {
		s.put(t, key, []byte(v), time.Minute)
		if got := s.get(t, key); string(got) != v {
			t.Errorf("got %q, want %q", got, v)
		}
	}
	s.put(t, key, []byte("3"), time.Minute) // the same value again is no conflict
}

func testLeaveAlone(t *testing.T, s suite) {
	key := s.prefix + "k"
	s.put(t, key, []byte("kept"), time.Minute)
	errs := s.Update(t.Context(), time.Now(), []string{key, key + "2"}, lives(2, time.Minute),
		func(i int, old state.Entry) []byte { return nil })
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	if got := s.get(t, key); string(got) != "kept" {
		t.Errorf("got %q, want %q", got, "kept")
	}
	if got := s.get(t, key+"2"); got != nil {
		t.Errorf("a nil result stored %q", got)
	}
}

func testBatch(t *testing.T, s suite) {
	keys := s.keys(3)
	s.put(t, keys[1], []byte("old"), time.Minute)
	errs := s.Update(t.Context(), time.Now(), keys, lives(3, time.Minute), func(i int, old state.Entry) []byte {
		if (i == 1) != (old.Data != nil) {
			t.Errorf("key %d: old is %q", i, old.Data)
		}
		return append(bytes.Clone(old.Data), byte('a'+i))
	})
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	entries, errs := s.Get(t.Context(), []string{keys[2], keys[0], s.prefix + "none", keys[1]})
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"c", "a", "", "oldb"} {
		if string(entries[i].Data) != want {
			t.Errorf("entry %d is %q, want %q", i, entries[i].Data, want)
		}
	}
	if entries[2].Data != nil {
		t.Error("the absent one of a batch has data")
	}
}

func testManyKeys(t *testing.T, s suite) {
	const n = 2500
	keys := s.keys(n)
	for round := range 2 {
		errs := s.Update(t.Context(), time.Now(), keys, lives(n, time.Minute), func(i int, old state.Entry) []byte {
			if want := round * 4; len(old.Data) != want {
				t.Errorf("round %d key %d: %d bytes, want %d", round, i, len(old.Data), want)
			}
			return binary.BigEndian.AppendUint32(bytes.Clone(old.Data), uint32(i))
		})
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
	}
	entries, errs := s.Get(t.Context(), keys)
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	for i, e := range entries {
		if len(e.Data) != 8 || binary.BigEndian.Uint32(e.Data[4:]) != uint32(i) {
			t.Fatalf("key %d holds %x", i, e.Data)
		}
	}
}

func testBinary(t *testing.T, s suite) {
	all := make([]byte, 0, 512)
	for i := range 256 {
		all = append(all, byte(i), byte(255-i))
	}
	for i, v := range [][]byte{all, {0}, {'\r', '\n'}, []byte("END\r\n"), []byte("'\"\\%_;--"), {0xff, 0xfe, 0, 0}, []byte(" ")} {
		key := fmt.Sprintf("%sk%d", s.prefix, i)
		s.put(t, key, v, time.Minute)
		if got := s.get(t, key); !bytes.Equal(got, v) {
			t.Errorf("got %x, want %x", got, v)
		}
	}
	longest := s.prefix + string(bytes.Repeat([]byte("~"), 200-len(s.prefix)))
	s.put(t, longest, all, time.Minute)
	s.put(t, longest[:199]+"!", []byte("other"), time.Minute)
	if got := s.get(t, longest); !bytes.Equal(got, all) {
		t.Errorf("the value under a key of 200 bytes changed to %.20q", got)
	}
	s.put(t, s.prefix+"CASE", []byte("upper"), time.Minute)
	if got := s.get(t, s.prefix+"case"); got != nil {
		t.Errorf("keys do not differ by case: got %q", got)
	}
}

func testLarge(t *testing.T, s suite) {
	rnd := rand.NewChaCha8([32]byte{1})
	keys, values := s.keys(8), make([][]byte, 8)
	for i := range values {
		values[i] = make([]byte, 64<<10)
		rnd.Read(values[i])
	}
	errs := s.Update(t.Context(), time.Now(), keys, lives(8, time.Minute),
		func(i int, _ state.Entry) []byte { return bytes.Clone(values[i]) })
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	for i, key := range keys {
		if got := s.get(t, key); !bytes.Equal(got, values[i]) {
			t.Errorf("64 KiB came back as %d bytes, changed", len(got))
		}
	}
}

func testDelete(t *testing.T, s suite) {
	key := s.prefix + "k"
	if err := s.Delete(t.Context(), key); err != nil {
		t.Error("delete of an absent key:", err)
	}
	s.put(t, key, []byte("v"), time.Minute)
	if err := s.Delete(t.Context(), key); err != nil {
		t.Fatal(err)
	}
	if got := s.get(t, key); got != nil {
		t.Errorf("deleted key holds %q", got)
	}
	s.put(t, key, []byte("again"), time.Minute)
	if got := s.get(t, key); string(got) != "again" {
		t.Errorf("got %q after delete and update", got)
	}
}

func testLifetime(t *testing.T, s suite) {
	short, renewed, long := s.prefix+"short", s.prefix+"renewed", s.prefix+"long"
	start := time.Now()
	s.put(t, short, []byte("v"), 2*time.Second)
	s.put(t, renewed, []byte("v"), 2*time.Second)
	s.put(t, renewed, []byte("v"), time.Hour)
	s.put(t, long, []byte("v"), time.Hour)
	if s.seen(t, short) == nil && time.Since(start) < time.Second {
		t.Fatal("gone before its time")
	}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for s.seen(t, short) != nil { // Get has no now, so it may learn of it later
		if time.Since(start) > 10*time.Second {
			t.Fatal("still there 8 s after its time")
		}
		<-tick.C
	}
	if took := time.Since(start); took < 900*time.Millisecond {
		t.Errorf("gone after %v of 2 s", took) // stores may count whole seconds
	}
	if s.get(t, renewed) == nil {
		t.Error("the lifetime of the last update does not count")
	}
	if s.get(t, long) == nil {
		t.Error("a value with a long life is gone")
	}
	s.put(t, short, []byte("new"), time.Minute)
	if got := s.get(t, short); string(got) != "new" {
		t.Errorf("got %q after the key expired and was stored again", got)
	}
}

func testLongLifetime(t *testing.T, s suite) {
	for i, ttl := range []time.Duration{24 * time.Hour, 29 * 24 * time.Hour, 31 * 24 * time.Hour, 366 * 24 * time.Hour} {
		key := fmt.Sprintf("%sk%d", s.prefix, i)
		s.put(t, key, []byte("v"), ttl)
		if s.get(t, key) == nil {
			t.Errorf("a value with a lifetime of %v is gone at once", ttl)
		}
	}
}

func increment(old state.Entry) []byte {
	n := uint64(0)
	if old.Data != nil {
		n = binary.BigEndian.Uint64(old.Data)
	}
	return binary.BigEndian.AppendUint64(nil, n+1)
}

func testConcurrent(t *testing.T, s suite) {
	const workers, each = 8, 50
	key := s.prefix + "counter"
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for done := 0; done < each; {
				errs := s.Update(t.Context(), time.Now(), []string{key}, []time.Duration{time.Minute},
					func(_ int, old state.Entry) []byte { return increment(old) })
				switch err := errors.Join(errs...); {
				case err == nil:
					done++
				case !errors.Is(err, state.ErrConflict):
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if got := s.get(t, key); len(got) != 8 || binary.BigEndian.Uint64(got) != workers*each {
		t.Errorf("counter is %x after %d increments", got, workers*each)
	}
}

func testConcurrentBatches(t *testing.T, s suite) {
	const workers, each, n = 6, 15, 40
	keys := s.keys(n)
	done := make([][n]uint64, workers)
	var wg sync.WaitGroup
	for w := range workers {
		order := rand.New(rand.NewPCG(uint64(w), 0)).Perm(n)
		wg.Go(func() {
			mine := make([]string, n) // every worker has an order of its own
			for i, k := range order {
				mine[i] = keys[k]
			}
			for range each {
				errs := s.Update(t.Context(), time.Now(), mine, lives(n, time.Minute),
					func(_ int, old state.Entry) []byte { return increment(old) })
				for i, k := range order {
					var err error
					if errs != nil {
						err = errs[i]
					}
					if err == nil {
						done[w][k]++
					} else if !errors.Is(err, state.ErrConflict) {
						t.Error(err)
						return
					}
				}
			}
		})
	}
	wg.Wait()
	for k, key := range keys {
		want := uint64(0)
		for w := range workers {
			want += done[w][k]
		}
		if want == 0 {
			t.Errorf("key %d: every update conflicted", k)
		} else if got := s.get(t, key); binary.BigEndian.Uint64(got) != want {
			t.Errorf("key %d counts %d after %d increments", k, binary.BigEndian.Uint64(got), want)
		}
	}
}

func testCanceled(t *testing.T, s suite) {
	key := s.prefix + "k"
	s.put(t, key, []byte("v"), time.Minute)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	entries, errs := s.Get(ctx, []string{key})
	if errors.Join(errs...) == nil && entries[0].Data == nil {
		t.Error("Get with an ended context calls the key absent")
	}
	errs = s.Update(ctx, time.Now(), []string{key}, []time.Duration{time.Minute},
		func(int, state.Entry) []byte { return []byte("w") })
	err := errors.Join(errs...)
	switch got := string(s.get(t, key)); {
	case err == nil && got != "w":
		t.Errorf("Update succeeded but the value is %q", got)
	case errors.Is(err, state.ErrUnavailable) && got != "v":
		t.Errorf("Update said nothing was written but the value is %q", got)
	case err != nil && !errors.Is(err, state.ErrUnavailable) && !errors.Is(err, state.ErrUnknown) && !errors.Is(err, state.ErrConflict):
		t.Errorf("error of an ended context is %v", err)
	}
}
