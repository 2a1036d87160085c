// Command scyllarecord writes what a real cluster has in a log of changes into
// fixtures that the driver's tests read.
//
// With -keyspace and -table it records the log of a table that is there, and only
// reads. With -fixtures it does what each file of a directory says was done, in a
// keyspace of its own that it drops afterwards, and writes the cluster's log beside
// it as recorded-…json: so what the documentation shows, and what we made up after
// it, is held against what a cluster writes.
//
// The password is read from the environment, SCYLLA_TEST_PASSWORD. What a double
// wrote is not called recorded.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"time"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/driver/scylla"
	"github.com/athena-pipelines/athena/pkg/driver/scylla/cdcfixture"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, os.Args[1:], os.Getenv, os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "scyllarecord:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, getenv func(string) string, stdout io.Writer) (err error) {
	flags := flag.NewFlagSet("scyllarecord", flag.ContinueOnError)
	flags.SetOutput(stdout)
	hosts := flags.String("hosts", getenv("SCYLLA_TEST_HOSTS"), "contact points, host:port, separated by commas")
	username := flags.String("username", getenv("SCYLLA_TEST_USERNAME"), "user")
	ca := flags.String("tls-ca", getenv("SCYLLA_TEST_TLS_CA"), "file with the certificates that TLS is verified with; empty is no TLS")
	datacenter := flags.String("datacenter", getenv("SCYLLA_TEST_DATACENTER"), "datacenter to speak to")
	keyspace := flags.String("keyspace", "", "keyspace of the table to record")
	table := flags.String("table", "", "table to record, whose cdc option is on")
	most := flags.Int("most", 1000, "most rows of a log; a longer one is refused")
	fixtures := flags.String("fixtures", "", "directory of fixtures to do again and to record")
	layout := flags.String("layout", "vnodes", "with -fixtures: vnodes or tablets")
	wait := flags.Duration("wait", 2*time.Second, "with -fixtures: how long a log must rest to be taken as whole")
	out := flags.String("out", ".", "directory that the files are written to")
	if err := flags.Parse(args); err != nil {
		return err
	}
	oneTable := *keyspace != "" && *table != ""
	if *hosts == "" || oneTable == (*fixtures != "") {
		return errors.New("-hosts is needed, and either -keyspace and -table or -fixtures")
	}
	conn := athena.ScyllaConn{Hosts: strings.Split(*hosts, ","), Username: *username, Datacenter: *datacenter}
	if p := getenv("SCYLLA_TEST_PASSWORD"); p != "" {
		conn.Password = athena.NewSecret(p)
	}
	if *ca != "" {
		conn.TLS = &athena.TLS{CAFile: *ca}
	}
	backend, err := scylla.Driver().Open(ctx, conn)
	if err != nil {
		return err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		err = cmp.Or(err, backend.Close(ctx))
	}()
	r := &recorder{backend: backend, out: *out, most: *most, stdout: stdout}
	if err := r.identify(ctx); err != nil {
		return err
	}
	if oneTable {
		return r.recordTable(ctx, *keyspace, *table)
	}
	all, err := cdcfixture.Load(*fixtures)
	if err != nil {
		return err
	}
	return r.recordAgain(ctx, all, *layout, *wait)
}
