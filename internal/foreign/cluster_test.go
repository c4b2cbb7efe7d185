package foreign_test

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-stomp/stomp/v3"
)

// TestTwoBrokers has two processes on one pipe: what is sent to either of them
// goes to the consumers of both, each message once. It is also the claim race of
// brokers that read a message and mark it in two steps: both have the same
// backlog before them.
func TestTwoBrokers(t *testing.T) {
	t.Parallel()
	for name, pipe := range map[string]func(*testing.T) string{"MariaDB": mariadbURL, "SQLite": sqliteURL} {
		t.Run(name, func(t *testing.T) {
			url := pipe(t)
			// Nothing is given back to another while this machine is busy.
			first := serve(t, url, "--lease", "60s")
			brokers := []*broker{first, serve(t, url, "--lease", "60s")}
			const messages, backlog = 600, 300
			fill(t, brokers, 0, backlog)
			got := make(chan delivery, 2*messages)
			shares := []*share{newShare(messages / 10), newShare(messages / 10)}
			var clients []*client
			for i, b := range brokers {
				ready := func() bool { return shares[i].take() <= messages/4 || shares[1-i].await(t) }
				for range 2 {
					clients = append(clients, b.consume(t, i, ready, got))
				}
			}
			fill(t, brokers, backlog, messages)
			// One process may stall for long and the other takes what there is: it stops
			// at a quarter, and goes on when the slow one has a tenth.
			perBroker := onceEach(t, got, messages)
			for _, c := range clients {
				c.close()
			}
			for i, b := range brokers {
				if perBroker[i] < messages/10 {
					t.Errorf("the consumers of broker %d got next to nothing: %v", i, perBroker)
				}
				if n := b.count("shared"); n != "0" {
					t.Errorf("broker %d: %s messages left", i, n)
				}
			}
			t.Logf("deliveries per broker: %v", perBroker)
		})
	}
}

// delivery is a message that a consumer of a broker got.
type delivery struct {
	broker int
	body   string
	header string // x-delivery-count
}

// fill sends the messages from one number to another with receipts, over two
// connections to each broker.
func fill(t *testing.T, brokers []*broker, from, to int) {
	t.Helper()
	next := make(chan int)
	var senders sync.WaitGroup
	for _, b := range brokers {
		for range 2 {
			c := b.dial(t)
			senders.Go(func() {
				for n := range next {
					if err := c.Send("/queue/shared", "", fmt.Append(nil, n), stomp.SendOpt.Receipt); err != nil {
						t.Errorf("SEND %d: %v", n, err)
					}
				}
				c.close()
			})
		}
	}
	for n := from; n < to; n++ {
		next <- n
	}
	close(next)
	senders.Wait()
}

// share counts what the consumers of one broker have got, and tells the others'
// when it is enough.
type share struct {
	enough int32
	taken  atomic.Int32
	fair   chan struct{} // closed when enough are taken
}

func newShare(enough int32) *share { return &share{enough: enough, fair: make(chan struct{})} }

// take counts one message more and returns how many there are.
func (s *share) take() int32 {
	n := s.taken.Add(1)
	if n == s.enough {
		close(s.fair)
	}
	return n
}

// await waits until enough are taken; false says that the test is over.
func (s *share) await(t *testing.T) bool {
	select {
	case <-s.fair:
		return true
	case <-t.Context().Done():
		return false
	}
}

// work is how long a consumer has a message. Consumers that are done at once
// leave nothing for another broker: one of them is preferred for each queue.
const work = 5 * time.Millisecond

// consume takes messages, and acknowledges each when ready says so. It ends when
// ready is false.
func (b *broker) consume(t *testing.T, number int, ready func() bool, got chan<- delivery) *client {
	t.Helper()
	c := b.dial(t)
	in := c.subscribe("/queue/shared", stomp.AckClientIndividual, "prefetch-count", "10")
	go func() {
		for m := range in.messages {
			if m.Err != nil {
				return
			}
			<-time.After(work)
			if !ready() {
				return
			}
			if err := c.Ack(m); err != nil {
				t.Errorf("ACK %s: %v", m.Body, err)
				return
			}
			got <- delivery{number, string(m.Body), m.Header.Get("x-delivery-count")}
		}
	}()
	return c
}

// onceEach waits for all messages, listens for more, and returns how many came
// from each broker.
func onceEach(t *testing.T, got <-chan delivery, messages int) map[int]int {
	t.Helper()
	seen, perBroker := make(map[string]delivery), make(map[int]int)
	deadline := time.After(2 * patience)
	for {
		wait := deadline
		if len(seen) == messages {
			wait = time.After(quiet)
		}
		select {
		case d := <-got:
			if before, twice := seen[d.body]; twice {
				t.Errorf("twice: %+v and %+v", before, d)
			}
			seen[d.body] = d
			perBroker[d.broker]++
		case <-wait:
			if len(seen) != messages {
				t.Fatalf("%d of %d messages came: %v", len(seen), messages, perBroker)
			}
			return perBroker
		}
	}
}
