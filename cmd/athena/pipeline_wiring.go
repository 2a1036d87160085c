package main

import (
	"context"

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
			Others: pipelines.Stored(store), Clients: a.clientNames,
		},
	})
}

// clientNames lists the clients that there are; none as long as they are not known.
func (a *app) clientNames(ctx context.Context) (names []string) {
	clients, err := a.catalog.List(ctx)
	if err != nil {
		return nil
	}
	for _, c := range clients {
		names = append(names, c.Name)
	}
	return names
}
