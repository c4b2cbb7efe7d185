package state_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/mvalve/mvalve/state"
	"github.com/mvalve/mvalve/state/statetest"
)

func TestMemory(t *testing.T) {
	statetest.Run(t, func(*testing.T) state.Store { return state.NewMemory() })
}

func set(m *state.Memory, now time.Time, key, value string) error {
	return errors.Join(m.Update(context.Background(), now, []string{key}, []time.Duration{time.Second},
		func(int, state.Entry) []byte { return []byte(value) })...)
}

func TestMemoryWipe(t *testing.T) {
	m := state.NewMemory()
	now := time.Unix(1000, 0)
	if err := set(m, now, "k", "v"); err != nil {
		t.Fatal(err)
	}
	m.Wipe(now.Add(time.Millisecond))
	got, _ := m.Get(context.Background(), []string{"k"})
	if got[0].Data != nil || !got[0].Lost.Equal(now.Add(time.Millisecond)) {
		t.Errorf("after a wipe: %+v", got[0])
	}
}

func TestMemoryExpiresByNow(t *testing.T) {
	m := state.NewMemory()
	now := time.Unix(1000, 0)
	if err := errors.Join(set(m, now, "k", "v"), set(m, now.Add(time.Second-1), "other", "v")); err != nil {
		t.Fatal(err)
	}
	if got, _ := m.Get(context.Background(), []string{"k"}); got[0].Data == nil {
		t.Error("gone before its time")
	}
	if err := set(m, now.Add(time.Second), "other", "v"); err != nil {
		t.Fatal(err)
	}
	if got, _ := m.Get(context.Background(), []string{"k"}); got[0].Data != nil || !got[0].Lost.IsZero() {
		t.Errorf("after its time: %+v", got[0])
	}
}

func TestMemoryFault(t *testing.T) {
	m := state.NewMemory()
	now := time.Unix(1000, 0)
	apply, fail := false, state.ErrUnavailable
	m.Fault = func(string, bool) (bool, error) { return apply, fail }
	if err := set(m, now, "k", "v"); !errors.Is(err, state.ErrUnavailable) {
		t.Errorf("err = %v", err)
	}
	if _, errs := m.Get(context.Background(), []string{"k"}); !errors.Is(errs[0], state.ErrUnavailable) {
		t.Errorf("errs = %v", errs)
	}
	apply, fail = true, state.ErrUnknown
	if err := set(m, now, "k", "v"); !errors.Is(err, state.ErrUnknown) {
		t.Errorf("err = %v", err)
	}
	m.Fault = nil
	if got, _ := m.Get(context.Background(), []string{"k"}); string(got[0].Data) != "v" {
		t.Errorf("an unknown outcome that was applied left %q", got[0].Data)
	}
}

// A value lives its time, even if another caller's clock is far ahead.
func TestMemoryLivesByTheLatestClock(t *testing.T) {
	m, now := state.NewMemory(), time.Unix(1e9, 0)
	put := func(at time.Time, key string) {
		if errs := m.Update(t.Context(), at, []string{key}, []time.Duration{time.Minute}, func(int, state.Entry) []byte { return []byte("x") }); errs != nil {
			t.Fatal(errs)
		}
	}
	put(now.Add(5*time.Minute), "ahead")
	put(now, "behind")
	if entries, _ := m.Get(t.Context(), []string{"behind"}); entries[0].Data == nil {
		t.Error("the value was gone at once")
	}
}
