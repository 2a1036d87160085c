package s3

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"

	"github.com/athena-pipelines/athena/pkg/athena"
)

const (
	dialTimeout = 10 * time.Second
	idleConns   = 32 // kept to the one host
)

// httpClient makes requests over connections that are given up after silence.
func httpClient(protect *tls.Config, silence time.Duration) *http.Client {
	dialer := &net.Dialer{Timeout: dialTimeout, KeepAlive: 30 * time.Second}
	return &http.Client{
		Transport: &http.Transport{
			Proxy: http.ProxyFromEnvironment,
			DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
				c, err := dialer.DialContext(ctx, network, address)
				if err != nil {
					return nil, err
				}
				return &conn{c, silence}, nil
			},
			TLSClientConfig:     protect,
			TLSHandshakeTimeout: dialTimeout,
			MaxIdleConns:        idleConns,
			MaxIdleConnsPerHost: idleConns,
			IdleConnTimeout:     min(silence, 90*time.Second),
			DisableCompression:  true, // what is stored is what is read
			ReadBufferSize:      64 << 10,
			WriteBufferSize:     64 << 10,
		},
		// The SDK says what a redirect means.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// conn is given up when nothing moves while somebody waits for it: while a read
// waits, what is written counts as a move, so that an upload may last; while
// nobody reads, no time runs, so that a slow reader is not taken for a slow
// server.
type conn struct {
	net.Conn
	silence time.Duration
}

// Read waits at most for the silence.
func (c *conn) Read(p []byte) (int, error) {
	_ = c.SetReadDeadline(time.Now().Add(c.silence))
	return c.Conn.Read(p)
}

// Write puts off the end of a read that waits.
func (c *conn) Write(p []byte) (int, error) {
	_ = c.SetDeadline(time.Now().Add(c.silence))
	return c.Conn.Write(p)
}

// tlsConfig is what the connection says of TLS; else the environment's own roots
// (AWS_CA_BUNDLE), where the environment was read at all.
func tlsConfig(t *athena.TLS, environment aws.Config) (*tls.Config, error) {
	if t == nil {
		if c, ok := environment.HTTPClient.(*awshttp.BuildableClient); ok {
			return c.GetTransport().TLSClientConfig, nil
		}
		return nil, nil
	}
	return t.Load()
}
