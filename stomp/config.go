package stomp

import (
	"cmp"
	"time"

	"github.com/mvalve/mvalve/stomp/frame"
	"github.com/mvalve/mvalve/valve"
)

// Overflow says what happens to a topic message for a subscriber that does not
// read fast enough, after Config.TopicWait.
type Overflow uint8

// The overflow policies.
const (
	OverflowDrop  Overflow = iota // the message is dropped for it and counted
	OverflowClose                 // its connection gets an ERROR and is closed
)

// Config holds the limits and times of a Server. Zero fields mean the defaults
// stated. Sizes are bytes.
type Config struct {
	Name string // for the server header of CONNECTED; default "mvalve"

	Frame              frame.Limits // of one frame; see its defaults
	MaxConnections     int          // default 10,000
	MaxUnauthenticated int          // connections before CONNECTED; default 1,000
	MaxSubscriptions   int          // per connection; default 100,000

	Prefetch    int // messages out per subscription unless it says otherwise; default 100
	MaxPrefetch int // default 10,000

	MaxTransactions      int // open at once per connection; default 16
	MaxTransactionFrames int // SEND, ACK and NACK in one; default 1,000
	MaxTransactionBytes  int // default 16 MiB

	OutBuffer       int // bytes waiting for one connection's socket; default 1 MiB
	MaxPending      int // SENDs of one connection on the way to disk; default 2,000
	MaxPendingBytes int // the same in bytes; default 4 MiB; one message more is let in, whatever its size
	MaxTotalBytes   int // the same over all connections; default 64 MiB: what is ahead of a small message, about a second of the disk

	MaxArriving int // bodies over 64 KiB that are still arriving, and open transactions, of all connections; default 256 MiB; one body more is let in
	// ArrivingWait is how long a connection waits for that memory before it gets
	// an ERROR; default 5 s.
	ArrivingWait time.Duration

	ConnectTimeout time.Duration // until CONNECT has arrived; default 10 s
	HeartBeat      time.Duration // shortest interval offered and asked for; default 1 s
	WriteTimeout   time.Duration // for one write to the socket; default 5 min
	Linger         time.Duration // how long a closing connection may take to read the last frames; default 2 s
	KeepAlive      time.Duration // TCP keep-alive interval; default 30 s

	// AckTimeout is how long a subscriber may hold a message without ACK or
	// NACK unless the message's ack-timeout says otherwise; default 30 min,
	// negative: as long as it is connected. MaxAckTimeout bounds the header;
	// default 24 h.
	AckTimeout, MaxAckTimeout time.Duration
	// Lease is the lease of the Reader (valve.ReaderConfig.Lease); default 60 s.
	Lease time.Duration

	// TopicOverflow is what happens when a subscriber's OutBuffer is full.
	TopicOverflow Overflow
	// TopicWait is how long a publisher waits for a full subscriber, once until
	// it reads again; default 100 ms, negative: not at all.
	TopicWait time.Duration
}

func (c Config) withDefaults() Config {
	c.Name = cmp.Or(c.Name, "mvalve")
	orInt := func(n *int, def int) {
		if *n <= 0 {
			*n = def
		}
	}
	orInt(&c.MaxConnections, 10_000)
	orInt(&c.MaxUnauthenticated, 1_000)
	orInt(&c.MaxSubscriptions, 100_000)
	orInt(&c.Prefetch, 100)
	orInt(&c.MaxPrefetch, 10_000)
	c.Prefetch = min(c.Prefetch, c.MaxPrefetch)
	orInt(&c.MaxTransactions, 16)
	orInt(&c.MaxTransactionFrames, 1_000)
	c.MaxTransactionFrames = min(c.MaxTransactionFrames, valve.MaxInsert)
	orInt(&c.MaxTransactionBytes, 16<<20)
	c.MaxTransactionBytes = min(c.MaxTransactionBytes, valve.MaxInsertBytes)
	orInt(&c.OutBuffer, 1<<20)
	orInt(&c.MaxPending, 2_000)
	orInt(&c.MaxPendingBytes, 4<<20)
	orInt(&c.MaxTotalBytes, 64<<20)
	orInt(&c.MaxArriving, 256<<20)
	c.ArrivingWait = cmp.Or(c.ArrivingWait, 5*time.Second)
	c.ConnectTimeout = cmp.Or(c.ConnectTimeout, 10*time.Second)
	c.HeartBeat = cmp.Or(c.HeartBeat, time.Second)
	c.WriteTimeout = cmp.Or(c.WriteTimeout, 5*time.Minute)
	c.Linger = cmp.Or(c.Linger, 2*time.Second)
	c.KeepAlive = cmp.Or(c.KeepAlive, 30*time.Second)
	c.AckTimeout = cmp.Or(c.AckTimeout, 30*time.Minute)
	c.MaxAckTimeout = cmp.Or(c.MaxAckTimeout, 24*time.Hour)
	c.Lease = cmp.Or(c.Lease, time.Minute)
	c.TopicWait = cmp.Or(c.TopicWait, 100*time.Millisecond)
	return c
}

// connectLimits is the budget of a peer that has not said who it is (S55).
func (c *Config) connectLimits() frame.Limits {
	return frame.Limits{HeaderBytes: 8 << 10, Headers: 32, Body: 1 << 10}
}
