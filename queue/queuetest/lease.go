package queuetest

import (
	"fmt"
	"sync"
	"time"

	"github.com/mvalve/mvalve/queue"
)

var leaseCases = []testCase{
	{"wins in the order asked", leaseOrder},
	{"whole key counts", leaseWholeKey},
	{"ends at until", leaseEnds},
	{"two never both win", leaseRace},
	{"life-cycle under contention", leaseChurn},
	{"damaged row", leaseDamaged},
	{"needs a token", leaseToken},
}

func leaseOrder(f *fixture) {
	const n = 1100
	var refs []queue.Ref
	for i := range n {
		switch m := f.message("a"); i % 3 {
		case 0:
			refs = append(refs, m.Ref())
		case 1:
			m.Lane = queue.Emergency
			refs = append(refs, m.Ref())
		default:
			refs = append(refs, f.timed("a", time.Duration(n-i)*time.Second).Ref())
		}
	}
	var msgs []*queue.Message
	for _, ref := range refs {
		msgs = append(msgs, &queue.Message{ID: ref.ID, Destination: ref.Destination, Lane: ref.Lane,
			ReadyAt: queue.Time(ref.ReadyAt), EnqueuedAt: f.now})
	}
	f.put(msgs...)
	held := []queue.Ref{refs[7], refs[8], refs[9]}
	f.lease(held...)

	asked := make([]queue.Ref, 0, n+2)
	for i := range refs { // neither key order nor table order, with strangers and twins
		asked = append(asked, refs[(i*7)%n])
	}
	asked = append(asked, f.message("never put").Ref(), refs[0])
	won := f.leaseFor(time.Minute, f.id(), asked...)
	var want []queue.ID
	for _, ref := range asked[:n] {
		if ref.ID != held[0].ID && ref.ID != held[1].ID && ref.ID != held[2].ID {
			want = append(want, ref.ID)
		}
	}
	var got []queue.ID
	for _, l := range won {
		if l.Message.ID != l.Ref.ID || l.Message.Attempts != 1 || l.Ref.Attempts != 1 {
			f.Fatalf("leased %+v as %+v", l.Message, l.Ref)
		}
		got = append(got, l.Ref.ID)
	}
	f.equal(got, want)
}

func leaseWholeKey(f *fixture) {
	m := f.timed("a", time.Second)
	ref := f.put(m)[0]
	moved := ref
	moved.ReadyAt++
	if won := f.leaseFor(time.Minute, f.id(), moved); len(won) != 0 {
		f.Fatal("leased a timed row by id alone")
	}
	f.lease(ref) // not yet due, but the caller decides
}

func leaseEnds(f *fixture) {
	ref := f.put(f.message("a"))[0]
	f.leaseFor(time.Second, f.id(), ref)
	f.pass(time.Second - time.Microsecond)
	f.sizes(0, 0, 0)
	if refs, _ := f.heads(queue.HeadQuery{Destination: "a", Limit: 1}); len(refs) != 0 {
		f.Fatal("Heads shows a leased row")
	}
	f.pass(time.Microsecond)
	f.sizes(0, 0, 1)
	refs, _ := f.heads(queue.HeadQuery{Destination: "a", Limit: 1})
	if len(refs) != 1 || refs[0].Attempts != 1 {
		f.Fatalf("expired lease shows as %+v, want attempts 1", refs)
	}
	if _, won := f.lease(ref); won[0].Message.Attempts != 2 {
		f.Fatalf("attempts %d, want 2", won[0].Message.Attempts)
	}
}

func leaseRace(f *fixture) {
	const readers, rows = 8, 400
	refs := f.put(f.messages("a", rows)...)
	var mu sync.Mutex
	owner := make(map[queue.ID]queue.ID)
	var wg sync.WaitGroup
	for range readers {
		wg.Go(func() {
			token := f.id()
			for i := 0; i < rows; i += 20 {
				won, err := f.store.Lease(f.ctx, f.now, f.now.Add(time.Minute), token, refs[i:i+20])
				if err != nil {
					f.Errorf("Lease: %v", err)
					return
				}
				mu.Lock()
				for _, l := range won {
					if other, ok := owner[l.Ref.ID]; ok {
						f.Errorf("%v won by %v and %v", l.Ref.ID, other, token)
					}
					owner[l.Ref.ID] = token
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if len(owner) != rows {
		f.Fatalf("%d of %d rows leased", len(owner), rows)
	}
}

// leaseChurn lets writers and readers work against each other; every message
// must be acked exactly once.
func leaseChurn(f *fixture) {
	const writers, readers, batches, size = 2, 6, 15, 20
	const total = writers * batches * size
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for range batches {
				change := &queue.Change{Token: f.id(), Put: f.messages(fmt.Sprint("d", w), size)}
				if _, err := f.store.Apply(f.ctx, f.now, change); err != nil {
					f.Errorf("Apply: %v", err)
				}
			}
		})
	}
	var mu sync.Mutex
	acked := make(map[queue.ID]int)
	for range readers {
		wg.Go(func() {
			for token := f.id(); f.ctx.Err() == nil; {
				settles, err := leaseSome(f, token)
				if err != nil {
					f.Errorf("lease: %v", err)
					return
				}
				out, err := f.store.Apply(f.ctx, f.now, &queue.Change{Settle: settles})
				if err != nil || len(out.Lost) > 0 {
					f.Errorf("ack: lost %v, %v", out.Lost, err)
					return
				}
				mu.Lock()
				for _, s := range settles {
					acked[s.Ref.ID]++
				}
				done := len(acked) == total
				mu.Unlock()
				if done {
					return
				}
			}
		})
	}
	wg.Wait()
	for id, n := range acked {
		if n != 1 {
			f.Errorf("%v acked %d times", id, n)
		}
	}
	if len(acked) != total {
		f.Fatalf("%d of %d messages acked", len(acked), total)
	}
}

func leaseSome(f *fixture, token queue.ID) ([]queue.Settle, error) {
	refs, _, err := f.store.Scan(f.ctx, f.now, queue.Incoming, queue.Cursor{}, f.now, 30)
	if err != nil {
		return nil, err
	}
	won, err := f.store.Lease(f.ctx, f.now, f.now.Add(time.Minute), token, refs)
	settles := make([]queue.Settle, len(won))
	for i, l := range won {
		settles[i] = queue.Settle{Ref: l.Ref, Verb: queue.Ack, Token: token}
	}
	return settles, err
}

func leaseDamaged(f *fixture) {
	c, ok := f.store.(Corrupter)
	if !ok {
		f.Skip("store under test cannot damage a row")
	}
	refs := f.put(f.messages("a", 3)...)
	c.Corrupt(f.T, refs[1])
	token := f.id()
	won := f.leaseFor(time.Minute, token, refs...)
	if len(won) != 3 || won[0].Err != nil || won[2].Err != nil {
		f.Fatalf("neighbours of a damaged row: %+v", won)
	}
	f.wantError(won[1].Err, queue.ErrCorrupt)
	if won[1].Message == nil || won[1].Message.Destination != "a" {
		f.Fatalf("damaged row is shown as %+v", won[1].Message)
	}
	if !f.settle(queue.Settle{Ref: won[1].Ref, Verb: queue.Kill, Token: token, Reason: "damaged"}) {
		f.Fatal("a damaged row could not be killed")
	}
	letters := f.dead()
	if len(letters) != 1 {
		f.Fatalf("%d dead letters, want 1", len(letters))
	}
	f.wantError(letters[0].Err, queue.ErrCorrupt)
}

func leaseToken(f *fixture) {
	refs := f.put(f.message("a"))
	_, err := f.store.Lease(f.ctx, f.now, f.now.Add(time.Minute), queue.ID{}, refs)
	f.wantError(err, queue.ErrInvalid)
	if won := f.leaseFor(time.Minute, f.id()); len(won) != 0 {
		f.Fatal("won rows without asking")
	}
}
