package webhook

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	neturl "net/url"
	"strconv"
	"syscall"
	"time"
)

// A Sender posts messages to where its guard permits. It is safe for concurrent
// use.
type Sender struct {
	client *http.Client
}

// An Answer is what a receiver said.
type Answer struct {
	Status int
	// RetryAfter is how long the receiver asks to wait; 0 if it does not say.
	RetryAfter time.Duration
}

// OK reports whether the receiver took the message.
func (a Answer) OK() bool { return a.Status >= 200 && a.Status <= 299 }

// DefaultTimeout bounds one request where no other time is given.
const DefaultTimeout = 15 * time.Second

// maxBody is how much of an answer's body is read, so that the connection can be
// used again. None of it is kept.
const maxBody = 16 << 10

// NewSender returns a Sender; each request takes at most timeout, 0 standing for
// DefaultTimeout.
func NewSender(g *Guard, timeout time.Duration) *Sender {
	if timeout <= 0 {
		timeout = DefaultTimeout
	}
	dialer := &net.Dialer{
		Timeout:  min(timeout, 5*time.Second),
		Resolver: g.Resolver,
		// The address is known here and the connection not yet made (law 1).
		Control: func(_, address string, _ syscall.RawConn) error { return g.permit(address) },
	}
	return &Sender{client: &http.Client{
		Timeout: timeout,
		Transport: &http.Transport{
			Proxy:                  nil, // law 2
			DialContext:            dialer.DialContext,
			ForceAttemptHTTP2:      true,
			TLSHandshakeTimeout:    min(timeout, 5*time.Second),
			ResponseHeaderTimeout:  timeout,
			MaxResponseHeaderBytes: 64 << 10,
			MaxIdleConns:           64,
			MaxIdleConnsPerHost:    2,
			IdleConnTimeout:        30 * time.Second,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }, // law 2
	}}
}

func (g *Guard) permit(address string) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("%w: %q is none", ErrForbidden, address)
	}
	if why := g.why(ap.Addr()); why != "" {
		return fmt.Errorf("%w: %s is %s", ErrForbidden, ap.Addr(), why)
	}
	return nil
}

// Close drops the idle connections.
func (s *Sender) Close() { s.client.CloseIdleConnections() }

// Send posts a message, signed with secret at the time now. An error says that
// no answer came; ErrForbidden is in its chain if the guard was the reason.
func (s *Sender) Send(ctx context.Context, url, id string, secret, body []byte, now time.Time) (Answer, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return Answer{}, errors.New("webhook: the URL cannot be used")
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "athena-webhook/1")
	req.Header.Set(HeaderID, id)
	req.Header.Set(HeaderTimestamp, strconv.FormatInt(now.Unix(), 10))
	req.Header.Set(HeaderSignature, Sign(secret, id, now, body))
	// A receiver tells repeated messages by their id, so that a request may be
	// made again on a fresh connection.
	req.Header["Idempotency-Key"] = nil
	resp, err := s.client.Do(req)
	if err != nil {
		var u *neturl.Error // it shows the URL, which may hold what is not for logs
		if errors.As(err, &u) {
			err = u.Err
		}
		return Answer{}, err
	}
	defer resp.Body.Close()
	// A body that breaks off changes nothing: the status is the answer.
	_, _ = io.CopyN(io.Discard, resp.Body, maxBody)
	return Answer{Status: resp.StatusCode, RetryAfter: retryAfter(resp.Header.Get("Retry-After"), now)}, nil
}

// retryAfter reads seconds or a date; 0 if it is neither, or past.
func retryAfter(v string, now time.Time) time.Duration {
	if s, err := strconv.ParseUint(v, 10, 31); err == nil {
		return time.Duration(s) * time.Second
	}
	if at, err := http.ParseTime(v); err == nil && at.After(now) {
		return at.Sub(now)
	}
	return 0
}
