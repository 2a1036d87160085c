package main

import (
	"context"
	"time"

	"github.com/athena-pipelines/athena/pkg/bus"
	"github.com/athena-pipelines/athena/pkg/sdk"
)

// How far apart clocks may be. Deadlines and schedules are held against the
// clocks of the bus and of workers.
const (
	skewWarn = time.Second
	skewFail = 30 * time.Second
)

// clock compares another clock with ours. The question took from before to
// after; what lies within that is no difference.
func (d *doctor) clock(whose string, theirs, before, after time.Time) {
	skew := time.Duration(0)
	switch {
	case theirs.Before(before):
		skew = before.Sub(theirs)
	case theirs.After(after):
		skew = theirs.Sub(after)
	}
	v := fine
	switch {
	case skew > skewFail:
		v = ill
	case skew > skewWarn:
		v = unwell
	}
	d.found("clock", v, "synchronise the clocks of both machines (NTP, chrony)", "that of %s is %s off ours", whose, skew.Round(time.Millisecond))
}

func (d *doctor) busClock(ctx context.Context, b *broker) {
	before := time.Now()
	stream, err := b.bus.JetStream().Stream(ctx, bus.StreamJobs)
	if err == nil {
		d.clock("the bus", stream.CachedInfo().TimeStamp, before, time.Now())
	}
}

// currentTime is SQL as every engine that speaks it has it.
const currentTime = "select current_timestamp as now"

// clientClock asks a backend that speaks SQL.
func (d *doctor) clientClock(ctx context.Context, c *sdk.Client) {
	before := time.Now()
	for row, err := range sdk.All[struct{ Now time.Time }](c.Run(ctx, sdk.Request{Query: currentTime, Language: "sql"})) {
		if err != nil {
			return // another language, or no right to query: other checks say so
		}
		d.clock("client "+c.Name()+"'s backend", row.Now, before, time.Now())
	}
}
