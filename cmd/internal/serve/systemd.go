package serve

import (
	"context"
	"net"
	"os"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

// notifyWithin bounds how long systemd may take to read: one that does not read
// must not keep the server from ending its clients in order.
const notifyWithin = 5 * time.Second

// notify tells systemd, if it started this process, what state it is in.
func (s *server) notify(state string) {
	name := os.Getenv("NOTIFY_SOCKET")
	if name == "" {
		return
	}
	if err := tell(name, state, notifyWithin); err != nil {
		s.log.Warn("systemd not told", "state", state, "err", err)
	}
}

// tell writes a datagram to the socket of that name, @ for an abstract one. It
// fails with os.ErrDeadlineExceeded when the socket's queue stays full.
func tell(name, state string, within time.Duration) error {
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetWriteDeadline(time.Now().Add(within)); err != nil {
		return err
	}
	_, err = conn.Write([]byte(state))
	return err
}

// answerWatchdog tells systemd's watchdog, if it watches, that the process lives,
// until ctx ends. A queue that cannot be reached is no reason for a restart; a
// STOMP server that does not say its figures is.
func (s *server) answerWatchdog(ctx context.Context) {
	interval, err := daemon.SdWatchdogEnabled(false)
	if err != nil || interval == 0 {
		return
	}
	tick := time.NewTicker(interval / 3)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			_ = s.stomp.Stats()
			s.notify(daemon.SdNotifyWatchdog)
		case <-ctx.Done():
			return
		}
	}
}
