package stomp

import "sync/atomic"

// Stats are counters of a Server since it started. Gauges say so.
type Stats struct {
	Accepted, Refused, AuthFailed int64 // connections
	Received                      int64 // SENDs to queues that are on disk
	Published                     int64 // SENDs to topics
	Delivered                     int64 // MESSAGEs of queues
	TopicDelivered, TopicDropped  int64 // MESSAGEs of topics
	Acked, Nacked                 int64 // messages ended by ACK (or auto), NACK
	StaleAcks                     int64 // ACKs and NACKs that came too late and changed nothing
	AckTimeouts                   int64 // messages taken back from a subscriber that held them too long
	Errors                        int64 // ERROR frames
	HeartBeatTimeouts             int64 // connections closed because the client's heart-beats stopped
	BytesIn, BytesOut             int64

	Connections     int // gauge
	Unauthenticated int // gauge: connections that wait for CONNECT
	Subscriptions   int // gauge
	PendingBytes    int // gauge: bytes of SENDs on the way to disk
	ArrivingBytes   int // gauge: what counts towards Config.MaxArriving
}

// counters is Stats as it is counted.
type counters struct {
	Accepted, Refused, AuthFailed, Received, Published, Delivered,
	TopicDelivered, TopicDropped, Acked, Nacked, StaleAcks, AckTimeouts,
	Errors, HeartBeatTimeouts, BytesIn, BytesOut,
	Unauthenticated, Subscriptions, turningAway atomic.Int64
}

// Stats returns the server's counters.
func (s *Server) Stats() Stats {
	s.init()
	n := &s.stats
	st := Stats{
		Accepted: n.Accepted.Load(), Refused: n.Refused.Load(), AuthFailed: n.AuthFailed.Load(),
		Received: n.Received.Load(), Published: n.Published.Load(), Delivered: n.Delivered.Load(),
		TopicDelivered: n.TopicDelivered.Load(), TopicDropped: n.TopicDropped.Load(),
		Acked: n.Acked.Load(), Nacked: n.Nacked.Load(), StaleAcks: n.StaleAcks.Load(),
		AckTimeouts: n.AckTimeouts.Load(), Errors: n.Errors.Load(),
		HeartBeatTimeouts: n.HeartBeatTimeouts.Load(),
		BytesIn:           n.BytesIn.Load(), BytesOut: n.BytesOut.Load(),
		Unauthenticated: int(n.Unauthenticated.Load()), Subscriptions: int(n.Subscriptions.Load()),
		PendingBytes: s.budget.used(), ArrivingBytes: s.arriving.used(),
	}
	s.mu.Lock()
	st.Connections = len(s.conns)
	s.mu.Unlock()
	return st
}
