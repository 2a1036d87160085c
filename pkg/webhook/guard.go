package webhook

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/athena-pipelines/athena/pkg/athena"
)

// A Guard says to which addresses webhooks may go: to all of the public
// Internet, and otherwise to what the owner of the deployment allows. The zero
// value allows nothing else. It is safe for concurrent use.
type Guard struct {
	// Allow are addresses that are permitted although they are not public.
	Allow []netip.Prefix
	// Resolver looks names up; nil is the system's.
	Resolver *net.Resolver
}

// Field is the field of a submit that holds a webhook's URL.
const Field = "webhook.url"

const (
	maxURL        = 2048
	lookupTimeout = 3 * time.Second
)

// ErrForbidden is in the chain of the error of a connection that the guard did
// not permit.
var ErrForbidden = errors.New("webhook: the address is not permitted")

// CheckURL is Check of the field webhook.url.
func (g *Guard) CheckURL(ctx context.Context, raw string) error { return g.Check(ctx, Field, raw) }

// Check reports why no webhook may be sent to a URL, or nil. Its errors are
// invalid_request at the field that the URL came in.
//
// A name that cannot be looked up at the moment is let through, since a later
// attempt may succeed and each connection is checked anyway (law 1); one that is
// known not to exist is refused.
func (g *Guard) Check(ctx context.Context, field, raw string) error {
	host, why := parse(raw)
	if why == "" {
		why = g.refusal(ctx, host)
	}
	if why == "" {
		return nil
	}
	return athena.Errorf(athena.CodeInvalidRequest, "%s %.200q is not allowed: %s", field, redact(raw), why).At(field)
}

// refusal says why a host is not permitted, or nothing.
func (g *Guard) refusal(ctx context.Context, host string) string {
	if a, err := netip.ParseAddr(host); err == nil {
		return g.leads(a)
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	addrs, err := g.resolver().LookupNetIP(ctx, "ip", host)
	var dns *net.DNSError
	if errors.As(err, &dns) && dns.IsNotFound {
		return fmt.Sprintf("there is no host %q; check the name", host)
	}
	for _, a := range addrs {
		if why := g.leads(a); why != "" {
			return why
		}
	}
	return ""
}

func (g *Guard) resolver() *net.Resolver {
	if g.Resolver == nil {
		return net.DefaultResolver
	}
	return g.Resolver
}

// parse returns the URL's host, an address or a name in plain ASCII, or says why
// there is none to go to.
func parse(raw string) (host, why string) {
	refuse := func(format string, args ...any) (string, string) { return "", fmt.Sprintf(format, args...) }
	if len(raw) > maxURL {
		return refuse("it has %d bytes; the most is %d", len(raw), maxURL)
	}
	u, err := url.Parse(raw)
	if err != nil {
		return refuse("it is not a URL, such as https://example.com/hook")
	}
	host = u.Hostname()
	switch {
	case u.Scheme != "http" && u.Scheme != "https":
		return refuse("its scheme is %.20q; it must be https or http", u.Scheme)
	case u.User != nil:
		return refuse("it holds a user name or password; messages are signed, so none is needed")
	case host == "":
		return refuse("it has no host")
	}
	if port := u.Port(); port != "" {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return refuse("its port is %.20q; it must be between 1 and 65535", port)
		}
	}
	if a, err := netip.ParseAddr(host); err == nil {
		if a.Zone() != "" {
			return refuse("its address names a zone, which only this machine understands")
		}
		return host, ""
	}
	for _, c := range []byte(host) {
		if c != '-' && c != '.' && c != '_' && (c < '0' || c > '9') && (c|0x20 < 'a' || c|0x20 > 'z') {
			return refuse("its host is neither an address nor a name of letters, digits, - and .; write an international name in its xn-- form")
		}
	}
	// What ends in a number is an address to some resolvers: 127.1, 0x7f000001,
	// 2130706433, 0177.0.0.1.
	labels := strings.Split(strings.TrimSuffix(host, "."), ".")
	if last := labels[len(labels)-1]; last == "" || number(last) {
		return refuse("its host is an address in an unusual form; write it as 192.0.2.1 or [2001:db8::1]")
	}
	return host, ""
}

func number(label string) bool {
	if strings.Trim(label, "0123456789") == "" {
		return true
	}
	rest, ok := strings.CutPrefix(strings.ToLower(label), "0x")
	return ok && strings.Trim(rest, "0123456789abcdef") == ""
}

// leads says why an address is not permitted, or nothing.
func (g *Guard) leads(a netip.Addr) string {
	why := g.why(a)
	if why == "" {
		return ""
	}
	return fmt.Sprintf("it leads to %s, which is %s; only public addresses are permitted unless the owner of this deployment allows more in the configuration", a, why)
}

// redact takes out what may be a password: it came from the caller, but errors
// are logged.
func redact(raw string) string {
	at := strings.LastIndexByte(raw, '@')
	if at < 0 {
		return raw
	}
	scheme, _, ok := strings.Cut(raw[:at], "//")
	if !ok {
		return "***" + raw[at:]
	}
	return scheme + "//***" + raw[at:]
}

// special lists what is not the public Internet although it looks like it, or
// what deserves a better name than "not public".
var special = []struct {
	prefix netip.Prefix
	what   string
}{
	{netip.MustParsePrefix("169.254.169.254/32"), "a metadata address of clouds"},
	{netip.MustParsePrefix("fd00:ec2::254/128"), "a metadata address of clouds"},
	{netip.MustParsePrefix("168.63.129.16/32"), "a metadata address of clouds"},
	{netip.MustParsePrefix("100.100.100.200/32"), "a metadata address of clouds"},
	{netip.MustParsePrefix("192.0.0.192/32"), "a metadata address of clouds"},
	{netip.MustParsePrefix("0.0.0.0/8"), "unspecified"},
	{netip.MustParsePrefix("10.0.0.0/8"), "private"},
	{netip.MustParsePrefix("100.64.0.0/10"), "shared by a carrier's customers"},
	{netip.MustParsePrefix("127.0.0.0/8"), "loopback"},
	{netip.MustParsePrefix("169.254.0.0/16"), "link-local"},
	{netip.MustParsePrefix("172.16.0.0/12"), "private"},
	{netip.MustParsePrefix("192.0.0.0/24"), "reserved"},
	{netip.MustParsePrefix("192.0.2.0/24"), "reserved for documentation"},
	{netip.MustParsePrefix("192.88.99.0/24"), "reserved"},
	{netip.MustParsePrefix("192.168.0.0/16"), "private"},
	{netip.MustParsePrefix("198.18.0.0/15"), "reserved for benchmarks"},
	{netip.MustParsePrefix("198.51.100.0/24"), "reserved for documentation"},
	{netip.MustParsePrefix("203.0.113.0/24"), "reserved for documentation"},
	{netip.MustParsePrefix("224.0.0.0/4"), "multicast"},
	{netip.MustParsePrefix("255.255.255.255/32"), "broadcast"},
	{netip.MustParsePrefix("240.0.0.0/4"), "reserved"},
	{netip.MustParsePrefix("::/128"), "unspecified"},
	{netip.MustParsePrefix("::1/128"), "loopback"},
	{netip.MustParsePrefix("64:ff9b:1::/48"), "translated within a private network"},
	{netip.MustParsePrefix("fc00::/7"), "private"},
	{netip.MustParsePrefix("fe80::/10"), "link-local"},
	{netip.MustParsePrefix("ff00::/8"), "multicast"},
	{netip.MustParsePrefix("2001::/23"), "reserved"},
	{netip.MustParsePrefix("2001:db8::/32"), "reserved for documentation"},
	{netip.MustParsePrefix("3fff::/20"), "reserved for documentation"},
}

var (
	global6  = netip.MustParsePrefix("2000::/3")
	nat64    = netip.MustParsePrefix("64:ff9b::/96")
	six2four = netip.MustParsePrefix("2002::/16")
)

// why says what forbids an address, or nothing if it is permitted. An address
// that carries another one is judged by that one.
func (g *Guard) why(a netip.Addr) string {
	a = a.WithZone("").Unmap()
	if slices.ContainsFunc(g.Allow, func(p netip.Prefix) bool { return p.Contains(a) }) {
		return ""
	}
	b := a.As16()
	switch {
	case nat64.Contains(a):
		return g.why(netip.AddrFrom4([4]byte(b[12:16])))
	case six2four.Contains(a):
		return g.why(netip.AddrFrom4([4]byte(b[2:6])))
	}
	for _, s := range special {
		if s.prefix.Contains(a) {
			return s.what
		}
	}
	if a.Is6() && !global6.Contains(a) {
		return "reserved"
	}
	return ""
}
