package proof_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/mvalve/mvalve/valve"
)

// The consumer is this test binary, started again with a role: a reader built
// from package valve that keeps a ledger of its own.
const (
	roleVariable   = "MVALVE_PROOF_ROLE"
	consumerRole   = "consumer"
	queueVariable  = "MVALVE_PROOF_QUEUE"
	ledgerVariable = "MVALVE_PROOF_LEDGER"
	workVariable   = "MVALVE_PROOF_WORK" // longest work on one message
)

// consumerLease is short, so that what a killed consumer held comes back soon.
const consumerLease = time.Second

// consumer starts a consumer that appends to ledger. It returns at once.
func (p *pipe) consumer(t *testing.T, ledger string, work time.Duration) *process {
	t.Helper()
	return start(t, nil, []string{
		roleVariable + "=" + consumerRole, queueVariable + "=" + p.queue,
		ledgerVariable + "=" + ledger, workVariable + "=" + work.String(),
	}, consumerPath)
}

// consume takes and acks messages until SIGTERM. Each line of the ledger is one
// write to the file, so that a kill cannot take it back, and is written
//
//	G id attempt micros body   after Next handed the message out; micros is DispatchedAt
//	B id attempt micros        before Ack is called
//	A id attempt micros        after Ack returned nil: the ack is durable
//	E id attempt micros error  after Ack failed
//
// all on the pipe's clock.
func consume() error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	work, err := time.ParseDuration(os.Getenv(workVariable))
	if err != nil {
		return err
	}
	ledger, err := os.OpenFile(os.Getenv(ledgerVariable), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer ledger.Close()
	store, err := (&pipe{queue: os.Getenv(queueVariable)}).open(ctx)
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	defer store.Close()
	r, err := valve.OpenReader(ctx, store, valve.ReaderConfig{Lease: consumerLease, MaxAttempts: 1000})
	if err != nil {
		return fmt.Errorf("open reader: %w", err)
	}
	defer r.Close()
	fmt.Println("at work")
	c := &consumer{r: r, ledger: ledger, work: work}
	var workers sync.WaitGroup
	for range 4 {
		workers.Go(func() { c.run(ctx) })
	}
	workers.Wait()
	leaving, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	return r.Shutdown(leaving)
}

type consumer struct {
	r      *valve.Reader
	ledger *os.File
	work   time.Duration
}

func (c *consumer) run(ctx context.Context) {
	for {
		d, err := c.r.Next(ctx)
		if ctx.Err() != nil || errors.Is(err, valve.ErrClosed) {
			return
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "next:", err)
			continue
		}
		c.note("G", d, d.DispatchedAt, string(d.Message.Body))
		if c.work > 0 {
			<-time.After(rand.N(c.work))
		}
		c.note("B", d, c.r.Now(), "")
		acking, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
		err = d.Ack(acking)
		cancel()
		if err != nil {
			c.note("E", d, c.r.Now(), err.Error())
			continue
		}
		c.note("A", d, c.r.Now(), "")
	}
}

func (c *consumer) note(event string, d *valve.Delivery, at time.Time, text string) {
	if _, err := fmt.Fprintf(c.ledger, "%s %s %d %d %s\n", event, d.Message.ID, d.Attempt, at.UnixMicro(), text); err != nil {
		fmt.Fprintln(os.Stderr, "ledger:", err)
		os.Exit(1) // without a ledger nothing is proven
	}
}
