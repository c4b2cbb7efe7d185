package queue

import "testing"

// CorruptRow flips a bit in the body of a stored row; the suite uses it.
func (m *Memory) CorruptRow(t *testing.T, ref Ref) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.tables[ref.Table].get(Cursor{ref.ReadyAt, ref.ID}).msg.Body[0] ^= 1
}
