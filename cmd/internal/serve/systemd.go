package serve

import (
	"context"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

// notify tells systemd, if it started this process, what state it is in.
func (s *server) notify(state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		s.log.Warn("systemd not told", "state", state, "err", err)
	}
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
