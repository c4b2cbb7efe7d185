package frame

import (
	"errors"
	"io"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
)

// script is a stream of pieces; an empty piece is a time-out.
type script struct {
	pieces []string
	room   int // offered at the last read
}

func (s *script) Read(b []byte) (int, error) {
	s.room = len(b)
	if len(s.pieces) == 0 {
		return 0, io.EOF
	}
	n := copy(b, s.pieces[0])
	if s.pieces[0] == "" {
		s.pieces = s.pieces[1:]
		return 0, os.ErrDeadlineExceeded
	}
	if s.pieces[0] = s.pieces[0][n:]; s.pieces[0] == "" {
		s.pieces = s.pieces[1:]
	}
	return n, nil
}

// heap returns what f leaves on the heap.
func heap(f func() any) int {
	var a, b runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&a)
	keep := f()
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&b)
	runtime.KeepAlive(keep)
	return int(b.HeapAlloc) - int(a.HeapAlloc)
}

// S34, S41: what is announced costs nothing until it arrives.
func TestAnnouncedBodyCostsNothing(t *testing.T) {
	const readers = 500
	used := heap(func() any {
		var all []*Reader
		for range readers {
			r := NewReader(&script{pieces: []string{"SEND\ncontent-length:16777216\n\nx", ""}}, Limits{})
			if _, err := r.Read(); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatal(err)
			}
			all = append(all, r)
		}
		return all
	})
	if per := used / readers; per > 4<<10 {
		t.Errorf("%d bytes for each reader that waits for a body of 16 MiB", per)
	}
}

// A long body never takes more than twice what has arrived, and 64 KiB.
func TestBodyGrowsAsItArrives(t *testing.T) {
	const size = 4 << 20
	for _, head := range []string{"SEND\n\n", "SEND\ncontent-length:" + strconv.Itoa(size) + "\n\n"} {
		r := NewReader(&pieces{strings.NewReader(head + strings.Repeat("x", size) + "\x00"), 5000}, Limits{})
		for !r.scan() {
			if err := r.fill(); err != nil {
				t.Fatal(err)
			}
			if arrived := len(r.long) + r.end - r.start; cap(r.long)+len(r.buf) > 2*arrived+firstBody+largeBuffer {
				t.Fatalf("%d bytes arrived, %d and %d are held", arrived, cap(r.long), len(r.buf))
			}
		}
		if f, err := r.Read(); err != nil || len(f.Body) != size {
			t.Fatal(err)
		}
	}
}

// An idle connection holds a small buffer, also after a busy time, a long body
// and many headers.
func TestIdleReaderIsSmall(t *testing.T) {
	const readers = 100
	frames := strings.Repeat("SEND\na:b\n\n"+strings.Repeat("x", 1000)+"\x00", 100)
	for name, busy := range map[string]string{
		"many frames":  frames,
		"many headers": frames + "SEND\n" + strings.Repeat("header:value\n", 120) + "\n\x00",
		"long frame":   "SEND\na:" + strings.Repeat("y", 60_000) + "\n\n" + strings.Repeat("x", 1_000_000) + "\x00",
	} {
		used := heap(func() any {
			var all []*Reader
			for range readers {
				s := &script{pieces: []string{busy, "", ""}}
				r := NewReader(s, Limits{})
				for timeouts := 0; timeouts < 2; {
					_, err := r.Read()
					if errors.Is(err, os.ErrDeadlineExceeded) {
						timeouts++
					} else if err != nil {
						t.Fatal(err)
					}
				}
				if s.room != smallBuffer {
					t.Fatalf("%s: waits with %d bytes", name, s.room)
				}
				all = append(all, r)
			}
			return all
		})
		// What sync.Pool keeps is gone after two collections.
		if per := used / readers; per > 4<<10 {
			t.Errorf("%s: %d bytes for each idle reader", name, per)
		}
	}
}

// A busy connection reads in large pieces, and a small frame costs nothing.
func TestBusyReader(t *testing.T) {
	one := "SEND\ndestination:/queue/a\nreceipt:7\n\n" + strings.Repeat("x", 256) + "\x00"
	e := &endless{data: []byte(strings.Repeat(one, 1000))}
	r := NewReader(e, Limits{})
	r.SetVersion(V12)
	read := func() {
		if _, err := r.Read(); err != nil {
			t.Fatal(err)
		}
		r.Buffered()
	}
	for range 1000 {
		read()
	}
	if least := len(one) * 1000 / largeBuffer; e.reads > 2*least {
		t.Errorf("%d reads, %d could do", e.reads, least)
	}
	if n := testing.AllocsPerRun(5000, read); n != 0 {
		t.Errorf("%v allocations per frame", n)
	}
	dst := make([]byte, 0, 1024)
	if n := testing.AllocsPerRun(100, func() { Append(dst, V12, sent) }); n != 0 {
		t.Errorf("%v allocations per Append", n)
	}
}

// A time-out loses nothing, wherever it comes.
func TestTimeouts(t *testing.T) {
	long := strings.Repeat("z", 40_000)
	in := "\nSEND\na:1\n\nx\x00\nSEND\ncontent-length:3\n\nabc\x00SEND\n\n" + long + "\x00SEND\ncontent-length:40000\n\n" + long + "\x00"
	cuts := []int{0, 1, 3, 8, 12, 13, 14, 15, 20, 40, 50, 60, 100, 2047, 2048, 2049, 32_000, 35_000, 40_000, 41_000, 60_000, 80_000, len(in) - 1, len(in)}
	var s script
	for i := range len(cuts) - 1 {
		if piece := in[cuts[i]:cuts[i+1]]; piece != "" {
			s.pieces = append(s.pieces, piece, "")
		}
	}
	want := len(cuts) - 1
	r := NewReader(&s, Limits{})
	var bodies []int
	timeouts := 0
	for {
		f, err := r.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatal(err)
			}
			timeouts++
			continue
		}
		bodies = append(bodies, len(f.Body))
	}
	if got := len(bodies); got != 4 || bodies[2] != 40_000 || bodies[3] != 40_000 || timeouts != want {
		t.Errorf("bodies %v after %d time-outs, want %d", bodies, timeouts, want)
	}
}

// A broken source that gives neither bytes nor errors does not spin.
func TestNoProgress(t *testing.T) {
	if _, err := NewReader(nothing{}, Limits{}).Read(); !errors.Is(err, io.ErrNoProgress) {
		t.Error(err)
	}
}

type nothing struct{}

func (nothing) Read([]byte) (int, error) { return 0, nil }

// S64 is kept by appending whole frames; Buffered tells a whole frame from a
// part of one, so that a batch ends before Read would wait.
func TestBuffered(t *testing.T) {
	for in, want := range map[string]bool{
		"": false, "\n\n": false, "\r": false, "SEND\n": false, "SEND\n\nx": false, "\nSEND\n\nx\x00": true,
		"SEND\ncontent-length:3\n\na\x00b": false, "SEND\ncontent-length:3\n\na\x00b\x00": true,
		"SEND\ncontent-length:30000000\n\n": true, "nonsense\n": true, "SEND\nx\n": true,
	} {
		r := NewReader(&script{pieces: []string{"SEND\n\nfirst\x00" + in}}, Limits{})
		f, err := r.Read()
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if got := r.Buffered(); got != want {
				t.Errorf("%q: %v", in, got)
			}
		}
		if string(f.Body) != "first" {
			t.Errorf("%q: the first frame is %v now", in, text(f))
		}
	}
}
