package stomp_test

import (
	"bufio"
	"context"
	"fmt"
	"log"
	"net"

	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/stomp"
	"github.com/mvalve/mvalve/valve"
)

// A server on a pipe in memory, and a client that needs no library.
func Example() {
	ctx := context.Background()
	store := queue.NewMemory()
	writer, err := valve.NewWriter(ctx, store, valve.WriterConfig{})
	if err != nil {
		log.Fatal(err)
	}
	defer writer.Close()
	reader, err := valve.OpenReader(ctx, store, valve.ReaderConfig{Writer: writer})
	if err != nil {
		log.Fatal(err)
	}
	defer reader.Close()

	srv := &stomp.Server{Writer: writer, Reader: reader, Admin: store}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	go srv.Serve(ln)
	defer srv.Close()

	conn, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, "CONNECT\naccept-version:1.2\n\n\x00")
	fmt.Fprint(conn, "SEND\ndestination:/queue/hello\nreceipt:on-disk\n\nhi\x00")
	frames := bufio.NewReader(conn)
	for range 2 {
		frame, err := frames.ReadString(0)
		if err != nil {
			log.Fatal(err)
		}
		command, _, _ := bufio.ScanLines([]byte(frame), false)
		fmt.Println(frame[:command-1])
	}
	// Output:
	// CONNECTED
	// RECEIPT
}
