package proof_test

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/mvalve/mvalve/internal/checker"
	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/queue/sqlite"
	"github.com/mvalve/mvalve/valve"
)

// elsewhere is a store whose clock is not the host's: that of a database server
// five minutes ahead or behind, which all processes measure.
type elsewhere struct {
	*sqlite.Store
	ahead time.Duration
}

func (s elsewhere) Now(ctx context.Context) (time.Time, error) {
	now, err := s.Store.Now(ctx)
	return now.Add(s.ahead), err
}

// TestClock: a database whose clock is five minutes from the host's changes
// nothing: limits hold and are used, delays are kept, new messages are found.
func TestClock(t *testing.T) {
	for _, ahead := range []time.Duration{-5 * time.Minute, 5 * time.Minute} {
		t.Run(ahead.String(), func(t *testing.T) {
			t.Parallel()
			clock(t, ahead)
		})
	}
}

// clockMessages is one that is due later, 50 of a limited destination, 7 of one that
// may have 5, and 20 without a limit.
func clockMessages(now time.Time) []*queue.Message {
	messages := []*queue.Message{{Destination: "late", Body: []byte("late"), ReadyAt: now.Add(300 * time.Millisecond)}}
	for _, to := range []struct {
		destination string
		n           int
	}{{"limited", 50}, {"emptied", 7}, {"free", 20}} {
		for i := range to.n {
			messages = append(messages, &queue.Message{Destination: to.destination, Body: fmt.Append(nil, i)})
		}
	}
	return messages
}

func clock(t *testing.T, ahead time.Duration) {
	p := &pipe{queue: "sqlite:" + filepath.Join(t.TempDir(), "pipe.db")}
	p.init(t)
	p.limit(t, "limited", "10/500ms", "emptied", "5/24h")
	const noticed = time.Minute // far below what a clock is off, far above what a slow machine takes
	ctx, cancel := context.WithTimeout(t.Context(), 4*noticed)
	defer cancel()
	file, err := sqlite.Open(ctx, sqlite.Config{Path: p.queue[len("sqlite:"):]})
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	store := elsewhere{file, ahead}
	w, err := valve.NewWriter(ctx, store, valve.WriterConfig{})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if off := time.Until(w.Now()) - ahead; off.Abs() > noticed {
		t.Fatalf("the writer's clock is %v from the database's", off)
	}
	r, err := valve.OpenReader(ctx, store, valve.ReaderConfig{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	messages := clockMessages(w.Now())
	late := messages[0]
	if err := w.Insert(ctx, messages...); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	log := takeAll(ctx, t, r, len(messages)-2) // of those at 5/24h two stay
	if len(log["late"]) != 1 {
		t.Fatalf("the delayed message did not come: %v", log)
	}
	if left := time.Duration(log["late"][0]-late.ReadyAt.UnixMicro()) * time.Microsecond; left < 0 || left > noticed {
		t.Errorf("a delayed message left %v after it was due", left)
	}
	took := time.Since(began)
	judge(t, log, "limited", checker.Limit{Max: 10, Window: 500 * time.Millisecond}, shortOrLong(0, shortUse)) // the time taken says enough
	if len(log["emptied"]) != 5 {
		t.Errorf("%d dispatched at 5/24h", len(log["emptied"]))
	}
	if took > noticed {
		t.Errorf("took %v", took)
	}
	if left, _ := p.left(t); left != 2 {
		t.Errorf("%d left, want 2 of the destination at 5/24h", left)
	}
}

// takeAll takes and acknowledges n messages and returns when they left.
func takeAll(ctx context.Context, t *testing.T, r *valve.Reader, n int) map[string][]int64 {
	t.Helper()
	log := make(map[string][]int64)
	var acks sync.WaitGroup // together: a disk may stall at each commit
	defer acks.Wait()
	for i := range n {
		d, err := r.Next(ctx)
		if err != nil {
			t.Fatalf("after %d dispatches: %v", i, err)
		}
		log[d.Message.Destination] = append(log[d.Message.Destination], d.DispatchedAt.UnixMicro())
		acks.Go(func() {
			if err := d.Ack(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	return log
}
