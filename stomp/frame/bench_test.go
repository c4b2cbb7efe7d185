package frame

import (
	"bytes"
	"testing"
)

// endless repeats a stream.
type endless struct {
	data  []byte
	at    int
	reads int
}

func (e *endless) Read(b []byte) (int, error) {
	n := copy(b, e.data[e.at:])
	e.at += n
	e.reads++
	if e.at == len(e.data) {
		e.at = 0
	}
	return n, nil
}

var sent = &Frame{
	Command: Send,
	Header: fields("destination", "/queue/mail.example.org", "receipt", "message-12345", "persistent", "true",
		"content-type", "application/json", "priority", "4"),
	Body: bytes.Repeat([]byte("0123456789abcdef"), 16),
}

func benchmarkRead(b *testing.B, v Version, f *Frame) {
	one := Append(nil, v, f)
	r := NewReader(&endless{data: bytes.Repeat(one, max(1, 200_000/len(one)))}, Limits{})
	r.SetVersion(v)
	b.SetBytes(int64(len(one)))
	b.ReportAllocs()
	for b.Loop() {
		f, err := r.Read()
		if err != nil || f.Command != Send {
			b.Fatal(err)
		}
		r.Buffered()
	}
}

// BenchmarkReadSend parses a SEND with 256 bytes of body and 6 headers.
func BenchmarkReadSend(b *testing.B) {
	for _, v := range []Version{V10, V12} {
		b.Run(v.String(), func(b *testing.B) { benchmarkRead(b, v, sent) })
	}
	b.Run("escaped", func(b *testing.B) {
		f := sent.Clone()
		f.Header[1].Value = []byte("a:b:c\\")
		benchmarkRead(b, V12, f)
	})
	b.Run("1MB", func(b *testing.B) {
		f := sent.Clone()
		f.Body = make([]byte, 1<<20)
		benchmarkRead(b, V12, f)
	})
}

func BenchmarkReadAck(b *testing.B) {
	one := []byte("ACK\nid:01935f1e-3f6a-7c3e-8f60-1b1c9d5c0a11-1\n\n\x00\n")
	r := NewReader(&endless{data: bytes.Repeat(one, 4000)}, Limits{})
	r.SetVersion(V12)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := r.Read(); err != nil {
			b.Fatal(err)
		}
		r.Buffered()
	}
}

// BenchmarkAppendMessage builds a MESSAGE with 256 bytes of body and 8 headers.
func BenchmarkAppendMessage(b *testing.B) {
	dst := make([]byte, 0, 1024)
	b.ReportAllocs()
	for b.Loop() {
		d := AppendCommand(dst, Message)
		d = AppendHeader(d, V12, "subscription", "sub-0")
		d = AppendHeader(d, V12, "message-id", "01935f1e-3f6a-7c3e-8f60-1b1c9d5c0a11-1")
		d = AppendHeader(d, V12, "ack", "01935f1e-3f6a-7c3e-8f60-1b1c9d5c0a11-1")
		d = AppendHeader(d, V12, "destination", "/queue/mail.example.org")
		d = AppendHeader(d, V12, "redelivered", "false")
		d = AppendHeader(d, V12, "content-type", "application/json")
		d = AppendHeader(d, V12, "priority", "4")
		d = AppendBody(d, sent.Body)
		if len(d) < 256 {
			b.Fatal(len(d))
		}
	}
}

func BenchmarkAppendFrame(b *testing.B) {
	dst := make([]byte, 0, 1024)
	b.ReportAllocs()
	for b.Loop() {
		if d := Append(dst, V12, sent); len(d) < 256 {
			b.Fatal(len(d))
		}
	}
}
