// Package sdk is the Go client of Athena's HTTP API.
//
// An API stands for a server and a key; Client chooses the logical client that
// statements run as, and the server finds the engine behind it. Whatever goes
// wrong comes back as an *athena.Error, whose code is the one that the server
// answered with. Results are read row by row and never held in memory.
//
// The package knows the wire and nothing of how the server does its work.
package sdk

import (
	"cmp"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/athena-pipelines/athena/pkg/athena"
)

// Options are settings of an API. Zero fields stand for their defaults.
type Options struct {
	// HTTP makes the requests. The default keeps connections alive, follows no
	// redirects, and has no time limit of its own: contexts bound requests.
	HTTP *http.Client
	// UserAgent is sent with each request; "athena-go" by default.
	UserAgent string
	// Retries is how often a request that is safe to repeat is repeated; 4 by
	// default, and none if negative. Safe are reads, and submits that carry an
	// idempotency key.
	Retries int
	// Backoff is the most to wait before the first repetition, doubled for
	// each further one up to 5 s; 100 ms by default. A Retry-After of the
	// server is kept to.
	Backoff time.Duration
}

// API is one server, seen with one key. It is safe for concurrent use.
type API struct {
	base *url.URL
	key  string
	opts Options
}

// New returns the API of the server at a URL such as http://127.0.0.1:4052. It
// connects to nothing yet. The key may be empty for a server without auth.
func New(server, key string, opts Options) (*API, error) {
	base, err := url.Parse(strings.TrimRight(server, "/"))
	if err != nil || base.Scheme != "http" && base.Scheme != "https" || base.Host == "" || base.RawQuery != "" {
		return nil, athena.Errorf(athena.CodeInvalidRequest, "the server's URL is %q; it must look like http://127.0.0.1:4052", server).At("url")
	}
	if base.User != nil {
		return nil, athena.Errorf(athena.CodeInvalidRequest, "the server's URL holds a user; give the key apart from it").At("url")
	}
	if opts.HTTP == nil {
		opts.HTTP = defaultHTTP()
	}
	opts.UserAgent = cmp.Or(opts.UserAgent, "athena-go")
	opts.Retries = cmp.Or(opts.Retries, 4)
	opts.Backoff = cmp.Or(opts.Backoff, 100*time.Millisecond)
	return &API{base: base, key: strings.TrimSpace(key), opts: opts}, nil
}

// URL is the server's address.
func (a *API) URL() string { return a.base.String() }

// Close ends connections that are kept alive and idle.
func (a *API) Close() { a.opts.HTTP.CloseIdleConnections() }

func defaultHTTP() *http.Client {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.MaxIdleConns = 0 // no limit but that per host
	t.MaxIdleConnsPerHost = 128
	return &http.Client{
		Transport: t,
		// A redirect would take the key to another place.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}
