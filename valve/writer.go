package valve

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/mvalve/mvalve/queue"
)

// Sizes of one commit. A single Insert may be larger, up to MaxInsert.
const (
	commitItems = 1000
	commitBytes = 4 << 20

	// MaxInsert is the most messages one Insert takes, MaxInsertBytes the most bytes.
	MaxInsert      = 10_000
	MaxInsertBytes = 64 << 20
)

// Writer puts messages into a pipe. It is safe for concurrent use; concurrent
// Inserts share commits. Make one with NewWriter.
type Writer struct {
	store   queue.Store
	log     *slog.Logger
	clock   *clock
	ids     queue.IDSource
	maxBody int
	commits batcher[*insert]
	stats   statlog
	bell    *ringer

	mu      sync.RWMutex
	readers []*Reader // of this process, handed what was committed
	closed  bool
}

// insert is one call of Insert on its way to disk.
type insert struct {
	messages []*queue.Message
	bytes    int
	err      error
	done     func(error)
	tx       *transaction // nil for a plain insert
	behind   []behind
}

// NewWriter returns a Writer on store after measuring the store's clock. The
// caller keeps the store and closes it after the Writer.
func NewWriter(ctx context.Context, store queue.Store, cfg WriterConfig) (*Writer, error) {
	clock, err := newClock(ctx, store)
	if err != nil {
		return nil, fmt.Errorf("valve: measure the back end's clock: %w", err)
	}
	w := &Writer{store: store, log: logger(cfg.Logger), clock: clock, maxBody: queue.MaxBody}
	if s, ok := store.(queue.Sizer); ok {
		w.maxBody = min(w.maxBody, s.MaxBody())
	}
	if cfg.MaxBody > 0 {
		w.maxBody = min(w.maxBody, cfg.MaxBody)
	}
	if cfg.Commits <= 0 {
		cfg.Commits = 2
	}
	w.commits = batcher[*insert]{
		workers: cfg.Commits, maxItems: commitItems, maxBytes: commitBytes,
		// A message counts for at least its share of commitItems.
		size: func(i *insert) int { return max(i.bytes, len(i.messages)*(commitBytes/commitItems)) },
		cut:  w.reserve, flush: w.commit, finish: w.finish,
	}
	w.stats = statlog{now: clock.Now, write: func(lines []queue.Stat) { writeStats(store, clock, w.log, lines) }}
	w.bell = newRinger(store, clock, w.log)
	return w, nil
}

func logger(l *slog.Logger) *slog.Logger {
	if l == nil {
		return slog.New(slog.DiscardHandler)
	}
	return l
}

func writeStats(store queue.Store, c *clock, log *slog.Logger, lines []queue.Stat) {
	ctx, cancel := context.WithTimeout(context.Background(), lastCallTimeout)
	defer cancel()
	if _, err := store.Apply(ctx, c.Now(), &queue.Change{Log: lines}); err != nil {
		log.Warn("statistics not written", "lines", len(lines), "err", err)
	}
}

// Now returns the pipe's clock: the back end's as this process measured it.
func (w *Writer) Now() time.Time { return w.clock.Now() }

// Insert commits msgs, all or none, and returns when they are on disk. It fills
// in ID (when zero), EnqueuedAt, Lane and what the X-Mvalve-* headers say; the
// messages must not be changed afterwards. Errors wrap queue.ErrInvalid for bad
// data, queue.ErrDuplicate for an id given twice, queue.ErrUnavailable and
// queue.ErrUnknown for the back end, or the context's.
//
// When ctx ends first, the messages may still be committed.
func (w *Writer) Insert(ctx context.Context, msgs ...*queue.Message) error {
	if len(msgs) == 0 {
		return nil
	}
	done := make(chan error, 1)
	if err := w.InsertAsync(func(err error) { done <- err }, msgs...); err != nil {
		return err
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("valve: insert: %w", ctx.Err())
	}
}

// InsertAsync is Insert without waiting: it calls done once, when the messages
// are on disk or could not be stored. The calls of done come in the order of the
// calls of InsertAsync, from a goroutine that commits: done must not block. When
// InsertAsync returns an error nothing was queued and done is not called.
func (w *Writer) InsertAsync(done func(error), msgs ...*queue.Message) error {
	item := &insert{messages: msgs, done: done}
	if err := w.check(item); err != nil {
		return err
	}
	if !w.commits.add(item) {
		return ErrClosed
	}
	return nil
}

// check prepares the messages of an insert.
func (w *Writer) check(item *insert) error {
	if len(item.messages) > MaxInsert {
		return fmt.Errorf("%w: %d messages in one Insert; at most %d are allowed", queue.ErrInvalid, len(item.messages), MaxInsert)
	}
	if w.clock.due() {
		go w.remeasure()
	}
	now := w.clock.Now().Truncate(time.Microsecond)
	for _, m := range item.messages {
		if err := w.prepare(m, now); err != nil {
			return err
		}
		item.bytes += m.Size()
	}
	if item.bytes > MaxInsertBytes {
		return fmt.Errorf("%w: %d bytes in one Insert; at most %d are allowed", queue.ErrInvalid, item.bytes, MaxInsertBytes)
	}
	return nil
}

func (w *Writer) remeasure() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := w.clock.measure(ctx, w.store); err != nil {
		w.log.Warn("clock not measured", "err", err)
	}
}

// prepare completes one message and checks it.
func (w *Writer) prepare(m *queue.Message, now time.Time) error {
	if m.ReadyAt = m.ReadyAt.Truncate(time.Microsecond); m.Lane == queue.Incoming && !m.ReadyAt.IsZero() {
		return m.Validate(w.maxBody) // refused: incoming has no delay
	}
	m.ExpiresAt = m.ExpiresAt.Truncate(time.Microsecond)
	if err := applyHeaders(m, now); err != nil {
		return err
	}
	switch {
	case m.Lane == queue.Timed && m.ReadyAt.IsZero():
		m.ReadyAt = now
	case m.Lane == queue.LaneUnset && !m.ReadyAt.IsZero():
		m.Lane = queue.Timed
	case m.Lane == queue.LaneUnset:
		m.Lane = queue.Incoming
	}
	if m.ID.IsZero() {
		m.ID = w.ids.New(now)
	} else if m.ID.Time().After(now.Add(queue.MaxIDAhead)) {
		return fmt.Errorf("%w: id %v lies more than %v in the future", queue.ErrInvalid, m.ID, queue.MaxIDAhead)
	}
	m.EnqueuedAt, m.Attempts = now, 0
	m.LeaseToken, m.LeaseUntil = queue.ID{}, time.Time{}
	return m.Validate(w.maxBody)
}

// commit writes a group of inserts in one transaction. When the group is refused
// because of one of them, each is tried alone.
func (w *Writer) commit(group []*insert) {
	plain := make([]*insert, 0, len(group))
	var all []*queue.Message
	for _, i := range group {
		if i.tx != nil {
			i.err = w.applyTx(i)
			continue
		}
		plain = append(plain, i)
		all = append(all, i.messages...)
	}
	if len(all) == 0 {
		return
	}
	err := w.apply(all)
	if err != nil && len(plain) > 1 && (errors.Is(err, queue.ErrDuplicate) || errors.Is(err, queue.ErrInvalid)) {
		for _, i := range plain {
			i.err = w.apply(i.messages)
		}
		return
	}
	for _, i := range plain {
		i.err = err
	}
}

func (w *Writer) apply(messages []*queue.Message) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	now := w.clock.Now()
	_, err := w.store.Apply(ctx, now, &queue.Change{Token: w.ids.New(now), Put: messages, Told: w.tells()})
	if err != nil {
		return fmt.Errorf("valve: insert: %w", err)
	}
	return nil
}

// tells reports whether readers of this process are handed what is committed.
func (w *Writer) tells() bool {
	w.mu.RLock()
	defer w.mu.RUnlock()
	return len(w.readers) > 0
}

// finish tells readers and callers what is on disk now.
func (w *Writer) finish(group []*insert) {
	var all []*queue.Message
	w.mu.RLock()
	readers := w.readers
	for _, i := range group {
		switch {
		case i.err == nil:
			all = append(all, i.messages...)
		case i.tx == nil:
			for _, r := range readers {
				r.unreserve(i.messages)
			}
		}
		if i.tx != nil {
			i.tx.finish(i.err)
		}
	}
	for _, r := range readers {
		r.handover(all)
	}
	w.mu.RUnlock()
	for _, i := range group {
		i.caughtUp()
	}
	if len(all) > 0 {
		w.stats.addAll(actionEnqueue, all)
		w.bell.ring()
	}
	for _, i := range group {
		i.done(i.err)
	}
}

// reserve lets a reader of this process take messages that nothing is ahead of:
// they are inserted leased.
func (w *Writer) reserve(group []*insert) {
	w.mu.RLock()
	defer w.mu.RUnlock()
	for _, r := range w.readers {
		r.reserve(group)
		r.settles.kick() // what ended meanwhile can share the commit
	}
}

func (w *Writer) attach(r *Reader) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.readers = append(w.readers, r)
	w.bell.skip(r.id)
}

func (w *Writer) detach(r *Reader) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range w.readers {
		if w.readers[i] == r {
			w.readers = append(w.readers[:i], w.readers[i+1:]...)
			return
		}
	}
}

// Close waits for Inserts under way and writes the statistics. It does not close
// the store. Later Inserts get ErrClosed.
func (w *Writer) Close() error {
	w.mu.Lock()
	closed := w.closed
	w.closed = true
	w.mu.Unlock()
	if closed {
		return nil
	}
	w.commits.close()
	w.stats.close()
	w.bell.close()
	return nil
}
