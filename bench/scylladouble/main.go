// Command scylladouble runs the double of a ScyllaDB cluster that the tests use, for
// trying what wants a cluster: the contract suite's switch, the recorder, a client
// of `athena dev`. It is no ScyllaDB, and keeps nothing when it ends.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"

	"github.com/athena-pipelines/athena/pkg/driver/scylla/scyllatest"
)

func main() {
	nodes := flag.Int("nodes", 1, "nodes, at 127.0.0.1 and the addresses after it")
	datacenters := flag.String("datacenters", "datacenter1", "datacenters that the nodes are in, in turn, separated by commas")
	tablets := flag.Bool("tablets", false, "keyspaces use tablets unless they say otherwise")
	flag.Parse()
	options := []scyllatest.Option{scyllatest.Nodes(*nodes), scyllatest.Datacenters(strings.Split(*datacenters, ",")...)}
	if *tablets {
		options = append(options, scyllatest.Tablets())
	}
	cluster, err := scyllatest.New(options...)
	if err != nil {
		fmt.Fprintln(os.Stderr, "scylladouble:", err)
		os.Exit(1)
	}
	defer cluster.Close()
	fmt.Println("SCYLLA_TEST_HOSTS=" + strings.Join(cluster.Hosts(), ","))
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	<-ctx.Done()
	for _, text := range cluster.Unknown() {
		fmt.Fprintln(os.Stderr, "a statement that the double does not know:", text)
	}
}
