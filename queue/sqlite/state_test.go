package sqlite

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/state"
	"github.com/mvalve/mvalve/state/statetest"
)

func TestState(t *testing.T) {
	statetest.Run(t, func(t *testing.T) state.Store {
		return open(t, filepath.Join(t.TempDir(), "state.db")).State()
	})
}

func TestStateBatch(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "state.db"))
	st := s.State()
	now := time.Now()
	ttls := []time.Duration{time.Minute, time.Minute, time.Minute}
	add := func(_ int, old state.Entry) []byte { return append([]byte("x"), old.Data...) }
	if errs := st.Update(t.Context(), now, []string{"a", "b", "a"}, ttls, add); errs != nil {
		t.Fatal(errs)
	}
	entries, errs := st.Get(t.Context(), []string{"a", "b", "a", "c"})
	if errs != nil || string(entries[0].Data) != "xx" || string(entries[1].Data) != "x" || string(entries[2].Data) != "xx" || entries[3].Data != nil {
		t.Errorf("a key given twice: %q, %v", entries, errs)
	}
	errs = st.Update(t.Context(), now, []string{"a", "big", ""}, ttls, func(i int, _ state.Entry) []byte {
		return make([]byte, []int{1, maxValueBytes + 1, 1}[i])
	})
	if len(errs) != 3 || errs[0] != nil || errs[1] == nil || errs[2] == nil {
		t.Errorf("values and keys that are too large: %v", errs)
	}
	if errs := st.Update(t.Context(), now, []string{strings.Repeat("k", maxKeyBytes)}, ttls, add); errs != nil {
		t.Errorf("longest key: %v", errs)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	errs = st.Update(t.Context(), now, []string{"a"}, ttls, add)
	if len(errs) != 1 || !errors.Is(errs[0], state.ErrUnavailable) || !errors.Is(errs[0], queue.ErrClosed) {
		t.Errorf("after Close: %v", errs)
	}
}
