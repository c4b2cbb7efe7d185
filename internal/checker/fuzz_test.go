package checker

import (
	"bytes"
	"encoding/json"
	"testing"
	"time"
)

// FuzzReadLog: what is accepted has a stamp per line, and judging it agrees with
// counting pair by pair.
func FuzzReadLog(f *testing.F) {
	f.Add([]byte(`{"destination":"a","dispatched_at":"2026-01-01T00:00:00.000001Z"}` + "\n\n" + `{"destination":"a","dispatched_at":"2026-01-01T00:00:00+02:00"}`))
	f.Add([]byte(`{"destination":"a","dispatched_at":"0000-01-01T00:00:00Z"}` + "\n" + `{"destination":"a","dispatched_at":"9999-12-31T23:59:59Z"}`))
	f.Add([]byte(`{"destination":"","dispatched_at":""}`))
	f.Add([]byte("[1]\n{"))
	f.Fuzz(func(t *testing.T, in []byte) {
		log, err := ReadLog(bytes.NewReader(in))
		if err != nil {
			if log != nil {
				t.Fatal("a log and an error")
			}
			return
		}
		var again bytes.Buffer
		for name, stamps := range log {
			limit := Limit{Max: 2, Window: time.Second}
			r := Check(name, stamps, limit)
			worst := 0
			for _, from := range stamps {
				n := 0
				for _, s := range stamps {
					if s >= from && s < from+1_000_000 {
						n++
					}
				}
				worst = max(worst, n)
			}
			if r.Worst != worst || r.Count != len(stamps) || (r.Above > 0) != (worst > 2) {
				t.Fatalf("%q: %+v, counted %d", name, r, worst)
			}
			for _, s := range stamps {
				line, err := json.Marshal(map[string]string{"destination": name, "dispatched_at": time.UnixMicro(s).UTC().Format(time.RFC3339Nano)})
				if err != nil {
					t.Fatal(err)
				}
				again.Write(append(line, '\n'))
			}
		}
		other, err := ReadLog(&again)
		if err != nil || len(other) != len(log) {
			t.Fatalf("%q: %d destinations, then %d: %v", in, len(log), len(other), err)
		}
	})
}
