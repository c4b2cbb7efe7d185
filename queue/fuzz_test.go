package queue

import (
	"bytes"
	"errors"
	"testing"
)

// FuzzParseHeaders: the stored form is read or refused, never more than it has
// bytes, and what was read is written as another form of the same headers.
func FuzzParseHeaders(f *testing.F) {
	f.Add([]byte{})
	f.Add(AppendHeaders(nil, Headers{{"a", "b"}, {"", ""}, {"name", "value\x00\xff"}}))
	f.Add([]byte{1, 'a'})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 'a'})
	f.Add([]byte{0x80, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := ParseHeaders(b)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatalf("%x: %v", b, err)
			}
			return
		}
		if len(h) > len(b)/2 {
			t.Fatalf("%x: %d headers", b, len(h))
		}
		stored := AppendHeaders(nil, h)
		if len(stored) > len(b) {
			t.Fatalf("%x became %x", b, stored)
		}
		again, err := ParseHeaders(stored)
		if err != nil || !bytes.Equal(AppendHeaders(nil, again), stored) {
			t.Fatalf("%x: %v", stored, err)
		}
		m := Message{Headers: h}
		if m.stored() != len(stored) {
			t.Fatalf("%d bytes, said to be %d", len(stored), m.stored())
		}
	})
}

// FuzzParseID: an accepted id is written as it was read, but for its case.
func FuzzParseID(f *testing.F) {
	for _, s := range []string{"", "01942f3e-6c00-7000-8000-000000000001", "01942F3E-6C00-7FFF-BFFF-FFFFFFFFFFFF", "01942f3e-6c00-4000-8000-000000000001"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		id, err := ParseID(s)
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Fatalf("%q: %v", s, err)
			}
			return
		}
		if !bytes.EqualFold([]byte(id.String()), []byte(s)) {
			t.Fatalf("%q is %v", s, id)
		}
		if at := MinID(id.Time()); at.Compare(id) > 0 {
			t.Fatalf("%v is before the first id of its millisecond, %v", id, at)
		}
	})
}
