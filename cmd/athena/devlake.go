package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/catalog"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/locals3"
)

// lakeBucket is the name of dev's client of objects, and of its bucket.
const lakeBucket = "lake"

// A devStore is dev's S3-compatible server, as its report tells it.
type devStore struct {
	Endpoint        string `json:"endpoint"`
	Region          string `json:"region"`
	AccessKeyID     string `json:"access_key_id"`
	SecretAccessKey string `json:"secret_access_key"`
	Bucket          string `json:"bucket"`
}

// lake is the server and what the client needs to reach it.
type lake struct {
	server *locals3.Server
	store  devStore
	secret string // the file that has the secret
	last   string // the endpoint of the start before; empty for none
	log    *os.File
}

// startLake starts the server, where it was the last time if that is free still,
// and makes the bucket.
func startLake(ctx context.Context, dir string, access devAccess) (_ *lake, err error) {
	urls, secret := filepath.Join(dir, "s3.url"), filepath.Join(dir, "lake.secret")
	l := &lake{secret: secret}
	if text, err := os.ReadFile(urls); err == nil {
		l.last = strings.TrimSpace(string(text))
	}
	l.log, err = os.OpenFile(filepath.Join(dir, "s3.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	l.server, err = locals3.Start(ctx, locals3.Config{
		Dir: filepath.Join(dir, "s3"), Port: freeAgain(l.last),
		AccessKeyID: access.S3AccessKeyID, SecretAccessKey: access.S3SecretAccessKey, Log: l.log,
	})
	if err != nil {
		return nil, errors.Join(err, l.log.Close())
	}
	defer func() {
		if err != nil {
			l.stop(ctx)
		}
	}()
	l.store = devStore{l.server.Endpoint(), locals3.Region, access.S3AccessKeyID, access.S3SecretAccessKey, lakeBucket}
	if err := errors.Join(os.WriteFile(secret, []byte(access.S3SecretAccessKey), 0o600), os.WriteFile(urls, []byte(l.store.Endpoint), 0o600)); err != nil {
		return nil, err
	}
	conn := l.connection()
	conn.SecretAccessKey = athena.NewSecret(access.S3SecretAccessKey)
	b, err := drivers()[conn.Engine()].Open(ctx, conn)
	if err != nil {
		return nil, fmt.Errorf("open the bucket %s: %w", lakeBucket, err)
	}
	_, err = b.(driver.Provisioner).Provision(ctx, driver.Provision{Kind: "bucket", Name: lakeBucket})
	return l, errors.Join(err, b.Close(ctx))
}

func (l *lake) stop(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 15*time.Second)
	defer cancel()
	_ = l.server.Stop(ctx) // one that does not stop is killed
	_ = l.log.Close()
}

// freeAgain is the port of a URL of this machine, if it is free; else 0.
func freeAgain(last string) int {
	u, err := url.Parse(last)
	if err != nil || u.Port() == "" {
		return 0
	}
	ln, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", u.Port()))
	if err != nil {
		return 0
	}
	ln.Close()
	port, _ := strconv.Atoi(u.Port())
	return port
}

func (l *lake) connection() athena.S3Conn {
	return athena.S3Conn{
		Endpoint: l.store.Endpoint, Region: l.store.Region, Bucket: l.store.Bucket, PathStyle: true,
		AccessKeyID: l.store.AccessKeyID, SecretAccessKey: athena.NewSecret("file:" + l.secret),
	}
}

// ensureClient makes the client lake if it is not there. One that is there may
// have been changed on purpose; only its endpoint follows the server.
func (l *lake) ensureClient(ctx context.Context, clients *catalog.Catalog) error {
	_, err := clients.Put(ctx, &athena.Client{
		Name: lakeBucket, Lifecycle: athena.Active, Connection: l.connection(),
		Capabilities: athena.Allow(athena.ObjectRead, athena.ObjectWrite, athena.Provisioning, athena.PipelineSource, athena.PipelineSink),
		Metadata:     map[string]any{"about": "the bucket of athena dev"},
	}, catalog.Absent)
	if athena.CodeOf(err) != athena.CodeConflict {
		return err
	}
	there, err := clients.Client(ctx, lakeBucket)
	if err != nil {
		return err
	}
	conn, ok := there.Connection.(athena.S3Conn)
	if !ok || conn.Endpoint != l.last || conn.Endpoint == l.store.Endpoint {
		return nil
	}
	moved := *there
	conn.Endpoint = l.store.Endpoint
	moved.Connection = conn
	_, err = clients.Put(ctx, &moved, catalog.Expect(there.Revision))
	return err
}
