package serve

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/mvalve/mvalve/stomp/frame"
)

func dialWeb(t *testing.T, r *running, header http.Header) (*websocket.Conn, *http.Response, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	ws, answer, err := websocket.Dial(ctx, "ws://"+r.http+"/stomp", &websocket.DialOptions{
		Subprotocols: []string{"v10.stomp", "v11.stomp", "v12.stomp"}, HTTPHeader: header, Host: header.Get("Host"),
	})
	if err == nil {
		t.Cleanup(func() { _ = ws.CloseNow() })
	}
	return ws, answer, err
}

// TestWebSocketText: frames in parts of messages and several in one; what comes
// back is text, whole frames in every message, and binary where it must be.
func TestWebSocketText(t *testing.T) {
	r := start(t, "--queue", newQueue(t))
	ws, _, err := dialWeb(t, r, http.Header{})
	if err != nil {
		t.Fatal(err)
	}
	if p := ws.Subprotocol(); p != "v12.stomp" {
		t.Errorf("protocol %q", p)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	say := func(kind websocket.MessageType, text string) {
		if err := ws.Write(ctx, kind, []byte(strings.ReplaceAll(text, "@", "\x00"))); err != nil {
			t.Fatal(err)
		}
	}
	hear := func(kind websocket.MessageType, want string) string {
		got, text, err := ws.Read(ctx)
		if err != nil {
			t.Fatalf("waiting for %s: %v", want, err)
		}
		if got != kind || !strings.HasPrefix(string(text), want) || strings.TrimRight(string(text), "\n")[len(strings.TrimRight(string(text), "\n"))-1] != 0 {
			t.Errorf("%v %q, want %v %s and whole frames", got, text, kind, want)
		}
		return string(text)
	}
	for _, part := range []string{connect[:3], connect[3:20], connect[20:] + "\n"} {
		say(websocket.MessageText, part)
	}
	hear(websocket.MessageText, "CONNECTED\n")
	say(websocket.MessageText, "SUBSCRIBE\nid:s\ndestination:/queue/d\nreceipt:1\n\n@SUBSCRIBE\nid:t\ndestination:/topic/d\nreceipt:2\n\n@")
	if text := hear(websocket.MessageText, "RECEIPT\n"); strings.Count(text, "\x00") < 2 {
		hear(websocket.MessageText, "RECEIPT\n")
	}
	say(websocket.MessageText, "SEND\ndestination:/queue/d\n\nhällo@")
	if text := hear(websocket.MessageText, "MESSAGE\n"); !strings.Contains(text, "hällo") {
		t.Errorf("%q", text)
	}
	say(websocket.MessageBinary, "SEND\ndestination:/queue/d\ncontent-length:3\n\n\xff\x00\xfe@")
	if text := hear(websocket.MessageBinary, "MESSAGE\n"); !strings.Contains(text, "\xff\x00\xfe") {
		t.Errorf("%q", text)
	}
	say(websocket.MessageText, "DISCONNECT\nreceipt:bye\n\n@")
	hear(websocket.MessageText, "RECEIPT\n")
	if _, text, err := ws.Read(ctx); websocket.CloseStatus(err) != websocket.StatusNormalClosure {
		t.Errorf("after DISCONNECT: %q, %v", text, err)
	}
}

// TestWebSocketBinary: a client that speaks binary hears only binary, such as
// one that has the WebSocket as a stream.
func TestWebSocketBinary(t *testing.T) {
	r := start(t, "--queue", newQueue(t))
	ws, _, err := dialWeb(t, r, http.Header{})
	if err != nil {
		t.Fatal(err)
	}
	p := newPeer(t, websocket.NetConn(t.Context(), ws, websocket.MessageBinary))
	p.say(connect)
	p.hear(frame.Connected)
	body := strings.Repeat("0123456789", 100_000) // far more than a buffer
	p.say("SUBSCRIBE\nid:s\ndestination:/queue/d\n\n@SEND\ndestination:/queue/d\nreceipt:1\n\n" + body + "@")
	for range 2 {
		f, err := p.frames.Read()
		if err != nil {
			t.Fatal(err)
		}
		if f.Command == frame.Message && string(f.Body) != body {
			t.Errorf("%d bytes", len(f.Body))
		}
	}
	// The server's end is told, too.
	stopped := make(chan error, 1)
	go func() { stopped <- r.stop() }()
	p.hear(frame.ErrorCommand)
	if _, err := p.frames.Read(); !errors.Is(err, io.EOF) {
		t.Errorf("%v", err)
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}

// TestWebSocketRefused: without users a page in a browser on this machine is not
// let in, by whatever name it comes, nor is a proxy.
func TestWebSocketRefused(t *testing.T) {
	r := start(t, "--queue", newQueue(t))
	_, port, _ := net.SplitHostPort(r.http)
	for _, c := range []struct {
		header http.Header
		want   int // 0: let in
	}{
		{http.Header{"Origin": {"http://evil.example"}}, 403},
		{http.Header{"Origin": {"http://evil.example"}, "Host": {"evil.example"}}, 403},
		{http.Header{"X-Forwarded-For": {"203.0.113.7"}}, 403},
		{http.Header{"Forwarded": {"for=203.0.113.7"}}, 403},
		{http.Header{"Origin": {"http://" + r.http}}, 0},
		{http.Header{"Host": {"localhost:" + port}, "Origin": {"http://localhost:" + port}}, 0},
	} {
		_, answer, err := dialWeb(t, r, c.header)
		if c.want == 0 && err != nil || c.want != 0 && (answer == nil || answer.StatusCode != c.want) {
			t.Errorf("%v: %v, want %d", c.header, err, c.want)
		}
	}
	other := start(t, "--queue", newQueue(t), "--origin", "*.good.example")
	if _, _, err := dialWeb(t, other, http.Header{"Origin": {"https://www.good.example"}}); err != nil {
		t.Errorf("--origin: %v", err)
	}
}

// TestWebSocketGone: a client that goes without a word frees its connection, and
// who finds none free is told so.
func TestWebSocketGone(t *testing.T) {
	r := start(t, "--queue", newQueue(t), "--max-connections", "1")
	for range 3 {
		deadline := time.Now().Add(20 * time.Second)
		for { // the one before may still be on its way out
			ws, _, err := dialWeb(t, r, http.Header{})
			if err != nil {
				t.Fatal(err)
			}
			_ = ws.Write(t.Context(), websocket.MessageBinary, []byte(strings.ReplaceAll(connect, "@", "\x00"))) // it may be closed already
			_, answer, err := ws.Read(t.Context())
			_ = ws.CloseNow()
			if bytes.HasPrefix(answer, []byte("CONNECTED\n")) {
				break
			}
			if err != nil || !bytes.Contains(answer, []byte("--max-connections")) || time.Now().After(deadline) {
				t.Fatalf("%q, %v", answer, err)
			}
		}
	}
}
