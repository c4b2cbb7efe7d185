package chaos_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/mvalve/mvalve/internal/checker"
)

// story is a ledger of messages that all went well: each is committed,
// dispatched 100 ms apart and acknowledged.
func story() (l *ledger, limits map[string]checker.Limit) {
	l = newLedger()
	for i := range 20 {
		id, body, at := fmt.Sprint("id", i), fmt.Sprint(i), int64(i*100_000+1)
		l.send(body, "writer")
		l.commit(body, id)
		l.dispatched(id, "a", dispatch{process: "reader.1", at: at, logged: at + 20})
		l.delivered(id, body, &delivery{process: "reader.1", at: at, began: true, acked: at + 1000})
	}
	return l, map[string]checker.Limit{"a": {Max: 2, Window: 200 * time.Millisecond}}
}

// TestJudge: the judge finds each kind of broken promise, and nothing in a run
// in which all went well.
func TestJudge(t *testing.T) {
	const late = 1_000_000
	for _, tt := range []struct {
		want  string // "": all is well
		alter func(*ledger)
	}{
		{"", func(*ledger) {}},
		{"", func(l *ledger) { // a process died with the message, its lease ended, another got it
			m := l.message("id19")
			m.deliveries[0].began, m.deliveries[0].acked = false, 0
			at := m.dispatches[0].at + late
			l.dispatched("id19", "a", dispatch{process: "reader.2", at: at, logged: at})
			l.delivered("id19", "19", &delivery{process: "reader.2", at: at, began: true})
		}},
		{"", func(l *ledger) { l.send("20", "writer") }}, // not told that it is committed
		{lost, func(l *ledger) { l.send("20", "writer"); l.commit("20", "") }},
		{lost, func(l *ledger) { delete(l.messages, "id7") }},
		{dropped, func(l *ledger) { l.message("id7").deliveries[0].began = false }},
		{dropped, func(l *ledger) { l.message("id7").deliveries = nil }},
		{again, func(l *ledger) {
			at := l.message("id19").dispatches[0].at + late
			l.dispatched("id19", "a", dispatch{process: "reader.1", at: at, logged: at})
		}},
		{again, func(l *ledger) { // a RECEIPT in time
			d := l.message("id19").dispatches[0]
			l.message("id19").deliveries[0].process, l.message("id19").deliveries[0].unsure = "reader", true
			l.dispatched("id19", "a", dispatch{process: "reader.1", at: d.at + late, logged: d.at + late})
		}},
		{"", func(l *ledger) { // stopped before its line in the log, and overtaken
			l.message("id19").dispatches[0].attempt = 2
			logged := l.message("id19").deliveries[0].acked + late
			l.dispatched("id19", "a", dispatch{process: "broker.2", attempt: 1, at: -1_000_000, logged: logged})
			l.stops = []stop{{"broker.2", -999_990, logged - 10}}
		}},
		{again, func(l *ledger) { // the same, but stopped for a moment of it only
			l.message("id19").dispatches[0].attempt = 2
			logged := l.message("id19").deliveries[0].acked + late
			l.dispatched("id19", "a", dispatch{process: "broker.2", attempt: 1, at: -1_000_000, logged: logged})
			l.stops = []stop{{"broker.2", -999_990, 100_000}, {"broker.1", -999_990, logged - 10}}
		}},
		{again, func(l *ledger) { // the same, but not stopped: its clock was behind
			l.message("id19").dispatches[0].attempt = 2
			l.dispatched("id19", "a", dispatch{process: "broker.2", attempt: 1, at: -1_000_000, logged: l.message("id19").deliveries[0].acked + late})
		}},
		{again, func(l *ledger) { // by the lease before, after the ack
			d := l.message("id19").dispatches[0]
			l.message("id19").dispatches[0].attempt = 2
			l.dispatched("id19", "a", dispatch{process: "broker.2", attempt: 1, at: d.at + late, logged: d.at + late})
		}},
		{"", func(l *ledger) { // a RECEIPT after the lease
			d := l.message("id19").dispatches[0]
			*l.message("id19").deliveries[0] = delivery{process: "reader", unsure: true, began: true, acked: d.logged + late}
			l.dispatched("id19", "a", dispatch{process: "reader.1", at: d.at + 2*late, logged: d.at + 2*late})
		}},
		{overlap, func(l *ledger) {
			d := l.message("id19").dispatches[0]
			l.message("id19").deliveries[0].acked = 0
			l.dispatched("id19", "a", dispatch{process: "reader.2", at: d.at + 150_000, logged: d.logged + 150_000})
		}},
		{"", func(l *ledger) { // given back
			m := l.message("id19")
			m.deliveries[0].acked, m.deliveries[0].back = 0, true
			l.dispatched("id19", "a", dispatch{process: "reader.2", at: m.dispatches[0].at + 150_000, logged: m.dispatches[0].logged + 150_000})
		}},
		{doubled, func(l *ledger) {
			l.sent["7"].id = ""
			l.dispatched("id20", "a", dispatch{process: "reader.1", at: 2_200_000, logged: 2_200_000})
			l.delivered("id20", "7", &delivery{process: "reader.1", at: 2_200_000, began: true})
		}},
		{mixed, func(l *ledger) { l.sent["7"].id = "id8" }},
		{invented, func(l *ledger) { delete(l.sent, "7") }},
		{unlogged, func(l *ledger) { l.message("id7").deliveries[0].at++ }},
		{above, func(l *ledger) {
			l.message("id7").dispatches[0].at -= 50_001
			l.message("id7").deliveries[0].at -= 50_001
		}},
		{above, func(l *ledger) { // of a process that died before its consumer had the message
			m := l.message("id19")
			m.deliveries[0].acked, m.deliveries[0].back = 0, true
			l.dispatched("id19", "a", dispatch{process: "broker.1", at: m.dispatches[0].at + 10, logged: m.dispatches[0].at + 10})
			l.dispatched("id19", "a", dispatch{process: "broker.2", at: m.dispatches[0].at + 20, logged: m.dispatches[0].at + 20})
		}},
		{again, func(l *ledger) { // a RECEIPT late by a log line that was ahead
			d := l.message("id19").dispatches[0]
			*l.message("id19").deliveries[0] = delivery{process: "reader", unsure: true, began: true, acked: d.logged + late - 30}
			l.message("id19").dispatches[0].logged = d.at + 20
			l.dispatched("id19", "a", dispatch{process: "reader.1", at: d.at + 2*late, logged: d.at + 2*late})
		}},
		{"", func(l *ledger) { // in time after its log line, not after its stamp
			d := &l.message("id19").dispatches[0]
			d.logged = d.at + late/2
			*l.message("id19").deliveries[0] = delivery{process: "reader", unsure: true, began: true, acked: d.logged + late - 30}
			l.dispatched("id19", "a", dispatch{process: "reader.1", at: d.at + 2*late, logged: d.at + 2*late})
		}},
		{behind, func(l *ledger) {
			l.message("id7").dispatches[0].logged += 7_000_000
			l.message("id7").deliveries[0].acked += 7_000_000
		}},
		{"", func(l *ledger) { // stopped, not behind
			d := &l.message("id7").dispatches[0]
			l.message("id7").deliveries[0].acked += 7_000_000
			l.stops = []stop{{d.process, d.at + 10, d.at + 1_500_010}}
			d.logged += 7_000_000
		}},
		{ahead, func(l *ledger) { l.message("id7").dispatches[0].logged -= 3_000_000 }},
	} {
		l, limits := story()
		tt.alter(l)
		v := l.judge(limits, 2*time.Second, func(process string) bool { return process[:6] == "reader" })
		switch {
		case tt.want == "" && len(v.broken) > 0:
			t.Errorf("found %v where all is well: %v", v.broken, v.first)
		case tt.want != "" && v.broken[tt.want] == 0:
			t.Errorf("%q was not found, only %v", tt.want, v.broken)
		case len(v.broken) > 1:
			t.Errorf("more than %q was found: %v", tt.want, v.first)
		}
	}
}
