package valve_test

import (
	"testing"
	"time"

	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/valve"
)

// Messages that are not due do not take the places of a full index from those
// that are.
func TestFullIndexKeepsWhatIsDue(t *testing.T) {
	inPipe(t, func(t *testing.T, p *pipe) {
		p.limit("d", "100/1s")
		r := p.reader(func(cfg *valve.ReaderConfig) { cfg.IndexCap = 4 })
		defer p.close(r)
		s, err := r.Subscribe(valve.Filter{}, 1)
		if err != nil {
			t.Fatal(err)
		}
		pass(5 * time.Second) // between two passes over all destinations
		var later []*queue.Message
		for range 6 {
			m := text("later", "later")
			m.ReadyAt = p.w.Now().Add(900 * time.Millisecond)
			later = append(later, m)
		}
		p.insert(later...)
		pass(100 * time.Millisecond)
		for range 2 {
			at := p.w.Now()
			p.insert(text("d", "now"), text("d", "now"))
			for range 2 {
				d := p.fetch(s)
				if waited := d.DispatchedAt.Sub(at); string(d.Message.Body) != "now" || waited > 10*time.Millisecond {
					t.Errorf("%s after %v", d.Message.Body, waited)
				}
				p.ack(d)
			}
		}
		for range later {
			d := p.fetch(s)
			if late := d.DispatchedAt.Sub(later[0].ReadyAt); late > 600*time.Millisecond {
				t.Errorf("%s is %v late", d.Message.Body, late)
			}
			p.ack(d)
		}
	})
}
