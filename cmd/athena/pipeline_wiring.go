package main

import (
	"github.com/athena-pipelines/athena/api/middleware"
	"github.com/athena-pipelines/athena/api/pipelines"
	"github.com/athena-pipelines/athena/pipelines/plan"
	"github.com/athena-pipelines/athena/pipelines/runs"
	"github.com/athena-pipelines/athena/pkg/dispatch"
	"github.com/athena-pipelines/athena/pkg/ops"
)

// pipelineRoutes is the family of pipelines on a road.
func (a *app) pipelineRoutes(store *runs.Store, road *dispatch.Dispatcher, verify middleware.Verifier) *pipelines.Family {
	return pipelines.New(pipelines.Config{
		Dispatcher: road, Store: store, Verify: verify, Keys: a.keys, Audit: ops.NewAudit(a.broker.bus, a.log),
		Plans: &plan.Planner{
			Dispatcher: road, Drivers: a.drivers, Captures: a.changes, Feeds: a.feeds, Jobs: a.store,
			Others: pipelines.Stored(store),
		},
	})
}
