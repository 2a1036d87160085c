package webhook

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/athena-pipelines/athena/pkg/athena"
)

func addrs(texts ...string) (out []netip.Addr) {
	for _, s := range texts {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

func names(t *testing.T) *net.Resolver {
	return resolver(t, func(name string) []netip.Addr {
		switch name {
		case "public.example.com.":
			return addrs("8.8.8.8")
		case "loopback.example.com.":
			return addrs("127.0.0.1")
		case "mixed.example.com.":
			return addrs("8.8.8.8", "10.0.0.5")
		}
		return nil
	})
}

func TestOnlyPublicAddressesArePermitted(t *testing.T) {
	t.Parallel()
	g := &Guard{Resolver: names(t)}
	tests := map[string]struct{ url, why string }{
		"a public address":                       {"https://8.8.8.8/hook", ""},
		"a public address with a port":           {"http://8.8.8.8:8080/hook?x=1", ""},
		"a public IPv6 address":                  {"https://[2606:4700::1111]:8443/", ""},
		"a public name":                          {"https://public.example.com/hook", ""},
		"a name with a dot at its end":           {"https://public.example.com./hook", ""},
		"NAT64 of a public address":              {"https://[64:ff9b::8.8.8.8]/", ""},
		"6to4 of a public address":               {"https://[2002:808:808::1]/", ""},
		"a name that does not exist":             {"https://nowhere.example.com/", "there is no host"},
		"a name that resolves to loopback":       {"https://loopback.example.com/", "loopback"},
		"a name of which one address is private": {"https://mixed.example.com/", "private"},
		"loopback":                               {"http://127.0.0.1/", "loopback"},
		"all of 127/8":                           {"http://127.8.9.10/", "loopback"},
		"loopback as a decimal number":           {"http://2130706433/", "unusual form"},
		"loopback as a hexadecimal number":       {"http://0x7f000001/", "unusual form"},
		"loopback in hexadecimal parts":          {"http://0x7f.0x0.0x0.0x1/", "unusual form"},
		"loopback in octal":                      {"http://0177.0.0.1/", "unusual form"},
		"loopback in short":                      {"http://127.1/", "unusual form"},
		"loopback with a dot at its end":         {"http://127.0.0.1./", "unusual form"},
		"loopback in full-width digits":          {"http://１２７.0.0.1/", "neither"},
		"loopback percent-encoded":               {"http://%31%32%37.0.0.1/", "not a URL"},
		"loopback of IPv6":                       {"http://[::1]/", "loopback"},
		"loopback mapped to IPv6":                {"http://[::ffff:127.0.0.1]/", "loopback"},
		"loopback mapped, in hexadecimal":        {"http://[::ffff:7f00:1]/", "loopback"},
		"loopback compatible with IPv6":          {"http://[::127.0.0.1]/", "reserved"},
		"loopback translated, stateless":         {"http://[::ffff:0:127.0.0.1]/", "reserved"},
		"NAT64 of loopback":                      {"http://[64:ff9b::127.0.0.1]/", "loopback"},
		"NAT64 of a private address":             {"http://[64:ff9b::a00:1]/", "private"},
		"NAT64 within a network":                 {"http://[64:ff9b:1::a00:1]/", "translated"},
		"6to4 of a private address":              {"http://[2002:c0a8:101::1]/", "private"},
		"Teredo":                                 {"http://[2001:0:4136:e378:8000:63bf:3fff:fdd2]/", "reserved"},
		"unspecified":                            {"http://0.0.0.0/", "unspecified"},
		"unspecified of IPv6":                    {"http://[::]/", "unspecified"},
		"zero network":                           {"http://0.1.2.3/", "unspecified"},
		"10/8":                                   {"http://10.1.2.3/", "private"},
		"172.16/12":                              {"http://172.31.255.255/", "private"},
		"just above 172.16/12":                   {"http://172.32.0.1/", ""},
		"192.168/16":                             {"http://192.168.1.1/", "private"},
		"carrier-grade NAT":                      {"http://100.64.0.1/", "carrier"},
		"just above carrier-grade NAT":           {"http://100.128.0.1/", ""},
		"link-local":                             {"http://169.254.1.1/", "link-local"},
		"link-local of IPv6":                     {"http://[fe80::1]/", "link-local"},
		"link-local with a zone":                 {"http://[fe80::1%25eth0]/", "zone"},
		"unique local":                           {"http://[fd12:3456::1]/", "private"},
		"site-local":                             {"http://[fec0::1]/", "reserved"},
		"multicast":                              {"http://224.0.0.1/", "multicast"},
		"multicast of IPv6":                      {"http://[ff02::1]/", "multicast"},
		"broadcast":                              {"http://255.255.255.255/", "broadcast"},
		"the metadata address":                   {"http://169.254.169.254/latest/meta-data", "metadata"},
		"the metadata address of IPv6":           {"http://[fd00:ec2::254]/", "metadata"},
		"the metadata address mapped":            {"http://[::ffff:169.254.169.254]/", "metadata"},
		"a public metadata address":              {"http://168.63.129.16/", "metadata"},
		"benchmarks":                             {"http://198.18.0.1/", "benchmarks"},
		"documentation":                          {"http://[2001:db8::1]/", "documentation"},
		"another scheme":                         {"ftp://8.8.8.8/", "scheme"},
		"a file":                                 {"file:///etc/passwd", "scheme"},
		"no scheme":                              {"8.8.8.8/hook", "scheme"},
		"nothing":                                {"", "scheme"},
		"no host":                                {"https:///hook", "no host"},
		"an opaque URL":                          {"https:8.8.8.8", "no host"},
		"a user":                                 {"https://8.8.8.8@127.0.0.1/", "user name"},
		"a password":                             {"https://u:hunter2@8.8.8.8/", "user name"},
		"port zero":                              {"https://8.8.8.8:0/", "port"},
		"a port too large":                       {"https://8.8.8.8:65536/", "port"},
		"a port that is no number":               {"https://8.8.8.8:http/", "not a URL"},
		"a line break":                           {"https://8.8.8.8/\r\nX: y", "not a URL"},
		"a URL without end":                      {"https://8.8.8.8/" + strings.Repeat("a", maxURL), "bytes"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := g.CheckURL(t.Context(), tc.url)
			if tc.why == "" {
				if err != nil {
					t.Fatalf("refused: %v", err)
				}
				return
			}
			e := athena.AsError(err)
			if e == nil || e.Code != athena.CodeInvalidRequest || e.Details["field"] != "webhook.url" {
				t.Fatalf("got %v with %+v, want invalid_request at webhook.url", err, e)
			}
			if !strings.Contains(e.Message, tc.why) {
				t.Errorf("message %q does not say %q", e.Message, tc.why)
			}
			if strings.Contains(e.Message, "hunter2") {
				t.Errorf("message shows the password: %q", e.Message)
			}
		})
	}
}

func TestTheOwnerMayAllowMore(t *testing.T) {
	t.Parallel()
	g := &Guard{Resolver: names(t), Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("fd00::/8")}}
	for url, want := range map[string]bool{
		"http://127.0.0.1:8080/":        true,
		"http://[::ffff:127.0.0.1]/":    true,
		"http://[64:ff9b::127.0.0.1]/":  true,
		"http://loopback.example.com/":  true,
		"http://[fd00::1]/":             true,
		"http://[::1]/":                 false,
		"http://10.0.0.1/":              false,
		"http://mixed.example.com/":     false,
		"http://169.254.169.254/latest": false,
	} {
		if err := g.CheckURL(t.Context(), url); (err == nil) != want {
			t.Errorf("%s: got %v, permitted should be %t", url, err, want)
		}
	}
}

// A name that leads to a public address when it is checked and to a private one
// when it is used gets no connection.
func TestRebindingANameReachesNothing(t *testing.T) {
	t.Parallel()
	var reached atomic.Int32
	srv := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached.Add(1) }))
	t.Cleanup(srv.Close)
	_, port, _ := net.SplitHostPort(srv.Listener.Addr().String())

	var bound atomic.Bool
	g := &Guard{Resolver: resolver(t, func(string) []netip.Addr {
		if bound.Load() {
			return addrs("127.0.0.1")
		}
		return addrs("8.8.8.8")
	})}
	target := "http://rebind.example.com:" + port + "/"
	if err := g.CheckURL(t.Context(), target); err != nil {
		t.Fatalf("refused before the name was bound anew: %v", err)
	}
	bound.Store(true)
	send := func(g *Guard) error {
		s := NewSender(g, 0)
		defer s.Close()
		_, err := s.Send(t.Context(), target, "job_1_1", []byte("secret"), []byte("{}"), t0)
		return err
	}
	if err := send(g); !errors.Is(err, ErrForbidden) {
		t.Errorf("got %v, want ErrForbidden", err)
	}
	if n := reached.Load(); n != 0 {
		t.Errorf("the receiver was reached %d times", n)
	}
	// The same road is open once the owner allows it: the guard was the reason.
	g.Allow = []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}
	if err := send(g); err != nil || reached.Load() != 1 {
		t.Errorf("allowed: got %v after %d requests, want one", err, reached.Load())
	}
}

func FuzzCheckURL(f *testing.F) {
	for _, s := range []string{"https://8.8.8.8/", "http://[::1]:80/", "http://0x7f.1", "https://a.example.com:99999/", "http://u:p@h/", "http://[fe80::1%25x]/", "://", "http://１.1"} {
		f.Add(s)
	}
	offline := errors.New("offline")
	g := &Guard{Resolver: &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) { return nil, offline }}}
	f.Fuzz(func(t *testing.T, raw string) {
		err := g.CheckURL(t.Context(), raw)
		if err != nil {
			if e := athena.AsError(err); e.Code != athena.CodeInvalidRequest || e.Details["field"] != Field {
				t.Fatalf("%q: got %v", raw, err)
			}
			return
		}
		u, err := url.Parse(raw)
		if err != nil || u.User != nil || u.Hostname() == "" {
			t.Fatalf("%q was permitted", raw)
		}
		if a, err := netip.ParseAddr(u.Hostname()); err == nil {
			if a = a.Unmap(); !a.IsGlobalUnicast() || a.IsPrivate() || a.IsLoopback() {
				t.Fatalf("%q was permitted", raw)
			}
		}
	})
}
