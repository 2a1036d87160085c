package athena

import (
	"crypto/tls"
	"crypto/x509"
	"os"
)

// Load makes what crypto/tls wants, from the files of this process. A file that
// cannot be read is backend_unavailable, since another process may have it.
func (t *TLS) Load() (*tls.Config, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: t.ServerName, InsecureSkipVerify: t.SkipVerify}
	if t.CAFile != "" {
		pem, err := os.ReadFile(t.CAFile)
		if err != nil {
			return nil, Wrap(CodeBackendUnavailable, err, "the file of connection.tls.ca_file cannot be read on this process").At("connection.tls.ca_file")
		}
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(pem) {
			return nil, Errorf(CodeInvalidRequest, "connection.tls.ca_file holds no certificate in PEM").At("connection.tls.ca_file")
		}
	}
	switch {
	case (t.CertFile == "") != (t.KeyFile == ""):
		return nil, Errorf(CodeInvalidRequest, "connection.tls.cert_file and connection.tls.key_file go together; give both or neither").At("connection.tls.cert_file")
	case t.CertFile != "":
		cert, err := tls.LoadX509KeyPair(t.CertFile, t.KeyFile)
		if err != nil {
			return nil, Wrap(CodeBackendUnavailable, err, "the certificate of connection.tls.cert_file and its key cannot be used on this process").At("connection.tls.cert_file")
		}
		cfg.Certificates = []tls.Certificate{cert}
	}
	return cfg, nil
}
