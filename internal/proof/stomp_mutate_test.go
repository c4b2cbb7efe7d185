package proof_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// valid is what malformed frames are made of. What is still valid after the
// mutation goes to queues that nobody reads.
var valid = []string{
	"SEND\ndestination:/queue/mutant\ncontent-type:text/plain\nreceipt:1\n\nhello\x00",
	"SEND\ndestination:/queue/mutant\ncontent-length:5\npriority:7\nx-delay:100\n\nhe\x00lo\x00",
	"SEND\ndestination:/topic/mutant\nname:a\\cb\\nc\\\\d\nexpires:2000000000000\n\nhello\x00",
	"SUBSCRIBE\nid:0\ndestination:/queue/mutants-of-nobody\nack:client\nprefetch-count:10\nreceipt:2\n\n\x00",
	"UNSUBSCRIBE\nid:0\nreceipt:3\n\n\x00",
	"ACK\nid:01942f3e-6c00-7000-8000-000000000001-1a-9f3c\nreceipt:4\n\n\x00",
	"NACK\nid:01942f3e-6c00-7000-8000-000000000001-1a-9f3c\nx-delay:5\n\n\x00",
	"BEGIN\ntransaction:tx\n\n\x00SEND\ndestination:/queue/mutant\ntransaction:tx\n\nx\x00COMMIT\ntransaction:tx\nreceipt:5\n\n\x00",
	"ABORT\ntransaction:tx\n\n\x00",
	"DISCONNECT\nreceipt:6\n\n\x00",
}

var logins = []string{
	"CONNECT\naccept-version:1.2\nhost:/\n\n\x00",
	"STOMP\naccept-version:1.0,1.1\nheart-beat:1000,1000\nlogin:a\npasscode:b\n\n\x00",
	"CONNECT\n\n\x00",
}

// mutate changes a text in one to four places.
func mutate(r *rand.Rand, text string) []byte {
	b := []byte(text)
	telling := []byte("\x00\n\r:\\,*/ -09\xff\x80")
	for range 1 + r.IntN(4) {
		at := r.IntN(len(b) + 1)
		upTo := min(len(b), at+1+r.IntN(8))
		part := bytes.Clone(b[at:upTo])
		switch r.IntN(6) {
		case 0: // a byte that means something
			b = append(append(bytes.Clone(b[:at]), telling[r.IntN(len(telling))]), b[at:]...)
		case 1: // any byte
			if at < len(b) {
				b[at] = byte(r.UintN(256))
			}
		case 2: // cut
			b = append(bytes.Clone(b[:at]), b[upTo:]...)
		case 3: // the end is missing
			b = b[:at]
		case 4: // repeated, up to what exceeds limits
			many := bytes.Repeat(append(part, telling[r.IntN(len(telling))]), 1+r.IntN(1<<r.IntN(13)))
			b = append(append(bytes.Clone(b[:at]), many...), b[at:]...)
		case 5: // something else in between
			b = append(append(bytes.Clone(b[:at]), valid[r.IntN(len(valid))]...), b[at:]...)
		}
	}
	return b
}

// malformed sends mutated frames, one per connection: an ERROR ends it. Seeded.
func malformed(t *testing.T, s *siege) {
	n := shortOrLong(10_000, 100_000)
	const workers = 8
	var answers, refusals, bytesSent atomic.Int64
	var run sync.WaitGroup
	for w := range workers {
		r := rand.New(rand.NewPCG(20250101, uint64(w)))
		run.Go(func() {
			for range n / workers {
				login := []byte(logins[r.IntN(len(logins))])
				text := mutate(r, valid[r.IntN(len(valid))])
				if r.IntN(4) == 0 {
					login = mutate(r, string(login))
				}
				answer, err := exchange(t, s.b.address, append(login, text...))
				if err != nil {
					t.Errorf("%q: %v", text, err)
					return
				}
				bytesSent.Add(int64(len(text)))
				if bytes.Contains(answer, []byte("ERROR\n")) {
					refusals.Add(1)
				} else {
					answers.Add(1)
				}
			}
		})
	}
	run.Wait()
	t.Logf("%d mutated frames, %d KiB: %d answered by ERROR, %d harmless", refusals.Load()+answers.Load(), bytesSent.Load()>>10, refusals.Load(), answers.Load())
	if refusals.Load() < int64(n)/4 {
		t.Error("the frames were not malformed: the test proves nothing")
	}
}

// exchange sends a text on a connection of its own and returns all that comes
// back before the broker closes it.
func exchange(t *testing.T, address string, text []byte) ([]byte, error) {
	nc, err := new(net.Dialer).DialContext(t.Context(), "tcp", address)
	if err != nil {
		return nil, err
	}
	defer nc.Close()
	tcp := nc.(*net.TCPConn)
	if err := tcp.SetLinger(0); err != nil { // no TIME_WAIT: the ports would run out
		return nil, err
	}
	if err := nc.SetDeadline(time.Now().Add(patience)); err != nil {
		return nil, err
	}
	if _, err := nc.Write(text); err == nil {
		_ = tcp.CloseWrite() // the broker may have closed
	}
	answer, err := io.ReadAll(nc)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return answer, fmt.Errorf("not closed: %w", err)
	}
	return answer, nil
}
