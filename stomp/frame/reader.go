package frame

import (
	"errors"
	"io"
	"sync"
)

// Limits bound what a Reader accepts, and with it the memory it spends. Zero
// fields mean the default. A peer that exceeds one gets an *Error before
// memory is spent on the excess.
type Limits struct {
	HeaderBytes int // command line and headers as sent; default 64 KiB
	Headers     int // header lines of a frame; default 128
	Body        int // bytes of a body; default 16 MiB
}

// The defaults of Limits. What is set higher than 1 GiB counts as 1 GiB.
const (
	DefaultHeaderBytes = 64 << 10
	DefaultHeaders     = 128
	DefaultBody        = 16 << 20
)

func (l Limits) orDefault() Limits {
	set := func(n *int, value int) {
		if *n <= 0 {
			*n = value
		}
		*n = min(*n, 1<<30)
	}
	set(&l.HeaderBytes, DefaultHeaderBytes)
	set(&l.Headers, DefaultHeaders)
	set(&l.Body, DefaultBody)
	return l
}

const (
	smallBuffer = 2 << 10  // what an idle connection keeps
	largeBuffer = 32 << 10 // what a busy one borrows
	firstBody   = 2 * largeBuffer
)

var largeBuffers = sync.Pool{New: func() any { return new([largeBuffer]byte) }}

// Reader reads frames from a stream. It is for one goroutine.
//
// It accepts what the three versions allow and, beyond that, what clients
// really send: CRLF as end of line in every version, so that one CR before LF
// is never data (S3, S4); a colon in a value (S14, S15); blanks before values
// in 1.0 and in a CONNECT that asks for 1.0, which are removed (S17);
// an empty value in 1.0 (S13); any number of ends of line between frames,
// which is what heart-beats are (S5, S6, S60); CR inside a 1.2 header.
//
// It refuses, with an *Error: a header line without colon or without name
// (S11, S12), a header that is not UTF-8 (S10) or holds NUL, an undefined
// escape (S20, S22, S23), a content-length that is no plain number (S34) or
// not followed by NUL (S31), what exceeds the limits (S39), a body on
// a command that has none in 1.1 and 1.2; before, and in 1.0, such a body is
// dropped (S29). Which side may send which command is not its business.
type Reader struct {
	src     io.Reader
	limits  Limits
	version Version

	small []byte // smallBuffer, from the first Read on
	buf   []byte // small, or a large buffer while the peer is busy
	start int    // buf[start:end] is not consumed; a frame begins at start
	end   int
	last  int   // bytes the source gave last
	more  bool  // it gave as many as there was room for
	ended error // what the source said; final once buf is used up
	err   error // final

	room     Room // nil: unlimited
	reserved int  // bytes taken from it

	scanner
	frame   Frame
	decoded int // headers of the scanned frame that are decoded already
}

// NewReader returns a Reader for a connection on which no version is agreed.
// It allocates its buffer, 2 KiB, at the first Read.
func NewReader(r io.Reader, lim Limits) *Reader {
	return &Reader{src: r, limits: lim.orDefault()}
}

// SetVersion says which version was agreed: how the frames from the next Read
// on are decoded. Call it before Buffered.
func (r *Reader) SetVersion(v Version) { r.version = v }

// SetLimits replaces the limits from the next Read on. Call it before
// Buffered.
func (r *Reader) SetLimits(lim Limits) { r.limits = lim.orDefault() }

// Read returns the next frame, valid until the next call of Read: after that
// its memory may belong to another connection.
//
// Errors: io.EOF if the stream ends between frames, io.ErrUnexpectedEOF if it
// ends inside one; *Error if the peer breaks the protocol; else the stream's.
// All are final, except a time-out of the stream (its Timeout method says
// true): nothing is lost, and the next Read goes on where this one stopped.
// A Read after a time-out between frames also gives back what a busy
// connection has borrowed, so that an idle one holds little more than 2 KiB.
func (r *Reader) Read() (*Frame, error) {
	r.frame.Body = nil
	if r.phase == returned {
		r.consume()
	}
	for !r.scan() {
		if err := r.fill(); err != nil {
			return nil, err
		}
	}
	if r.err != nil {
		return nil, r.err
	}
	return r.decode()
}

// Buffered reports whether the next Read returns without waiting for the
// stream: a complete frame is there, or the protocol is broken. The frame of
// the last Read stays valid.
func (r *Reader) Buffered() bool {
	if r.phase == returned {
		r.consume()
	}
	return r.scan()
}

// consume forgets the frame that was returned.
func (r *Reader) consume() {
	r.Release()
	r.start += r.pos
	r.scanner = scanner{lines: r.lines[:0]}
	r.decoded = 0
}

// fill gets more bytes from the source: into the long body if how long it is
// is known, else into buf.
func (r *Reader) fill() error {
	if r.ended != nil {
		if r.err = r.ended; errors.Is(r.err, io.EOF) && (r.phase != between || r.start < r.end) {
			r.err = io.ErrUnexpectedEOF
		}
		return r.err
	}
	if err := r.makeRoom(); err != nil {
		r.err = err
		return err
	}
	for range 100 {
		var n int
		var err error
		if r.isLong && r.length != absent {
			n, err = r.src.Read(r.long[len(r.long):cap(r.long)])
			r.long = r.long[:len(r.long)+n]
		} else {
			n, err = r.src.Read(r.buf[r.end:])
			r.end += n
			r.last, r.more = n, r.end == len(r.buf)
		}
		if err != nil && !isTimeout(err) {
			r.ended = err
			return nil
		}
		if n > 0 {
			return nil // a time-out comes again
		}
		if err != nil {
			return err
		}
	}
	r.ended = io.ErrNoProgress
	return nil
}

func isTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.As(err, &t) && t.Timeout()
}

// makeRoom sees to it that fill has where to read to. Memory grows in
// proportion to what has arrived, whatever was announced.
func (r *Reader) makeRoom() error {
	switch {
	case r.start == r.end && r.phase == between:
		r.start, r.end = 0, 0
		r.rest()
		return nil
	case r.isLong && r.length != absent:
		if len(r.long) == cap(r.long) {
			long := make([]byte, len(r.long), min(2*cap(r.long), r.length+1))
			copy(long, r.long)
			r.long = long
		}
		return nil
	}
	if r.start > 0 {
		r.end = copy(r.buf, r.buf[r.start:r.end])
		r.start = 0
	}
	switch full := r.end == len(r.buf); {
	case r.more && len(r.buf) < largeBuffer:
		r.grow()
	case r.isLong && len(r.buf)-r.end < smallBuffer:
		r.grow()
	case full && r.phase == inBody && len(r.buf) >= largeBuffer:
		return r.startLong()
	case full:
		r.grow()
	}
	return nil
}

// rest chooses the buffer to wait with for the next frame.
func (r *Reader) rest() {
	if r.buf == nil {
		r.small = make([]byte, smallBuffer)
		r.buf = r.small
		return
	}
	switch {
	case len(r.buf) == smallBuffer && r.more:
		r.grow()
		return
	case len(r.buf) == smallBuffer || len(r.buf) == largeBuffer && r.last > smallBuffer/2:
		return
	}
	r.returnBuffer()
	r.buf = r.small
	clear(r.frame.Header[:cap(r.frame.Header)])
	if cap(r.lines) > 32 {
		r.lines, r.frame.Header = nil, nil
	}
}

// Room is memory that Readers share for bodies of more than 64 KiB.
type Room interface {
	// Reserve takes n bytes. It may block; its error is that of Read, and final.
	Reserve(n int) error
	// Release gives n bytes back.
	Release(n int)
}

// SetRoom makes the Reader ask room before it spends memory on a long body, at
// once for all of a body that has a content-length. What is taken is given back
// by the Read after, and by Release. It is to be called before the first Read; nil
// asks nobody.
func (r *Reader) SetRoom(room Room) { r.room = room }

// Release gives back what was taken from the Room: the body is counted elsewhere
// now, or the connection has ended.
func (r *Reader) Release() {
	if r.reserved > 0 {
		r.room.Release(r.reserved)
		r.reserved = 0
	}
}

func (r *Reader) reserve(n int) error {
	if r.room == nil {
		return nil
	}
	if err := r.room.Reserve(n); err != nil {
		return err
	}
	r.reserved += n
	return nil
}

// grow replaces the buffer by a bigger one.
func (r *Reader) grow() {
	var buf []byte
	if len(r.buf) < largeBuffer {
		buf = largeBuffers.Get().(*[largeBuffer]byte)[:]
	} else {
		buf = make([]byte, 2*len(r.buf))
	}
	copy(buf, r.buf[:r.end])
	r.returnBuffer()
	r.buf = buf
}

// returnBuffer gives a borrowed buffer back.
func (r *Reader) returnBuffer() {
	if len(r.buf) == largeBuffer {
		largeBuffers.Put((*[largeBuffer]byte)(r.buf))
	}
}

// startLong moves the body that fills buf to memory of its own.
func (r *Reader) startLong() error {
	have := r.buf[r.bodyAt:r.end]
	size := max(firstBody, 2*len(have))
	if r.length != absent {
		size = min(size, r.length+1) // with the NUL
	}
	if err := r.reserve(max(size, r.length+1)); err != nil {
		return err
	}
	r.long = append(make([]byte, 0, size), have...)
	r.isLong = true
	r.end, r.pos = r.bodyAt, r.bodyAt
	return nil
}
