package proof_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/mvalve/mvalve/internal/testserver"
)

// webResident bounds the memory of a broker whose HTTP address is attacked.
const webResident = 192 * mib

// requests is what malformed requests are made of.
var requests = []string{
	"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
	"GET /readyz HTTP/1.0\r\n\r\n",
	"POST /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\nx",
	"POST /stomp HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nffffffff\r\nx",
	"GET /../../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n",
	"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x12\x04\x00\x00\x00\x00\x00",
	upgrade,
}

const upgrade = "GET /stomp HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" +
	"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: v12.stomp\r\n\r\n"

// TestHostileWeb attacks the HTTP address of a broker with requests, WebSocket
// frames and STOMP frames within those that are mutated, cut off, or too large:
// a client that behaves does not notice, and nothing is left when they are gone.
func TestHostileWeb(t *testing.T) {
	onLinux(t)
	web := testserver.FreeAddress(t)
	b := newBroker(t, newPipe(t, onSQLite), "--http", web, "--connect-timeout", hostileTimeout.String())
	useWeb(t, web, 0)
	goroutines, files := b.goroutines(t), b.files(t)
	n := shortOrLong(1500, 50_000)
	for i, attack := range []struct {
		name string
		make func(r *rand.Rand) []byte
	}{
		{"requests", func(r *rand.Rand) []byte { return mutate(r, requests[r.IntN(len(requests))]) }},
		{"frames of WebSocket", func(r *rand.Rand) []byte { return append([]byte(upgrade), oddFrames(r)...) }},
		{"STOMP within", func(r *rand.Rand) []byte {
			text := append([]byte(logins[r.IntN(len(logins))]), mutate(r, valid[r.IntN(len(valid))])...)
			return append([]byte(upgrade), webFrame(r, 0x80|byte(1+r.IntN(2)), text, uint64(len(text)))...)
		}},
	} {
		t.Run(attack.name, func(t *testing.T) {
			assault(t, web, n, attack.make)
			useWeb(t, web, i+1)
		})
	}
	waitFor(t, patience, "what served the attackers is gone", func() bool {
		return b.goroutines(t) <= goroutines+8 && b.files(t) <= files+8
	})
	_, most := b.resident()
	t.Logf("most resident %s, bound %s", inMiB(most), inMiB(webResident))
	if most > webResident {
		t.Errorf("the broker used %s", inMiB(most))
	}
	if text := b.proc.stderr(); strings.Contains(text, "panic") {
		t.Errorf("a panic: %s", text)
	}
	b.proc.stop(t)
}

// assault sends n texts, each on a connection of its own, and waits for the
// broker to end it.
func assault(t *testing.T, address string, n int, text func(r *rand.Rand) []byte) {
	t.Helper()
	var accepted, switched atomic.Int64
	var run sync.WaitGroup
	const workers = 8
	for w := range workers {
		r := rand.New(rand.NewPCG(42, uint64(w)))
		run.Go(func() {
			for range n / workers {
				bytesOut := text(r)
				answer, err := exchange(t, address, bytesOut)
				if err != nil {
					t.Errorf("%.200q: %v", bytesOut, err)
					return
				}
				if bytes.HasPrefix(answer, []byte("HTTP/1.1 2")) {
					accepted.Add(1)
				}
				if bytes.HasPrefix(answer, []byte("HTTP/1.1 101")) {
					switched.Add(1)
				}
			}
		})
	}
	run.Wait()
	t.Logf("%d attacks: %d answered by success, %d became WebSockets", n/workers*workers, accepted.Load(), switched.Load())
}

// webFrame returns a frame from a client that claims to have size bytes.
func webFrame(r *rand.Rand, first byte, payload []byte, size uint64) []byte {
	const masked = 0x80
	b := []byte{first}
	switch {
	case size < 126:
		b = append(b, masked|byte(size))
	case size < 1<<16:
		b = binary.BigEndian.AppendUint16(append(b, masked|126), uint16(size))
	default:
		b = binary.BigEndian.AppendUint64(append(b, masked|127), size)
	}
	mask := binary.BigEndian.AppendUint32(nil, r.Uint32())
	b = append(b, mask...)
	for i, c := range payload {
		b = append(b, c^mask[i%4])
	}
	return b
}

// oddFrames returns up to five frames that no client should send.
func oddFrames(r *rand.Rand) (b []byte) {
	sizes := []uint64{0, 1, 125, 126, 127, 65535, 65536, 1 << 31, 1 << 62, 1<<64 - 1}
	for range 1 + r.IntN(5) {
		payload := make([]byte, r.IntN(300))
		for i := range payload {
			payload[i] = byte(r.Uint32())
		}
		size := uint64(len(payload))
		if r.IntN(3) == 0 {
			size = sizes[r.IntN(len(sizes))]
		}
		frame := webFrame(r, byte(r.Uint32()), payload, size) // any opcode, any reserved bits
		if r.IntN(4) == 0 {
			frame[1] &^= 0x80 // not masked
		}
		if r.IntN(4) == 0 {
			frame = frame[:r.IntN(len(frame))]
		}
		b = append(b, frame...)
	}
	return b
}

// useWeb sends a message and takes it, as a client in a browser does.
func useWeb(t *testing.T, address string, round int) {
	t.Helper()
	ws, answer, err := websocket.Dial(t.Context(), "ws://"+address+"/stomp", &websocket.DialOptions{Subprotocols: []string{"v12.stomp"}})
	if err != nil {
		t.Fatal(err)
	}
	if answer.Body != nil {
		defer answer.Body.Close()
	}
	nc := websocket.NetConn(t.Context(), ws, websocket.MessageText)
	defer nc.Close()
	if err := nc.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf("good %d", round)
	_, err = io.WriteString(nc, "CONNECT\naccept-version:1.2\nhost:/\n\n\x00SUBSCRIBE\nid:0\ndestination:/queue/good\n\n\x00"+
		"SEND\ndestination:/queue/good\n\n"+text+"\x00")
	if err != nil {
		t.Fatal(err)
	}
	var got []byte
	buffer := make([]byte, 4096)
	for !bytes.Contains(got, []byte("\n\n"+text+"\x00")) {
		n, err := nc.Read(buffer)
		if got = append(got, buffer[:n]...); err != nil {
			t.Fatalf("got %q: %v", got, err)
		}
	}
	if _, err := io.WriteString(nc, "DISCONNECT\nreceipt:r\n\n\x00"); err != nil {
		t.Fatal(err)
	}
	for { // until the broker has settled what was taken
		n, err := nc.Read(buffer)
		if bytes.Contains(buffer[:n], []byte("receipt-id:r")) || err != nil {
			if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) && !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Log(err)
			}
			return
		}
	}
}
