package frame

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
)

// counted is a Room with a limit.
type counted struct{ used, most, limit, calls int }

var errFull = errors.New("full")

func (c *counted) Reserve(n int) error {
	if c.used+n > c.limit {
		return errFull
	}
	c.used += n
	c.most = max(c.most, c.used)
	c.calls++
	return nil
}

func (c *counted) Release(n int) { c.used -= n }

func TestRoom(t *testing.T) {
	const size = 300_000
	body := strings.Repeat("x", size)
	for name, in := range map[string]string{
		"length": fmt.Sprintf("SEND\ncontent-length:%d\n\n%s\x00", size, body),
		"NUL":    "SEND\n\n" + body + "\x00",
	} {
		for how, src := range sources(in + "SEND\n\nshort\x00") {
			room := &counted{limit: 1 << 20}
			r := NewReader(src, Limits{})
			r.SetRoom(room)
			f, err := r.Read()
			if err != nil || string(f.Body) != body {
				t.Fatalf("%s, %s: %v", name, how, err)
			}
			if room.used < size || room.most > 2*size+2*firstBody || name == "length" && room.calls != 1 {
				t.Errorf("%s, %s: %d bytes taken, at most %d, in %d calls", name, how, room.used, room.most, room.calls)
			}
			if f, err = r.Read(); err != nil || string(f.Body) != "short" || room.used != 0 {
				t.Errorf("%s, %s: then %v, %v, %d bytes taken", name, how, f, err, room.used)
			}
		}
	}
}

// A body for which there is no room costs nothing, and a connection that ends in
// the middle of one gives back what it has.
func TestNoRoom(t *testing.T) {
	half := "SEND\ncontent-length:300000\n\n" + strings.Repeat("x", 200_000)
	room := &counted{limit: 250_000}
	r := NewReader(strings.NewReader(half), Limits{})
	r.SetRoom(room)
	for range 2 {
		if _, err := r.Read(); !errors.Is(err, errFull) {
			t.Errorf("without room: %v", err)
		}
	}
	if room.used != 0 || r.long != nil {
		t.Errorf("%d bytes taken, %d spent", room.used, cap(r.long))
	}
	room.limit = 1 << 20
	r = NewReader(strings.NewReader(half), Limits{})
	r.SetRoom(room)
	if _, err := r.Read(); !errors.Is(err, io.ErrUnexpectedEOF) || room.used != 300_001 {
		t.Errorf("in the middle: %v, %d bytes taken", err, room.used)
	}
	r.Release()
	r.Release()
	if room.used != 0 {
		t.Errorf("%d bytes are still taken", room.used)
	}
}
