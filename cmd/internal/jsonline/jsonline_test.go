package jsonline

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mvalve/mvalve/queue"
)

var now = time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC)

func parser() *Parser { return &Parser{Now: func() time.Time { return now }} }

func TestParse(t *testing.T) {
	got, err := parser().Parse([]byte(`{"destination":"mail.example","body":"héllo","headers":[["To","a,b"],["To","c"]],"priority":9,"delay":"3s","ttl":"1m"}`))
	if err != nil {
		t.Fatal(err)
	}
	want := &queue.Message{Destination: "mail.example", Body: []byte("héllo"), Priority: queue.Level(9),
		Headers: queue.Headers{{Name: "To", Value: "a,b"}, {Name: "To", Value: "c"}},
		ReadyAt: now.Add(3 * time.Second), ExpiresAt: now.Add(time.Minute)}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestParseHeaderObjectKeepsOrder(t *testing.T) {
	got, err := parser().Parse([]byte(`{"destination":"d","headers":{"z":"1","a":["2","3"]}}`))
	if err != nil {
		t.Fatal(err)
	}
	want := queue.Headers{{Name: "z", Value: "1"}, {Name: "a", Value: "2"}, {Name: "a", Value: "3"}}
	if diff := cmp.Diff(want, got.Headers); diff != "" {
		t.Error(diff)
	}
}

func TestParseRefuses(t *testing.T) {
	for name, c := range map[string]struct{ line, says string }{
		"unknown field":    {`{"destination":"d","dealy":"3s"}`, `field "dealy": unknown`},
		"case":             {`{"Destination":"d"}`, `field "Destination": unknown`},
		"no destination":   {`{"body":"x"}`, `field "destination"`},
		"long destination": {`{"destination":"` + strings.Repeat("x", 256) + `"}`, `field "destination": destination has 256 bytes`},
		"not UTF-8":        {"{\"destination\":\"\xff\"}", "not UTF-8"},
		"half a pair":      {`{"destination":"d","body":"\ud83d x"}`, `field "body": holds half`},
		"garbage":          {`{"destination":`, "not JSON"},
		"list":             {`[1]`, "not a JSON object"},
		"null":             {`null`, "not a JSON object"},
		"two objects":      {`{"destination":"d"}{}`, "not JSON"},
		"lane":             {`{"destination":"d","lane":"fast"}`, `field "lane"`},
		"incoming delayed": {`{"destination":"d","lane":"incoming","delay":"1s"}`, "incoming cannot have a delay"},
		"priority":         {`{"destination":"d","priority":10}`, `field "priority"`},
		"delay number":     {`{"destination":"d","delay":3}`, `field "delay"`},
		"negative delay":   {`{"destination":"d","delay":"-3s"}`, `field "delay"`},
		"delay twice":      {`{"destination":"d","delay":"3s","ready_at":"2030-01-01T00:00:00Z"}`, `field "ready_at"`},
		"body twice":       {`{"destination":"d","body":"x","body_base64":"eA=="}`, `field "body_base64"`},
		"base64":           {`{"destination":"d","body_base64":"?"}`, `field "body_base64": not base64`},
		"time":             {`{"destination":"d","expires_at":"tomorrow"}`, `field "expires_at"`},
		"id":               {`{"destination":"d","id":"17"}`, `field "id"`},
		"headers":          {`{"destination":"d","headers":"To: x"}`, `field "headers"`},
		"header pair":      {`{"destination":"d","headers":[["To"]]}`, `field "headers": pair 1`},
		"header value":     {`{"destination":"d","headers":{"To":1}}`, `field "headers": "To"`},
	} {
		_, err := parser().Parse([]byte(c.line))
		if !errors.Is(err, queue.ErrInvalid) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want %q", name, err, c.says)
		}
	}
	small := parser()
	small.MaxBody = 3
	if _, err := small.Parse([]byte(`{"destination":"d","body":"four"}`)); err == nil || !strings.Contains(err.Error(), `field "body"`) {
		t.Errorf("body above the limit: %v", err)
	}
}

func TestDefaults(t *testing.T) {
	p := parser()
	p.Defaults = Defaults{Destination: "d", Priority: queue.Level(1), Delay: time.Second, TTL: time.Minute,
		Headers: queue.Headers{{Name: "A", Value: "1"}, {Name: "B", Value: "2"}}}
	got, err := p.Parse([]byte(`{"priority":4,"headers":{"b":"3"},"ready_at":"2030-01-01T00:00:00Z"}`))
	if err != nil {
		t.Fatal(err)
	}
	want := &queue.Message{Destination: "d", Headers: queue.Headers{{Name: "A", Value: "1"}, {Name: "b", Value: "3"}},
		ReadyAt: time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC), ExpiresAt: now.Add(time.Minute)}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestRoundTrip(t *testing.T) {
	var ids queue.IDSource
	for _, m := range []*queue.Message{
		{Destination: "d", Lane: queue.Incoming, Body: []byte("text <&> \u2028 \ufffd")},
		{Destination: "a b\n\x00", Lane: queue.Emergency, Body: []byte{0, 0xff}, Priority: queue.Level(9), ExpiresAt: now.Add(time.Hour)},
		{Destination: "d", Lane: queue.Timed, Body: []byte{}, Headers: queue.Headers{{Name: "x", Value: "\xff"}, {Name: "x", Value: ""}}},
	} {
		m.ID, m.EnqueuedAt = ids.New(now), now
		text := Append(nil, m, 3, now)
		if strings.Count(string(text), "\n") != 1 {
			t.Fatalf("not one line: %q", text)
		}
		got, err := parser().Parse(text)
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		got.EnqueuedAt = now // the writer sets it
		if diff := cmp.Diff(m, got); diff != "" {
			t.Error(diff)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"destination":"d","body":"\ud83d\ude00\\u","headers":[["a","b","base64"]]}`))
	f.Add([]byte(`{"destination":"d","headers":{"a":["b"]},"delay":"3s"}`))
	f.Add([]byte(`{"destination":"d","body":"\ud83d"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := parser().Parse(data)
		if err != nil {
			return
		}
		again, err := parser().Parse(Append(nil, m, 1, now))
		if err != nil && !m.ID.IsZero() {
			t.Fatalf("%q: %v", data, err)
		}
		if err == nil && (string(again.Body) != string(m.Body) || !cmp.Equal(again.Headers, m.Headers)) {
			t.Fatalf("%q: changed", data)
		}
	})
}
