package memcached_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/bradfitz/gomemcache/memcache"

	"github.com/mvalve/mvalve/internal/testserver"
	"github.com/mvalve/mvalve/state"
	"github.com/mvalve/mvalve/state/memcached"
)

// BenchmarkUpdate changes existing values of 64 bytes.
func BenchmarkUpdate(b *testing.B) {
	for _, n := range []int{1, 100} {
		b.Run(fmt.Sprintf("keys=%d", n), func(b *testing.B) {
			s := open(b, memcached.Config{}, testserver.OwnMemcached(b).Addr)
			keys := make([]string, n)
			ttls := make([]time.Duration, n)
			for i := range keys {
				keys[i], ttls[i] = fmt.Sprintf("%040x", i), time.Minute
			}
			value := make([]byte, 64)
			for b.Loop() {
				if errs := s.Update(b.Context(), time.Now(), keys, ttls, func(int, state.Entry) []byte { return value }); errs != nil {
					b.Fatal(errs)
				}
			}
			b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds(), "keys/s")
		})
	}
}

// BenchmarkRaw is the client library alone: gets and cas of one key.
func BenchmarkRaw(b *testing.B) {
	c := memcache.New(testserver.OwnMemcached(b).Addr)
	if err := c.Set(&memcache.Item{Key: "k", Value: make([]byte, 64)}); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		item, err := c.Get("k")
		if err == nil {
			err = c.CompareAndSwap(item)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkUpdateNew creates values: the marker is looked at twice.
func BenchmarkUpdateNew(b *testing.B) {
	s := open(b, memcached.Config{}, testserver.OwnMemcached(b, "-m", "1024").Addr)
	value := make([]byte, 64)
	i := 0
	for b.Loop() {
		i++
		errs := s.Update(b.Context(), time.Now(), []string{fmt.Sprint(i)}, []time.Duration{time.Second}, func(int, state.Entry) []byte { return value })
		if errs != nil {
			b.Fatal(errs)
		}
	}
}

// BenchmarkGet reads values of 64 bytes.
func BenchmarkGet(b *testing.B) {
	for _, n := range []int{1, 100} {
		b.Run(fmt.Sprintf("keys=%d", n), func(b *testing.B) {
			s := open(b, memcached.Config{}, testserver.OwnMemcached(b).Addr)
			keys := make([]string, n)
			for i := range keys {
				keys[i] = fmt.Sprintf("%040x", i)
				put(b, s, keys[i], string(make([]byte, 64)))
			}
			for b.Loop() {
				if _, errs := s.Get(b.Context(), keys); errs != nil {
					b.Fatal(errs)
				}
			}
		})
	}
}

// BenchmarkParallel has many goroutines change a key each.
func BenchmarkParallel(b *testing.B) {
	s := open(b, memcached.Config{}, testserver.OwnMemcached(b).Addr)
	value := make([]byte, 64)
	b.SetParallelism(16)
	b.RunParallel(func(pb *testing.PB) {
		key := prefix()
		for pb.Next() {
			errs := s.Update(b.Context(), time.Now(), []string{key}, []time.Duration{time.Minute}, func(int, state.Entry) []byte { return value })
			if errs != nil {
				b.Error(errs)
				return
			}
		}
	})
}
