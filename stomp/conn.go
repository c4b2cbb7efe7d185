package stomp

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mvalve/mvalve/stomp/frame"
	"github.com/mvalve/mvalve/valve"
)

// conn is one connection. One goroutine reads and handles frames; from the first
// SUBSCRIBE to a queue on, another one takes deliveries; whoever puts frames into
// the outgoing buffer while nobody writes starts a writer.
type conn struct {
	srv     *Server
	nc      net.Conn
	r       *frame.Reader
	log     *slog.Logger
	session string
	version frame.Version
	access  Access
	reads   atomic.Int64 // calls of nc.Read that returned bytes: any data is a heart-beat (S61)

	// Of the reading goroutine.
	sends     *sendBatch
	acks      *ackBatch
	lastName  string          // destination of the last SEND
	txs       map[string]*tx  // open transactions
	dirty     []*conn         // have topic messages that no writer knows of
	matched   []*subscription // scratch of publish
	topic     topicMessage    // scratch of publish
	kept      []frame.Field   // scratch of fill
	text      []byte          // scratch of fill
	live      bool            // counted as authenticated
	armed     bool            // reads have the deadline of next
	lastReads int64           // reads when it was set

	wg     sync.WaitGroup // its other goroutines
	cancel context.CancelFunc

	mu    sync.Mutex
	space sync.Cond // the buffer was taken, a commit ended, or the connection ends

	out // what is to be written

	subs      subTable                 // by id; without id by destination
	temps     map[string]*subscription // its temporary queues by their name in the pipe; nil: nobody listens
	inbox     *valve.Inbox
	pending   map[uint64]*pending // messages out, by serial
	ackTimer  *time.Timer
	ackNext   time.Time // when ackTimer fires
	paused    int       // the reader waits for something else than the socket
	flying    int       // SENDs, and batches of endings, on the way to disk
	flyBytes  int
	ackOrder  []*ackBatch // on the way to disk, in the order of their receipts
	ending    *failure    // set once: why it ends although the client did not ask
	ended     bool        // no deliveries any more
	beats     *time.Timer
	listening *time.Timer
}

func newConn(s *Server, nc net.Conn) *conn {
	c := &conn{srv: s, nc: nc, session: newSession()}
	c.space.L = &c.mu
	c.r = frame.NewReader(source{c}, s.cfg.connectLimits())
	c.r.SetRoom(room{c})
	c.log = s.log.With("session", c.session)
	return c
}

// source is the connection as the codec reads it.
type source struct{ c *conn }

func (s source) Read(p []byte) (int, error) {
	n, err := s.c.nc.Read(p)
	if n > 0 {
		s.c.reads.Add(1)
		s.c.srv.stats.BytesIn.Add(int64(n))
	}
	return n, err
}

// serve is the life of the connection.
func (c *conn) serve() {
	defer c.srv.forget(c)
	err := c.run()
	c.finish(err)
}

// run reads frames until the connection ends and says why it does. A panic ends
// this connection only.
func (c *conn) run() (err error) {
	defer func() {
		if p := recover(); p != nil {
			c.log.Error("panic", "panic", p, "stack", string(debug.Stack()))
			err = refuse("internal error", "the server failed to process a frame; its log has the details")
		}
	}()
	if err := c.handshake(); err != nil {
		return err
	}
	for {
		if !c.r.Buffered() || c.full() {
			if err := c.flush(); err != nil {
				return err
			}
		}
		f, err := c.next()
		if err != nil {
			return err
		}
		if err := c.handle(f); err != nil {
			return about(err, f)
		}
	}
}

// idle is after how long without a frame a connection gives back the memory that
// a busy one has borrowed.
const idle = time.Second

// next reads the next frame. The deadline of its reads ends nothing: the codec
// lets go of what it borrowed when a read times out.
func (c *conn) next() (*frame.Frame, error) {
	for {
		if reads := c.reads.Load(); !c.armed && c.lastReads != reads {
			if err := c.readUntil(time.Now().Add(idle)); err != nil {
				return nil, err
			}
			c.armed, c.lastReads = true, reads
		}
		f, err := c.r.Read()
		if t, ok := errors.AsType[net.Error](err); err == nil || !ok || !t.Timeout() {
			return f, err
		}
		if c.armed = false; c.lastReads == c.reads.Load() {
			err = c.readUntil(time.Time{})
		} else {
			err = c.readUntil(time.Now().Add(idle))
			c.armed, c.lastReads = true, c.reads.Load()
		}
		if err != nil {
			return nil, err
		}
	}
}

// readUntil sets the deadline of reads, unless the connection was told to end.
func (c *conn) readUntil(deadline time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ending != nil {
		return c.ending
	}
	return c.nc.SetReadDeadline(deadline)
}

// about completes a failure with the frame it is about (S122).
func about(err error, f *frame.Frame) error {
	if e, ok := errors.AsType[*failure](err); ok {
		e.about = f.Command
		if receipt, ok := f.Get("receipt"); ok && f.Command != frame.Connect && f.Command != frame.Stomp {
			e.receipt = string(receipt)
		}
	}
	return err
}

// handle carries out one frame. Errors end the connection (S120).
func (c *conn) handle(f *frame.Frame) error {
	switch f.Command {
	case frame.Send:
		return c.send(f)
	case frame.Ack:
		return c.ack(f, false)
	case frame.Nack:
		if c.version == frame.V10 {
			return refuse("unknown command", "NACK does not exist in STOMP 1.0 (S94); use version 1.1 or 1.2") // S94
		}
		return c.ack(f, true)
	case frame.Subscribe:
		return c.subscribe(f)
	case frame.Unsubscribe:
		return c.unsubscribe(f)
	case frame.Begin:
		return c.begin(f)
	case frame.Commit:
		return c.commit(f)
	case frame.Abort:
		return c.abort(f)
	case frame.Disconnect:
		return c.disconnect(f)
	case frame.Connect, frame.Stomp:
		return refuse("already connected", "a connection has one CONNECT; open another connection") // S53
	}
	return refuse("unknown command", "clients may not send %s", f.Command) // S66
}

// flush passes on what was collected from the frames that came together, and
// waits while too much is on its way.
func (c *conn) flush() error {
	c.kickDirty()
	if err := c.sendBatch(); err != nil {
		return err
	}
	c.ackBatch()
	cfg := &c.srv.cfg
	c.mu.Lock()
	defer c.mu.Unlock()
	c.paused++
	for c.ending == nil && !c.sealed && (c.flying >= cfg.MaxPending || c.flyBytes >= cfg.MaxPendingBytes || len(c.buf) > cfg.OutBuffer) {
		c.space.Wait()
	}
	c.paused--
	if c.ending != nil {
		return c.ending
	}
	return nil
}

// full reports whether a batch should go although more frames are there.
func (c *conn) full() bool {
	const items, bytes = 256, 512 << 10
	return c.sends != nil && (len(c.sends.messages) >= items || c.sends.bytes >= bytes) ||
		c.acks != nil && len(c.acks.ends) >= items
}

// disconnect ends the connection in good order (S108, S109).
func (c *conn) disconnect(f *frame.Frame) error {
	c.settleDown(c.srv.cfg.WriteTimeout)
	c.giveBack() // what comes from now on is for others, not for a client that says goodbye
	c.settleDown(c.srv.cfg.WriteTimeout)
	c.mu.Lock()
	c.appendReceipt(f)
	c.kick()
	c.mu.Unlock()
	return errGoodbye // frames behind it are not processed (S110)
}

// settleDown passes everything on and waits until it is on disk and the receipts
// are in the buffer.
func (c *conn) settleDown(timeout time.Duration) {
	if err := c.flush(); err != nil {
		c.log.Debug("flush", "err", err)
	}
	c.await(timeout, func() bool { return c.flying == 0 || c.sealed })
}

// await waits until ready, asked with the mutex held, or the time-out.
func (c *conn) await(timeout time.Duration, ready func() bool) bool {
	late := false
	t := time.AfterFunc(timeout, func() {
		c.mu.Lock()
		late = true
		c.space.Broadcast()
		c.mu.Unlock()
	})
	defer t.Stop()
	c.mu.Lock()
	defer c.mu.Unlock()
	for !late && !ready() {
		c.space.Wait()
	}
	return ready()
}

// interrupt ends the connection from another goroutine: its reader wakes up and
// tells the client why.
func (c *conn) interrupt(why *failure) {
	c.mu.Lock()
	c.interruptLocked(why)
	c.mu.Unlock()
}

func (c *conn) interruptLocked(why *failure) {
	if c.ending != nil {
		return
	}
	c.ending = why
	c.space.Broadcast()
	_ = c.nc.SetReadDeadline(time.Unix(1, 0))
}

// abandon closes the connection at once.
func (c *conn) abandon() {
	c.mu.Lock()
	c.seal()
	c.broken = true
	c.interruptLocked(refuse("server closed", "the server was closed"))
	c.mu.Unlock()
	_ = c.nc.Close()
}

// finish ends the connection: what was received is processed (S112), what the
// client held goes back, the last frames reach it (S113).
func (c *conn) finish(err error) {
	c.mu.Lock()
	if c.ending != nil {
		err = c.ending
	}
	c.mu.Unlock()
	c.logEnd(err)
	c.settleDown(c.srv.cfg.Linger)
	c.r.Release()
	for _, t := range c.txs {
		t.close(c)
	}
	if f := asFailure(err); f != nil {
		c.sendError(f)
	}
	c.giveBack()
	c.lastWrites()
	c.mu.Lock()
	c.seal()
	c.broken = true
	c.space.Broadcast()
	for _, t := range []*time.Timer{c.beats, c.listening, c.ackTimer} {
		if t != nil {
			t.Stop()
		}
	}
	c.mu.Unlock()
	_ = c.nc.Close()
	c.wg.Wait()
	c.mu.Lock()
	if len(c.autos) > 0 {
		c.flying++
	}
	c.mu.Unlock()
	c.ackWritten(c.autos, 0)
	if c.hasTemps() { // what goes back must be there before it is purged
		c.await(c.srv.cfg.WriteTimeout, func() bool { return c.flying == 0 })
	}
	c.purgeTemps()
	c.authenticated()
}

// logEnd says once why the connection ended.
func (c *conn) logEnd(err error) {
	level, f := slog.LevelDebug, asFailure(err)
	if f != nil {
		level = slog.LevelInfo
	}
	attrs := []any{"remote", c.nc.RemoteAddr(), "err", err}
	if f != nil && f.about != frame.Invalid {
		attrs = append(attrs, "command", f.about.String())
	}
	if errors.Is(err, io.EOF) || errors.Is(err, errGoodbye) {
		attrs = attrs[:2]
	}
	c.log.Log(context.Background(), level, "connection ended", attrs...)
}

// lastWrites lets the last frames go, half-closes, and reads what still comes
// until the client closes: a close with unread bytes would take the last frames
// away from it.
func (c *conn) lastWrites() {
	c.mu.Lock()
	c.seal()
	c.kick()
	c.mu.Unlock()
	cfg := &c.srv.cfg
	if !c.await(cfg.Linger, func() bool { return !c.writing && len(c.buf) == 0 || c.broken }) {
		return
	}
	half, ok := c.nc.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil {
		return
	}
	drain(c.nc, cfg.Linger)
}

// drain reads until the peer closes, for a bounded time.
func drain(nc net.Conn, limit time.Duration) {
	_ = nc.SetReadDeadline(time.Now().Add(limit))
	var waste [4 << 10]byte
	for range 4096 {
		if _, err := nc.Read(waste[:]); err != nil {
			return
		}
	}
}

// turnAway tells a peer that is not served why.
func turnAway(nc net.Conn, why string) {
	defer nc.Close()
	_ = nc.SetDeadline(time.Now().Add(time.Second))
	if _, err := nc.Write(appendError(nil, 0, refuse("connection refused", "%s", why))); err != nil {
		return
	}
	if half, ok := nc.(interface{ CloseWrite() error }); ok && half.CloseWrite() == nil {
		drain(nc, time.Second)
	}
}

// authenticated takes the connection out of those that wait for CONNECT.
func (c *conn) authenticated() {
	if !c.live {
		c.live = true
		c.srv.stats.Unauthenticated.Add(-1)
	}
}
