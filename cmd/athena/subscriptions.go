package main

import (
	"context"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/auth"
	"github.com/athena-pipelines/athena/pkg/bus"
	"github.com/athena-pipelines/athena/pkg/dispatch"
	"github.com/athena-pipelines/athena/pkg/telemetry"
	"github.com/athena-pipelines/athena/workers/deliver"
)

// subscriptions is the worker that sends changes to the webhooks of
// subscriptions.
func (a *app) subscriptions(id string) *deliver.Subscriptions {
	return &deliver.Subscriptions{
		ID: id, Bus: a.broker.bus, Store: a.changes, Leases: bus.NewLeases(a.broker.bus, bus.BucketLeases), Feeds: a.feeds,
		Rights:  sending{keys: a.keys, open: a.cfg.Auth == "off", road: &dispatch.Dispatcher{Resolver: a.resolver, Observer: unobserved{}}},
		Secrets: hooks{a.keyring}, Guard: a.guard(), Log: a.log.With(telemetry.KeyWorker, id),
		Observe: func(o deliver.Outcome) { a.metrics.WebhookTried(string(o.Result)) },
		Config:  deliver.Config{Grace: a.cfg.Limits.ShutdownTimeout.Std() / 2},
	}
}

// sending asks the road whether changes may be sent for a key, as it would be
// asked if the key itself read them now.
type sending struct {
	keys *auth.Keys
	road *dispatch.Dispatcher
	open bool // auth is off
}

var sendChanges = dispatch.Op{Family: "cdc", Right: auth.CDC, Access: auth.Read, Needs: []athena.Capability{athena.CDC}}

func (s sending) MaySend(ctx context.Context, client, key string) error {
	p := auth.Local()
	if key != p.Key {
		var err error
		if p, err = s.keys.Principal(ctx, key); err != nil {
			return err
		}
	} else if !s.open {
		return athena.Errorf(athena.CodeForbidden, "the subscription was made while auth was off, and it is on now")
	}
	_, err := s.road.Check(auth.NewContext(ctx, p), sendChanges, client)
	return err
}

// unobserved leaves operations out of the log: a subscription asks before each
// batch.
type unobserved struct{}

func (unobserved) Observe(context.Context, dispatch.Outcome) {}
