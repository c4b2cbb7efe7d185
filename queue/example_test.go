package queue_test

import (
	"context"
	"fmt"
	"log"
	"time"

	"github.com/mvalve/mvalve/queue"
)

// A lease token is a fence: whoever lost the lease can no longer end it.
func ExampleMemory() {
	ctx, now := context.Background(), time.Now()
	store := queue.NewMemory()
	defer store.Close()
	var ids queue.IDSource
	m := &queue.Message{ID: ids.New(now), Destination: "example.org", Lane: queue.Incoming, EnqueuedAt: now}
	if _, err := store.Apply(ctx, now, &queue.Change{Token: ids.New(now), Put: []*queue.Message{m}}); err != nil {
		log.Fatal(err)
	}
	slow, quick := ids.New(now), ids.New(now)
	for _, token := range []queue.ID{slow, quick} {
		if _, err := store.Lease(ctx, now, now.Add(time.Second), token, []queue.Ref{m.Ref()}); err != nil {
			log.Fatal(err)
		}
		now = now.Add(time.Second) // the lease ends
	}
	for _, token := range []queue.ID{slow, quick} {
		out, err := store.Apply(ctx, now, &queue.Change{Settle: []queue.Settle{{Ref: m.Ref(), Verb: queue.Ack, Token: token}}})
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println("lost:", len(out.Lost) > 0)
	}
	// Output:
	// lost: true
	// lost: false
}
