package memcached

import (
	"bytes"
	"testing"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
)

// FuzzValue: whatever a server holds under a marker's or a value's name, it is
// read as what was written or not at all; a value of another epoch never is.
func FuzzValue(f *testing.F) {
	m := marker{nonce: 7, lost: time.UnixMicro(1_735_732_800_000_000).UTC(), evictions: 3}
	f.Add(m.encode(), []byte("\x00\x00\x00\x00\x00\x00\x00\x07value"))
	f.Add(marker{}.encode(), []byte{})
	f.Add([]byte{}, []byte("short"))
	f.Add(make([]byte, markerSize+1), make([]byte, nonceSize))
	f.Fuzz(func(t *testing.T, stored, value []byte) {
		m, ok := decodeMarker(&memcache.Item{Value: stored})
		if !ok {
			return
		}
		if !bytes.Equal(m.encode(), stored) {
			t.Fatalf("%x became %x", stored, m.encode())
		}
		sn := &snapshot{marker: m, items: map[string]*memcache.Item{"k": {Value: value}}}
		now := time.UnixMicro(1_735_732_900_000_000)
		switch v := sn.value("k", now); {
		case bytes.HasPrefix(value, stored[:nonceSize]):
			if v.entry.Data == nil || !bytes.Equal(v.entry.Data, value[nonceSize:]) || !v.entry.Lost.IsZero() {
				t.Fatalf("%x: %+v", value, v.entry)
			}
		case v.entry.Data != nil || v.entry.Lost.Before(now):
			t.Fatalf("%x: %+v", value, v.entry)
		}
	})
}
