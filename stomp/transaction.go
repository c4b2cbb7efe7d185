package stomp

import (
	"errors"

	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/stomp/frame"
	"github.com/mvalve/mvalve/valve"
)

// tx is an open transaction of one connection. Nothing of it has left the
// connection before COMMIT, which is one transaction in the store.
type tx struct {
	sends  []*queue.Message
	topics []*frame.Frame // SENDs to topics, published once the rest is on disk
	frames int
	bytes  int // reserved in conn's room

	// Guarded by conn.mu.
	acks []*pending
	lost bool // something it acknowledges is not this connection's any more
}

// add counts one more frame of the transaction (S107).
func (t *tx) add(c *conn, bytes int) error {
	cfg := &c.srv.cfg
	t.frames++
	if t.frames > cfg.MaxTransactionFrames {
		return refuse("transaction too big", "a transaction may hold %d messages and acknowledgements here", cfg.MaxTransactionFrames)
	}
	if t.bytes+bytes > cfg.MaxTransactionBytes {
		return refuse("transaction too big", "a transaction may hold %d bytes here", cfg.MaxTransactionBytes)
	}
	if bytes == 0 {
		return nil
	}
	c.r.Release() // a long body counts once
	if err := (room{c}).Reserve(bytes); err != nil {
		return err
	}
	t.bytes += bytes
	return nil
}

// close ends the transaction: its bytes are somewhere else, or nowhere.
func (t *tx) close(c *conn) {
	if t.bytes > 0 {
		room{c}.Release(t.bytes)
	}
}

// txName returns the transaction header of BEGIN, COMMIT and ABORT (S98).
func txName(f *frame.Frame) (string, error) {
	name, ok := f.Get("transaction")
	if !ok {
		return "", refuse("no transaction", "it needs a transaction header")
	}
	return string(name), nil
}

// openTx returns an open transaction of this connection (S93, S103).
func (c *conn) openTx(name string) (*tx, error) {
	t := c.txs[name]
	if t == nil {
		return nil, refuse("no such transaction", "there is no open transaction %.100q on this connection; BEGIN it", name)
	}
	return t, nil
}

// begin handles BEGIN.
func (c *conn) begin(f *frame.Frame) error {
	name, err := txName(f)
	if err != nil {
		return err
	}
	if c.txs[name] != nil {
		return refuse("transaction exists", "transaction %.100q is open on this connection; COMMIT or ABORT it first", name) // S99
	}
	if len(c.txs) >= c.srv.cfg.MaxTransactions {
		return refuse("too many transactions", "a connection may have %d open here", c.srv.cfg.MaxTransactions) // S107
	}
	if c.txs == nil {
		c.txs = make(map[string]*tx)
	}
	c.txs[name] = new(tx)
	return c.receipt(f)
}

// sendInTx keeps a SEND until COMMIT (S100). Its RECEIPT says only that it was
// accepted: some clients wait for it before they COMMIT (S106).
func (c *conn) sendInTx(f *frame.Frame, name string, destination []byte) error {
	t, err := c.openTx(name)
	if err != nil {
		return err
	}
	switch kind, _ := parseDestination(destination); kind {
	case topicName:
		if err := t.add(c, len(f.Body)+256); err != nil {
			return err
		}
		t.topics = append(t.topics, f.Clone())
	case control:
		return refuse("control in transaction", "SEND to /control/ without a transaction")
	default:
		m, err := c.queueMessage(f, destination)
		if err != nil {
			return err
		}
		if err := t.add(c, m.Size()); err != nil {
			return err
		}
		t.sends = append(t.sends, m)
	}
	return c.receipt(f)
}

// abort handles ABORT: what it acknowledged is out as before (S101).
func (c *conn) abort(f *frame.Frame) error {
	name, err := txName(f)
	if err != nil {
		return err
	}
	t, err := c.openTx(name)
	if err != nil {
		return err
	}
	delete(c.txs, name) // S105
	t.close(c)
	c.mu.Lock()
	for _, p := range t.acks {
		if p.tx == t {
			p.tx = nil
		}
	}
	c.mu.Unlock()
	return c.receipt(f)
}

// commit handles COMMIT: all or nothing (S102). What comes behind it waits.
func (c *conn) commit(f *frame.Frame) error {
	name, err := txName(f)
	if err != nil {
		return err
	}
	t, err := c.openTx(name)
	if err != nil {
		return err
	}
	delete(c.txs, name)
	defer t.close(c)
	if err := c.flush(); err != nil { // frames before it go first
		return err
	}
	if err := c.store(t); err != nil {
		return err
	}
	for _, topic := range t.topics {
		destination, _ := topic.Get("destination")
		_, name := parseDestination(destination)
		c.publish(topic, destination, name)
	}
	c.kickDirty()
	return c.receipt(f)
}

// store commits a transaction and waits for it.
func (c *conn) store(t *tx) error {
	c.mu.Lock()
	lost := t.lost
	ends := make([]valve.End, 0, len(t.acks))
	for _, p := range t.acks {
		ends = append(ends, p.end)
	}
	c.paused++
	c.mu.Unlock()
	var err error
	switch {
	case lost:
		err = valve.ErrLeaseLost
	case len(t.sends)+len(ends) > 0:
		c.srv.budget.acquire(t.bytes)
		done := make(chan error, 1)
		if err = c.srv.Reader.CommitAsync(func(err error) { done <- err }, t.sends, ends...); err == nil {
			err = <-done // comes, whatever happens
		}
		c.srv.budget.release(t.bytes)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.paused--
	if err != nil {
		return commitFailure(err) // the connection ends, and what it held goes back
	}
	for _, p := range t.acks {
		if c.pending[p.serial] == p {
			c.remove(p)
		}
	}
	c.srv.stats.Received.Add(int64(len(t.sends)))
	c.srv.stats.Acked.Add(int64(len(ends)))
	return nil
}

func commitFailure(err error) *failure {
	f := &failure{message: "transaction failed", detail: "nothing of it was carried out: the server's store did not take it", cause: err}
	switch {
	case errors.Is(err, valve.ErrLeaseLost):
		f.detail = "nothing of it was carried out: a message it acknowledges has been taken back (ack-timeout, UNSUBSCRIBE, or acknowledged before)"
	case errors.Is(err, queue.ErrInvalid):
		f.detail = "nothing of it was carried out: " + err.Error()
	}
	return f
}
