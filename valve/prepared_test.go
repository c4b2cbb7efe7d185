package valve_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/mvalve/mvalve/throttle"
	"github.com/mvalve/mvalve/valve"
)

// A message that was leased for a subscription before somebody else held its
// destination does not leave before the hold is over.
func TestPreparedMessageWaitsForAHold(t *testing.T) {
	inPipe(t, func(t *testing.T, p *pipe) {
		r := p.reader(nil)
		defer p.close(r)
		s, err := r.Subscribe(valve.Filter{Globs: []string{"d"}}, 100)
		if err != nil {
			t.Fatal(err)
		}
		p.insert(text("d", "1"))
		synctest.Wait() // prepared
		until := p.w.Now().Add(30 * time.Second)
		if err := p.rules.PutHold(t.Context(), p.w.Now(), throttle.Hold{Destination: "d", Until: until, Reason: "told to wait"}); err != nil {
			t.Fatal(err)
		}
		pass(time.Second)
		d, err := s.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if early := until.Sub(d.DispatchedAt); early > 0 {
			t.Errorf("dispatched %v before the hold was over", early)
		}
		p.ack(d)
	})
}

// Nor does one that expired while it waited for its consumer.
func TestPreparedMessageExpires(t *testing.T) {
	inPipe(t, func(t *testing.T, p *pipe) {
		r := p.reader(nil)
		defer p.close(r)
		s, err := r.Subscribe(valve.Filter{Globs: []string{"d"}}, 100)
		if err != nil {
			t.Fatal(err)
		}
		late := text("d", "late")
		late.ExpiresAt = p.w.Now().Add(5 * time.Second)
		p.insert(late)
		synctest.Wait() // prepared
		pass(6 * time.Second)
		p.insert(text("d", "next"))
		d, err := s.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if got := string(d.Message.Body); got != "next" {
			t.Errorf("got %q, which had expired", got)
		}
		p.ack(d)
	})
}
