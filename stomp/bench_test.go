package stomp

import (
	"bufio"
	"bytes"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mvalve/mvalve/stomp/frame"
)

// countFrames reads n frames (no NUL in their bodies) as cheaply as possible.
func countFrames(r *bufio.Reader, n int) error {
	for n > 0 {
		if _, err := r.Peek(1); err != nil {
			return err
		}
		b, err := r.Peek(r.Buffered())
		if err != nil {
			return err
		}
		k := bytes.Count(b, []byte{0})
		n -= k
		if _, err := r.Discard(len(b)); err != nil {
			return err
		}
	}
	return nil
}

// BenchmarkSend is SEND with RECEIPT, 256 bytes, 100 in flight, into memory: what
// the door and the engine cost without a disk.
func BenchmarkSend(b *testing.B) {
	for _, window := range []int{1, 100} {
		b.Run(fmt.Sprintf("window=%d", window), func(b *testing.B) {
			br := startBroker(b, brokerConfig{})
			c := br.connect(frame.V12)
			one := "SEND\ndestination:/queue/bench\nreceipt:12345\ncontent-type:text/plain\ncontent-length:256\n\n" + strings.Repeat("x", 256) + "\x00"
			many := strings.Repeat(one, window)
			r := bufio.NewReaderSize(c.nc, 64<<10)
			b.ReportAllocs()
			b.ResetTimer()
			for n := 0; n < b.N; n += window {
				c.write(many)
				if err := countFrames(r, window); err != nil {
					b.Fatal(err)
				}
			}
			b.StopTimer()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s")
		})
	}
}

// BenchmarkThrough is SEND by one connection and MESSAGE with automatic ack at
// another, 100 in flight.
func BenchmarkThrough(b *testing.B) {
	br := startBroker(b, brokerConfig{})
	producer, consumer := br.connect(frame.V12), br.connect(frame.V12)
	consumer.subscribe("1", "/queue/bench", "auto", "prefetch-count:1000")
	_ = consumer.nc.SetDeadline(time.Time{})
	const window = 100
	many := strings.Repeat("SEND\ndestination:/queue/bench\ncontent-length:256\n\n"+strings.Repeat("x", 256)+"\x00", window)
	r := bufio.NewReaderSize(consumer.nc, 64<<10)
	b.ReportAllocs()
	b.ResetTimer()
	for n := 0; n < b.N; n += window {
		producer.write(many)
		if err := countFrames(r, window); err != nil {
			b.Fatal(err)
		}
	}
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s")
}

// BenchmarkTopic is deliveries of one publisher's messages.
func BenchmarkTopic(b *testing.B) {
	for _, subscribers := range []int{10, 100} {
		b.Run(fmt.Sprintf("subscribers=%d", subscribers), func(b *testing.B) {
			br := startBroker(b, brokerConfig{})
			p := br.connect(frame.V12)
			const window = 100
			var readers sync.WaitGroup
			rounds := max(b.N/(window*subscribers), 1)
			for range subscribers {
				c := br.connect(frame.V12)
				c.subscribe("1", "/topic/bench", "auto")
				_ = c.nc.SetDeadline(time.Time{})
				readers.Go(func() {
					if err := countFrames(bufio.NewReaderSize(c.nc, 64<<10), rounds*window); err != nil {
						b.Error(err)
					}
				})
			}
			many := strings.Repeat("SEND\ndestination:/topic/bench\ncontent-length:256\n\n"+strings.Repeat("x", 256)+"\x00", window-1) +
				"SEND\ndestination:/topic/bench\nreceipt:1\ncontent-length:256\n\n" + strings.Repeat("x", 256) + "\x00"
			r := bufio.NewReader(p.nc)
			b.ReportAllocs()
			b.ResetTimer()
			for range rounds {
				p.write(many)
				if err := countFrames(r, 1); err != nil {
					b.Fatal(err)
				}
			}
			readers.Wait()
			b.StopTimer()
			n := float64(rounds * window * subscribers)
			b.ReportMetric(n/b.Elapsed().Seconds(), "deliveries/s")
			if dropped := br.srv.Stats().TopicDropped; dropped > 0 {
				b.Errorf("%d dropped", dropped)
			}
		})
	}
}
