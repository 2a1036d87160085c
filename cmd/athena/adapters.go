package main

import (
	"context"
	"time"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/changefeed"
	"github.com/athena-pipelines/athena/pkg/deferred"
	"github.com/athena-pipelines/athena/pkg/telemetry"
	"github.com/athena-pipelines/athena/pkg/webhook"
)

// jobMetrics counts what becomes of jobs.
type jobMetrics struct{ metrics *telemetry.Metrics }

func (m jobMetrics) Started(c *athena.Client, _ deferred.Lane, waited time.Duration) {
	m.metrics.JobStarted(c.Name, waited)
	m.metrics.JobMoved(c.Name, string(deferred.Running))
}

func (m jobMetrics) Ended(c *athena.Client, state deferred.State, _ time.Duration) {
	m.metrics.JobEnded(c.Name)
	m.metrics.JobMoved(c.Name, string(state))
}

// captureFigures are the figures of all captures, as their workers told them.
func (a *app) captureFigures() []telemetry.Capture {
	var list []telemetry.Capture
	for _, c := range a.changes.Captures() {
		st, ok := a.changes.Status(c.Client)
		if !ok || st.Capture != c.ID {
			list = append(list, telemetry.Capture{Client: c.Client, State: string(changefeed.Waiting), Age: time.Since(c.CreatedAt)})
			continue
		}
		f := telemetry.Capture{
			Client: c.Client, State: string(st.State), LagBytes: st.LagBytes, LagSeconds: st.LagSeconds,
			Changes: st.Changes, Bytes: st.Bytes, Rejected: st.Rejected, Restarts: st.Restarts, Spilled: st.Spilled,
			Age: time.Since(st.At),
		}
		switch {
		case st.Streams != nil:
			f.Streams, f.Complete, f.Swept, f.Late = st.Streams.Streams, st.Streams.Complete, st.Streams.Swept, st.Streams.Late
			if st.Slot != nil {
				f.Expires = st.Slot.Expires
			}
		case st.Slot != nil:
			f.Slot, f.Retained, f.Safe = true, st.Slot.Retained, st.Slot.Safe
		}
		for _, p := range st.Snapshots {
			for _, t := range p.Tables {
				if p.State == "running" {
					f.SnapshotRows += t.Rows
					f.SnapshotTotal += max(t.Total, t.Rows, 1)
				}
			}
		}
		list = append(list, f)
	}
	return list
}

// inUse is the reason for which a client must not be deleted: what it holds at
// its source would stay there, or runs would fail that nobody asked to end.
func (a *app) inUse(client string) error {
	if _, ok := a.changes.Capture(client); ok {
		return athena.Errorf(athena.CodeConflict, "the changes of client %q are captured; disable that first (POST /cdc/%s/disable, athena cdc disable), or what it holds at the source would stay there", client, client)
	}
	for _, r := range a.runs.Live() {
		if r.Source == client || r.Sink == client {
			return athena.Errorf(athena.CodeConflict, "pipeline %s works with client %q now (run %s); stop it first (athena pipeline cancel %s)", r.Pipeline, client, r.ID, r.ID).With("run", r.ID)
		}
	}
	return nil
}

// summaries tells webhooks how jobs ended.
type summaries struct{ store *deferred.Store }

func (s summaries) Summary(ctx context.Context, client, id string) (webhook.Summary, error) {
	j, st, err := s.store.Load(ctx, client, id)
	if err != nil {
		return webhook.Summary{}, err
	}
	sum := webhook.Summary{
		State: string(st.State), At: st.At, Revision: st.Rev, Ended: st.State.Terminal(),
		Attempts: len(st.Attempts), Labels: j.Labels, HasResult: st.State == deferred.Succeeded && st.Result != nil,
	}
	if st.Error != nil {
		sum.Code = st.Error.Code
	}
	if r := st.Result; r != nil {
		sum.Rows, sum.Bytes, sum.RowsAffected = r.Rows, r.Bytes, r.RowsAffected
	}
	return sum, nil
}
