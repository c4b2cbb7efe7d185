// Package stomp is the STOMP 1.0, 1.1 and 1.2 door of the valve: any language
// writes to and reads from the pipe through it.
//
//	srv := &stomp.Server{Writer: writer, Reader: reader, Admin: store}
//	ln, err := net.Listen("tcp", "127.0.0.1:61613")
//	err = srv.Serve(ln)
//
// A RECEIPT for a SEND to a queue means that the message is on disk. A MESSAGE
// is leased from the pipe until it is acknowledged, given back or timed out:
// the package has no queue of its own. Topics are broadcast in this process and
// never stored. docs/stomp.md describes destinations, headers and limits; "S86"
// and the like name the rules of the protocol that a piece of code or a test
// stands for.
package stomp
