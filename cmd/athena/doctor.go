package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/bus"
	"github.com/athena-pipelines/athena/pkg/catalog"
	"github.com/athena-pipelines/athena/pkg/config"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/resolver"
	"github.com/athena-pipelines/athena/pkg/sdk"
	"github.com/athena-pipelines/athena/pkg/secret"
)

// A verdict is how serious a finding is.
type verdict string

const (
	fine   verdict = "ok"
	unwell verdict = "warn" // it works, and a promise is weaker or in danger
	ill    verdict = "fail" // it does not work
)

// A finding is one thing that was looked at.
type finding struct {
	Check   string  `json:"check"`
	Verdict verdict `json:"verdict"`
	Detail  string  `json:"detail"`
	Mend    string  `json:"mend,omitempty"` // what to do about it; empty if all is well
}

// doctor gathers findings.
type doctor struct {
	*program
	cfg      *config.Settings
	findings []finding
}

func (d *doctor) found(check string, v verdict, mend, format string, args ...any) {
	if v == fine {
		mend = ""
	}
	d.findings = append(d.findings, finding{check, v, fmt.Sprintf(format, args...), mend})
}

func (p *program) doctorCommand() *cobra.Command {
	s := &settings{}
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Look for what is wrong, and say how to mend it",
		Long: `Looks at the configuration, the bus, the clients, clocks, disk, limits and files of
the process that would be started here with the same flags. If a server runs over the
data directory, it is asked over HTTP (with ATHENA_URL and ATHENA_KEY or a profile),
about captures and pipelines too; if none runs, its bus is opened for the moment.
Nothing is changed. The directory of athena dev is understood as well.

The exit code is 0 if nothing fails; warnings alone do not change it.`,
		Example: `  athena doctor
  athena doctor --config /etc/athena/athena.yaml --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			d := &doctor{program: p}
			d.examine(cmd.Context(), s)
			if err := d.report(); err != nil {
				return err
			}
			for _, f := range d.findings {
				if f.Verdict == ill {
					return outcome{exitFailure, errors.New("something is wrong; see the findings above")}
				}
			}
			return nil
		},
	}
	s.flags(cmd)
	return cmd
}

func (d *doctor) report() error {
	return d.show(d.findings, func(w io.Writer) {
		colors := map[verdict]color{fine: green, unwell: yellow, ill: red}
		for _, f := range d.findings {
			fmt.Fprintf(w, "%s  %-14s %s\n", d.paint(w, colors[f.Verdict], fmt.Sprintf("%-4s", f.Verdict)), f.Check, f.Detail)
			if f.Mend != "" {
				fmt.Fprintf(w, "      %-14s mend: %s\n", "", f.Mend)
			}
		}
	})
}

func (d *doctor) examine(ctx context.Context, s *settings) {
	b := buildInfo()
	d.found("program", fine, "", "athena %s, %s, nats-server %s, drivers: %s", b.Version, b.Go, b.NATS, strings.Join(b.Drivers, ", "))
	d.configuration(s)
	d.openFiles()
	d.privateFile("profiles", d.profilesPath())
	if d.cfg == nil {
		return
	}
	d.dataDir()
	d.privateFile("key file", filepath.Join(d.cfg.DataDir, secret.KeyFile))
	d.running(ctx)
}

func (d *doctor) configuration(s *settings) {
	cfg, err := s.load(d.environ)
	for _, e := range each(err) {
		d.found("configuration", ill, "change the setting as the message says", "%s", athena.AsError(e).Message)
	}
	if err != nil {
		return
	}
	d.cfg = cfg
	d.scope(s)
	d.found("configuration", fine, "", "listen %s, data in %s, bus %s, auth %s", cfg.Listen, cfg.DataDir, busOf(cfg), cfg.Auth)
	if cfg.Auth == "off" {
		d.found("configuration", unwell, "set auth to on, but for tests", "auth is off: everybody on this machine may do everything")
	}
	for _, name := range cfg.Ignored {
		d.found("configuration", unwell, "unset it, or correct its name", "the environment variable %s is no setting and has no effect", name)
	}
}

// accessFile in dev's directory holds what lets people in.
const accessFile = "access.json"

// scope says what is looked at, where that may not be what is meant: the
// directory of dev has the server's inside, and a URL names no directory.
func (d *doctor) scope(s *settings) {
	inner := filepath.Join(d.cfg.DataDir, "server")
	if exists(filepath.Join(d.cfg.DataDir, accessFile)) && exists(inner) {
		d.found("scope", fine, "", "%s belongs to athena dev; its server's data is in %s", d.cfg.DataDir, inner)
		d.cfg.DataDir = inner
	}
	local := s.file != "" || s.overrides["data_dir"] != nil || d.getenv("ATHENA_CONFIG") != "" || d.getenv("ATHENA_DATA_DIR") != ""
	if d.getenv("ATHENA_URL") != "" && !local {
		d.found("scope", fine, "", "this looks at the configuration of this machine, and not at the server of ATHENA_URL; name what is meant with --data or --config")
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func busOf(cfg *config.Settings) string {
	if cfg.NATS.URL != "" {
		return "external"
	}
	return "embedded"
}

func (d *doctor) openFiles() {
	const enough = 4096
	switch n, known := openFilesLimit(); {
	case !known:
	case n < enough:
		d.found("open files", unwell, fmt.Sprintf("raise it to %d or more: ulimit -n, or LimitNOFILE= in systemd", enough), "the process may open %d files", n)
	default:
		d.found("open files", fine, "", "the process may open %d", n)
	}
}

// privateFile looks at a file that holds a secret, if it is there.
func (d *doctor) privateFile(check, path string) {
	info, err := os.Stat(path)
	switch {
	case err != nil:
	case info.Mode().Perm()&0o077 != 0 && runtime.GOOS != "windows":
		d.found(check, ill, "chmod 600 "+path, "%s may be read by others (mode %04o)", path, info.Mode().Perm())
	default:
		d.found(check, fine, "", "%s is private", path)
	}
}

func (d *doctor) dataDir() {
	dir := d.cfg.DataDir
	probe := dir
	for probe != filepath.Dir(probe) { // the nearest that is there
		if _, err := os.Stat(probe); err == nil {
			break
		}
		probe = filepath.Dir(probe)
	}
	if free, total, known := diskSpace(probe); known {
		mend := "make room, or bound the broker with nats.embedded.max_store"
		switch share := float64(free) / float64(max(total, 1)); {
		case free < 256<<20:
			d.found("disk", ill, mend, "%s free at %s: jobs are about to be refused", size(free), probe)
		case free < 2<<30 || share < .05:
			d.found("disk", unwell, mend, "%s of %s free at %s", size(free), size(total), probe)
		default:
			d.found("disk", fine, "", "%s of %s free at %s", size(free), size(total), probe)
		}
	}
	if probe != dir {
		d.found("data directory", fine, "", "%s will be made at the first start", dir)
		return
	}
	took, err := syncLatency(dir)
	const mend = "use a local SSD, or one with a power-loss-protected cache; every submit waits for a sync"
	switch {
	case err != nil:
		d.found("data directory", ill, "give this user the right to write there", "%s cannot be written: %v", dir, err)
	case took > 50*time.Millisecond:
		d.found("sync", unwell, mend, "a write to %s takes %s until it is on disk", dir, readable(took))
	default:
		d.found("sync", fine, "", "a write to %s takes %s until it is on disk", dir, readable(took))
	}
}

// syncLatency is the median time for a small write to reach the disk.
func syncLatency(dir string) (time.Duration, error) {
	f, err := os.CreateTemp(dir, "doctor-*")
	if err != nil {
		return 0, err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	var took []time.Duration
	for range 21 {
		begin := time.Now()
		if _, err := f.Write(make([]byte, 4096)); err != nil {
			return 0, err
		}
		if err := f.Sync(); err != nil {
			return 0, err
		}
		took = append(took, time.Since(begin))
	}
	return quantile(took, .5), nil
}

func size(n uint64) string {
	for _, u := range []struct {
		name string
		size uint64
	}{{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}} {
		if n >= u.size {
			return fmt.Sprintf("%.1f %s", float64(n)/float64(u.size), u.name)
		}
	}
	return fmt.Sprintf("%d bytes", n)
}

// running looks at the bus and the clients: through the server if one runs over
// the data directory, else by opening the bus itself.
func (d *doctor) running(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if d.cfg.NATS.URL == "" {
		if _, err := os.Stat(filepath.Join(d.cfg.DataDir, "jetstream")); err != nil {
			d.found("bus", fine, "", "there is none yet; the first start makes it")
			return
		}
	}
	keyring, err := d.keyring()
	if err != nil {
		d.found("key file", ill, "restore the deployment's key, or set "+secret.KeyVariable, "%v", err)
		return
	}
	b, err := dialBroker(ctx, d.cfg, keyring, slog.New(slog.DiscardHandler))
	switch {
	case athena.CodeOf(err) == athena.CodeConflict:
		d.found("bus", fine, "", "a running server has it")
		d.overHTTP(ctx)
		return
	case err != nil:
		d.found("bus", ill, "start the NATS servers, or correct nats.url and the credentials", "%s", athena.AsError(err).Message)
		return
	}
	d.bus(ctx, b)
	d.dial(ctx, b, keyring)
	if err := b.close(ctx); err != nil {
		d.found("bus", unwell, "look at the log", "%v", err)
	}
}

// keyring is the deployment's, or one for the moment where there is none: a
// doctor makes no keys.
func (d *doctor) keyring() (*secret.Keyring, error) {
	dir := d.cfg.DataDir
	if _, err := os.Stat(filepath.Join(dir, secret.KeyFile)); errors.Is(err, fs.ErrNotExist) {
		tmp, err := os.MkdirTemp("", "athena-doctor-")
		if err != nil {
			return nil, err
		}
		defer os.RemoveAll(tmp)
		dir = tmp
	}
	return secret.LoadOrCreate(dir, d.getenv)
}

// dial opens the clients' backends from here.
func (d *doctor) dial(ctx context.Context, b *broker, keyring *secret.Keyring) {
	kv, err := b.bus.JetStream().KeyValue(ctx, bus.BucketCatalog)
	if err != nil {
		return // that it is missing has been said
	}
	known := drivers()
	clients := catalog.New(kv, catalog.Config{Keyring: keyring, Supports: func(e athena.Engine) athena.Capabilities { return known[e].Supports }})
	backends := resolver.New(clients, known, resolver.Config{Open: keyring.Open})
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { _ = clients.Run(ctx) })
	defer wg.Wait()
	defer cancel()
	defer backends.Close(ctx)
	list, err := clients.List(ctx)
	if err != nil {
		d.found("clients", ill, "see that the bus works", "%s", athena.AsError(err).Message)
		return
	}
	for _, p := range clients.Problems() {
		d.found("client "+p.Name, ill, "store it again, or use the version that stored it", "%s", athena.AsError(p.Err).Message)
	}
	for _, c := range list {
		d.dialOne(ctx, backends, c)
	}
	if len(list) == 0 {
		d.found("clients", fine, "", "none is defined yet")
	}
}

func (d *doctor) dialOne(ctx context.Context, backends *resolver.Resolver, c *athena.Client) {
	check := "client " + c.Name
	if c.Lifecycle != athena.Active {
		d.found(check, fine, "", "it is %s and was not dialled", c.Lifecycle)
		return
	}
	b, release, err := backends.Backend(ctx, c)
	if err == nil {
		defer release()
		err = b.Ping(ctx)
	}
	if err != nil {
		d.found(check, ill, "see that the backend runs, that a bucket is there, and that its secret is here; or run a worker where all of it is", "%s", athena.AsError(err).Message)
		return
	}
	what, bucket := "its backend", ""
	if i, ok := b.(driver.Identifier); ok {
		if id, err := i.Identity(ctx); err == nil {
			what, bucket = id.Product+" "+id.Version, bucketOf(id.Facts)
		}
	}
	d.found(check, fine, "", "%s answers%s", what, bucket)
	q, ok := b.(driver.Querier)
	if !ok || q.Language() != driver.SQL {
		return
	}
	before := time.Now()
	rows, err := q.Query(ctx, driver.Statement{Text: currentTime, Timeout: 5 * time.Second, ReadOnly: true})
	if err != nil {
		return
	}
	defer rows.Close()
	var row struct{ Now time.Time }
	if rows.Next() && json.Unmarshal(rows.AppendJSON(nil), &row) == nil {
		d.clock(check+"'s backend", row.Now, before, time.Now())
	}
}

func (d *doctor) bus(ctx context.Context, b *broker) {
	if err := b.healthy(); err != nil {
		d.found("bus", ill, "look at the disk and at the server's log, then restart it", "%s", athena.AsError(err).Message)
	}
	findings, err := b.bus.Check(ctx)
	if err != nil {
		d.found("bus", ill, "see that JetStream is enabled for this account", "%s", athena.AsError(err).Message)
		return
	}
	weak := 0
	for _, f := range findings {
		if !f.Weak {
			d.found("bus", fine, "", "%s is %s; %s", f.Setting, f.Found, f.Mend)
			continue
		}
		weak++
		d.found("bus", unwell, f.Mend, "%s", f)
	}
	if weak == 0 {
		d.found("bus", fine, "", "%s broker, nats-server %s; all streams are as durable as they must be", b.mode(), b.conn.ConnectedServerVersion())
	}
	begin := time.Now()
	info, err := b.bus.JetStream().AccountInfo(ctx)
	if err == nil {
		d.found("bus", fine, "", "%d streams, %s stored, answers in %s", info.Streams, size(info.Store), since(begin))
	}
	d.busClock(ctx, b)
}

// overHTTP looks at what a running server knows.
func (d *doctor) overHTTP(ctx context.Context) {
	api, err := d.api()
	if err != nil {
		d.found("server", ill, "correct the profile, ATHENA_URL or ATHENA_KEY", "%v", err)
		return
	}
	defer api.Close()
	health, err := api.Health(ctx)
	if err != nil {
		d.found("server", unwell, "start it, or set ATHENA_URL to where it listens; clients were not looked at", "%s", athena.AsError(err).Message)
		return
	}
	d.found("server", fine, "", "%s answers, version %s", api.URL(), health.Version)
	for _, w := range health.Weaknesses {
		d.found("server", unwell, "change the setting that it names", "%s", w)
	}
	if err := api.Ready(ctx); err != nil {
		d.found("server", ill, "look at its log", "%s", athena.AsError(err).Message)
	}
	clients, err := api.Admin().Clients(ctx)
	if err != nil {
		d.found("clients", unwell, "set ATHENA_KEY to a key with the right manage", "they cannot be listed: %s", athena.AsError(err).Message)
		return
	}
	for _, c := range clients {
		d.client(ctx, api, c)
	}
	if len(clients) == 0 {
		d.found("clients", fine, "", "none is defined yet")
	}
	d.captures(ctx, api)
	d.pipelines(ctx, api)
}

// bucketOf says how a backend's bucket is, if it has one.
func bucketOf(facts map[string]string) string {
	if how := facts["bucket"]; how != "" {
		return ", and its bucket is " + how
	}
	return ""
}

// captures looks at how the captures of changes fare.
func (d *doctor) captures(ctx context.Context, api *sdk.API) {
	list, err := api.Captures(ctx)
	if err != nil {
		d.found("captures", unwell, "set ATHENA_KEY to a key with the right cdc:read", "they cannot be listed: %s", athena.AsError(err).Message)
		return
	}
	for _, c := range list {
		if c.Capture == nil || c.Status == nil {
			continue
		}
		check, st := "capture "+c.Capture.Client, c.Status
		switch {
		case st.Cause != nil && (st.State == sdk.CaptureFailed || st.State == sdk.CaptureWaiting):
			d.found(check, ill, st.Cause.Runbook, "it is %s: %s", st.State, st.Cause.Message)
		case st.Cause != nil:
			d.found(check, unwell, st.Cause.Runbook, "it is %s: %s", st.State, st.Cause.Message)
		case st.Slot != nil && st.Slot.Safe >= 0 && st.Slot.Safe < 1<<30:
			d.found(check, unwell, "let it catch up, or raise max_slot_wal_keep_size", "the database gives its slot up after %s more of log", size(uint64(st.Slot.Safe)))
		default:
			d.found(check, fine, "", "it is %s, %s behind", st.State, size(uint64(max(0, st.LagBytes))))
		}
	}
}

// pipelines looks at how pipelines fare.
func (d *doctor) pipelines(ctx context.Context, api *sdk.API) {
	list, err := api.Pipelines().List(ctx)
	if err != nil {
		d.found("pipelines", unwell, "set ATHENA_KEY to a key with the right pipelines:read", "they cannot be listed: %s", athena.AsError(err).Message)
		return
	}
	for _, p := range list {
		check := "pipeline " + p.Name
		switch r := p.LastRun; {
		case r == nil:
			d.found(check, fine, "", "it has never run")
		case r.State == sdk.RunFailed && r.Cause != nil:
			d.found(check, ill, "mend the cause, then athena pipeline resume "+r.ID+", or run it anew", "its last run failed %s: %s", ago(r.EndedAt), r.Cause.Message)
		case r.Cause != nil && !r.State.Over():
			d.found(check, unwell, "it goes on by itself once the cause is gone", "it is %s: %s (%s)", r.State, r.Cause.Message, ago(r.Cause.Since))
		default:
			d.found(check, fine, "", "its last run: %s, %s written", r.State, counted(r.Counts.Written, "row"))
		}
		for row, err := range api.Pipelines().Dead(ctx, p.Name) {
			if err != nil {
				d.found(check, unwell, "look at the server's log", "the rows that could not go on cannot be listed: %s", athena.AsError(err).Message)
			} else {
				d.found(check, unwell, "see them with athena pipeline dead list "+p.Name+"; mend, then redrive or delete them", "rows that could not go on are kept, the first in %s: %s", row.Stage, row.Reason)
			}
			break
		}
	}
	if len(list) == 0 {
		d.found("pipelines", fine, "", "none is stored yet")
	}
}

func (d *doctor) client(ctx context.Context, api *sdk.API, c *athena.Client) {
	check := "client " + c.Name
	if c.Lifecycle != athena.Active {
		d.found(check, fine, "", "it is %s and was not dialled", c.Lifecycle)
		return
	}
	report, err := api.Admin().CheckClient(ctx, c.Name)
	switch {
	case err != nil:
		d.found(check, ill, "look at the server's log", "%s", athena.AsError(err).Message)
		return
	case !report.Reachable:
		d.found(check, ill, "see that the backend runs, that a bucket is there, and that the server has its secret and a route to it; or run a worker where both are", "%s", strings.Join(report.Problems, "; "))
		return
	case len(report.Problems) > 0:
		d.found(check, unwell, "change the definition", "%s", strings.Join(report.Problems, "; "))
	default:
		d.found(check, fine, "", "%s %s answers in %.1f ms%s", report.Identity.Product, report.Identity.Version, report.PingMS, bucketOf(report.Identity.Facts))
	}
	d.clientClock(ctx, api.Client(c.Name))
}
