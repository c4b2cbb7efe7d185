package mvalve_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"time"

	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/queue/sqlite"
	"github.com/mvalve/mvalve/throttle"
	"github.com/mvalve/mvalve/valve"
)

// The whole of it: put messages in, take them out within the limit.
func Example() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "mvalve")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)

	store, err := sqlite.Open(ctx, sqlite.Config{Path: filepath.Join(dir, "mvalve.db")})
	if err != nil {
		log.Fatal(err)
	}
	defer store.Close()
	writer, err := valve.NewWriter(ctx, store, valve.WriterConfig{})
	if err != nil {
		log.Fatal(err)
	}
	defer writer.Close()
	for i := range 3 {
		// On disk when Insert returns.
		if err := writer.Insert(ctx, &queue.Message{Destination: "mail.example", Body: fmt.Append(nil, "mail ", i)}); err != nil {
			log.Fatal(err)
		}
	}
	limit := throttle.Limit{Max: 1, Interval: 100 * time.Millisecond}
	if _, err := throttle.SetLimit(ctx, store, writer.Now(), "mail.example", limit); err != nil {
		log.Fatal(err)
	}

	reader, err := valve.OpenReader(ctx, store, valve.ReaderConfig{Writer: writer})
	if err != nil {
		log.Fatal(err)
	}
	defer reader.Close()
	var last time.Time
	for range 3 {
		d, err := reader.Next(ctx) // blocks until one may go
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%s, in time: %v\n", d.Message.Body, d.DispatchedAt.Sub(last) >= limit.Interval)
		last = d.DispatchedAt
		if err := d.Ack(ctx); err != nil { // deleted when Ack returns
			log.Fatal(err)
		}
	}
	// Output:
	// mail 0, in time: true
	// mail 1, in time: true
	// mail 2, in time: true
}
