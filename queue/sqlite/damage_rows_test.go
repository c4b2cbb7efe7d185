package sqlite

import (
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/state"
	"github.com/mvalve/mvalve/throttle"
)

func change(t *testing.T, s *Store, text string) {
	t.Helper()
	err := s.write(t.Context(), 1, func(c *conn, _ bool) error {
		_, err := c.exec(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestDamagedStateIsNotAbsent: whatever a value has become, it is not taken for
// one that never was: that would open a window.
func TestDamagedStateIsNotAbsent(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "x.db"))
	st := s.State()
	for _, value := range []string{"x''", "''", "0", "1.5", "'text'"} {
		set := func(int, state.Entry) []byte { return []byte("sound") }
		if errs := st.Update(t.Context(), time.Now(), []string{"k"}, []time.Duration{time.Hour}, set); errs != nil {
			t.Fatal(errs)
		}
		change(t, s, "UPDATE q_state SET value = "+value)
		entries, errs := st.Get(t.Context(), []string{"k"})
		if errs != nil || entries[0].Data == nil {
			t.Errorf("%s: %+v, %v", value, entries, errs)
		}
	}
}

// TestDamagedRuleColumns: no damaged column of a rule lifts or changes its limit
// unnoticed, as long as it does not look like another limit.
func TestDamagedRuleColumns(t *testing.T) {
	for _, damage := range []string{
		"limit_max = 'x'", "limit_max = x'01'", "limit_max = 1.5", "limit_max = -1", "limit_max = 0",
		"limit_interval = 0", "limit_interval = NULL", "limit_interval = 'x'", "limit_interval = 4611686018427387904",
		"limit_mode = 256", "limit_mode = 3", "limit_guard = -1", "limit_guard = 4611686018427387904", "weight = 'x'",
	} {
		s := open(t, filepath.Join(t.TempDir(), "x.db"))
		limit := throttle.Limit{Max: 5, Interval: time.Second}
		now := time.Now()
		if _, err := throttle.SetLimit(t.Context(), s, now, "*", limit); err != nil {
			t.Fatal(err)
		}
		change(t, s, "UPDATE q_limit SET "+damage)
		rules := throttle.NewRules(s, nil)
		if err := rules.Reload(t.Context(), now); err != nil {
			t.Fatal(err)
		}
		if r := rules.Resolve("a"); !r.Paused {
			t.Errorf("%s: %+v", damage, r)
		}
	}
}

// TestDamagedKeyHidesNobody: rows whose key is no id are passed over by those
// who look for messages, and shown to those who look into the store.
func TestDamagedKeyHidesNobody(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "x.db"))
	var ids queue.IDSource
	bad, good := message(&ids, "a"), message(&ids, "a")
	if err := put(t, s, bad, good); err != nil {
		t.Fatal(err)
	}
	change(t, s, "UPDATE q_incoming SET id = substr(id, 1, 15) WHERE id < (SELECT max(id) FROM q_incoming)")
	if n := waiting(t, s); n != 1 {
		t.Errorf("%d messages found, want the sound one", n)
	}
	refs, _, err := s.Heads(t.Context(), time.Now(), queue.HeadQuery{Destination: "a", Limit: 10})
	if err != nil || len(refs) != 1 || refs[0].ID != good.ID {
		t.Errorf("Heads: %v, %v", refs, err)
	}
	letters, err := s.Peek(t.Context(), queue.Incoming, "", queue.Cursor{}, 10)
	if err != nil || len(letters) != 2 || !errors.Is(letters[0].Err, queue.ErrCorrupt) || letters[1].Err != nil {
		t.Errorf("Peek: %+v, %v", letters, err)
	}
}
