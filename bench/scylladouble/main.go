// Command scylladouble serves the double of a ScyllaDB cluster that the tests use,
// for trying clients of that engine where no cluster is at hand:
//
//	go run ./bench/scylladouble -exec schema.cql
//
// It is not ScyllaDB, keeps everything in memory, and forgets it when it ends.
// What it cannot show is in docs/scylla.md.
package main

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"

	"github.com/athena-pipelines/athena/pkg/driver/scylla/scyllatest"
)

func main() {
	tablets := flag.Bool("tablets", false, "new keyspaces use tablets, as those of ScyllaDB do")
	nodes := flag.Int("nodes", 1, "number of nodes")
	script := flag.String("exec", "", "file of statements that are run first, one a line")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, *tablets, *nodes, *script)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "scylladouble:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, tablets bool, nodes int, script string) error {
	opts := []scyllatest.Option{scyllatest.Nodes(nodes)}
	if tablets {
		opts = append(opts, scyllatest.Tablets())
	}
	c, err := scyllatest.New(opts...)
	if err != nil {
		return err
	}
	defer c.Close()
	if script != "" {
		if err := execute(c, script); err != nil {
			return err
		}
	}
	fmt.Println(strings.Join(c.Hosts(), " "))
	<-ctx.Done()
	for _, s := range c.Unknown() {
		fmt.Println("unknown:", s)
	}
	return nil
}

// execute runs the statements of a file; lines that begin with -- are comments.
func execute(c *scyllatest.Cluster, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for n := 1; lines.Scan(); n++ {
		text := strings.TrimSuffix(strings.TrimSpace(lines.Text()), ";")
		if text == "" || strings.HasPrefix(text, "--") {
			continue
		}
		if err := c.Exec(text); err != nil {
			return fmt.Errorf("%s:%d: %w", path, n, err)
		}
	}
	return lines.Err()
}
