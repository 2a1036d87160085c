// Command bench measures Athena as its users meet it, over HTTP and through real
// processes, and prints each figure beside its target from the design and beside
// what the machine can do at all, measured in the same run.
//
//	go run ./bench            # everything, some twenty-five minutes
//	go run ./bench -run sync  # what matches
//	go run ./bench -quick     # smaller sizes, for a look
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/athena-pipelines/athena/bench/rig"
	"github.com/athena-pipelines/athena/pkg/locals3"
)

// A figure is one line of the table.
type figure struct {
	name   string
	got    float64
	unit   string
	target float64
	// atMost says that a smaller figure is better.
	atMost bool
	note   string
}

// ratio is how much better than its target the figure is; above 1 it is met.
func (f figure) ratio() float64 {
	if f.atMost {
		return f.target / f.got
	}
	return f.got / f.target
}

// A bench measures something on a rig of its own making.
type bench struct {
	name string
	rig  rig.Config
	run  func(ctx context.Context, r *rig.Rig, quick bool) ([]figure, error)
}

func benches() []bench {
	return []bench{
		{"start", rig.Config{Inside: true}, startup},
		{"sync", rig.Config{Inside: true}, syncOverhead},
		{"submit", rig.Config{}, submitRate},
		{"jobs", rig.Config{Inside: true}, noopJobs},
		{"fair", rig.Config{Inside: true}, fairness},
		{"thaw", rig.Config{Inside: true}, thaw},
		{"takeover", rig.Config{Workers: 2}, takeover},
		{"result", rig.Config{Workers: 1}, largeResult},
		{"cdc-bulk", rig.Config{Workers: 1, Postgres: cdcPostgres}, drain("bulk changes", 2_000_000, 10_000, 75_000, 0.75)},
		{"cdc-single", rig.Config{Workers: 1, Postgres: cdcPostgres}, drain("one-row transactions", 500_000, 1, 40_000, 0.6)},
		{"cdc-latency", rig.Config{Workers: 1, Postgres: cdcPostgres}, latency("always", 50)},
		{"cdc-latency-unsynced", rig.Config{Workers: 1, Postgres: cdcPostgres, Sync: "2m"}, latency("2m", 25)},
		{"cdc-large", rig.Config{Workers: 1, Postgres: cdcPostgres}, largeTransaction},
		{"cdc-snapshot", rig.Config{Workers: 1, Postgres: cdcPostgres}, snapshotRate},
		{"cdc-subscribers", rig.Config{Workers: 1, Postgres: cdcPostgres}, idleSubscribers},
		{"scylla-cdc", rig.Config{Workers: 1, Bare: true}, drainLog(400_000)},
		{"pipe-parquet", rig.Config{Workers: 1, Postgres: cdcPostgres}, toParquet},
		{"pipe-table", rig.Config{Workers: 1, Postgres: cdcPostgres}, toTable},
		{"pipe-cdc", rig.Config{Workers: 1, Postgres: cdcPostgres}, changesToTable},
		{"pipe-cql", rig.Config{Workers: 1, Postgres: cdcPostgres}, toCQL},
		{"pipe-cql-parquet", rig.Config{Workers: 1, Postgres: cdcPostgres}, fromCQL},
		{"pipe-plan", rig.Config{Workers: 1, Postgres: cdcPostgres}, planOfHundred},
		{"pipe-poison", rig.Config{Workers: 1, Postgres: cdcPostgres}, poison},
		{"pipe-memory", rig.Config{Workers: 1, Postgres: cdcPostgres}, manyRows},
	}
}

func main() {
	locals3.Serve() // which this program is where it is its own child
	run := flag.String("run", "", "a regular expression that chooses benches")
	quick := flag.Bool("quick", false, "smaller sizes")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := all(ctx, *run, *quick); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		stop()
		os.Exit(1)
	}
}

func all(ctx context.Context, only string, quick bool) error {
	match, err := regexp.Compile(only)
	if err != nil {
		return err
	}
	var table []figure
	for _, b := range benches() {
		if !match.MatchString(b.name) {
			continue
		}
		fmt.Fprintf(os.Stderr, "bench: %s …\n", b.name)
		figures, err := one(ctx, b, quick)
		if err != nil {
			return fmt.Errorf("%s: %w", b.name, err)
		}
		table = append(table, figures...)
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "figure\tmeasured\ttarget\tratio\tnote")
	for _, f := range table {
		sign := "≥"
		if f.atMost {
			sign = "≤"
		}
		fmt.Fprintf(w, "%s\t%.4g %s\t%s %g %s\t%.2f\t%s\n", f.name, f.got, f.unit, sign, f.target, f.unit, f.ratio(), f.note)
	}
	return w.Flush()
}

func one(ctx context.Context, b bench, quick bool) ([]figure, error) {
	r, err := rig.Start(ctx, b.rig)
	defer r.Stop()
	if err != nil {
		return nil, fmt.Errorf("%w\n%s", err, r.Logs())
	}
	figures, err := b.run(ctx, r, quick)
	if err != nil {
		err = fmt.Errorf("%w\n%s", err, r.Logs())
	}
	return figures, err
}

// quantile returns the q-th part of the durations, in the order of size.
func quantile(ds []time.Duration, q float64) time.Duration {
	if len(ds) == 0 {
		return 0
	}
	ds = slices.Clone(ds)
	slices.Sort(ds)
	return ds[min(int(q*float64(len(ds))), len(ds)-1)]
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func mib(bytes int64) float64 { return float64(bytes) / (1 << 20) }

func note(format string, args ...any) string { return strings.TrimSpace(fmt.Sprintf(format, args...)) }
