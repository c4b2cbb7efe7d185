package setup

import (
	"encoding/json"
	"testing"
)

// FuzzParseState: what is accepted is written in a form that is accepted and
// means the same, as a flag and as it is stored.
func FuzzParseState(f *testing.F) {
	for _, s := range []string{"queue:", "memory:", "memcached://a,b:1,[::1]:2/", "memcached://", "memcached://[::1]", "memcached://a:b:c", "memcached://u@x", "x:"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseState(s)
		if err != nil {
			return
		}
		again, err := ParseState(r.String())
		if err != nil || !again.Same(r) {
			t.Fatalf("%q is %+v, written %q, read %+v, %v", s, r, r.String(), again, err)
		}
		stored, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		var read Ruling
		if err := json.Unmarshal(stored, &read); err != nil || !read.Same(r) {
			t.Fatalf("%q stored as %s is %+v, %v", s, stored, read, err)
		}
	})
}
