package main

import (
	"context"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/auth"
	"github.com/athena-pipelines/athena/pkg/bus"
	"github.com/athena-pipelines/athena/workers/runner"
)

// pipelines is the worker that runs pipelines.
func (a *app) pipelines(id string) *runner.Worker {
	return runner.New(runner.Config{
		ID: id, Store: a.runs, Dispatcher: a.dispatcher, Catalog: a.catalog, Keys: owners{a.keys, a.cfg.Auth == "off"},
		Leases: bus.NewLeases(a.broker.bus, bus.BucketLeases), Changes: a.changes, Feeds: a.feeds, Jobs: a.store,
		Drivers: a.drivers, Log: a.log, Serves: a.serves(),
		Tasks: a.cfg.Worker.Tasks, PartBytes: int64(a.cfg.Worker.TaskBytes), Lease: a.cfg.Worker.Lease.Std(),
	})
}

// owners knows what the keys may do in whose names runs are made.
type owners struct {
	*auth.Keys
	open bool // auth is off
}

func (o owners) Principal(ctx context.Context, id string) (*auth.Principal, error) {
	if id != auth.Local().Key {
		return o.Keys.Principal(ctx, id)
	}
	if !o.open {
		return nil, athena.Errorf(athena.CodeForbidden, "the run was made while auth was off, and it is on now; make it anew with a key")
	}
	return auth.Local(), nil
}
