package chaos_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/queue/mysql"
	"github.com/mvalve/mvalve/queue/sqlite"
	"github.com/mvalve/mvalve/state"
	"github.com/mvalve/mvalve/state/memcached"
	"github.com/mvalve/mvalve/state/ruling"
	"github.com/mvalve/mvalve/valve"
)

// The Go client is this test binary, started again with a role: a program that
// uses packages valve, queue and state, writes and reads in one process, and
// keeps a ledger of its own.
const (
	roleVariable  = "MVALVE_CHAOS_ROLE"
	clientRole    = "client"
	holderRole    = "holder"
	queueVariable = "MVALVE_CHAOS_QUEUE"
	leaseVariable = "MVALVE_CHAOS_LEASE"
)

// exitUnavailable is the exit code of a client that cannot open its pipe.
const exitUnavailable = 69

// openStore opens the pipe's store.
func openStore(ctx context.Context, url string, log *slog.Logger) (queue.Store, error) {
	if path, ok := strings.CutPrefix(url, "sqlite:"); ok {
		return sqlite.Open(ctx, sqlite.Config{Path: path, Logger: log})
	}
	cfg, err := mysql.ParseURL(url)
	if err != nil {
		return nil, err
	}
	cfg.Logger = log
	return mysql.Open(ctx, cfg)
}

// openMemcached opens the store in which the commands count the limits of the
// pipe, as any program does whose pipe does not count them itself.
func openMemcached(ctx context.Context, store queue.Store, log *slog.Logger, r ruling.Ruling) (state.Store, error) {
	return ruling.Open(ctx, store, r, func(ctx context.Context, r ruling.Ruling) (state.Store, error) {
		return memcached.Open(ctx, memcached.Config{
			Servers: r.Servers, Prefix: fmt.Sprintf("mvalve:%s:%d:", r.Pipe, r.Epoch), Logger: log, MarkerTime: store.Now,
		})
	})
}

// client is the Go client.
type client struct {
	r      *valve.Reader
	w      *valve.Writer
	ledger *os.File
}

// runClient writes what it is told on standard input, a line of destination and
// body each, and takes and ends messages until SIGTERM. Each line of its ledger
// is one write to the file, so that a kill cannot take it back:
//
//	C id body               after Insert returned: it is committed
//	G id stamp body         after Next handed the message out
//	B id stamp              before Ack is called
//	A id stamp micros       after Ack returned nil, and when: the ack is durable
//	N id stamp              before it is given back
//	Z                       after the end of the input, when all of it is inserted
func runClient() int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	log := slog.New(slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	fail := func(what string, err error) int {
		fmt.Fprintf(os.Stderr, "%s: %v\n", what, err)
		return exitUnavailable
	}
	ledger, err := os.OpenFile(os.Getenv(ledgerVariable), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fail("ledger", err)
	}
	if lease, err = time.ParseDuration(os.Getenv(leaseVariable)); err != nil {
		return fail("lease", err)
	}
	store, err := openStore(ctx, os.Getenv(queueVariable), log)
	if err != nil {
		return fail("open", err)
	}
	defer store.Close()
	rules, _, err := ruling.Read(ctx, store.(queue.Meta))
	if err != nil {
		return fail("ruling", err)
	}
	var fast state.Store // nil: what the pipe says
	if rules.Scheme == "memcached" {
		if fast, err = openMemcached(ctx, store, log, rules); err != nil {
			return fail("state", err)
		}
		defer fast.Close()
	}
	c := &client{ledger: ledger}
	if c.w, err = valve.NewWriter(ctx, store, valve.WriterConfig{Logger: log}); err != nil {
		return fail("writer", err)
	}
	defer c.w.Close()
	c.r, err = valve.OpenReader(ctx, store, valve.ReaderConfig{
		Logger: log, Writer: c.w, State: fast, Lease: lease, MaxAttempts: manyAttempts, RetryMin: retryMin, RetryMax: retryMax,
	})
	if err != nil {
		return fail("reader", err)
	}
	defer c.r.Close()
	fmt.Fprintln(os.Stderr, "opened")
	var workers sync.WaitGroup
	go c.produce()
	for range 4 {
		workers.Go(func() { c.consume(ctx, log) })
	}
	workers.Wait()
	leaving, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := c.r.Shutdown(leaving); err != nil {
		return fail("shutdown", err)
	}
	return 0
}

func (c *client) produce() {
	var inserts sync.WaitGroup
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		destination, body, _ := strings.Cut(lines.Text(), " ")
		inserts.Go(func() {
			m := &queue.Message{Destination: destination, Body: []byte(body)}
			if rand.N(10) == 0 {
				m.Lane = queue.Emergency
			}
			if err := c.w.Insert(context.Background(), m); err == nil {
				c.note("C", m.ID, 0, key(body))
			}
		})
	}
	inserts.Wait()
	fmt.Fprintln(c.ledger, "Z")
}

func (c *client) consume(ctx context.Context, log *slog.Logger) {
	for {
		d, err := c.r.Next(ctx)
		if ctx.Err() != nil || errors.Is(err, valve.ErrClosed) {
			return
		}
		if err != nil {
			log.Warn("next", "err", err)
			continue
		}
		stamp := d.DispatchedAt.UnixMicro()
		c.note("G", d.Message.ID, stamp, key(string(d.Message.Body)))
		<-time.After(rand.N(8 * time.Millisecond))
		ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
		switch rand.N(50) {
		case 0:
			c.note("N", d.Message.ID, stamp, "")
			err = d.Nack(ending, 50*time.Millisecond, "chaos")
		case 1:
			c.note("N", d.Message.ID, stamp, "")
			err = d.Release(ending)
		case 2:
			err = d.Extend(ending, lease)
			fallthrough
		default:
			c.note("B", d.Message.ID, stamp, "")
			if err = errors.Join(err, d.Ack(ending)); err == nil {
				c.note("A", d.Message.ID, stamp, fmt.Sprint(time.Now().UnixMicro()))
			}
		}
		cancel()
		if err != nil {
			log.Warn("not ended", "message_id", d.Message.ID, "err", err)
		}
	}
}

func (c *client) note(event string, id queue.ID, stamp int64, text string) {
	if _, err := fmt.Fprintf(c.ledger, "%s %s %d %s\n", event, id, stamp, text); err != nil {
		fmt.Fprintln(os.Stderr, "ledger:", err)
		os.Exit(1) // without a ledger nothing is proven
	}
}
