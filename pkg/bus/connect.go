package bus

import (
	"context"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/athena-pipelines/athena/pkg/athena"
)

// ConnectConfig says how to reach a NATS server or cluster. At most one kind of
// credentials is set.
type ConnectConfig struct {
	URLs      []string // nats:// or tls://; several mean one cluster
	Name      string   // how the server shows this connection; "athena"
	CredsFile string   // JWT and seed
	NKeyFile  string   // seed
	Token     string
	User      string
	Password  string
	TLS       *TLSFiles
}

// reconnectBuffer holds what is published while there is no connection. Replies
// that are waited for are not affected: they fail by their own deadline.
const reconnectBuffer = 8 << 20

// Connect connects to an external server. The connection, once made, comes back
// by itself for as long as the process lives. Errors hold no credentials.
func Connect(ctx context.Context, cfg ConnectConfig) (*nats.Conn, error) {
	if len(cfg.URLs) == 0 {
		return nil, athena.Errorf(athena.CodeInvalidRequest, "no NATS URL is given; use one like nats://127.0.0.1:4222").At("urls")
	}
	opts := []nats.Option{
		nats.Name("athena"),
		nats.MaxReconnects(-1),
		nats.ReconnectWait(250 * time.Millisecond),
		nats.ReconnectJitter(250*time.Millisecond, time.Second),
		nats.ReconnectBufSize(reconnectBuffer),
		nats.PingInterval(10 * time.Second),
		nats.MaxPingsOutstanding(2),
		nats.Timeout(5 * time.Second),
		// A revoked and reissued credential must not need a restart.
		nats.IgnoreAuthErrorAbort(),
	}
	if cfg.Name != "" {
		opts = append(opts, nats.Name(cfg.Name))
	}
	switch {
	case cfg.CredsFile != "":
		opts = append(opts, nats.UserCredentials(cfg.CredsFile))
	case cfg.NKeyFile != "":
		opt, err := nats.NkeyOptionFromSeed(cfg.NKeyFile)
		if err != nil {
			return nil, athena.Wrap(athena.CodeInvalidRequest, err, "the NKey file %q cannot be read, or holds no seed", cfg.NKeyFile).At("nkey_file")
		}
		opts = append(opts, opt)
	case cfg.Token != "":
		opts = append(opts, nats.Token(cfg.Token))
	case cfg.User != "":
		opts = append(opts, nats.UserInfo(cfg.User, cfg.Password))
	}
	if t := cfg.TLS; t != nil {
		opts = append(opts, nats.Secure())
		if t.CA != "" {
			opts = append(opts, nats.RootCAs(t.CA))
		}
		if t.Cert != "" {
			opts = append(opts, nats.ClientCert(t.Cert, t.Key))
		}
	}
	type dialled struct {
		nc  *nats.Conn
		err error
	}
	done := make(chan dialled, 1)
	go func() {
		nc, err := nats.Connect(strings.Join(cfg.URLs, ","), opts...)
		done <- dialled{nc, err}
	}()
	select {
	case d := <-done:
		if d.err != nil {
			return nil, athena.Wrap(athena.CodeBusUnavailable, d.err, "NATS at %s cannot be reached, or refused the credentials", hosts(cfg.URLs))
		}
		return d.nc, nil
	case <-ctx.Done():
		go func() { // nats.Connect takes no context
			if d := <-done; d.nc != nil {
				d.nc.Close()
			}
		}()
		return nil, ctx.Err()
	}
}

// hosts lists the URLs without what may be a secret in them.
func hosts(urls []string) string {
	out := make([]string, len(urls))
	for i, u := range urls {
		if at := strings.LastIndexByte(u, '@'); at >= 0 {
			u = u[at+1:]
		} else if _, rest, ok := strings.Cut(u, "://"); ok {
			u = rest
		}
		out[i] = u
	}
	return strings.Join(out, ", ")
}
