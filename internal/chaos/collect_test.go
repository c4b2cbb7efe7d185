package chaos_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/mvalve/mvalve/queue"
)

// eachLine calls do with every whole line of a file: the last one may have been cut off.
func eachLine(t *testing.T, path string, do func(line string) error) {
	t.Helper()
	f, err := os.Open(path)
	if os.IsNotExist(err) {
		return // killed before it began
	}
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r := bufio.NewReaderSize(f, 1<<20)
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		if err := do(strings.TrimSuffix(line, "\n")); err != nil {
			t.Errorf("%s: %v: %.300q", path, err, line)
			return
		}
	}
}

// collect reads what the processes left behind. All of them have ended.
func (h *harness) collect() {
	h.t.Helper()
	for _, s := range h.slots {
		for _, p := range s.processes {
			h.collectLog(s, p)
			switch s.name {
			case "writer":
				h.collectWriter(p)
			case "print":
				h.collectPrint(p)
			case "exec":
				h.collectExec(p)
			case "client":
				h.collectClient(p)
			}
		}
	}
}

// collectLog reads the dispatches of a process, and looks for a crash of its own.
func (h *harness) collectLog(s *slot, p *process) {
	h.t.Helper()
	var crash []string
	eachLine(h.t, p.errs, func(line string) error {
		if strings.HasPrefix(line, "panic:") || strings.HasPrefix(line, "fatal error:") || strings.Contains(line, "DATA RACE") || len(crash) > 0 && len(crash) < 30 {
			crash = append(crash, line)
		}
		if !strings.Contains(line, `"msg":"dispatched"`) {
			return nil
		}
		var d struct {
			Time         time.Time
			Destination  string
			Attempt      int
			MessageID    queue.ID  `json:"message_id"`
			DispatchedAt time.Time `json:"dispatched_at"`
		}
		if err := json.Unmarshal([]byte(line), &d); err != nil {
			return err
		}
		p.dispatched++
		h.ledger.dispatched(d.MessageID.String(), d.Destination, dispatch{process: p.name, attempt: d.Attempt, at: d.DispatchedAt.UnixMicro(), logged: d.Time.UnixMicro()})
		return nil
	})
	if len(crash) > 0 {
		h.t.Errorf("%s crashed: %s", p.name, strings.Join(crash, "\n"))
	}
}

// collectWriter reads the ids that a writer printed: the n-th is that of the n-th line.
func (h *harness) collectWriter(p *process) {
	h.t.Helper()
	n := 0
	eachLine(h.t, p.out, func(line string) error {
		if n >= len(p.orders) {
			return fmt.Errorf("%d ids of %d lines", n+1, len(p.orders))
		}
		h.ledger.commit(key(p.orders[n].body), line)
		n++
		return nil
	})
}

// collectPrint reads the lines of a reader that prints: it acknowledges after
// printing, and does not say when that is done.
func (h *harness) collectPrint(p *process) {
	h.t.Helper()
	eachLine(h.t, p.out, func(line string) error {
		var m struct {
			ID, Body     string
			DispatchedAt time.Time `json:"dispatched_at"`
		}
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			return err
		}
		h.ledger.delivered(m.ID, key(m.Body), &delivery{process: p.name, at: m.DispatchedAt.UnixMicro(), began: true})
		return nil
	})
}

func (h *harness) collectExec(p *process) {
	h.t.Helper()
	eachLine(h.t, p.ledger, func(line string) error {
		fields := strings.Fields(line)
		if len(fields) != 4 {
			return fs.ErrInvalid
		}
		at, err := time.Parse(time.RFC3339Nano, fields[1])
		if err != nil {
			return err
		}
		done := fields[2] == "0"
		h.ledger.delivered(fields[0], fields[3], &delivery{process: p.name, at: at.UnixMicro(), began: done, back: !done})
		return nil
	})
}

func (h *harness) collectClient(p *process) {
	h.t.Helper()
	open := make(map[string]*delivery)
	eachLine(h.t, p.ledger, func(line string) error {
		var event, id, text string
		var at int64
		if line == "Z" {
			return nil
		}
		if _, err := fmt.Sscan(line+" -", &event, &id, &at, &text); err != nil {
			return err
		}
		name := fmt.Sprint(id, at)
		d := open[name]
		switch event {
		case "C":
			h.ledger.commit(text, id)
		case "G":
			d = &delivery{process: p.name, at: at}
			open[name] = d
			h.ledger.delivered(id, text, d)
		case "B":
			d.began = true
		case "N":
			d.back = true
		case "A":
			if _, err := fmt.Sscan(text, &d.acked); err != nil {
				return err
			}
		}
		return nil
	})
}
