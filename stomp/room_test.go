package stomp

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/mvalve/mvalve/stomp/frame"
)

// Long bodies that do not end, and transactions that are not committed, use up
// what is set aside for them and nothing else.
func TestArrivingIsBounded(t *testing.T) {
	const limit, long = 1 << 20, 1<<20/5 + 1
	b := startBroker(t, brokerConfig{config: Config{MaxArriving: limit, ArrivingWait: 50 * time.Millisecond}})
	body := strings.Repeat("x", long)
	used := func() int { return b.srv.Stats().ArrivingBytes }
	refused := func(what string) {
		t.Helper()
		c := b.connect(frame.V12)
		c.frame("SEND", []string{"destination:/queue/long"}, body)
		if f := c.expect(frame.ErrorCommand); !strings.Contains(string(f.Body), "--max-arriving") {
			t.Errorf("%s: %s", what, show(f))
		}
	}
	works := func(what string) {
		t.Helper()
		eventually(t, what+": all is given back", func() bool { return used() == 0 })
		b.connect(frame.V12).send("/queue/long", body)
	}
	works("at first")

	slow := b.connect(frame.V12)
	slow.write(fmt.Sprintf("SEND\ndestination:/queue/slow\ncontent-length:%d\n\n%s", 4<<20, body))
	eventually(t, "a body of 4 MiB counts whole", func() bool { return used() > 4<<20 })
	refused("a body that does not end")
	b.connect(frame.V12).send("/queue/short", "x")
	slow.nc.Close()
	works("after a body that did not end")

	open := b.connect(frame.V12)
	open.do("BEGIN", "transaction:t")
	for range 5 {
		open.doBody("SEND", body, "destination:/queue/long", "transaction:t")
	}
	refused("an open transaction")
	b.connect(frame.V12).send("/queue/short", "x")
	open.do("ABORT", "transaction:t")
	works("after ABORT")

	open.do("BEGIN", "transaction:u")
	open.doBody("SEND", body, "destination:/queue/long", "transaction:u")
	open.do("COMMIT", "transaction:u")
	works("after COMMIT")

	open.do("BEGIN", "transaction:v")
	open.doBody("SEND", body, "destination:/queue/long", "transaction:v")
	open.nc.Close()
	works("after the end of a connection")
}
