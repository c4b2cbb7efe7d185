package proof_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mvalve/mvalve/internal/stomptest"
	"github.com/mvalve/mvalve/stomp/frame"
)

// crowd is the clients of brokers that are killed: they connect again, to any
// broker, and go on.
type crowd struct {
	brokers []*broker
	ledger  *stompLedger
	serial  atomic.Int64 // of bodies: none is sent twice
}

// dial connects to some broker, and waits for one if there is none; nil after the
// end of ctx.
func (c *crowd) dial(ctx context.Context) *stompClient {
	for ctx.Err() == nil {
		client, err := dialSTOMP(ctx, c.brokers[rand.N(len(c.brokers))].address)
		if err == nil {
			return client
		}
		measure(10 * time.Millisecond)
	}
	return nil
}

// keep runs a client's work on one connection after the other until ctx ends.
func (c *crowd) keep(ctx context.Context, work func(context.Context, *stompClient) error) {
	for {
		client := c.dial(ctx)
		if client == nil {
			return
		}
		err := work(ctx, client)
		client.Close()
		if ctx.Err() == nil {
			c.ledger.ended(err)
		}
	}
}

// produce sends batches with receipts. What has none when the broker dies is not
// sent again: it may be stored or not.
func (c *crowd) produce(queue string, batch int) func(context.Context, *stompClient) error {
	return func(ctx context.Context, client *stompClient) error {
		for ctx.Err() == nil {
			for range batch {
				body := strconv.FormatInt(c.serial.Add(1), 10)
				client.Add("SEND", body, "destination:/queue/"+queue, "receipt:"+body)
			}
			if err := client.Flush(); err != nil {
				return err
			}
			for range batch {
				f, err := client.Next()
				if err != nil {
					return err
				}
				c.ledger.receipted(queue, stomptest.Header(f, "receipt-id"))
			}
			measure(5 * time.Millisecond)
		}
		return nil
	}
}

// consume takes the messages of a queue in an ack mode, with a RECEIPT for each ACK.
func (c *crowd) consume(queue, mode string) func(context.Context, *stompClient) error {
	return c.take(queue, mode, func(client *stompClient, f *frame.Frame) {
		if mode != "auto" {
			client.Add("ACK", "", "id:"+stomptest.Header(f, "ack"), "receipt:"+ofDelivery(f))
		}
	}, func(body string, attempt int) { c.ledger.acked(queue, body, attempt) })
}

// move moves messages, each in a transaction that takes it from one queue and
// sends it to another.
func (c *crowd) move(from, to string) func(context.Context, *stompClient) error {
	return c.take(from, "client-individual", func(client *stompClient, f *frame.Frame) {
		body := string(f.Body)
		client.Add("BEGIN", "", "transaction:"+body)
		if rand.N(2) == 0 {
			client.Add("SEND", body, "destination:/queue/"+to, "transaction:"+body)
			client.Add("ACK", "", "id:"+stomptest.Header(f, "ack"), "transaction:"+body)
		} else {
			client.Add("ACK", "", "id:"+stomptest.Header(f, "ack"), "transaction:"+body)
			client.Add("SEND", body, "destination:/queue/"+to, "transaction:"+body)
		}
		client.Add("COMMIT", "", "transaction:"+body, "receipt:"+ofDelivery(f))
	}, func(body string, attempt int) {
		c.ledger.acked(from, body, attempt)
		c.ledger.receipted(to, body)
	})
}

// attemptOf is the how manieth delivery of its message a MESSAGE is.
func attemptOf(f *frame.Frame) int {
	return int(numberBehind(stomptest.Header(f, "x-delivery-count"), ""))
}

// ofDelivery is a RECEIPT's id that tells which delivery of which body it is about.
func ofDelivery(f *frame.Frame) string { return fmt.Sprintf("%s/%d", f.Body, attemptOf(f)) }

// take subscribes and handles MESSAGEs and the RECEIPTs named by ofDelivery.
func (c *crowd) take(queue, mode string, message func(*stompClient, *frame.Frame), receipt func(body string, attempt int)) func(context.Context, *stompClient) error {
	return func(ctx context.Context, client *stompClient) error {
		client.Add("SUBSCRIBE", "", "destination:/queue/"+queue, "id:0", "ack:"+mode, "prefetch-count:50", "receipt:subscribed")
		if _, err := client.receipt("subscribed"); err != nil {
			return err
		}
		for {
			if !client.Frames.Buffered() || len(client.Out) > 8<<10 {
				if err := client.Flush(); err != nil {
					return err
				}
			}
			f, err := client.Next()
			if err != nil {
				return err
			}
			if f.Command == frame.Receipt {
				body, attempt, _ := strings.Cut(stomptest.Header(f, "receipt-id"), "/")
				receipt(body, int(numberBehind(attempt, "")))
				continue
			}
			c.ledger.delivered(queue, string(f.Body), stomptest.MessageID(f), attemptOf(f))
			message(client, f)
		}
	}
}

// start starts all clients; stopProducers ends the ones, stop all.
func (c *crowd) start(ctx context.Context) (stopProducers, stop func()) {
	producing, cancelProducers := context.WithCancel(ctx)
	consuming, cancel := context.WithCancel(ctx)
	var producers, consumers sync.WaitGroup
	for queue, batch := range map[string]int{"work": 20, "from": 3, "auto": 5} {
		for range 2 {
			producers.Go(func() { c.keep(producing, c.produce(queue, batch)) })
		}
	}
	for range 2 {
		consumers.Go(func() { c.keep(consuming, c.consume("work", "client-individual")) })
		consumers.Go(func() { c.keep(consuming, c.move("from", "to")) })
	}
	consumers.Go(func() { c.keep(consuming, c.consume("to", "client-individual")) })
	consumers.Go(func() { c.keep(consuming, c.consume("auto", "auto")) })
	stopProducers = func() { cancelProducers(); producers.Wait() }
	return stopProducers, func() { stopProducers(); cancel(); consumers.Wait() }
}

// killedLease is what clients of brokers that are killed wait for. A lease that is
// kept must outlast a disk that stalls: after its end an ACK is confirmed, too, and
// the message comes again.
const killedLease = 20 * time.Second

// TestBrokerKilled: a broker under load is killed at a random moment, again and
// again. Each message with a RECEIPT comes at least once, none whose ACK has a
// RECEIPT comes again, and no transaction happens by half.
func TestBrokerKilled(t *testing.T) {
	for _, tt := range []struct {
		backend         string
		brokers, rounds int
	}{
		{onSQLite, 1, shortOrLong(5, 100)},
		{onMariaDB, 2, shortOrLong(5, 100)},
	} {
		t.Run(fmt.Sprintf("%s, brokers: %d", tt.backend, tt.brokers), func(t *testing.T) {
			t.Parallel()
			p := newPipe(t, tt.backend)
			c := &crowd{ledger: newSTOMPLedger()}
			for range tt.brokers {
				c.brokers = append(c.brokers, newBroker(t, p, "--lease", killedLease.String()))
			}
			stopProducers, stop := c.start(t.Context())
			defer stop()
			for range tt.rounds {
				measure(100*time.Millisecond + rand.N(500*time.Millisecond))
				victim := c.brokers[rand.N(len(c.brokers))]
				victim.proc.kill()
				victim.start(t)
			}
			measure(100 * time.Millisecond)
			stopProducers()
			began, left := time.Now(), int64(-1)
			t.Cleanup(func() {
				if left != 0 {
					t.Logf("%d messages left, ERRORs %v", left, c.ledger.errors)
				}
			})
			waitFor(t, 2*patience+3*killedLease, "the queues are empty", func() bool {
				var dead int64
				if left, dead = p.left(t); dead > 0 {
					t.Fatalf("%d dead letters", dead)
				}
				return left == 0
			})
			// What needs no ACK is gone once it is written: it may be on its way.
			for end := time.Now().Add(patience); c.ledger.toCome("auto") > 0 && time.Now().Before(end); measure(20 * time.Millisecond) {
			}
			stop()
			t.Logf("killed %d times, clients connected %d times, ERRORs %v; empty %v after the last SEND", tt.rounds, c.ledger.dials, c.ledger.errors, time.Since(began))
			for _, queue := range []string{"work", "from", "to", "auto"} {
				c.ledger.judge(t, queue)
			}
			c.ledger.judgeMoved(t, "from", "to")
		})
	}
}
