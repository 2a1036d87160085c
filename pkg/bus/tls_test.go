package bus_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/bus"
	"github.com/athena-pipelines/athena/pkg/bus/bustest"
)

// selfSigned writes a certificate that is its own authority, for both ends.
func selfSigned(t *testing.T) *bus.TLSFiles {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	cert, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	write := func(name, kind string, der []byte) string {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	c := write("cert.pem", "CERTIFICATE", cert)
	return &bus.TLSFiles{Cert: c, Key: write("key.pem", "PRIVATE KEY", raw), CA: c}
}

func TestListenerWithTLS(t *testing.T) {
	t.Parallel()
	files := selfSigned(t)
	s := bustest.Server(t, bus.ServerConfig{Dir: t.TempDir(), Listen: "127.0.0.1:0", Token: "t", TLS: files})
	bustest.Bus(t, s) // the own process needs no TLS

	url := strings.Replace(s.URL(), "nats://", "tls://", 1)
	nc, err := bus.Connect(t.Context(), bus.ConnectConfig{URLs: []string{url}, Token: "t", TLS: files})
	if err != nil {
		t.Fatal(err)
	}
	nc.Close()
	for name, tls := range map[string]*bus.TLSFiles{
		"a client without a certificate":      {CA: files.CA},
		"a client of another authority":       selfSigned(t),
		"a client without TLS configuration":  nil,
		"a client that cannot read its files": {CA: "none.pem"},
	} {
		nc, err := bus.Connect(t.Context(), bus.ConnectConfig{URLs: []string{url}, Token: "t", TLS: tls})
		if athena.CodeOf(err) != athena.CodeBusUnavailable {
			t.Errorf("%s: %v", name, err)
		}
		if err == nil {
			nc.Close()
		}
	}
}
