package middleware

import (
	"context"
	"net/http"
	"net/netip"

	"github.com/gin-gonic/gin"
	"golang.org/x/time/rate"

	"github.com/athena-pipelines/athena/api/envelope"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/auth"
)

// A Verifier knows keys; *auth.Keys is one.
type Verifier interface {
	// Verify returns who presents the key, which may be empty, or an
	// unauthenticated error.
	Verify(ctx context.Context, presented string) (*auth.Principal, error)
}

// Open lets everybody in as auth.Local; for a server that was told so and
// listens on loopback.
func Open() Verifier { return open{} }

type open struct{}

func (open) Verify(context.Context, string) (*auth.Principal, error) { return auth.Local(), nil }

// Rates bound how often one key, or one address without a valid key, may ask.
// Zero fields stand for their defaults.
type Rates struct {
	// PerKey is in requests per second, of which a second's worth may come at
	// once; 0 is no bound.
	PerKey float64
	// Strangers is how many requests per second without a valid key one
	// address gets a plain answer to; 5 by default, with bursts of 20.
	Strangers float64
	// Tracked is how many keys and addresses are kept in mind; 10,000 by
	// default. The one not seen for the longest time is forgotten.
	Tracked int
}

// Authenticate asks keys who the caller is and puts the principal into the
// request's context.
//
// A valid key passes whatever others behind the same address did: with a proxy
// in front they all share one. What is bounded is the answers to those without.
func Authenticate(keys Verifier, r Rates) gin.HandlerFunc {
	if r.Strangers == 0 {
		r.Strangers = 5
	}
	if r.Tracked == 0 {
		r.Tracked = 10_000
	}
	known := newLimiters(r.Tracked)
	strangers := newLimiters(r.Tracked)
	return func(c *gin.Context) {
		p, err := verify(c.Request, keys)
		switch {
		case athena.CodeOf(err) == athena.CodeUnauthenticated:
			if wait := strangers.take(addressOf(c.ClientIP()), rate.Limit(r.Strangers), max(20, int(r.Strangers))); wait > 0 {
				err = athena.Wrap(athena.CodeTooManyRequests, err, "too many requests without a valid key from this address").RetryIn(wait)
			}
			envelope.Fail(c, err)
			return
		case err != nil:
			envelope.Fail(c, err)
			return
		}
		if r.PerKey > 0 {
			if wait := known.take(p.Key, rate.Limit(r.PerKey), max(1, int(r.PerKey))); wait > 0 {
				envelope.Fail(c, athena.Errorf(athena.CodeTooManyRequests, "this key's limit is %g requests per second", r.PerKey).
					With("limit", "key").RetryIn(wait))
				return
			}
		}
		c.Request = c.Request.WithContext(auth.NewContext(c.Request.Context(), p))
	}
}

func verify(r *http.Request, keys Verifier) (*auth.Principal, error) {
	presented, err := auth.FromHeader(r.Header)
	if err != nil {
		return nil, err
	}
	p, err := keys.Verify(r.Context(), presented)
	if presented == "" && (athena.CodeOf(err) == athena.CodeUnauthenticated || err == nil && p == nil) {
		return nil, athena.Errorf(athena.CodeUnauthenticated, "no key was given; send one as Authorization: Bearer ath_…")
	}
	if err == nil && p == nil {
		return nil, athena.Errorf(athena.CodeUnauthenticated, "this key is not known")
	}
	return p, err
}

// Require lets only those pass who have the right; Authenticate comes before.
func Require(right auth.Right, access auth.Access) gin.HandlerFunc {
	return func(c *gin.Context) {
		if err := auth.FromContext(c.Request.Context()).Authorize(right, access, ""); err != nil {
			envelope.Fail(c, err)
		}
	}
}

// addressOf is what counts as one address: an IPv6 site has a whole /64.
func addressOf(ip string) string {
	addr, err := netip.ParseAddr(ip)
	if err != nil {
		return ip
	}
	if addr = addr.Unmap(); addr.Is6() {
		if prefix, err := addr.WithZone("").Prefix(64); err == nil {
			return prefix.String()
		}
	}
	return addr.String()
}
