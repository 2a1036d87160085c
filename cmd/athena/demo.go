package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/auth"
	"github.com/athena-pipelines/athena/pkg/localpg"
	"github.com/athena-pipelines/athena/pkg/sdk"
)

// demoWithin bounds the whole of it. It takes about a minute.
const demoWithin = 3 * time.Minute

func (p *program) demoCommand() *cobra.Command {
	var keep bool
	var burst int
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "See deferred queries, change streams and a pipeline work, on real processes, in a minute",
		Long: `Starts a PostgreSQL, a server and workers as real processes in a temporary place, and
does the main job before your eyes: queries now and later, a frozen client, a repeated
submit, a worker killed in the middle of a write and of a COMMIT, a burst of submits;
then the changes of two tables as a stream, and a pipeline that writes them to Parquet on
an S3 server, with the worker of both killed and the files' rows held against the stream.
Each step is checked. In the end everything is stopped and removed; the exit code is 0
only if all of it worked.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if burst < 1 || burst > 9000 {
				return usagef("--burst is %d; it must be between 1 and 9000", burst)
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), demoWithin)
			defer cancel()
			return p.demo(ctx, burst, keep)
		},
	}
	cmd.Flags().IntVar(&burst, "burst", 3000, "jobs to submit in the last step")
	cmd.Flags().BoolVar(&keep, "keep", false, "leave the directory with data and logs")
	return cmd
}

// demo is the deployment that is shown.
type demo struct {
	*program
	tell   *account
	dir    string
	pg     *localpg.Server
	db     *pgxpool.Pool // to count effects, apart from Athena
	server *child
	nats   string // URL with credentials
	dsn    string // where workers find the database
	api    *sdk.API
	shop   *sdk.Client
	burst  int
	worker map[string]*child
	lake   *lake
	run    *sdk.Run // of the pipeline
	// follower is the worker that the pipeline was started on.
	follower string
}

// demo shows all steps, or as many as work, and cleans up.
func (p *program) demo(ctx context.Context, burst int, keep bool) (err error) {
	d := &demo{program: p, tell: newAccount(p), burst: burst, worker: map[string]*child{}}
	if d.dir, err = os.MkdirTemp("", "athena-demo-"); err != nil {
		return err
	}
	err = makeDevDir(d.dir)
	for _, step := range []struct {
		title string
		do    func(context.Context) error
	}{
		{"A server, a worker and a PostgreSQL of your own", d.start},
		{"A query, now", d.queryNow},
		{"A query, later", d.queryLater},
		{"A frozen client's job is held", d.frozen},
		{"The same submit twice is one job", d.twice},
		{"A worker is killed in the middle of a write, and of a COMMIT", d.killed},
		{"A burst of submits, each on disk before it is answered", d.flood},
		{"The changes of the shop become a stream", d.capture},
		{"A pipeline takes the orders to Parquet on S3", d.pipeline},
		{"The shop is written to, a subscriber follows, and the worker of stream and pipeline is killed", d.changes},
		{"The files of the pipeline hold what the stream has", d.files},
	} {
		if err == nil {
			err = d.tell.step(ctx, step.title, step.do)
		}
	}
	if err != nil {
		d.showLogs()
	}
	err = errors.Join(err, d.tell.step(context.WithoutCancel(ctx), "Everything is stopped and removed", func(ctx context.Context) error {
		return d.cleanUp(ctx, keep || err != nil)
	}))
	return d.tell.end(err)
}

func (d *demo) start(ctx context.Context) (err error) {
	begin := time.Now()
	if d.pg, err = d.startPostgres(ctx, d.dir); err != nil {
		return err
	}
	if d.db, err = pgxpool.New(ctx, d.pg.DSN(sampleDatabase)); err != nil {
		return err
	}
	var version string
	if err := d.db.QueryRow(ctx, "SHOW server_version").Scan(&version); err != nil {
		return err
	}
	d.tell.fact("PostgreSQL %s with a sample shop, ready after %s", version, since(begin))

	begin = time.Now()
	key, password := auth.NewKey().Reveal(), rand.Text()
	d.dsn = filepath.Join(d.dir, "shop.dsn")
	if err := os.WriteFile(d.dsn, []byte(d.pg.DSN(sampleDatabase)), 0o600); err != nil {
		return err
	}
	d.server, err = d.spawn(d.dir, "server",
		[]string{"ATHENA_ADMIN_KEY=" + key, "ATHENA_NATS_EMBEDDED_USER=demo", "ATHENA_NATS_EMBEDDED_PASSWORD=" + password},
		"serve", "--no-worker", "--json", "--data", filepath.Join(d.dir, "server"), "--listen", "127.0.0.1:0", "--set", "nats.embedded.listen=127.0.0.1:0")
	if err != nil {
		return err
	}
	var ready struct {
		URL  string `json:"url"`
		NATS string `json:"nats_url"`
	}
	if err := d.server.firstLine(ctx, &ready); err != nil {
		return err
	}
	u, err := url.Parse(ready.NATS)
	if err != nil {
		return err
	}
	u.User = url.UserPassword("demo", password)
	d.nats = u.String()
	if d.api, err = sdk.New(ready.URL, key, sdk.Options{UserAgent: "athena-demo"}); err != nil {
		return err
	}
	if err := d.api.Ready(ctx); err != nil {
		return err
	}
	d.tell.fact("the server (process %d: API and broker, no worker) answers after %s", d.server.cmd.Process.Pid, since(begin))
	shop := shopClient(d.dsn)
	shop.Limits.MaxRunning = 32
	shop.Connection = athena.PostgresConn{DSN: athena.NewSecret("file:" + d.dsn), MaxConns: 40}
	if _, err := d.api.Admin().PutClient(ctx, shop, sdk.Absent); err != nil {
		return err
	}
	d.shop = d.api.Client("shop")
	return d.startWorker("worker-1")
}

// startWorker starts a process that has one connection, to the bus.
func (d *demo) startWorker(name string) error {
	w, err := d.spawn(d.dir, name, nil, "worker", "--nats", d.nats, "--id", name, "--data", filepath.Join(d.dir, name), "--set", "worker.lease=3s")
	if err != nil {
		return err
	}
	w.follow()
	d.worker[name] = w
	d.tell.fact("%s is process %d", name, w.cmd.Process.Pid)
	return nil
}

func (d *demo) showLogs() {
	for _, c := range d.children() {
		if tail := c.tail(); tail != "" {
			fmt.Fprintf(d.stderr, "--- the end of %s's log\n%s\n", c.name, tail)
		}
	}
}

func (d *demo) children() (list []*child) {
	for _, w := range d.worker {
		list = append(list, w)
	}
	if d.server != nil {
		list = append(list, d.server)
	}
	return list
}

// cleanUp stops what runs. That it stops well is a part of what is shown.
func (d *demo) cleanUp(ctx context.Context, keep bool) error {
	var errs []error
	if d.api != nil {
		d.api.Close()
	}
	for _, c := range d.children() {
		errs = append(errs, c.stop(25*time.Second))
	}
	if d.lake != nil {
		d.lake.stop(ctx)
	}
	if d.db != nil {
		d.db.Close()
	}
	if d.pg != nil {
		ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
		defer cancel()
		errs = append(errs, d.pg.Stop(ctx, localpg.Fast))
	}
	if keep {
		d.tell.fact("data and logs are left in %s", d.dir)
	} else {
		errs = append(errs, os.RemoveAll(d.dir))
	}
	return errors.Join(errs...)
}
