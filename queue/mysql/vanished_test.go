package mysql_test

import (
	"bytes"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/queue/mysql"
)

// commitCut passes connections on to a server until it meets the next COMMIT:
// it cuts the wire there, before or behind it, closes cut, and lets
// nothing else through before goOn.
type commitCut struct {
	net.Listener
	server      string
	behind      bool
	cut, resume chan struct{}
	goOn        func() // closes resume
}

func newCommitCut(t *testing.T, server string, behind bool) *commitCut {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &commitCut{Listener: ln, server: server, behind: behind, cut: make(chan struct{}), resume: make(chan struct{})}
	c.goOn = sync.OnceFunc(func() { close(c.resume) })
	var conns sync.WaitGroup
	conns.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			conns.Go(func() { c.relay(conn) })
		}
	})
	t.Cleanup(func() {
		ln.Close()
		c.goOn()
		conns.Wait()
	})
	return c
}

func (c *commitCut) isCut() bool {
	select {
	case <-c.cut:
		return true
	default:
		return false
	}
}

func (c *commitCut) relay(client net.Conn) {
	defer client.Close()
	server, err := net.Dial("tcp", c.server)
	if err != nil {
		return
	}
	defer server.Close()
	answers := make(chan struct{})
	mute := make(chan struct{})
	go func() {
		defer close(answers)
		answer := make([]byte, 4096)
		for {
			n, err := server.Read(answer)
			select {
			case <-mute: // the answer to COMMIT gets lost
				return
			default:
			}
			if _, werr := client.Write(answer[:n]); err != nil || werr != nil {
				client.Close()
				return
			}
		}
	}()
	defer func() { <-answers }()
	defer server.Close()
	text := make([]byte, 4096)
	for {
		n, err := client.Read(text)
		if bytes.Contains(text[:n], []byte("\x03COMMIT")) && !c.isCut() {
			if c.behind {
				close(mute)
				_, _ = server.Write(text[:n])
				<-answers
			}
			close(c.cut)
			return
		}
		if c.isCut() {
			<-c.resume
		}
		if _, werr := server.Write(text[:n]); err != nil || werr != nil {
			return
		}
	}
}

// While the outcome of a COMMIT is unknown, the lease runs out and another
// reader moves the message. What vanished so is not taken for done by the ack
// that is repeated, nor by an extension.
func TestVanishedMeanwhile(t *testing.T) {
	for _, c := range []struct {
		name           string
		verb           queue.Verb
		behind         bool
		lost, vanished int
	}{
		{"ack, committed", queue.Ack, true, 0, 1},
		{"ack, not committed", queue.Ack, false, 0, 1},
		{"extension", queue.Extend, false, 1, 0},
		{"release", queue.Release, false, 0, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := open(t)
			cut := newCommitCut(t, s.server.Addr, c.behind)
			conf := config(t, s.server)
			conf.Addr, conf.RetryFor = cut.Addr().String(), time.Minute
			first, err := mysql.Open(t.Context(), conf)
			if err != nil {
				t.Fatal(err)
			}
			defer first.Close()
			now := time.Now()
			var ids queue.IDSource
			m := &queue.Message{ID: ids.New(now), Destination: "d", Lane: queue.Incoming, EnqueuedAt: now.UTC().Truncate(time.Microsecond)}
			must[queue.Outcome](t)(s.Apply(t.Context(), now, &queue.Change{Token: queue.ID{2}, Put: []*queue.Message{m}}))
			lease := func(at time.Time, token queue.ID) queue.Ref {
				refs, _, err := s.Scan(t.Context(), at, queue.Incoming, queue.Cursor{}, time.Time{}, 1)
				if err != nil || len(refs) != 1 {
					t.Fatalf("%v, %v", refs, err)
				}
				for { // the server holds the locks of a connection that was cut for a moment
					won := must[[]queue.Leased](t)(s.Lease(t.Context(), at, at.Add(time.Second), token, refs))
					if len(won) > 0 {
						return won[0].Ref
					}
				}
			}
			type answer struct {
				out queue.Outcome
				err error
			}
			answered := make(chan answer)
			settle := queue.Settle{Ref: lease(now, queue.ID{3}), Verb: c.verb, Token: queue.ID{3}, Until: now.Add(time.Second), At: now.Add(time.Minute)}
			go func() {
				out, err := first.Apply(t.Context(), now, &queue.Change{Settle: []queue.Settle{settle}})
				answered <- answer{out, err}
			}()
			<-cut.cut
			if !c.behind {
				later := now.Add(2 * time.Second)
				again := queue.Settle{Ref: lease(later, queue.ID{4}), Verb: queue.Retry, Token: queue.ID{4}, Until: later.Add(time.Second), At: later.Add(time.Hour)}
				must[queue.Outcome](t)(s.Apply(t.Context(), later, &queue.Change{Settle: []queue.Settle{again}}))
			}
			cut.goOn()
			a := <-answered
			if a.err != nil || len(a.out.Lost) != c.lost || len(a.out.Vanished) != c.vanished {
				t.Errorf("%+v, %v; want %d lost, %d vanished", a.out, a.err, c.lost, c.vanished)
			}
		})
	}
}
