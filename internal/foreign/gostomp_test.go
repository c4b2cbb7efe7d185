package foreign_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-stomp/stomp/v3"
	"github.com/go-stomp/stomp/v3/frame"
)

// client is a connection of go-stomp.
type client struct {
	t *testing.T
	*stomp.Conn
}

type option = func(*stomp.Conn) error

// logless drops what go-stomp would print.
type logless struct{}

func (logless) Debugf(string, ...any)   {}
func (logless) Infof(string, ...any)    {}
func (logless) Warningf(string, ...any) {}
func (logless) Errorf(string, ...any)   {}
func (logless) Debug(string)            {}
func (logless) Info(string)             {}
func (logless) Warning(string)          {}
func (logless) Error(string)            {}

// dial connects with go-stomp; the connection is cut when the test ends.
func (b *broker) dial(t *testing.T, options ...option) *client {
	t.Helper()
	c, err := stomp.Dial("tcp", b.addr, append([]option{
		stomp.ConnOpt.Logger(logless{}), stomp.ConnOpt.RcvReceiptTimeout(patience), stomp.ConnOpt.DisconnectReceiptTimeout(patience),
		stomp.ConnOpt.UnsubscribeReceiptTimeout(patience),
	}, options...)...)
	if err != nil {
		t.Fatalf("connect: %v", err)
	}
	t.Cleanup(func() { _ = c.MustDisconnect() })
	return &client{t, c}
}

// put sends with a receipt and waits for it.
func (c *client) put(destination, body string, headers ...string) {
	c.t.Helper()
	if err := c.Send(destination, "", []byte(body), sendOptions(headers)...); err != nil {
		c.t.Fatalf("SEND %.40q to %s: %v", body, destination, err)
	}
}

func sendOptions(headers []string) []func(*frame.Frame) error {
	options := []func(*frame.Frame) error{stomp.SendOpt.Receipt}
	for i := 0; i < len(headers); i += 2 {
		options = append(options, stomp.SendOpt.Header(headers[i], headers[i+1]))
	}
	return options
}

// close ends the connection as the protocol asks, so that everything sent has
// been processed.
func (c *client) close() {
	c.t.Helper()
	if err := c.Disconnect(); err != nil {
		c.t.Errorf("DISCONNECT: %v", err)
	}
}

// inbox is a subscription. It is read all the time: go-stomp processes nothing,
// receipts included, while a message waits for its reader.
type inbox struct {
	t        *testing.T
	sub      *stomp.Subscription
	messages chan *stomp.Message
}

func (c *client) subscribe(destination string, ack stomp.AckMode, headers ...string) *inbox {
	c.t.Helper()
	var options []func(*frame.Frame) error
	for i := 0; i < len(headers); i += 2 {
		options = append(options, stomp.SubscribeOpt.Header(headers[i], headers[i+1]))
	}
	sub, err := c.Subscribe(destination, ack, options...)
	if err != nil {
		c.t.Fatalf("SUBSCRIBE %s: %v", destination, err)
	}
	in := &inbox{c.t, sub, make(chan *stomp.Message, 10_000)}
	go func() {
		defer close(in.messages)
		for m := range sub.C {
			in.messages <- m
		}
	}()
	return in
}

// next waits for the message with the body.
func (in *inbox) next(body string) *stomp.Message {
	in.t.Helper()
	m := in.any()
	if string(m.Body) != body {
		in.t.Fatalf("got message %.40q, want %.40q", m.Body, body)
	}
	return m
}

// any waits for a message.
func (in *inbox) any() *stomp.Message {
	in.t.Helper()
	select {
	case m, ok := <-in.messages:
		if !ok {
			in.t.Fatal("the subscription ended")
		}
		if m.Err != nil {
			in.t.Fatalf("the subscription ended: %v", m.Err)
		}
		return m
	case <-time.After(patience):
		in.t.Fatalf("no message of %s within %v", in.sub.Destination(), patience)
	}
	return nil
}

func (in *inbox) silent() {
	in.t.Helper()
	select {
	case m, ok := <-in.messages:
		if ok {
			in.t.Fatalf("got message %.40q, want none", m.Body)
		}
	case <-time.After(quiet):
	}
}

// unsubscribe sends UNSUBSCRIBE and waits until its RECEIPT has closed the channel
// (I4). go-stomp itself may miss that: it wakes up whoever waits without holding
// the lock, then waits 30 s more and panics.
func (in *inbox) unsubscribe() {
	in.t.Helper()
	go func() {
		defer func() { _ = recover() }()
		_ = in.sub.Unsubscribe()
	}()
	select {
	case m, ok := <-in.messages:
		if ok {
			in.t.Fatalf("got message %.40q (%v) instead of the end of the subscription", m.Body, m.Err)
		}
	case <-time.After(patience):
		in.t.Fatal("no RECEIPT for UNSUBSCRIBE")
	}
}

func (in *inbox) ack(m *stomp.Message) {
	in.t.Helper()
	if err := m.Conn.Ack(m); err != nil {
		in.t.Fatalf("ACK %.40q: %v", m.Body, err)
	}
}

// left asserts what a queue still gives to a new client, and takes it.
func (b *broker) left(t *testing.T, queue string, bodies ...string) {
	t.Helper()
	c := b.dial(t)
	in := c.subscribe("/queue/"+queue, stomp.AckClientIndividual)
	for _, body := range bodies {
		in.ack(in.next(body))
	}
	c.close()
	if n := b.count(queue); n != "0" {
		t.Errorf("queue %s holds %s messages more", queue, n)
	}
}

// goStompChecks are the checks for each version of the protocol.
var goStompChecks = []struct {
	name string
	run  func(t *testing.T, b *broker, version stomp.Version, queue string)
}{
	{"auto", checkAuto},
	{"client", checkClient},
	{"individual", checkIndividual},
	{"nack", checkNack},
	{"abort", checkAbort},
	{"commit", checkCommit},
	{"headers", checkHeaders},
	{"bodies", checkBodies},
	{"prefetch", checkPrefetch},
	{"reply", checkReply},
	{"topic", checkTopic},
	{"heart-beat", checkHeartBeat},
}

func TestGoStomp(t *testing.T) {
	t.Parallel()
	for _, p := range []struct {
		name     string
		pipe     func(*testing.T) string
		versions []stomp.Version
	}{
		{"SQLite", sqliteURL, []stomp.Version{stomp.V10, stomp.V11, stomp.V12}},
		{"MariaDB", mariadbURL, []stomp.Version{stomp.V12}},
	} {
		b := serve(t, p.pipe(t))
		for _, v := range p.versions {
			for _, check := range goStompChecks {
				t.Run(p.name+"/"+v.String()+"/"+check.name, func(t *testing.T) {
					t.Parallel()
					check.run(t, b, v, strings.NewReplacer("/", ".", "TestGoStomp", "go").Replace(t.Name()))
				})
			}
		}
	}
}

func accept(v stomp.Version) option { return stomp.ConnOpt.AcceptVersion(v) }

func checkAuto(t *testing.T, b *broker, v stomp.Version, queue string) {
	c := b.dial(t, accept(v))
	if c.Version() != v || !strings.HasPrefix(c.Server(), "mvalve") || c.Session() == "" {
		t.Errorf("connected to %q with version %q, session %q", c.Server(), c.Version(), c.Session())
	}
	in := c.subscribe("/queue/"+queue, stomp.AckAuto)
	for _, body := range []string{"a", "b", "c"} {
		c.put("/queue/"+queue, body)
		in.next(body)
	}
	in.unsubscribe()
	c.put("/queue/"+queue, "d")
	in.silent()
	c.close()
	b.left(t, queue, "d")
}

func checkClient(t *testing.T, b *broker, v stomp.Version, queue string) {
	c := b.dial(t, accept(v))
	in := c.subscribe("/queue/"+queue, stomp.AckClient)
	var all []*stomp.Message
	for _, body := range []string{"1", "2", "3", "4"} {
		c.put("/queue/"+queue, body)
		all = append(all, in.next(body))
	}
	in.ack(all[2])
	c.close()
	if v == stomp.V10 {
		b.left(t, queue, "1", "2", "4") // S87
	} else {
		b.left(t, queue, "4") // S86
	}
}

func checkIndividual(t *testing.T, b *broker, v stomp.Version, queue string) {
	if v == stomp.V10 {
		t.Skip("STOMP 1.0 has no client-individual")
	}
	c := b.dial(t, accept(v))
	in := c.subscribe("/queue/"+queue, stomp.AckClientIndividual)
	var all []*stomp.Message
	for _, body := range []string{"1", "2", "3"} {
		c.put("/queue/"+queue, body)
		all = append(all, in.next(body))
	}
	in.ack(all[1])
	c.close()
	b.left(t, queue, "1", "3")
}

func checkNack(t *testing.T, b *broker, v stomp.Version, queue string) {
	if v == stomp.V10 {
		t.Skip("STOMP 1.0 has no NACK")
	}
	c := b.dial(t, accept(v))
	in := c.subscribe("/queue/"+queue, stomp.AckClientIndividual)
	c.put("/queue/"+queue, "again")
	m := in.next("again")
	if m.Header.Get("redelivered") != "false" {
		t.Errorf("first delivery: %v", m.Header)
	}
	if err := c.Nack(m); err != nil {
		t.Fatal(err)
	}
	m = in.next("again")
	if m.Header.Get("redelivered") != "true" || m.Header.Get("x-delivery-count") != "2" {
		t.Errorf("second delivery: %v", m.Header)
	}
	in.ack(m)
	c.close()
	b.left(t, queue)
}

func checkAbort(t *testing.T, b *broker, v stomp.Version, queue string) {
	c := b.dial(t, accept(v))
	in := c.subscribe("/queue/"+queue, stomp.AckClient)
	c.put("/queue/"+queue, "kept")
	m := in.next("kept")
	tx := c.Begin()
	if err := tx.Send("/queue/"+queue, "", []byte("never"), stomp.SendOpt.Receipt); err != nil {
		t.Fatal(err)
	}
	if err := tx.Ack(m); err != nil {
		t.Fatal(err)
	}
	if err := tx.AbortWithReceipt(); err != nil {
		t.Fatal(err)
	}
	in.silent()
	c.close()
	b.left(t, queue, "kept")
}

func checkCommit(t *testing.T, b *broker, v stomp.Version, queue string) {
	c := b.dial(t, accept(v))
	in := c.subscribe("/queue/"+queue, stomp.AckClient)
	c.put("/queue/"+queue, "taken")
	m := in.next("taken")
	tx := c.Begin()
	for _, body := range []string{"one", "two"} {
		if err := tx.Send("/queue/"+queue, "", []byte(body), stomp.SendOpt.Receipt); err != nil {
			t.Fatal(err)
		}
	}
	if err := tx.Ack(m); err != nil {
		t.Fatal(err)
	}
	in.silent() // S100
	if err := tx.CommitWithReceipt(); err != nil {
		t.Fatal(err)
	}
	in.next("one")
	in.next("two")
	c.close()
	b.left(t, queue, "one", "two")
}

func checkHeaders(t *testing.T, b *broker, v stomp.Version, queue string) {
	c := b.dial(t, accept(v))
	sent := map[string]string{
		"colon": "a:b::c", "backslash": `a\b\n\c\\`, "unicode": "żółw ☃ 😀", "content-type": "application/json;charset=utf-8",
	}
	if v != stomp.V10 { // which can neither escape nor keep blanks
		queue += `/a:b\c Ünï ☃`
		sent["newline"], sent["space"], sent["new:line\nin\\name"] = "one\ntwo", " lead and trail ", "x"
	}
	if v == stomp.V12 {
		sent["return"] = "one\r\ntwo"
	}
	in := c.subscribe("/queue/"+queue, stomp.AckAuto)
	var headers []string
	for name, value := range sent {
		headers = append(headers, name, value)
	}
	c.put("/queue/"+queue, "{}", headers...)
	m := in.next("{}")
	for name, value := range sent {
		if got := m.Header.Get(name); got != value {
			t.Errorf("header %q: got %q, want %q", name, got, value)
		}
	}
	if m.Destination != "/queue/"+queue || m.ContentType != sent["content-type"] {
		t.Errorf("got destination %q, content-type %q", m.Destination, m.ContentType)
	}
	c.close()
}

func checkBodies(t *testing.T, b *broker, v stomp.Version, queue string) {
	c := b.dial(t, accept(v))
	in := c.subscribe("/queue/"+queue, stomp.AckAuto)
	every := make([]byte, 512)
	for i := range every {
		every[i] = byte(i)
	}
	for _, body := range []string{string(every), "", "0", " ", "\x00", "\n\x00\n", "\r\n", "\xff\xfe", strings.Repeat("\x07", 1<<20), "a\x00\nMESSAGE\n\n\x00"} {
		c.put("/queue/"+queue, body)
		in.next(body)
	}
	for _, body := range []string{"0", "", "text\r\n"} { // without content-length
		if err := c.Send("/queue/"+queue, "", []byte(body), stomp.SendOpt.NoContentLength, stomp.SendOpt.Receipt); err != nil {
			t.Fatal(err)
		}
		in.next(body)
	}
	c.close()
}

func checkPrefetch(t *testing.T, b *broker, v stomp.Version, queue string) {
	for _, header := range []string{"prefetch-count", "activemq.prefetchSize", "prefetch"} {
		c := b.dial(t, accept(v))
		name := queue + header
		for _, body := range []string{"1", "2", "3", "4"} {
			c.put("/queue/"+name, body)
		}
		in := c.subscribe("/queue/"+name, stomp.AckClient, header, "2")
		first := in.next("1")
		in.next("2")
		in.silent()
		in.ack(first)
		in.next("3")
		in.silent()
		c.close()
	}
}

func checkReply(t *testing.T, b *broker, v stomp.Version, queue string) {
	worker, asker := b.dial(t, accept(v)), b.dial(t, accept(v))
	requests := worker.subscribe("/queue/"+queue, stomp.AckClient)
	// go-stomp does not send this SUBSCRIBE: it knows that the server subscribes it.
	answers := asker.subscribe("/temp-queue/answers", stomp.AckAuto, stomp.ReplyToHeader, "/temp-queue/answers")
	asker.put("/queue/"+queue, "6*7", "reply-to", "/temp-queue/answers", "correlation-id", "c:1")
	request := requests.next("6*7")
	worker.put(request.Header.Get("reply-to"), "42", "correlation-id", request.Header.Get("correlation-id"))
	if m := answers.next("42"); m.Header.Get("correlation-id") != "c:1" {
		t.Errorf("got %v", m.Header)
	}
	asker.close()
	requests.ack(request)
	worker.close()
}

func checkTopic(t *testing.T, b *broker, v stomp.Version, queue string) {
	c := b.dial(t, accept(v))
	one := c.subscribe("/topic/"+queue+".news", stomp.AckAuto)
	all := c.subscribe("/topic/"+queue+".*", stomp.AckAuto)
	every := c.subscribe("/topic/*", stomp.AckAuto)
	c.put("/topic/"+queue+".news", "hot")
	for _, in := range []*inbox{one, all} {
		if m := in.next("hot"); m.Destination != "/topic/"+queue+".news" {
			t.Errorf("got %v", m.Header)
		}
	}
	for every.any().Destination != "/topic/"+queue+".news" { // others' come, too
	}
	c.put("/topic/"+queue+".other", "cold")
	all.next("cold")
	one.silent()
	c.close()
}

func checkHeartBeat(t *testing.T, b *broker, v stomp.Version, queue string) {
	// With the header go-stomp has a read timer even when nothing was promised:
	// the idle connection lives only because the server beats (I2). The timer is
	// the sum of the second interval and HeartBeatError, twice: 7.4 s. A machine
	// that stalls for seconds does not make it fire, and the pause is longer.
	c := b.dial(t, accept(v), stomp.ConnOpt.HeartBeat(30*time.Second, 200*time.Millisecond),
		stomp.ConnOpt.HeartBeatError(3500*time.Millisecond), stomp.ConnOpt.HeartBeatGracePeriodMultiplier(2))
	in := c.subscribe("/queue/"+queue, stomp.AckAuto)
	select {
	case m := <-in.messages:
		t.Fatalf("the idle connection got %+v", m)
	case <-time.After(8500 * time.Millisecond):
	}
	c.put("/queue/"+queue, "alive")
	in.next("alive")
	c.close()
}

// TestOwnBeats: the beats of each client keep its connection when nothing else
// passes, in either direction.
func TestOwnBeats(t *testing.T) {
	t.Parallel()
	b := serve(t, sqliteURL(t), "--users", usersFile(t))
	t.Run("go-stomp", func(t *testing.T) {
		t.Parallel()
		// It would beat earlier by HeartBeatError.
		c := b.dial(t, stomp.ConnOpt.Login(login, passcode), stomp.ConnOpt.HeartBeat(7*time.Second, 0), stomp.ConnOpt.HeartBeatError(0))
		// Without beats the server gives up two intervals after CONNECT, not a moment
		// before: a beat that is late by most of an interval is missed by nobody.
		<-time.After(16 * time.Second)
		c.put("/queue/a", "alive")
		c.close()
	})
	for _, s := range scripts {
		if !slices.Contains(s.checks, "heart-beat") {
			continue
		}
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			runScript(t, b, find(t, s.find), s.file, append(s.args(b), "own-beats"), []string{"own-beats"})
		})
	}
}

func TestGoStompLogin(t *testing.T) {
	t.Parallel()
	b := serve(t, sqliteURL(t), "--users", usersFile(t))
	for _, v := range []stomp.Version{stomp.V10, stomp.V11, stomp.V12} {
		// go-stomp escapes the passcode in CONNECT, which is not escaped: I1.
		c := b.dial(t, accept(v), stomp.ConnOpt.Login(login, passcode), stomp.ConnOpt.Host("::1"))
		c.put("/queue/a", "x")
		c.close()
		_, err := stomp.Dial("tcp", b.addr, accept(v), stomp.ConnOpt.Logger(logless{}), stomp.ConnOpt.Login(login, passcode+"x"))
		if refused, ok := errors.AsType[stomp.Error](err); !ok || refused.Frame == nil {
			t.Errorf("%s, wrong passcode: %v, want the ERROR", v, err)
		}
	}
}

func TestGoStompRestart(t *testing.T) {
	t.Parallel()
	b := serve(t, sqliteURL(t))
	c := b.dial(t)
	for _, body := range []string{"acked", "held", "kept"} {
		c.put("/queue/r", body)
	}
	in := c.subscribe("/queue/r", stomp.AckClientIndividual, "prefetch-count", "2")
	acked := in.next("acked")
	in.next("held")
	in.ack(acked)
	in.next("kept") // the ACK made room for it, so it is on disk
	b.restart()
	for m := range in.messages { // the client learns it
		if m.Err == nil {
			t.Errorf("got %s", m.Body)
		}
	}
	c = b.dial(t)
	in = c.subscribe("/queue/r", stomp.AckClientIndividual)
	for range 2 {
		m := in.any()
		if body := string(m.Body); body != "held" && body != "kept" || m.Header.Get("redelivered") != "true" {
			t.Errorf("got %s, %v", body, m.Header)
		}
		in.ack(m)
	}
	c.close()
	b.left(t, "r")
}
