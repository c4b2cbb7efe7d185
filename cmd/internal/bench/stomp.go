package bench

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/mvalve/mvalve/cmd/internal/setup"
)

const stompDescription = `Loads a STOMP broker, any broker, with the cases named, or with all but memory:

  send-1x1, send-16x1      SEND with RECEIPT, 1 or 16 connections, one message at a time
  send-1x100, send-4x100   the same with 100 messages in flight per connection
  drain-1, drain-4         1 or 4 consumers empty a backlog, client-individual acks
  pairs-1, pairs-4         producer to consumer at once, each pair on a queue of its own
  latency                  SEND to MESSAGE at 1,000 messages per second
  topic-10, topic-100      deliveries of one publisher's messages to 10 or 100 subscribers
  memory-subscriptions     memory of the broker per idle subscription to a queue of its own
  memory-queues            memory of the broker per queue with one message

Without --address it starts ` + "`mvalve serve`" + ` on a temporary SQLite file, or on the empty
queue named by --queue, and measures that; with SQLite it also shows what the store
does alone.

A message counts when its RECEIPT arrived. Every case checks that each message that
was confirmed is delivered once, and that nothing stays behind; any loss or
duplicate ends the command with exit code 65. The load generator needs the same
machine's processors; with --pid, and for its own broker, the broker's own use is
shown. Goals are those of mvalve on SQLite and two cores.

  mvalve bench stomp
  mvalve bench stomp --address 127.0.0.1:61613 --login guest --passcode guest send-1x1`

func stompCommand() *cli.Command {
	return &cli.Command{
		Name:        "stomp",
		Usage:       "load a STOMP broker, this one or another",
		UsageText:   "mvalve bench stomp [flags] [NAME...]",
		Description: stompDescription,
		Action:      runStomp,
		Flags: append([]cli.Flag{
			&cli.StringFlag{Name: "address", DefaultText: "start mvalve serve", Usage: "`HOST:PORT` of the broker"},
			&cli.StringFlag{Name: "login", Usage: "`NAME` to log in with"},
			&cli.StringFlag{Name: "passcode", Usage: "`PASSCODE` of --login; better given as MVALVE_PASSCODE"},
			&cli.StringFlag{Name: "host", Value: "/", Usage: "virtual `HOST` to ask for"},
			&cli.StringFlag{Name: "destination-prefix", DefaultText: "bench-RANDOM-", Usage: "`PREFIX` of the names of queues and topics; queues must be empty"},
			&cli.StringSliceFlag{Name: "header", Usage: "`NAME:VALUE` added to SEND and SUBSCRIBE, such as x-queue-type:quorum; repeatable"},
			&cli.IntFlag{Name: "prefetch", Value: 1000, Usage: "`NUMBER` of messages a consumer may hold"},
			&cli.IntFlag{Name: "size", Value: bodyBytes, Usage: "`BYTES` of a body"},
			&cli.IntFlag{Name: "seconds", Value: 5, Usage: "how many `SECONDS` each case is measured"},
			&cli.IntFlag{Name: "repeat", Value: 1, Usage: "how `MANY` times everything is measured; medians are printed"},
			&cli.IntFlag{Name: "backlog", Value: 100_000, Usage: "`NUMBER` of messages that drain empties"},
			&cli.IntFlag{Name: "number", Value: 100_000, Usage: "`NUMBER` of subscriptions and queues of the memory cases"},
			&cli.IntFlag{Name: "pid", Usage: "process `ID` of the broker, to show its processor time and memory (Linux)"},
			&cli.StringFlag{Name: "debug", Usage: "`HOST:PORT` that the broker was given as --debug, for its heap and --profile"},
			&cli.StringFlag{Name: "queue", DefaultText: "temporary SQLite file", Usage: "`URL` of an empty queue for the broker that is started"},
			&cli.StringFlag{Name: "profile", Usage: "write processor profiles of the broker, and heap profiles of the memory cases, into `FOLDER`"},
			&cli.BoolFlag{Name: "json", Usage: "print one JSON object per figure instead of a table"},
		}, setup.LogFlags()...),
	}
}

// stompCase is a case and its name.
type stompCase struct {
	name string
	run  func(b *stompBench, ctx context.Context, name string) error
}

// stompCases in order of running. The goals are for SQLite on two cores.
var stompCases = []stompCase{
	{"send-1x1", sendCase(1, 1, 4_000)},
	{"send-16x1", sendCase(16, 1, 25_000)},
	{"send-1x100", sendCase(1, 100, 40_000)},
	{"send-4x100", sendCase(4, 100, 60_000)},
	{"drain-1", drainCase(1, 50_000)},
	{"drain-4", drainCase(4, 70_000)},
	{"pairs-1", pairsCase(1, 30_000)},
	{"pairs-4", pairsCase(4, 40_000)},
	{"latency", (*stompBench).latency},
	{"topic-10", topicCase(10, 400_000)},
	{"topic-100", topicCase(100, 400_000)},
	{"memory-subscriptions", (*stompBench).memorySubscriptions},
	{"memory-queues", (*stompBench).memoryQueues},
}

// stompBench is one call of the command.
type stompBench struct {
	*session
	target *target
	broker broker
	cases  []stompCase
	queues int   // named so far
	lost   int64 // messages, over all cases
	twice  int64
}

func runStomp(c *cli.Context) (err error) {
	b, err := newStompBench(c)
	if err != nil {
		return err
	}
	defer b.close()
	if b.target.address == "" {
		if err := b.baseline(c.Context); err != nil {
			return fmt.Errorf("raw: %w", err)
		}
		if err := b.startBroker(c.Context); err != nil {
			return err
		}
		defer b.broker.stop()
	}
	for round := range c.Int("repeat") {
		for _, one := range b.cases {
			b.show("%s, run %d of %d", one.name, round+1, c.Int("repeat"))
			if err := one.run(b, c.Context, one.name); err != nil {
				b.clear()
				if c.Context.Err() != nil { // a Ctrl-C reaches the broker, too
					return context.Cause(c.Context)
				}
				err = b.broker.explain(fmt.Errorf("%s: %w", one.name, err))
				if exit := new(setup.ExitError); !errors.As(err, &exit) {
					err = setup.Failf(setup.ExitUnavailable, "%w", err) // whatever it is, the broker is at the other end of it
				}
				return errors.Join(err, b.results.write(c.App.Writer, c.Bool("json"))) // what was measured is not thrown away
			}
		}
	}
	b.clear()
	return b.report(c.App.Writer, c.Bool("json"))
}

func (b *stompBench) report(w io.Writer, asJSON bool) error {
	b.results.add("stomp", "lost in all cases", "messages", float64(b.lost), atMost(0))
	b.results.add("stomp", "delivered twice in all cases", "messages", float64(b.twice), atMost(0))
	if err := b.results.write(w, asJSON); err != nil {
		return err
	}
	if b.lost > 0 || b.twice > 0 {
		return setup.Failf(setup.ExitData, "%d messages were lost and %d delivered twice", b.lost, b.twice)
	}
	return nil
}

func newStompBench(c *cli.Context) (*stompBench, error) {
	for _, name := range []string{"prefetch", "backlog", "number"} {
		if c.Int(name) < 1 {
			return nil, setup.Usagef("--%s %d: use a number from 1 on", name, c.Int(name))
		}
	}
	t := &target{
		address: c.String("address"), login: c.String("login"), passcode: c.String("passcode"), host: c.String("host"),
		headers: c.StringSlice("header"), prefix: c.String("destination-prefix"), prefetch: c.Int("prefetch"), size: c.Int("size"),
	}
	if t.address != "" {
		if _, _, err := net.SplitHostPort(t.address); err != nil {
			return nil, setup.Usagef("--address %.80q: use HOST:PORT such as 127.0.0.1:61613", t.address)
		}
		if c.IsSet("queue") {
			return nil, setup.Usagef("--address and --queue exclude each other: --queue is for a broker that is started")
		}
	}
	if t.size < minSize {
		return nil, setup.Usagef("--size %d: use a number from %d on; a body holds its number and time", t.size, minSize)
	}
	for _, line := range t.headers {
		if name, _, ok := strings.Cut(line, ":"); !ok || name == "" || strings.ContainsAny(line, "\r\n\x00") {
			return nil, setup.Usagef("--header %.80q: use NAME:VALUE", line)
		}
	}
	if t.prefix == "" {
		t.prefix = "bench-" + strings.ToLower(rand.Text()[:6]) + "-"
	}
	cases, err := selectedCases(c.Args().Slice())
	if err != nil {
		return nil, err
	}
	s, err := newSession(c)
	if err != nil {
		return nil, err
	}
	return &stompBench{session: s, target: t, cases: cases, broker: broker{pid: c.Int("pid"), debug: c.String("debug")}}, nil
}

func selectedCases(args []string) (cases []stompCase, err error) {
	var known []string
	for _, c := range stompCases {
		known = append(known, c.name)
		if slices.Contains(args, c.name) || len(args) == 0 && !strings.HasPrefix(c.name, "memory-") {
			cases = append(cases, c)
		}
	}
	for _, name := range args {
		if !slices.Contains(known, name) {
			return nil, setup.Usagef("unknown case %.40q; known are %s", name, strings.Join(known, ", "))
		}
	}
	return cases, nil
}

// newQueue names a queue that no other case uses.
func (b *stompBench) newQueue(name string) string {
	b.queues++
	return fmt.Sprintf("/queue/%s%s-%d", b.target.prefix, name, b.queues)
}

// note adds a figure of a case.
func (b *stompBench) note(name, what, unit string, value float64, g goal) {
	if what != "" {
		name += ", " + what
	}
	b.results.add("stomp", name, unit, value, g)
}

// noteLags adds p50 and p99 in milliseconds.
func (b *stompBench) noteLags(name, what string, goal50, goal99 goal, all ...*histogram) {
	b.note(name, what+" p50", "ms", quantile(0.5, all...), goal50)
	b.note(name, what+" p99", "ms", quantile(0.99, all...), goal99)
}

// noteVerdict adds what went wrong, if anything did.
func (b *stompBench) noteVerdict(name string, v verdict, leftOver int64) error {
	b.lost += v.lost
	b.twice += v.twice + leftOver
	if v.lost > 0 {
		b.note(name, "lost", "messages", float64(v.lost), atMost(0))
	}
	if v.twice > 0 {
		b.note(name, "delivered twice", "messages", float64(v.twice), atMost(0))
	}
	if leftOver > 0 {
		b.note(name, "left in the queue though acknowledged", "messages", float64(leftOver), atMost(0))
	}
	if v.foreign > 0 {
		return setup.Usagef("the queue held %d other messages; give another --destination-prefix", v.foreign)
	}
	return nil
}

// load runs one case: its connections end with it.
func (b *stompBench) load(ctx context.Context, do func(ctx context.Context, l *load) error) error {
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	l := &load{target: b.target, fail: fail}
	if err := do(ctx, l); err != nil {
		fail(err)
		l.work.Wait()
		return err
	}
	return nil
}

// measureLoad lets a case warm up and measures it. A broker that is slow gets more
// time, up to stall, until there is something to count, and a latency in lags if
// the case has some.
func (b *stompBench) measureLoad(ctx context.Context, l *load, name string, count func() int64, lags ...*histogram) (span, use, error) {
	if err := wait(ctx, warmUp); err != nil {
		return span{}, use{}, err
	}
	stop := b.watch(ctx, name, b.seconds, count)
	l.measured.Store(true)
	n, at := count(), time.Now()
	err := wait(ctx, b.seconds)
	nothing := func() bool { return count() == n || len(lags) > 0 && empty(lags...) }
	for err == nil && nothing() && time.Since(at) < stall {
		err = wait(ctx, warmUp)
	}
	s := span{count: count() - n, time: time.Since(at)}
	l.measured.Store(false)
	return s, stop(), err
}
