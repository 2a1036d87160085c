package main

import (
	"context"
	"time"

	"github.com/athena-pipelines/athena/pkg/athena"
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
