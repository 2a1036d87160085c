// Command cassandra runs the tests that need a real Apache Cassandra: what its CQL
// and ScyllaDB's have in common.
//
// The server comes as Maven's artifacts, kept in the user's cache directory. What
// ran, or why it could not be had, is said last. With -must, what cannot be had is a
// failure.
package main

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strings"

	"github.com/athena-pipelines/athena/pkg/driver/scylla/cassandratest"
)

// packages hold tests with Cassandra in their names.
var packages = []string{
	"./pkg/driver/scylla/...",
	"./workers/runner",
	"./bench/cqlroad",
	"./workers/runner",
}

func main() {
	must := flag.Bool("must", false, "fail if the server cannot be had")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	code := run(ctx, *must, flag.Args())
	stop()
	os.Exit(code)
}

func run(ctx context.Context, must bool, args []string) int {
	if err := cassandratest.Fetch(ctx); err != nil {
		fmt.Printf("Apache Cassandra %s: 0 run, could not be had: %v\n", cassandratest.Version, err)
		if must {
			return 1
		}
		return 0
	}
	// One package at a time: each has a JVM of its own.
	cmd := exec.CommandContext(ctx, "go", append(append([]string{"test", "-run", "Cassandra", "-count=1", "-v", "-p", "1", "-timeout", "20m"}, packages...), args...)...)
	cmd.Env = append(os.Environ(), cassandratest.Switch+"=1")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "cassandra:", err)
		return 1
	}
	tally := count(io.TeeReader(out, os.Stdout))
	err = cmd.Wait()
	fmt.Printf("Apache Cassandra %s: %d tests passed on it, %d failed, %d skipped\n", cassandratest.Version, tally["PASS"], tally["FAIL"], tally["SKIP"])
	if err != nil {
		return 1
	}
	return 0
}

// count counts the results of tests, of those within others too.
func count(r io.Reader) map[string]int {
	n := map[string]int{}
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if rest, ok := strings.CutPrefix(strings.TrimSpace(lines.Text()), "--- "); ok {
			result, _, _ := strings.Cut(rest, ":")
			n[result]++
		}
	}
	io.Copy(io.Discard, r) // a line that is too long must not stop the writer
	return n
}
