package serve

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mvalve/mvalve/cmd/internal/setup"
	"github.com/mvalve/mvalve/stomp/frame"
)

// writeCertificate makes a certificate with a serial number, dated so that
// every call changes the files.
func writeCertificate(t *testing.T, cert, key string, serial int64) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: secret}} {
		if err := os.WriteFile(name, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
		at := time.Unix(1_700_000_000+serial, 0)
		if err := os.Chtimes(name, at, at); err != nil {
			t.Fatal(err)
		}
	}
}

// TestTLS: both addresses speak TLS, and a renewed certificate is taken up.
func TestTLS(t *testing.T) {
	defer func(d time.Duration) { recheck = d }(recheck)
	recheck = 0
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "cert"), filepath.Join(dir, "key")
	writeCertificate(t, cert, key, 1)
	r := start(t, "--queue", newQueue(t), "--tls-cert", cert, "--tls-key", key)
	secure := func(address string) (*tls.Conn, int64) {
		conn, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn, conn.ConnectionState().PeerCertificates[0].SerialNumber.Int64()
	}
	conn, serial := secure(r.stomp)
	if serial != 1 {
		t.Errorf("certificate %d", serial)
	}
	p := newPeer(t, conn)
	p.say(connect)
	p.hear(frame.Connected)
	if _, serial := secure(r.http); serial != 1 {
		t.Errorf("HTTP: certificate %d", serial)
	}
	writeCertificate(t, cert, key, 2)
	if _, serial := secure(r.stomp); serial != 2 {
		t.Errorf("certificate %d after the renewal", serial)
	}
	if err := os.WriteFile(cert, []byte("half written"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, serial := secure(r.stomp); serial != 2 {
		t.Errorf("certificate %d while the file is being written", serial)
	}
	if !strings.Contains(r.said(), "over TLS") || !strings.Contains(r.said(), "wss://") {
		t.Errorf("the start lines do not speak of TLS:\n%s", r.said())
	}
	if _, err := tryStart(t, "--queue", newQueue(t), "--tls-cert", key, "--tls-key", cert); setup.Code(err) != setup.ExitInput {
		t.Errorf("files mixed up: %v", err)
	}
}
