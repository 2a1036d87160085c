package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/athena-pipelines/athena/pipelines/examples"
	"github.com/athena-pipelines/athena/pipelines/source"
	"github.com/athena-pipelines/athena/pipelines/spec"
	"github.com/athena-pipelines/athena/pipelines/stage"
	"github.com/athena-pipelines/athena/pipelines/transform"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/record"
	"github.com/athena-pipelines/athena/pkg/sdk"
)

// demoPipeline is the example that the demo runs, and demoFolder where it writes.
const (
	demoPipeline = "order-changes"
	demoFolder   = "changes/orders/"
)

// pipeline starts an S3 server, and a pipeline that follows the orders to Parquet.
func (d *demo) pipeline(ctx context.Context) (err error) {
	begin := time.Now()
	if d.lake, err = startLake(ctx, d.dir, devAccess{S3AccessKeyID: "demo" + rand.Text()[:16], S3SecretAccessKey: rand.Text()}); err != nil {
		return err
	}
	client := &athena.Client{
		Name: lakeBucket, Lifecycle: athena.Active, Connection: d.lake.connection(),
		Capabilities: athena.Allow(athena.ObjectRead, athena.ObjectWrite, athena.PipelineSource, athena.PipelineSink),
	}
	if _, err := d.api.Admin().PutClient(ctx, client, sdk.Absent); err != nil {
		return err
	}
	d.tell.fact("an S3-compatible server with the bucket %q, and a client of that name, after %s", lakeBucket, since(begin))
	text, err := examples.Files.ReadFile(demoPipeline + ".yaml")
	if err != nil {
		return err
	}
	def, err := spec.Decode(text)
	if err != nil {
		return err
	}
	results := transform.RunTests(def, nil)
	for _, r := range results {
		if !r.Passed {
			return fmt.Errorf("the test %q of %s failed: %s", r.Name, demoPipeline, r.Failures)
		}
	}
	pl := d.api.Pipelines()
	plan, err := pl.Plan(ctx, sdk.PlanQuestion{Definition: spec.Encode(def), Level: sdk.PlanConnect})
	if err != nil {
		return err
	}
	if plan.Verdict != sdk.PlanOK {
		return fmt.Errorf("the plan is %s: %w", plan.Verdict, plan.Err())
	}
	d.tell.fact("%s.yaml: %s passed, and the plan finds nothing in the way; delivery %s", demoPipeline, counted(int64(len(results)), "test"), plan.Delivery.Class)
	begin = time.Now()
	if _, err := pl.Put(ctx, def.Name, spec.Encode(def), sdk.Absent); err != nil {
		return err
	}
	run, err := pl.Start(ctx, def.Name, sdk.RunOptions{})
	if err != nil {
		return err
	}
	d.run = d.api.Run(run.ID)
	var info *sdk.RunInfo
	err = until(ctx, time.Minute, func() (bool, error) {
		if info, err = d.run.Get(ctx); err != nil {
			return false, err
		}
		return info.Counts.Objects > 0, info.Err()
	})
	if err != nil {
		return err
	}
	d.follower = info.Progress.Worker
	d.tell.fact("started on %s: the %d orders that were there are in %s after %s", d.follower, info.Counts.Written, counted(info.Counts.Objects, "file"), since(begin))
	return nil
}

// files stops the pipeline and holds what it wrote against the stream.
func (d *demo) files(ctx context.Context) error {
	stream := map[cdc.Position]cdc.Op{}
	last, err := d.orderChanges(ctx, func(c *cdc.Change) { stream[c.Pos] = c.Op })
	if err != nil {
		return err
	}
	begin := time.Now()
	var info *sdk.RunInfo
	err = until(ctx, time.Minute, func() (bool, error) {
		if info, err = d.run.Get(ctx); err != nil {
			return false, err
		}
		p := info.Progress
		return p != nil && cdc.Position(p.Position) >= last, info.Err()
	})
	if err != nil {
		return fmt.Errorf("the pipeline is %s: %w", info.State, err)
	}
	if info.Progress.Worker == d.follower {
		return fmt.Errorf("the pipeline still runs on %s, which was killed", d.follower)
	}
	d.tell.fact("%s took the pipeline over, and it has come to the last change of an order, %s after it was asked", info.Progress.Worker, since(begin))
	if err := d.api.Pipelines().Stop(ctx, demoPipeline); err != nil {
		return err
	}
	if err := until(ctx, 20*time.Second, func() (bool, error) {
		info, err = d.run.Get(ctx)
		return err == nil && info.State == sdk.RunStopped, err
	}); err != nil {
		return fmt.Errorf("the pipeline is %s, and was told to stop: %w", info.State, err)
	}
	files, err := d.compareFiles(ctx, stream)
	if err != nil {
		return err
	}
	counts := map[cdc.Op]int{}
	for _, op := range stream {
		counts[op]++
	}
	d.tell.figure("parquet_rows", float64(len(stream)))
	d.tell.fact("%s of Parquet, read back by Athena's own object routes, hold %d rows: %d that were there, %d inserts, %d updates and %d deletes",
		counted(int64(files), "file"), len(stream), counts[cdc.Read], counts[cdc.Insert], counts[cdc.Update], counts[cdc.Delete])
	d.tell.fact("each change of an order in the stream is in the files exactly once, and nothing else is")
	return nil
}

// orderChanges reads the stream of the shop from its beginning to the last order
// of the demo, whose position it returns.
func (d *demo) orderChanges(ctx context.Context, each func(*cdc.Change)) (cdc.Position, error) {
	ops := []cdc.Op{cdc.Read, cdc.Insert, cdc.Update, cdc.Delete}
	for c, err := range d.shop.CDC().Changes(ctx, sdk.ChangesQuery{From: "earliest", Tables: []string{"public.orders"}, Ops: ops}) {
		if err != nil {
			return "", err
		}
		if each(c); isEnd(c) {
			return c.Pos, nil
		}
	}
	return "", errors.New("the stream ended before its last change")
}

// compareFiles holds the rows of the pipeline's files against the changes of the
// stream, and returns how many files there are.
func (d *demo) compareFiles(ctx context.Context, stream map[cdc.Position]cdc.Op) (int, error) {
	seen, files := map[cdc.Position]bool{}, map[string]bool{}
	err := lakeRows(ctx, d.api.Client(lakeBucket), demoFolder, func(b *record.Batch) error {
		files[b.From] = true
		op, pos := b.Schema.Index("_op"), b.Schema.Index("_pos")
		for i := range b.Rows() {
			at, what := cdc.Position(b.Columns[pos].Bytes(i)), cdc.Op(b.Columns[op].Bytes(i))
			if stream[at] != what || seen[at] {
				return fmt.Errorf("%s has a change %s at %s; the stream has %q there, and it was read before: %t", b.From, what, at, stream[at], seen[at])
			}
			seen[at] = true
		}
		return nil
	})
	if err == nil && len(seen) != len(stream) {
		err = fmt.Errorf("the files have %d changes, and the stream has %d", len(seen), len(stream))
	}
	return len(files), err
}

// lakeRows reads the rows of all objects below a prefix, in the order of their
// keys, by the routes of the server.
func lakeRows(ctx context.Context, lake *sdk.Client, prefix string, fn func(*record.Batch) error) error {
	from := &source.Objects{Reader: lake, What: spec.ObjectSource{Prefix: prefix}}
	parts, err := from.Split(ctx, true)
	if err != nil {
		return err
	}
	for _, p := range parts {
		if err := from.Read(ctx, p, fn, func(u stage.Unread) error {
			return athena.Errorf(athena.CodeInternal, "%s is no row: %s", u.From, u.Reason)
		}); err != nil {
			return err
		}
	}
	return nil
}
