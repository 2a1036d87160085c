package runner

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/athena-pipelines/athena/pipelines/runs"
	"github.com/athena-pipelines/athena/pipelines/source"
	"github.com/athena-pipelines/athena/pipelines/stage"
	"github.com/athena-pipelines/athena/pipelines/transform"
	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/record"
)

// redrivePage is how many rows are read at once.
const redrivePage = 500

// prepareRedrive finds the schema that the source has now, and makes one task.
func (l *leader) prepareRedrive(ctx context.Context) (s *record.Schema, parts []stage.Part, err error) {
	if c := l.job.spec.Source.CDC; c != nil {
		if s, err = l.schemaOf(ctx, c.Tables[0]); err != nil {
			return nil, nil, err
		}
	} else {
		err = l.job.withSource(ctx, func(ctx context.Context, from stage.Source) (err error) {
			s, err = from.Describe(ctx)
			return err
		})
	}
	return s, []stage.Part{{Rows: -1, Bytes: -1}}, err
}

// schemaOf is the schema that a captured table had last.
func (w *runner) schemaOf(ctx context.Context, table string) (*record.Schema, error) {
	run, _ := w.Store.Load(w.id)
	name, err := driver.ParseTableName(table)
	if err != nil {
		return nil, err
	}
	client, err := w.Catalog.Client(ctx, run.Source)
	if err != nil {
		return nil, err
	}
	v, err := w.Changes.ColumnsOf(ctx, run.Source, name, 0)
	if err != nil {
		return nil, err
	}
	return source.Schema(v.Columns, w.Drivers[client.Engine()].ColumnType), nil
}

// redrive takes on the rows that could not go on before: those that the sink has
// refused go to the sink, the others through the transforms again. Those that
// fail again are kept anew, behind the last one that is taken on.
func (a *attempt) redrive(ctx context.Context, to target) (err error) {
	w := to.begin(a.part())
	defer func() {
		actx, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
		defer cancel()
		w.Abort(actx)
	}()
	chains, err := a.batchChains()
	if err != nil {
		return err
	}
	a.flow = &flow{job: a.job, chains: chains, writer: w, name: a.part()}
	var last string
	for from := uint64(1); ; {
		rows, err := a.Store.ListRejected(ctx, a.run.PipelineID, from, redrivePage)
		if err != nil {
			return err
		}
		for _, r := range rows {
			if r.Seq > a.run.Upto {
				rows = nil
				break
			}
			from = r.Seq + 1
			if !slices.Contains(a.run.Redrives, r.Run) {
				continue
			}
			if err := a.again(ctx, r, chains); err != nil {
				return err
			}
			last = r.Row
		}
		if len(rows) < redrivePage {
			break
		}
		if err := a.tell(ctx); err != nil {
			return fmt.Errorf("behind row %s: %w", last, err)
		}
	}
	if err := a.flow.end(ctx, chains.base); err != nil {
		return err
	}
	return a.commit(ctx, w, to)
}

// again takes one row on.
func (a *attempt) again(ctx context.Context, r runs.Rejected, chains *batchChains) error {
	f := a.flow
	raw := r.Record
	if raw == nil && json.Valid([]byte(r.Text)) {
		raw = json.RawMessage(r.Text)
	}
	s := a.run.Schema
	if r.Stage == "sink" {
		s = chains.base.Schema()
	}
	b := record.New(s, 1)
	b.From = r.From
	p := record.NewParser(s)
	p.Absent = r.Pos != ""
	if _, err := p.Parse(b, raw); err != nil {
		f.counts.Read++
		again := r
		again.Reason = err.Error()
		f.note(again)
		return nil
	}
	if r.Pos != "" {
		b.Changes = []record.Change{{Op: r.Op, Pos: r.Pos, At: r.At.UnixMicro()}}
		if r.Op == "" {
			b.Changes[0].Op = cdc.Insert
		}
	}
	if r.Stage == "sink" {
		f.counts.Read++
		f.counts.Bytes += int64(b.Size())
		return f.write(ctx, []transform.Part{{Route: r.Route, Batch: b}})
	}
	return f.push(ctx, b)
}
