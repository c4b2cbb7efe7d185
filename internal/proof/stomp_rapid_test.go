package proof_test

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"testing"
	"time"
)

// sayAndGo connects, says something and goes in one of several ways.
func sayAndGo(t *testing.T, address, way string, text []byte) error {
	nc, err := new(net.Dialer).DialContext(t.Context(), "tcp", address)
	if err != nil {
		return err
	}
	defer nc.Close()
	if err := nc.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := nc.Write(text); err != nil {
		return err
	}
	tcp := nc.(*net.TCPConn)
	switch way {
	case "reset":
		return tcp.SetLinger(0)
	case "half-closed":
		err = tcp.CloseWrite()
	case "closed":
		return nil
	}
	if err != nil {
		return err
	}
	answer, err := io.ReadAll(nc)
	if err != nil || !bytes.HasPrefix(answer, []byte("CONNECTED\n")) {
		return fmt.Errorf("answer %q: %w", answer, err)
	}
	if way == "disconnected" && !bytes.Contains(answer, []byte("receipt-id:bye\n")) {
		return fmt.Errorf("no RECEIPT of DISCONNECT in %q", answer)
	}
	return nil
}
