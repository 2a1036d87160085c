// Package config reads the settings of a process from a YAML file, the
// environment and flags, each over the one before, and checks every value. It
// knows the shape of the settings and nothing of what they set up.
//
// The struct Settings is the one list of keys: its tags carry the words for the
// documentation, the ranges and the permitted words, and Default the defaults.
// The key a.b is the environment variable ATHENA_A_B.
package config

import (
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/athena-pipelines/athena/pkg/athena"
)

// Settings are all settings of a process, checked. The zero value is not valid;
// Default is.
type Settings struct {
	Listen         string         `koanf:"listen" doc:"address of the HTTP API, host:port; port 0 lets the system choose"`
	DataDir        string         `koanf:"data_dir" doc:"where the embedded broker, the key and the spool live"`
	Auth           string         `koanf:"auth" oneof:"on off" doc:"off lets everybody do everything and is allowed on a loopback address only"`
	ClientsDir     string         `koanf:"clients_dir" doc:"directory of client definitions (*.yaml) that are applied at start and on change; none if empty"`
	TrustedProxies []netip.Prefix `koanf:"trusted_proxies" doc:"networks of proxies whose X-Forwarded-For is believed"`
	Log            Log            `koanf:"log"`
	TLS            ServerTLS      `koanf:"tls"`
	NATS           NATS           `koanf:"nats"`
	Worker         Worker         `koanf:"worker"`
	Limits         Limits         `koanf:"limits"`
	Deferred       Deferred       `koanf:"deferred"`
	CDC            CDC            `koanf:"cdc"`
	Webhooks       Webhooks       `koanf:"webhooks"`
	OTLP           OTLP           `koanf:"otlp"`

	// Ignored are environment variables that begin with ATHENA_ and are no
	// setting, such as those that Kubernetes makes for a service of the name.
	Ignored []string
}

// Log says what is logged and how.
type Log struct {
	Level  string `koanf:"level" oneof:"debug info warn error" doc:"the least severe level that is logged"`
	Format string `koanf:"format" oneof:"text json" doc:"form of a log line"`
}

// ServerTLS protects a listener. Both files or neither.
type ServerTLS struct {
	CertFile string `koanf:"cert_file" doc:"certificate chain in PEM; plain text if empty"`
	KeyFile  string `koanf:"key_file" doc:"private key in PEM"`
}

// NATS says which broker carries everything.
type NATS struct {
	URL      string        `koanf:"url" doc:"servers of an external cluster, separated by commas; empty runs the embedded one"`
	Creds    string        `koanf:"creds" doc:"file of credentials for the external cluster"`
	User     string        `koanf:"user" doc:"user at the external cluster"`
	Password athena.Secret `koanf:"password" doc:"password of the user, or env:NAME, or file:PATH"`
	Token    athena.Secret `koanf:"token" doc:"token for the external cluster, or env:NAME, or file:PATH"`
	TLS      ClientTLS     `koanf:"tls"`
	Replicas int           `koanf:"replicas" min:"1" max:"5" doc:"copies of each stream; 1, 3 or 5, and as many servers are needed"`
	Embedded Embedded      `koanf:"embedded"`
}

// ClientTLS protects a connection that the process makes.
type ClientTLS struct {
	CAFile     string `koanf:"ca_file" doc:"certificates that are trusted, in PEM; the system's if empty"`
	CertFile   string `koanf:"cert_file" doc:"client certificate in PEM"`
	KeyFile    string `koanf:"key_file" doc:"private key of the client certificate in PEM"`
	ServerName string `koanf:"server_name" doc:"name that the server's certificate must bear, if not its host"`
	SkipVerify bool   `koanf:"skip_verify" doc:"true trusts any server; for tests"`
}

// Embedded is the broker inside the process.
type Embedded struct {
	Listen   string        `koanf:"listen" doc:"host:port where other processes reach the embedded broker; within the process only if empty"`
	User     string        `koanf:"user" doc:"user that other processes must give"`
	Password athena.Secret `koanf:"password" doc:"password that other processes must give, or env:NAME, or file:PATH"`
	TLS      ServerTLS     `koanf:"tls"`
	Sync     Sync          `koanf:"sync" doc:"always: on disk before it is acknowledged; an interval such as 2m may lose that much on power loss"`
	MaxStore Bytes         `koanf:"max_store" min:"0" doc:"most that streams may take on disk; 0 is what the disk has"`
	Cluster  Cluster       `koanf:"cluster"`
}

// Cluster joins embedded brokers.
type Cluster struct {
	Name   string   `koanf:"name" doc:"name of the cluster, the same on each server; one server alone if empty"`
	Server string   `koanf:"server" doc:"name of this server, different on each"`
	Listen string   `koanf:"listen" doc:"host:port where the other servers reach this one"`
	Routes []string `koanf:"routes" doc:"URLs of the other servers, nats-route://host:port"`
}

// Worker runs deferred queries.
type Worker struct {
	Enabled     bool            `koanf:"enabled" doc:"whether serve runs a worker inside"`
	Clients     []string        `koanf:"clients" doc:"clients that it serves; all if empty"`
	Engines     []string        `koanf:"engines" oneof:"postgres scylla s3" doc:"engines that it serves; all if empty"`
	Concurrency int             `koanf:"concurrency" min:"1" max:"10000" doc:"jobs that run at once in the process"`
	Tasks       int             `koanf:"tasks" min:"1" max:"64" doc:"tasks of pipelines that run at once in the process"`
	TaskBytes   Bytes           `koanf:"task_bytes" min:"16KiB" max:"4GiB" doc:"about how much of a table, or of objects, one task of a pipeline reads: what is read again if a worker is killed"`
	Lease       athena.Duration `koanf:"lease" min:"2s" max:"5m" doc:"how long a worker that died keeps its runs and tasks of pipelines from others"`
	ID          string          `koanf:"id" doc:"name of the worker in leases and attempts; host and process id if empty"`
}

// Limits bound what the API takes.
type Limits struct {
	BodyBytes         Bytes           `koanf:"body_bytes" min:"1KiB" max:"1GiB" doc:"largest body of a request"`
	RequestsPerSecond float64         `koanf:"requests_per_second" min:"0" max:"1000000" doc:"requests of one key, in each process; 0 is no limit"`
	HeaderTimeout     athena.Duration `koanf:"header_timeout" min:"100ms" max:"5m" doc:"longest wait for a request's headers"`
	ShutdownTimeout   athena.Duration `koanf:"shutdown_timeout" min:"1s" max:"10m" doc:"longest wait for work in hand when the process stops"`
	SyncTimeout       athena.Duration `koanf:"sync_timeout" min:"100ms" max:"1h" doc:"longest synchronous query; longer ones must be deferred"`
}

// Deferred are the terms of deferred queries.
type Deferred struct {
	DefaultDeadline athena.Duration `koanf:"default_deadline" min:"1s" max:"720h" doc:"how long a job may wait and run if it does not say"`
	MaxDeadline     athena.Duration `koanf:"max_deadline" min:"1s" max:"720h" doc:"longest that a job may ask for"`
	ResultTTL       athena.Duration `koanf:"result_ttl" min:"1m" max:"168h" doc:"how long a result is kept; a job is kept for this long after its deadline, and at least a day"`
	InlineBytes     Bytes           `koanf:"inline_bytes" min:"0" max:"512KiB" doc:"largest result that is kept with the job"`
	SegmentBytes    Bytes           `koanf:"segment_bytes" min:"64KiB" max:"64MiB" doc:"size of one segment of a larger result, before compression"`
}

// CDC bounds the capture of changes.
type CDC struct {
	SpillMemory Bytes `koanf:"spill_memory" min:"1MiB" max:"4GiB" doc:"how much of transactions that are not yet committed a capture holds in memory; more goes to data_dir/spill"`
	SpillMax    Bytes `koanf:"spill_max" min:"0" doc:"most that a capture may put there; beyond it large transactions wait at the database. 0 is what the disk has"`
}

// Webhooks say where webhooks may go.
type Webhooks struct {
	AllowPrivate []netip.Prefix `koanf:"allow_private" doc:"private, loopback and link-local networks that webhooks may reach; none if empty"`
}

// OTLP says where traces go.
type OTLP struct {
	Endpoint string `koanf:"endpoint" doc:"URL of an OTLP/HTTP collector, http://host:4318; no traces if empty"`
}

// Default returns the settings that hold where nothing is said. The data
// directory depends on the environment.
func Default(getenv func(string) string) *Settings {
	return &Settings{
		Listen:  "127.0.0.1:4052",
		DataDir: dataDir(getenv),
		Auth:    "on",
		Log:     Log{Level: "info", Format: "text"},
		NATS:    NATS{Replicas: 1},
		Worker:  Worker{Enabled: true, Concurrency: 64, Tasks: 4, TaskBytes: 64 << 20, Lease: athena.Duration(10 * time.Second)},
		Limits: Limits{
			BodyBytes:       8 << 20,
			HeaderTimeout:   athena.Duration(10 * time.Second),
			ShutdownTimeout: athena.Duration(20 * time.Second),
			SyncTimeout:     athena.Duration(time.Minute),
		},
		CDC: CDC{SpillMemory: 16 << 20},
		Deferred: Deferred{
			DefaultDeadline: athena.Duration(24 * time.Hour),
			MaxDeadline:     athena.Duration(168 * time.Hour),
			ResultTTL:       athena.Duration(24 * time.Hour),
			InlineBytes:     64 << 10,
			SegmentBytes:    4 << 20,
		},
	}
}

// Bytes is a size that is written with a unit: 64KiB, 8MiB, 10GiB, 1TiB, or a
// plain number of bytes.
type Bytes int64

var units = []struct {
	name string
	size Bytes
}{{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}}

// String writes the size with the largest unit that divides it.
func (b Bytes) String() string {
	for _, u := range units {
		if b != 0 && b%u.size == 0 {
			return strconv.FormatInt(int64(b/u.size), 10) + u.name
		}
	}
	return strconv.FormatInt(int64(b), 10)
}

// MarshalText is String.
func (b Bytes) MarshalText() ([]byte, error) { return []byte(b.String()), nil }

// UnmarshalText reads what String writes.
func (b *Bytes) UnmarshalText(text []byte) error {
	number, size := string(text), Bytes(1)
	for _, u := range units {
		if rest, ok := strings.CutSuffix(number, u.name); ok {
			number, size = strings.TrimSpace(rest), u.size
			break
		}
	}
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || n < 0 || n > int64((1<<62)/size) {
		return athena.Errorf(athena.CodeInvalidRequest, "%q is not a size; write it as 64KiB, 8MiB or 10GiB", text)
	}
	*b = Bytes(n) * size
	return nil
}

// Sync is how often the embedded broker syncs its files: 0 is before each
// acknowledgement, written "always".
type Sync time.Duration

// String writes "always" or the interval.
func (s Sync) String() string {
	if s == 0 {
		return "always"
	}
	return time.Duration(s).String()
}

// MarshalText is String.
func (s Sync) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads "always", or an interval of at least a second.
func (s *Sync) UnmarshalText(text []byte) error {
	if string(text) == "always" {
		*s = 0
		return nil
	}
	d, err := time.ParseDuration(string(text))
	if err != nil || d < time.Second {
		return athena.Errorf(athena.CodeInvalidRequest, "%q is neither always nor an interval of 1s or more", text)
	}
	*s = Sync(d)
	return nil
}
