package sqlite

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/throttle"
	"github.com/mvalve/mvalve/valve"
)

// TestDamagedMessageBecomesDeadLetter: a reader never serves it, but serves its
// neighbours, and the dead letter says why. It costs its destination no permit.
func TestDamagedMessageBecomesDeadLetter(t *testing.T) {
	for _, limit := range []throttle.Limit{{}, {Max: 2, Interval: time.Hour}} {
		s := open(t, filepath.Join(t.TempDir(), "x.db"))
		if _, err := throttle.SetLimit(t.Context(), s, time.Now(), "*", limit); err != nil {
			t.Fatal(err)
		}
		var ids queue.IDSource
		first, damaged, last := message(&ids, "d"), message(&ids, "d"), message(&ids, "d")
		if err := put(t, s, first, damaged, last); err != nil {
			t.Fatal(err)
		}
		damageable{s}.Damage(t, damaged.Ref(), "body", func(old []byte) []byte {
			b := slices.Clone(old)
			b[1] ^= 4
			return b
		})
		r, err := valve.OpenReader(t.Context(), s, valve.ReaderConfig{Address: "-", Wait: 20 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		var served []queue.ID
		for len(served) < 2 {
			d, err := r.Next(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			served = append(served, d.Message.ID)
			if err := d.Ack(t.Context()); err != nil {
				t.Error(err)
			}
		}
		if !slices.Equal(served, []queue.ID{first.ID, last.ID}) {
			t.Errorf("limit %v: served %v", limit, served)
		}
		if err := r.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		letters, err := s.Peek(t.Context(), queue.Dead, "", queue.Cursor{}, 10)
		if err != nil || len(letters) != 1 || letters[0].Message.ID != damaged.ID || !strings.Contains(letters[0].Reason, "checksum") {
			t.Errorf("limit %v: dead letters %+v, %v", limit, letters, err)
		}
	}
}
