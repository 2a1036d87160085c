package config

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/athena-pipelines/athena/pkg/athena"
)

// check finds what is wrong between settings that are well-formed one by one.
func (s *Settings) check() (problems []error) {
	refuse := func(path, format string, args ...any) {
		problems = append(problems, athena.Errorf(athena.CodeInvalidRequest, path+" "+format, args...).At(path))
	}
	address := func(path, value string) (host string) {
		host, err := splitAddress(value)
		if err != nil {
			refuse(path, "is %q; it must be host:port with a port of 0 to 65535, such as 127.0.0.1:4052", clip(value))
		}
		return host
	}
	pair := func(path, cert, key string) {
		if (cert == "") != (key == "") {
			refuse(path, "has one of cert_file and key_file; give both, or neither for plain text")
		}
	}

	host := address("listen", s.Listen)
	if s.Auth == "off" && !loopback(host) {
		refuse("auth", "is off while listen is %q, which others can reach; switch it on, or listen on 127.0.0.1", s.Listen)
	}
	if s.DataDir == "" {
		refuse("data_dir", "is empty; name a directory")
	}
	pair("tls", s.TLS.CertFile, s.TLS.KeyFile)
	s.checkNATS(refuse, address, pair)

	for i, name := range s.Worker.Clients {
		if athena.CheckName(name) != nil {
			refuse("worker.clients", "has entry %d, %q, which can be no client's name", i+1, clip(name))
		}
	}
	if s.Worker.ID != "" && strings.ContainsFunc(s.Worker.ID, func(r rune) bool { return !strings.ContainsRune(idLetters, r) }) || len(s.Worker.ID) > 63 {
		refuse("worker.id", "is %q; it must be at most 63 letters, digits, _ and -", clip(s.Worker.ID))
	}
	if s.Deferred.DefaultDeadline > s.Deferred.MaxDeadline {
		refuse("deferred.default_deadline", "is %s; it must not be more than deferred.max_deadline, which is %s", s.Deferred.DefaultDeadline, s.Deferred.MaxDeadline)
	}
	if e := s.OTLP.Endpoint; e != "" {
		if !plainURL(e, "http", "https") {
			refuse("otlp.endpoint", "must be a URL such as http://127.0.0.1:4318, without a user")
		}
	}
	return problems
}

const idLetters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-"

func (s *Settings) checkNATS(refuse func(path, format string, args ...any), address func(path, value string) string, pair func(path, cert, key string)) {
	n, e := s.NATS, s.NATS.Embedded
	if !slices.Contains([]int{1, 3, 5}, n.Replicas) {
		refuse("nats.replicas", "is %d; it must be 1, 3 or 5", n.Replicas)
	}
	pair("nats.tls", n.TLS.CertFile, n.TLS.KeyFile)
	pair("nats.embedded.tls", e.TLS.CertFile, e.TLS.KeyFile)
	if n.URL == "" {
		for _, f := range []struct {
			path string
			set  bool
		}{{"nats.creds", n.Creds != ""}, {"nats.user", n.User != ""}, {"nats.password", !n.Password.IsZero()}, {"nats.token", !n.Token.IsZero()}} {
			if f.set {
				refuse(f.path, "is for an external cluster and nats.url is empty; set nats.url, or nats.embedded.user and nats.embedded.password for the embedded broker")
			}
		}
	} else if e.Listen != "" || e.Cluster.Name != "" {
		refuse("nats.embedded", "has a listener while nats.url names an external cluster; give one of the two")
	}
	for server := range strings.SplitSeq(n.URL, ",") {
		if n.URL != "" && !plainURL(strings.TrimSpace(server), "nats", "tls", "ws", "wss") {
			refuse("nats.url", "must hold URLs such as nats://host:4222, separated by commas; a user goes into nats.user and nats.password")
			break
		}
	}
	if n.User == "" && !n.Password.IsZero() {
		refuse("nats.password", "is set and nats.user is not; set both")
	}
	if (e.User == "") != e.Password.IsZero() {
		refuse("nats.embedded.user", "and nats.embedded.password go together; set both")
	}
	if e.Listen != "" {
		if host := address("nats.embedded.listen", e.Listen); !loopback(host) && e.User == "" {
			refuse("nats.embedded.listen", "is %q, which others can reach; set nats.embedded.user and nats.embedded.password, or listen on 127.0.0.1", clip(e.Listen))
		}
	}
	if c := e.Cluster; c.Name != "" || c.Listen != "" || c.Server != "" || len(c.Routes) > 0 {
		if c.Name == "" || c.Listen == "" || c.Server == "" || len(c.Routes) == 0 {
			refuse("nats.embedded.cluster", "is not whole; it needs name, server, listen and routes")
		} else if e.Listen == "" {
			refuse("nats.embedded.listen", "is empty; a broker that is part of a cluster needs it, such as 127.0.0.1:4222, or it routes nothing")
		} else {
			address("nats.embedded.cluster.listen", c.Listen)
			for i, route := range c.Routes {
				if !plainURL(route, "nats-route", "nats", "tls") {
					refuse("nats.embedded.cluster.routes", "has entry %d, which must be a URL such as nats-route://host:6222, without a user", i+1)
				}
			}
		}
	} else if n.URL == "" && n.Replicas > 1 {
		refuse("nats.replicas", "is %d and the embedded broker is alone; set nats.embedded.cluster, or nats.url, or 1", n.Replicas)
	}
}

// plainURL reports whether s is a URL with a host, of one of the schemes and
// without a user: credentials have settings of their own, which are never
// printed. For the same reason a URL that is refused is not shown.
func plainURL(s string, schemes ...string) bool {
	u, err := url.Parse(s)
	return err == nil && u.Host != "" && u.User == nil && slices.Contains(schemes, u.Scheme)
}

func splitAddress(address string) (host string, err error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return "", err
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return "", fmt.Errorf("port %q: %w", port, err)
	}
	return host, nil
}

// loopback reports whether only this machine can reach the host; an empty one
// is every interface.
func loopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback()
}
