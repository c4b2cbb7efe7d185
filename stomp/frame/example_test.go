package frame_test

import (
	"fmt"
	"log"
	"os"
	"strings"

	"github.com/mvalve/mvalve/stomp/frame"
)

func Example() {
	conn := strings.NewReader("CONNECT\naccept-version:1.2\nhost:/\n\n\x00\n" +
		"SEND\ndestination:/queue/mail\nnote:a\\cb\n\nhello\x00")
	r := frame.NewReader(conn, frame.Limits{Body: 1 << 20})
	if _, err := r.Read(); err != nil { // CONNECT
		log.Fatal(err)
	}
	r.SetVersion(frame.V12)
	f, err := r.Read()
	if err != nil {
		log.Fatal(err)
	}
	note, _ := f.Get("note")
	fmt.Printf("%v %s %s\n", f.Command, note, f.Body)

	// A frame built by hand, for speed; Append does the same from a Frame.
	out := frame.AppendCommand(nil, frame.Message)
	out = frame.AppendHeader(out, frame.V12, "message-id", "7")
	out = frame.AppendHeaderBytes(out, frame.V12, []byte("note"), note)
	out = frame.AppendBody(out, f.Body)
	os.Stdout.WriteString(strings.TrimSuffix(string(out), "\x00"))
	// Output:
	// SEND a:b hello
	// MESSAGE
	// message-id:7
	// note:a\cb
	// content-length:5
	//
	// hello
}
