package deferred

import (
	"context"
	"errors"
	"time"

	"github.com/athena-pipelines/athena/pipelines/sink"
	"github.com/athena-pipelines/athena/pipelines/spec"
	"github.com/athena-pipelines/athena/pipelines/stage"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/deferred"
	"github.com/athena-pipelines/athena/pkg/dispatch"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/record"
)

// toObjects runs a statement that reads, and writes its rows to objects of the
// client that the job names. They appear when all of them are there, under names
// that a repeated attempt gives again.
func (e *execution) toObjects(ctx context.Context) (fate, err error) {
	if _, err := e.w.Dispatcher.Check(ctx, deferred.ToOp, e.job.To.Client); athena.CodeOf(err) == athena.CodeClientFrozen {
		return err, nil // held, as it is where its own client is frozen
	}
	e.begin()
	e.stmt.ReadOnly = true
	var result *deferred.Result
	if reader, ok := e.b.(driver.TableReader); !ok {
		fate = athena.Unsupported(e.client.Name, e.client.Engine(), athena.PipelineSource)
	} else {
		_, fate = dispatch.Do(ctx, e.w.Dispatcher, deferred.ToOp, e.job.To.Client,
			func(ctx context.Context, _ dispatch.Call, store sink.ObjectStore) (_ struct{}, err error) {
				result, err = e.export(ctx, reader, store)
				return struct{}{}, err
			})
	}
	if athena.CodeOf(fate) == athena.CodeClientFrozen {
		if err := e.join(); err != nil {
			return fate, err
		}
		return fate, e.retry(fate, unreachable)
	}
	if fate != nil {
		return fate, e.failed(fate, true)
	}
	return nil, e.settle(func(s deferred.Status) deferred.Status { return s.Succeed(result, time.Now()) })
}

// errEnough ends the reading of rows that nobody wants.
var errEnough = errors.New("deferred: the row limit is reached")

// export moves the rows.
func (e *execution) export(ctx context.Context, from driver.TableReader, to sink.ObjectStore) (*deferred.Result, error) {
	j := e.job
	out, err := sink.NewObjects(to, spec.ObjectSink{Prefix: j.To.Prefix, Format: string(j.Format)}, "", j.ID, false)
	if err != nil {
		return nil, err
	}
	w := out.Begin(j.ID)
	defer func() {
		actx, cancel := context.WithTimeout(context.WithoutCancel(ctx), slack)
		defer cancel()
		w.Abort(actx)
	}()
	result := &deferred.Result{To: j.To, Complete: true, Run: e.n}
	most := e.call.Client.Limits.WithDefaults().MaxResultBytes
	err = from.ReadQuery(ctx, e.stmt, driver.BatchSize{}, func(b *record.Batch) error {
		if j.RowLimit > 0 && result.Rows+int64(b.Rows()) > j.RowLimit {
			b, result.Truncated = b.Slice(0, int(j.RowLimit-result.Rows)), true
		}
		rejected, err := w.Write(ctx, "", b)
		if err != nil {
			return err
		}
		if len(rejected) > 0 {
			r := rejected[0]
			return athena.Errorf(athena.CodeQueryFailed, "row %d cannot be written as %s: %s; ask for another result.format, or cast the column", result.Rows+int64(r.Row)+1, j.Format, r.Reason).
				With("column", r.Column)
		}
		result.Rows += int64(b.Rows())
		if result.Bytes += int64(b.Size()); result.Bytes > most {
			return athena.Errorf(athena.CodePayloadTooLarge, "the result is larger than max_result_bytes of the client, which is %d; ask for fewer rows with row_limit", most).With("max_result_bytes", most)
		}
		if result.Truncated {
			return errEnough
		}
		return nil
	})
	if err != nil && !errors.Is(err, errEnough) {
		return nil, dispatch.Normalize(e.b, err)
	}
	schema, err := from.DescribeQuery(ctx, e.stmt)
	if err != nil {
		return nil, dispatch.Normalize(e.b, err)
	}
	for _, c := range schema.Columns {
		result.Columns = append(result.Columns, driver.Column{Name: c.Name, Type: c.Native})
	}
	err = w.Commit(ctx, driver.Checkpoint{}, func(ctx context.Context, objects []stage.Object) error {
		result.Bytes = 0
		for _, o := range objects {
			result.Objects = append(result.Objects, deferred.ResultObject{Key: o.Key, Rows: o.Rows, Bytes: o.Bytes})
			result.Bytes += o.Bytes
		}
		return ctx.Err()
	})
	return result, err
}
