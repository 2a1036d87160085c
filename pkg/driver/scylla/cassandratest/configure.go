package cassandratest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// opened are the packages of the JDK whose insides Cassandra reaches into, by
// module.
var opened = map[string][]string{
	"java.base": {
		"java.io", "java.lang", "java.lang.module", "java.net", "java.nio", "java.util", "java.util.concurrent",
		"java.util.concurrent.atomic", "jdk.internal.loader", "jdk.internal.math", "jdk.internal.misc",
		"jdk.internal.module", "jdk.internal.ref", "jdk.internal.reflect", "jdk.internal.util.jar", "sun.nio.ch",
	},
	"java.rmi":       {"sun.rmi.transport.tcp"},
	"jdk.management": {"com.sun.management.internal"},
}

// options are the JVM's.
func options(dir string) []string {
	var o []string
	for module, packages := range opened {
		for _, p := range packages {
			o = append(o, "--add-opens="+module+"/"+p+"=ALL-UNNAMED")
		}
	}
	return append(o,
		"-Xms256m", "-Xmx1g", "-XX:MaxDirectMemorySize=256m", "-XX:+UseSerialGC", "-XX:+ExitOnOutOfMemoryError",
		"-XX:TieredStopAtLevel=1", // its life is short
		"-Dcassandra.config=file://"+filepath.Join(dir, "cassandra.yaml"),
		"-Dcassandra.storagedir="+dir,
		"-Dlogback.configurationFile="+filepath.Join(dir, "logback.xml"),
		"-Dcassandra.ring_delay_ms=1000",               // for others in the ring, of which there are at most two
		"-Dcassandra.skip_wait_for_gossip_to_settle=0", // likewise
		"-Dcassandra.superuser_setup_delay_ms=0",
		"-Dcassandra.auth_bcrypt_gensalt_log2_rounds=4",
	)
}

// configure writes the files that the node reads.
func (n *node) configure() error {
	ca, key, err := certificate(n.host)
	if err != nil {
		return err
	}
	files := map[string]string{
		"ca.pem":                      ca,
		"cassandra.yaml":              n.yaml(key + ca),
		"cassandra-rackdc.properties": "dc=" + n.datacenter + "\nrack=rack1\n",
		"logback.xml": `<configuration>
  <appender name="OUT" class="ch.qos.logback.core.ConsoleAppender">
    <encoder><pattern>%-5level %date{HH:mm:ss.SSS} %logger{0} %msg%n</pattern></encoder>
  </appender>
  <root level="WARN"><appender-ref ref="OUT"/></root>
</configuration>
`,
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(n.dir, name), []byte(content), 0o600); err != nil {
			return fmt.Errorf("cassandratest: %w", err)
		}
	}
	return nil
}

// yaml is the node's configuration. What it does not name is Cassandra's default.
func (n *node) yaml(pemKey string) string {
	authenticator, authorizer := "PasswordAuthenticator", "CassandraAuthorizer"
	if n.open {
		authenticator, authorizer = "AllowAllAuthenticator", "AllowAllAuthorizer"
	}
	return fmt.Sprintf(`cluster_name: athena
num_tokens: 8
partitioner: org.apache.cassandra.dht.Murmur3Partitioner
endpoint_snitch: GossipingPropertyFileSnitch
listen_address: %[1]s
storage_port: %[2]d
rpc_address: %[1]s
native_transport_port: %[3]d
seed_provider:
  - class_name: org.apache.cassandra.locator.SimpleSeedProvider
    parameters:
      - seeds: "127.0.0.1:%[2]d"
auto_bootstrap: false
authenticator: %[5]s
authorizer: %[6]s
role_manager: CassandraRoleManager
permissions_validity: 0ms
roles_validity: 0ms
credentials_validity: 60s
commitlog_sync: periodic
commitlog_sync_period: 10s
auto_snapshot: false
hinted_handoff_enabled: false
materialized_views_enabled: true
user_defined_functions_enabled: true
client_encryption_options:
  enabled: true
  optional: true
  ssl_context_factory:
    class_name: org.apache.cassandra.security.PEMBasedSslContextFactory
    parameters:
      private_key: |
%[4]s
`, n.host, n.storage, n.cql, indent(pemKey, "        "), authenticator, authorizer)
}

func indent(text, by string) string {
	return by + strings.ReplaceAll(strings.TrimSpace(text), "\n", "\n"+by)
}

// certificate makes a self-signed certificate of localhost and its key, in PEM.
func certificate(host string) (cert, key string, err error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", "", fmt.Errorf("cassandratest: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "localhost"},
		DNSNames:              []string{"localhost"},
		IPAddresses:           []net.IP{net.ParseIP(host)},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(24 * time.Hour),
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		return "", "", fmt.Errorf("cassandratest: %w", err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return "", "", fmt.Errorf("cassandratest: %w", err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
		string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw})), nil
}
