package stomp

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"

	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/stomp/frame"
	"github.com/mvalve/mvalve/throttle"
	"github.com/mvalve/mvalve/valve"
)

// FuzzToken: no message-id is accepted but in the form in which it was issued.
func FuzzToken(f *testing.F) {
	s := &Server{}
	id := new(queue.IDSource).New(time.UnixMilli(1_735_732_800_000))
	f.Add(s.appendToken(nil, id, 46))
	f.Add(s.appendToken(nil, queue.ID{}, 1<<63))
	f.Add([]byte("01942f3e-6c00-7000-8000-000000000001-1a-9f3c"))
	f.Add([]byte("01942f3e-6c00-7000-8000-000000000001-zzzzzzzzzzzzzz-9f3c"))
	f.Fuzz(func(t *testing.T, token []byte) {
		if id, serial, ok := s.parseToken(token); ok {
			if again := s.appendToken(nil, id, serial); !bytes.EqualFold(again, token) && len(again) >= len(token) {
				t.Fatalf("%q is taken for %q", token, again)
			}
		}
	})
}

// FuzzDestination: as text and as bytes the same, and nothing of a name is lost;
// a prefix matches what it begins and nothing else.
func FuzzDestination(f *testing.F) {
	for _, s := range []string{"/queue/a", "/queue/a*", "/queue/*", "/queue/", "/topic/\\*?*", "/temp-queue/x", "/control/count-msgs/queue/x", "/pipe", "/pipe/", "queue/a", ""} {
		f.Add(s, "/queue/ab")
	}
	f.Fuzz(func(t *testing.T, s, other string) {
		kind, name := parseDestination(s)
		kindToo, nameToo := parseDestination([]byte(s))
		if kind != kindToo || name != string(nameToo) || !strings.Contains(s, name) {
			t.Fatalf("%q: %v %q, as bytes %v %q", s, kind, name, kindToo, nameToo)
		}
		if kind == queuePrefix || kind == topicPrefix {
			if glob := prefixGlob(name); throttle.MatchGlob(glob, other) != strings.HasPrefix(other, name) {
				t.Fatalf("%q: %q matches %q wrongly", s, glob, other)
			}
		}
	})
}

// FuzzSendHeader: whatever the headers of a SEND ask for is refused, or becomes a
// message within bounds that every store takes.
func FuzzSendHeader(f *testing.F) {
	for _, h := range [][2]string{
		{"priority", "9"}, {"priority", "-1"}, {"priority", "99999999999999999999"}, {"expires", "2000000000000"}, {"expires", "9007199254740992"},
		{"expiration", "9007199254740992"}, {"AMQ_SCHEDULED_DELAY", "100"}, {"AMQ_SCHEDULED_TIME", "0"}, {"AMQ_SCHEDULED_TIME", "9007199254740992"},
		{"x-delay", " 5 "}, {"deliver-after", "1e308"}, {"deliver-after", "NaN"}, {"deliver-after", "-0"}, {"ack-timeout", "Inf"},
		{"X-Mvalve-Destination", ""}, {"AMQ_SCHEDULED_CRON", "* * * * *"}, {"receipt", "1"},
	} {
		f.Add(h[0], h[1], "x-delay", "1")
	}
	writer, err := valve.NewWriter(context.Background(), queue.NewMemory(), valve.WriterConfig{})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { writer.Close() })
	f.Fuzz(func(t *testing.T, n1, v1, n2, v2 string) {
		if n1 == "reply-to" || n2 == "reply-to" {
			return // makes a subscription
		}
		m := &queue.Message{Destination: "d"}
		o := sendOptions{c: &conn{srv: &Server{Writer: writer}}, m: m}
		before := writer.Now()
		for _, h := range []*frame.Field{{Name: []byte(n1), Value: []byte(v1)}, {Name: []byte(n2), Value: []byte(v2)}} {
			if _, err := o.header(h); err != nil {
				return
			}
		}
		if o.apply() != nil {
			return
		}
		if level := m.Priority.Level(); level < 0 || level > 9 {
			t.Fatalf("priority %d", level)
		}
		latest := time.UnixMilli(1 << 53)
		if m.ReadyAt.After(latest) || !m.ReadyAt.IsZero() && o.at == "" && (m.ReadyAt.Before(before) || m.ReadyAt.After(writer.Now().Add(maxDelay))) {
			t.Fatalf("%q %q: ready at %v", n1, v1, m.ReadyAt)
		}
		if !m.ExpiresAt.IsZero() && m.ExpiresAt.Before(before) && o.expires == "" {
			t.Fatalf("%q %q: expires at %v", n1, v1, m.ExpiresAt)
		}
		for _, at := range []time.Time{m.ReadyAt, m.ExpiresAt} {
			if !queue.Time(queue.Micros(at)).Equal(at.Truncate(time.Microsecond)) && queue.Micros(at) != 0 {
				t.Fatalf("%v is not kept when stored", at)
			}
		}
	})
}
