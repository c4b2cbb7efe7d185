package sqlite_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"time"

	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/queue/sqlite"
)

func Example() {
	dir, err := os.MkdirTemp("", "mvalve")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	ctx := context.Background()
	store, err := sqlite.Open(ctx, sqlite.Config{Path: filepath.Join(dir, "mvalve.db")})
	if err != nil {
		log.Fatal(err)
	}
	defer store.Close()

	var ids queue.IDSource
	now, err := store.Now(ctx)
	if err != nil {
		log.Fatal(err)
	}
	m := &queue.Message{ID: ids.New(now), Destination: "example.org", Lane: queue.Incoming, EnqueuedAt: now, Body: []byte("hello")}
	if _, err := store.Apply(ctx, now, &queue.Change{Token: ids.New(now), Put: []*queue.Message{m}}); err != nil {
		log.Fatal(err)
	}
	refs, _, err := store.Scan(ctx, now, queue.Incoming, queue.Cursor{}, now, 10)
	if err != nil {
		log.Fatal(err)
	}
	token := ids.New(now)
	leased, err := store.Lease(ctx, now, now.Add(time.Minute), token, refs)
	if err != nil {
		log.Fatal(err)
	}
	for _, l := range leased {
		fmt.Printf("%s: %s\n", l.Message.Destination, l.Message.Body)
		_, err := store.Apply(ctx, now, &queue.Change{Settle: []queue.Settle{{Ref: l.Ref, Verb: queue.Ack, Token: token}}})
		if err != nil {
			log.Fatal(err)
		}
	}
	// Output: example.org: hello
}
