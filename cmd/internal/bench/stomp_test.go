package bench

import (
	"context"
	"net"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mvalve/mvalve/cmd/internal/setup"
	"github.com/mvalve/mvalve/stomp/frame"
)

// TestStompCases runs every case that needs no knowledge of the process against
// a broker that does nothing wrong.
func TestStompCases(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some 15 s")
	}
	address := (&fakeBroker{}).start(t)
	cases := []string{"send-1x1", "send-16x1", "send-4x100", "drain-1", "drain-4", "pairs-4", "latency", "topic-10"}
	figures, err := runBench(t, append([]string{"stomp", "--address", address, "--backlog", "2001", "--size", "64"}, cases...)...)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{
		"send-1x1", "send-1x1, receipt p99", "send-16x1", "send-4x100", "drain-1", "drain-4", "pairs-4", "pairs-4, delivery p50",
		"latency, delivery p99", "topic-10, deliveries",
	} {
		if l, ok := figures["stomp: "+name]; !ok || l.Value <= 0 {
			t.Errorf("%s: %+v", name, l)
		}
	}
	for _, name := range []string{"lost in all cases", "delivered twice in all cases"} {
		if l, ok := figures["stomp: "+name]; !ok || l.Value != 0 || l.Met == nil || !*l.Met {
			t.Errorf("%s: %+v", name, l)
		}
	}
	if l := figures["stomp: latency, load"]; l.Value <= 0 {
		t.Errorf("the load of latency is %v/s", l.Value)
	}
}

// TestPacer: the load of the case latency is what it should be, on a clock that no
// busy machine moves.
func TestPacer(t *testing.T) { synctest.Test(t, testPacer) }

func testPacer(t *testing.T) {
	conn, far := net.Pipe()
	broker := &fakeBroker{queues: make(map[string]*fakeQueue)}
	served := make(chan struct{})
	go func() {
		defer close(served)
		broker.serve(&fakeConn{Conn: far, version: frame.V12})
	}()
	p := &pacer{client: &client{conn: conn, frames: frame.NewReader(conn, frame.Limits{}), version: frame.V12}}
	const seconds = 10
	ending, stop := context.WithTimeout(t.Context(), seconds*time.Second)
	defer stop()
	if err := p.work(ending, &target{size: minSize}, "/queue/d", pace); err != nil {
		t.Fatal(err)
	}
	if p.sent < seconds*pace || p.sent > seconds*pace+10 || p.confirmed != p.sent {
		t.Errorf("%d messages in %d s at %d/s, %d confirmed", p.sent, seconds, pace, p.confirmed)
	}
	_ = conn.Close()
	<-served
}

// TestAwait: only a time without any progress ends the waiting, and what was
// reached is said.
func TestAwait(t *testing.T) { synctest.Test(t, testAwait) }

func testAwait(t *testing.T) {
	began := time.Now()
	progress := func() int64 { return min(int64(time.Since(began)/(stall-time.Second)), 3) }
	if err := (&load{}).await(t.Context(), "messages", 3, progress); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > 3*stall {
		t.Errorf("it took %v", took)
	}
	began = time.Now()
	err := (&load{}).await(t.Context(), "messages", 4, progress)
	if err == nil || err.Error() != "3 of 4 messages after 30s without progress" {
		t.Errorf("%v", err)
	}
	if took := time.Since(began); took < 3*(stall-time.Second)+stall || took > 4*stall {
		t.Errorf("it took %v", took)
	}
}

// TestStompLoss: what a broker loses or doubles is counted and fails the command.
func TestStompLoss(t *testing.T) {
	for _, c := range []struct {
		broker *fakeBroker
		name   string
		want   string
	}{
		{&fakeBroker{doubleEvery: 500}, "drain-4", "delivered twice in all cases"},
		{&fakeBroker{doubleEvery: 500}, "pairs-1", "delivered twice in all cases"},
		{&fakeBroker{doubleEvery: 500}, "topic-10", "delivered twice in all cases"},
		{&fakeBroker{loseEvery: 500}, "topic-10", "lost in all cases"},
	} {
		address := c.broker.start(t)
		figures, err := runBench(t, "stomp", "--address", address, "--backlog", "2000", c.name)
		if l := figures["stomp: "+c.want]; l.Value < 1 || setup.Code(err) != setup.ExitData {
			t.Errorf("%s of a broker that fails: %+v, %v", c.name, l, err)
		}
	}
}

// TestStompStalls: a case that makes no progress ends and says how far it came. A
// machine that stops for longer than the time allowed ends it earlier.
func TestStompStalls(t *testing.T) {
	defer func(d time.Duration) { stall = d }(stall)
	stall = time.Second
	for _, c := range []struct {
		broker *fakeBroker
		name   string
		want   string
	}{
		{&fakeBroker{loseEvery: 1500}, "drain-1", `: \d+ of 2000 messages (confirmed|delivered) after 1s`},
		{&fakeBroker{mute: 1000}, "drain-1", `: \d+ of 2000 messages confirmed after 1s`},
		{&fakeBroker{loseEvery: 500}, "pairs-1", `: \d+ of \d+ messages delivered after 1s|no RECEIPT for SUBSCRIBE within 1s`},
		{&fakeBroker{mute: 1000}, "send-4x100", `a connection did not end within 1s`},
	} {
		address := c.broker.start(t)
		_, err := runBench(t, "stomp", "--address", address, "--backlog", "2000", c.name)
		if err == nil || !regexp.MustCompile(c.want).MatchString(err.Error()) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}

func TestStompUsage(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"send-9"}, `unknown case "send-9"; known are send-1x1`},
		{[]string{"--address", "here"}, "use HOST:PORT"},
		{[]string{"--size", "31"}, "--size 31"},
		{[]string{"--prefetch", "0"}, "--prefetch 0"},
		{[]string{"--header", "x"}, "use NAME:VALUE"},
		{[]string{"--address", "127.0.0.1:1", "--queue", "sqlite:x.db"}, "exclude each other"},
	} {
		_, err := runBench(t, append([]string{"stomp"}, c.args...)...)
		if err == nil || !strings.Contains(err.Error(), c.want) || setup.Code(err) != setup.ExitUsage {
			t.Errorf("%v: %v", c.args, err)
		}
	}
	address := (&fakeBroker{}).start(t)
	if _, err := runBench(t, "stomp", "--address", address, "--login", "wrong", "send-1x1"); err == nil || !strings.Contains(err.Error(), "log in: the broker says ERROR: refused: who are you") {
		t.Errorf("%v", err)
	}
	if _, err := runBench(t, "stomp", "--address", address, "memory-queues"); err == nil || !strings.Contains(err.Error(), "--pid") {
		t.Errorf("%v", err)
	}
}

func TestHistogram(t *testing.T) {
	var a, b histogram
	values := []int64{0, 1, 31, 32, 63, 64, 1000, 1_000_000, 123_456_789, 1 << 40, 1<<62 + 5}
	for i, ns := range values {
		m := middle(bucket(ns))
		if d := m - ns; max(d, -d) > ns/32+1 {
			t.Errorf("%d is taken for %d", ns, m)
		}
		if i > 0 && bucket(ns) <= bucket(values[i-1]) {
			t.Errorf("bucket of %d is not above that of %d", ns, values[i-1])
		}
	}
	if q := quantile(0.5, &a, &b); q != 0 {
		t.Errorf("median of nothing is %v", q)
	}
	var all []int64
	for i := range int64(1000) {
		ns := i * i * 1000
		all = append(all, ns)
		[]*histogram{&a, &b}[i%2].add(ns)
	}
	slices.Sort(all)
	for _, p := range []float64{0, 0.5, 0.99, 1} {
		want := float64(all[min(int(p*1000), 999)]) / 1e6
		if got := quantile(p, &a, &b); got < want*0.96 || got > want*1.04 {
			t.Errorf("quantile %v is %v, want %v", p, got, want)
		}
	}
}

func TestJudge(t *testing.T) {
	sent := []batch{{1 << 32, 3}, {2 << 32, 100}}
	got := func(numbers ...uint64) *consumer { return &consumer{got: numbers} }
	var all []uint64
	for i := range uint64(100) {
		all = append(all, 2<<32|i)
	}
	v := judge(sent, []*consumer{got(1<<32, 1<<32|2, 3<<32, 7), got(1<<32|2, 1<<32|500), got(all...)})
	if want := (verdict{sent: 103, lost: 1, twice: 1, foreign: 3}); v != want {
		t.Errorf("%+v, want %+v", v, want)
	}
}
