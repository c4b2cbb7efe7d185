package queue_test

import (
	"testing"

	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/queue/queuetest"
)

// damageable lets the suite corrupt rows of a Memory.
type damageable struct{ *queue.Memory }

func (d damageable) Corrupt(t *testing.T, ref queue.Ref) { d.CorruptRow(t, ref) }

func TestMemory(t *testing.T) {
	queuetest.Run(t, func(t *testing.T) queue.Store { return damageable{queue.NewMemory()} })
}
