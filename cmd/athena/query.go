package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/sdk"
)

// maxStatement bounds a statement that is read from stdin.
const maxStatement = 16 << 20

// maxWait is how long the server holds a submit for its rows.
const maxWait = 60 * time.Second

// query is what the flags of `athena query` say.
type query struct {
	client, format             string
	params, labels             []string
	deferred, dryRun           bool
	wait                       time.Duration
	request                    sdk.Request
	timeout, ttl               time.Duration
	notBefore, deadline        string
	webhook, resultFormat, key string
	to                         string
}

func (p *program) queryCommand() *cobra.Command {
	q := &query{}
	cmd := &cobra.Command{
		Use:   "query [flags] STATEMENT|-",
		Short: "Run a statement, now or deferred",
		Long: `Runs a statement in the name of a client and writes its rows. With - the statement
is read from standard input.

With --defer the statement is handed over and its job's id is written; it runs when
its client can run it. With --wait as well its rows are written if it is done by then; if
not, its id is written and the exit code is 11.

A parameter is JSON where it reads as JSON, and text otherwise: 42 is a number,
'"42"' and abc are texts, null is NULL.`,
		Example: `  athena query --client shop 'select id, name from products limit 5'
  athena query --client shop 'select * from orders where id = $1' --param 42
  athena query --client shop --defer --wait 10s 'select pg_sleep(3)'
  athena query --client shop --defer --idempotency-key nightly-2026-01-31 - < report.sql
  athena query --client shop --format csv 'select * from customers' > customers.csv
  athena query --client shop --defer --wait 60s --to lake:reports/ 'select * from orders'
  athena query --client shop --dry-run 'delete from orders'`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return p.query(cmd, q, args[0]) },
	}
	f := cmd.Flags()
	p.clientFlag(cmd, &q.client, "client to run it as (ATHENA_CLIENT)")
	f.StringArrayVarP(&q.params, "param", "p", nil, "a parameter, in the order of the placeholders; may be repeated")
	f.StringVar(&q.format, "format", "", "how rows are written: table, json, ndjson or csv (default table)")
	f.DurationVar(&q.timeout, "timeout", 0, "most time that the statement may take at the server")
	f.Int64Var(&q.request.RowLimit, "row-limit", 0, "most rows that are wanted")
	f.StringVar(&q.request.Language, "language", "", "language of the statement: sql or cql")
	f.BoolVar(&q.request.Raw, "raw", false, "use the raw-statement route, which needs raw_sql or raw_cql")
	f.BoolVar(&q.dryRun, "dry-run", false, "tell what would be done, and do nothing")
	f.BoolVar(&q.deferred, "defer", false, "hand it over to be run when it can be")
	f.DurationVar(&q.wait, "wait", 0, "with --defer: wait this long for the rows (at most 60s)")
	f.StringVar(&q.key, "idempotency-key", "", "with --defer: the same key and statement is the same job")
	f.StringVar(&q.request.Priority, "priority", "", "with --defer: interactive, normal or batch")
	f.BoolVar(&q.request.Idempotent, "idempotent", false, "with --defer: running it twice does no harm")
	f.StringVar(&q.notBefore, "not-before", "", "with --defer: earliest start, as 10m or 2026-01-31T15:04:05Z")
	f.StringVar(&q.deadline, "deadline", "", "with --defer: give up if not started by then, as 2h or 2026-01-31T15:04:05Z")
	f.StringVar(&q.webhook, "webhook", "", "with --defer: URL to tell when it has ended")
	f.StringArrayVar(&q.labels, "label", nil, "with --defer: NAME=VALUE to find it by; may be repeated")
	f.StringVar(&q.resultFormat, "result-format", "", "with --defer: how the result is kept: json, ndjson or csv; parquet with --to")
	f.StringVar(&q.to, "to", "", "with --defer: CLIENT:PREFIX, objects that the rows go to, as parquet unless --result-format says otherwise")
	f.DurationVar(&q.ttl, "result-ttl", 0, "with --defer: how long the result is kept")
	must(cmd.RegisterFlagCompletionFunc("format", cobra.FixedCompletions(formats(), cobra.ShellCompDirectiveNoFileComp)))
	must(cmd.RegisterFlagCompletionFunc("priority", cobra.FixedCompletions([]string{"interactive", "normal", "batch"}, cobra.ShellCompDirectiveNoFileComp)))
	return cmd
}

func (p *program) query(cmd *cobra.Command, q *query, statement string) error {
	ctx := cmd.Context()
	format, err := p.rowFormat(q.format)
	if err != nil {
		return err
	}
	if err := q.fill(p, cmd, statement); err != nil {
		return err
	}
	name, err := p.clientName(q.client)
	if err != nil {
		return err
	}
	api, err := p.api()
	if err != nil {
		return err
	}
	defer api.Close()
	c := api.Client(name)
	switch {
	case q.dryRun:
		plan, err := c.DryRun(ctx, q.request, q.deferred)
		if err != nil {
			return err
		}
		return writeJSON(p.stdout, plan)
	case !q.deferred:
		rows, err := c.Run(ctx, q.request)
		if err != nil {
			return err
		}
		return p.writeRows(rows, format)
	case q.wait == 0:
		job, err := c.Defer(ctx, q.request)
		if err != nil {
			return err
		}
		return p.accepted(job)
	}
	rows, job, err := c.DeferWait(ctx, q.request, q.wait)
	if err != nil {
		return ended(err)
	}
	if job == nil {
		return p.writeRows(rows, format)
	}
	if err := p.accepted(job); err != nil {
		return err
	}
	return outcome{exitPending, errors.New("time is up, and the job goes on; see athena deferred get " + job.ID)}
}

func (p *program) accepted(job *sdk.Job) error {
	return p.say(map[string]any{"id": job.ID, "replayed": job.Replayed}, "%s", job.ID)
}

// fill makes the request that the flags ask for.
func (q *query) fill(p *program, cmd *cobra.Command, statement string) error {
	if statement == "-" {
		text, err := io.ReadAll(io.LimitReader(p.stdin, maxStatement+1))
		if err != nil {
			return err
		}
		if len(text) > maxStatement {
			return usagef("the statement on standard input is larger than %d MiB", maxStatement>>20)
		}
		statement = string(text)
	}
	if strings.TrimSpace(statement) == "" {
		return usagef("the statement is empty")
	}
	if q.wait < 0 || q.wait > maxWait {
		return usagef("--wait is %s; it must be between 0s and %s", q.wait, maxWait)
	}
	if !q.deferred && !q.dryRun {
		for _, name := range []string{"wait", "idempotency-key", "priority", "idempotent", "not-before", "deadline", "webhook", "label", "result-format", "result-ttl"} {
			if cmd.Flags().Changed(name) {
				return usagef("--%s goes with --defer", name)
			}
		}
	}
	r := &q.request
	r.Query, r.IdempotencyKey, r.Timeout = statement, q.key, athena.Duration(q.timeout)
	for _, text := range q.params {
		r.Params = append(r.Params, param(text))
	}
	var err error
	if r.NotBefore, err = instant("not-before", q.notBefore); err != nil {
		return err
	}
	if r.Deadline, err = instant("deadline", q.deadline); err != nil {
		return err
	}
	if q.webhook != "" {
		r.Webhook = &sdk.Webhook{URL: q.webhook}
	}
	if q.resultFormat != "" || q.ttl > 0 || q.to != "" {
		r.Result = &sdk.ResultSpec{Format: q.resultFormat, TTL: athena.Duration(q.ttl)}
		if q.to != "" {
			client, prefix, ok := strings.Cut(q.to, ":")
			if !ok {
				return usagef("--to is %q; write it as CLIENT:PREFIX, such as lake:reports/", q.to)
			}
			r.Result.To = &sdk.Destination{Client: client, Prefix: prefix}
		}
	}
	r.Labels, err = labels(q.labels)
	return err
}

// param is a parameter as the command line has it.
func param(text string) any {
	if json.Valid([]byte(text)) {
		return json.RawMessage(text)
	}
	return text
}

// instant reads a point in time, or a span from now; nil if it is empty.
func instant(flag, text string) (*time.Time, error) {
	if text == "" {
		return nil, nil
	}
	if d, err := time.ParseDuration(text); err == nil {
		t := time.Now().Add(d).UTC()
		return &t, nil
	}
	t, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return nil, usagef("--%s is %q; write it as a span from now, such as 10m, or as 2026-01-31T15:04:05Z", flag, text)
	}
	return &t, nil
}

// labels reads NAME=VALUE pairs; nil if there are none.
func labels(pairs []string) (map[string]string, error) {
	if len(pairs) == 0 {
		return nil, nil
	}
	set := make(map[string]string, len(pairs))
	for _, pair := range pairs {
		name, value, ok := strings.Cut(pair, "=")
		if !ok || name == "" {
			return nil, usagef("--label is %q; write it as NAME=VALUE", pair)
		}
		set[name] = value
	}
	return set, nil
}

// describe is a job in one line.
func describe(i *sdk.JobInfo) string {
	text := string(i.State)
	switch {
	case i.Error != nil:
		text += ": " + i.Error.Message
	case i.Result != nil && i.State == sdk.Succeeded && len(i.Result.Columns) > 0:
		text += ", " + counted(i.Result.Rows, "row")
	case i.Result != nil && i.State == sdk.Succeeded:
		text += ", " + affected(i.Result.RowsAffected)
	}
	if n := len(i.Attempts); n > 0 {
		a := i.Attempts[n-1]
		text += fmt.Sprintf(" (attempt %d on %s)", a.N, a.Worker)
	}
	return text
}
