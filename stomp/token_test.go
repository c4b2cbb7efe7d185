package stomp

import (
	"testing"
	"time"

	"github.com/mvalve/mvalve/queue"
)

// An id of the server before a restart is stale, not bogus; what was made up is.
func TestTokenOfAnotherServer(t *testing.T) {
	var ids queue.IDSource
	before, after := &Server{}, &Server{}
	id := ids.New(time.Now())
	for serial := range uint64(2000) {
		serial *= 0x1003_0507
		token := before.appendToken(nil, id, serial)
		got, n, ok := after.parseToken(token)
		if !ok || got != id || n != serial {
			t.Fatalf("%s: %v %d %v", token, got, n, ok)
		}
		token[len(token)-1] ^= 1
		if _, _, ok := after.parseToken(token); ok {
			t.Fatalf("%s is taken for issued", token)
		}
	}
}
