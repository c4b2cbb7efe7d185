package stomp

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

func TestSubTable(t *testing.T) { // against a map
	var table subTable
	want := make(map[string]*subscription)
	r := rand.New(rand.NewPCG(1, 2))
	for range 20_000 {
		key := fmt.Sprint(r.IntN(300))
		s := table.get(key)
		if s != want[key] {
			t.Fatalf("get %s: %p, want %p", key, s, want[key])
		}
		if s == nil {
			s = &subscription{text: key + "/queue/x", idLen: uint32(len(key))}
			table.put(s)
			want[key] = s
		} else {
			table.remove(key)
			delete(want, key)
		}
		table.remove("never there")
		if table.n != len(want) {
			t.Fatalf("%d entries, want %d", table.n, len(want))
		}
	}
	for s := range table.all() {
		if want[s.key()] != s {
			t.Errorf("stray %s", s.key())
		}
		delete(want, s.key())
	}
	if len(want) > 0 {
		t.Errorf("%d are missing", len(want))
	}
}
