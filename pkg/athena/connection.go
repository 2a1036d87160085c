package athena

import (
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// An Engine names a kind of backend. It is the tag of the Connection union.
type Engine string

// The engines that a client definition may name.
const (
	EnginePostgres Engine = "postgres"
	EngineScylla   Engine = "scylla"
	EngineS3       Engine = "s3"
)

// Engines lists all engines.
func Engines() []Engine { return []Engine{EnginePostgres, EngineScylla, EngineS3} }

// Connection is the tagged union of connection data. Its members are
// PostgresConn, ScyllaConn and S3Conn, and no other package can add one.
//
//sumtype:decl
type Connection interface {
	// Engine is the union's tag.
	Engine() Engine
	// MapSecrets returns a copy whose secrets have passed through fn, which
	// is given each one's path within the definition. Empty secrets pass too.
	MapSecrets(fn func(path string, s Secret) (Secret, error)) (Connection, error)
	validate() error
}

// PostgresConn reaches a PostgreSQL database.
type PostgresConn struct {
	// DSN is a connection string, as a URL or as keywords and values. TLS is
	// asked for in it (sslmode, sslrootcert …) as with libpq.
	DSN Secret `json:"dsn"`
	// MaxConns is the most connections that one process opens; 1 to 1000,
	// and 0 stands for 8.
	MaxConns int `json:"max_conns,omitempty"`
}

// ScyllaConn reaches a ScyllaDB cluster.
type ScyllaConn struct {
	// Hosts are contact points, host or host:port; an IPv6 address with a port
	// stands in brackets. Without a port it is 9042. The other nodes are learnt
	// from them, and reached at the port of the first.
	Hosts []string `json:"hosts"`
	// Keyspace is that of tables whose name has none.
	Keyspace string `json:"keyspace,omitempty"`
	// Datacenter holds the connection to one datacenter, where contact points must
	// be: nodes of others are asked nothing, also while all of this one are down.
	// Empty is any.
	Datacenter string `json:"datacenter,omitempty"`
	// Username and Password go together; both are empty in a cluster that lets
	// everybody in.
	Username string `json:"username,omitempty"`
	Password Secret `json:"password,omitzero"`
	TLS      *TLS   `json:"tls,omitempty"`
	// Consistency is how many replicas answer for a statement: one of
	// Consistencies, and LOCAL_QUORUM if it is empty. SerialConsistency is SERIAL or
	// LOCAL_SERIAL, for the conditions of a statement (IF); empty is the server's.
	Consistency       string `json:"consistency,omitempty"`
	SerialConsistency string `json:"serial_consistency,omitempty"`
	// MaxConns is the most connections that one process opens to each node; 1 to
	// 1000, and 0 stands for 2. ScyllaDB gets one for each of its shards instead.
	MaxConns int `json:"max_conns,omitempty"`
}

// S3Conn reaches one bucket, and within it one prefix, of an S3-compatible
// store. Empty keys stand for the AWS default credential chain.
type S3Conn struct {
	Endpoint        string `json:"endpoint,omitempty"`
	Region          string `json:"region,omitempty"`
	Bucket          string `json:"bucket"`
	Prefix          string `json:"prefix,omitempty"`
	AccessKeyID     string `json:"access_key_id,omitempty"`
	SecretAccessKey Secret `json:"secret_access_key,omitzero"`
	PathStyle       bool   `json:"path_style,omitempty"`
	TLS             *TLS   `json:"tls,omitempty"`
}

// TLS says how a connection is protected. The zero value, where a TLS is
// given at all, verifies the server against the system's roots.
type TLS struct {
	CAFile     string `json:"ca_file,omitempty"`
	CertFile   string `json:"cert_file,omitempty"`
	KeyFile    string `json:"key_file,omitempty"`
	ServerName string `json:"server_name,omitempty"`
	SkipVerify bool   `json:"skip_verify,omitempty"`
}

// Engine returns EnginePostgres.
func (PostgresConn) Engine() Engine { return EnginePostgres }

// Engine returns EngineScylla.
func (ScyllaConn) Engine() Engine { return EngineScylla }

// Engine returns EngineS3.
func (S3Conn) Engine() Engine { return EngineS3 }

// MapSecrets passes the DSN through fn.
func (c PostgresConn) MapSecrets(fn func(string, Secret) (Secret, error)) (Connection, error) {
	s, err := fn("connection.dsn", c.DSN)
	c.DSN = s
	return c, err
}

// MapSecrets passes the password through fn.
func (c ScyllaConn) MapSecrets(fn func(string, Secret) (Secret, error)) (Connection, error) {
	s, err := fn("connection.password", c.Password)
	c.Password = s
	return c, err
}

// MapSecrets passes the secret access key through fn.
func (c S3Conn) MapSecrets(fn func(string, Secret) (Secret, error)) (Connection, error) {
	s, err := fn("connection.secret_access_key", c.SecretAccessKey)
	c.SecretAccessKey = s
	return c, err
}

func (c PostgresConn) validate() error {
	if c.DSN.IsZero() {
		return Errorf(CodeInvalidRequest, "connection.dsn is missing; give a connection string, or env:NAME or file:PATH where one is kept").At("connection.dsn")
	}
	return maxConns(c.MaxConns)
}

func (c ScyllaConn) validate() error {
	if _, err := c.Addresses(); err != nil {
		return err
	}
	switch {
	case c.Keyspace != "" && !keyspaceName.MatchString(c.Keyspace):
		return Errorf(CodeInvalidRequest, "connection.keyspace %q is no name of a keyspace; it has 1 to 48 letters, digits and _, without quotes", clip(c.Keyspace, 60)).At("connection.keyspace")
	case strings.TrimSpace(c.Datacenter) != c.Datacenter:
		return Errorf(CodeInvalidRequest, "connection.datacenter %q has white space around it", clip(c.Datacenter, 60)).At("connection.datacenter")
	case (c.Username == "") != c.Password.IsZero():
		return Errorf(CodeInvalidRequest, "connection.username and connection.password go together; give both, or neither for a cluster without logins").At("connection.username")
	case c.Consistency != "" && !slices.Contains(Consistencies(), c.Consistency):
		return Errorf(CodeInvalidRequest, "connection.consistency is %q; it must be one of %s", clip(c.Consistency, 40), strings.Join(Consistencies(), ", ")).At("connection.consistency")
	case c.SerialConsistency != "" && c.SerialConsistency != "SERIAL" && c.SerialConsistency != "LOCAL_SERIAL":
		return Errorf(CodeInvalidRequest, "connection.serial_consistency is %q; it must be SERIAL or LOCAL_SERIAL", clip(c.SerialConsistency, 40)).At("connection.serial_consistency")
	}
	return maxConns(c.MaxConns)
}

// Consistencies lists what ScyllaConn.Consistency may be.
func Consistencies() []string {
	return []string{"ONE", "TWO", "THREE", "QUORUM", "ALL", "LOCAL_ONE", "LOCAL_QUORUM", "EACH_QUORUM"}
}

var keyspaceName = regexp.MustCompile(`^[a-zA-Z0-9_]{1,48}$`)

// Addresses are the contact points, each as host:port.
func (c ScyllaConn) Addresses() ([]string, error) {
	if len(c.Hosts) == 0 {
		return nil, Errorf(CodeInvalidRequest, "connection.hosts is empty; name at least one contact point").At("connection.hosts")
	}
	list := make([]string, len(c.Hosts))
	for i, h := range c.Hosts {
		at := fmt.Sprintf("connection.hosts[%d]", i)
		host, port, ok := splitHost(h)
		if !ok {
			return nil, Errorf(CodeInvalidRequest, "%s is %q; write a host or host:port, such as node1:9042 or [2001:db8::1]:9042", at, clip(h, 80)).At(at)
		}
		list[i] = net.JoinHostPort(host, port)
	}
	return list, nil
}

// cqlPort is where nodes listen unless they are told otherwise.
const cqlPort = "9042"

// splitHost parts host, host:port, an IPv6 address and [address]:port.
func splitHost(s string) (host, port string, ok bool) {
	host, port = s, cqlPort
	switch _, err := netip.ParseAddr(s); {
	case err == nil: // an IPv6 address has colons of its own
	case strings.HasPrefix(s, "[") && strings.HasSuffix(s, "]"):
		host = s[1 : len(s)-1]
	case strings.Contains(s, ":"):
		if host, port, err = net.SplitHostPort(s); err != nil {
			return "", "", false
		}
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 || host == "" || strings.ContainsFunc(host, notInHost) {
		return "", "", false
	}
	if _, err := netip.ParseAddr(host); err != nil && strings.Contains(host, ":") {
		return "", "", false
	}
	return host, port, true
}

// notInHost reports what cannot stand in the name or the address of a host.
func notInHost(r rune) bool { return r <= ' ' || strings.ContainsRune(`/@\"'[]`, r) || r == 0x7f }

func (c S3Conn) validate() error {
	if c.Bucket == "" {
		return Errorf(CodeInvalidRequest, "connection.bucket is missing").At("connection.bucket")
	}
	if (c.AccessKeyID == "") != c.SecretAccessKey.IsZero() {
		return Errorf(CodeInvalidRequest, "connection.access_key_id and connection.secret_access_key go together; give both, or neither for the AWS default chain").At("connection.access_key_id")
	}
	return nil
}

func maxConns(n int) error {
	if n < 0 || n > 1000 {
		return Errorf(CodeInvalidRequest, "connection.max_conns is %d; it must be between 1 and 1000, or 0 for the default", n).At("connection.max_conns")
	}
	return nil
}

// DecodeConnection reads the member that the tag names. Unknown fields are
// refused with their path.
func DecodeConnection(engine Engine, raw []byte) (Connection, error) {
	switch engine {
	case EnginePostgres:
		return decodeMember[PostgresConn](raw)
	case EngineScylla:
		return decodeMember[ScyllaConn](raw)
	case EngineS3:
		return decodeMember[S3Conn](raw)
	}
	return nil, Errorf(CodeInvalidRequest, "engine %q is unknown; it must be postgres, scylla or s3", clip(string(engine), 40)).At("engine")
}

func decodeMember[C Connection](raw []byte) (Connection, error) {
	var c C
	if err := DecodeJSON(raw, &c, "connection"); err != nil {
		return nil, err
	}
	return c, c.validate()
}
