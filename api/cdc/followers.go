package cdc

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/athena-pipelines/athena/pipelines/runs"
	"github.com/athena-pipelines/athena/pipelines/spec"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/changefeed"
	"github.com/athena-pipelines/athena/pkg/driver"
)

// A follower has a table by name: a pipeline whose run is live, or a subscription.
type follower struct {
	Table        string `json:"table"`
	Pipeline     string `json:"pipeline,omitempty"`
	Run          string `json:"run,omitempty"`
	Subscription string `json:"subscription,omitempty"`
}

func (w follower) String() string {
	switch {
	case w.Subscription != "":
		return fmt.Sprintf("subscription %q follows %s", w.Subscription, w.Table)
	case w.Pipeline != "":
		return fmt.Sprintf("pipeline %q follows %s", w.Pipeline, w.Table)
	}
	return fmt.Sprintf("run %s follows %s", w.Run, w.Table)
}

// released is a conflict where a table falls out of a capture that somebody follows,
// who would go on as if nothing ever changed in it.
func (f *Family) released(ctx context.Context, old, want changefeed.Capture) error {
	out := slices.DeleteFunc(slices.Clone(old.Tables), func(t driver.TableName) bool { return slices.Contains(want.Tables, t) })
	if len(out) == 0 {
		return nil
	}
	list, err := f.followers(ctx, want.Client, out)
	if len(list) == 0 || err != nil {
		return err
	}
	lines := make([]string, len(list))
	for i, w := range list {
		lines[i] = w.String()
	}
	return athena.Errorf(athena.CodeConflict, "tables would fall out of the capture of client %q that are followed: %s; stop who follows them first, or name the tables as well", want.Client, strings.Join(lines, ", ")).
		At("tables").With("followers", list)
}

// followers are those of some tables of a client, in the order of the tables.
func (f *Family) followers(ctx context.Context, client string, tables []driver.TableName) (list []follower, err error) {
	ctx, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	if err := f.cfg.Runs.Ready(ctx); err != nil {
		return nil, athena.Wrap(athena.CodeBusUnavailable, err, "who follows the tables cannot be read yet").RetryIn(time.Second)
	}
	streams := map[string]*spec.CDCSource{}
	live := slices.DeleteFunc(f.cfg.Runs.Live(), func(r runs.Run) bool { return r.Kind != runs.Stream || r.Source != client })
	for _, r := range live {
		var p spec.Pipeline
		if err := json.Unmarshal(r.Spec, &p); err != nil {
			return nil, athena.Wrap(athena.CodeInternal, err, "the definition of run %s cannot be read", r.ID)
		}
		streams[r.ID] = p.Source.CDC
	}
	subscriptions := f.cfg.Store.Subscriptions(client)
	for _, t := range tables {
		for _, r := range live {
			if c := streams[r.ID]; c != nil && slices.ContainsFunc(c.Tables, names(t)) {
				list = append(list, follower{Table: t.String(), Pipeline: r.Pipeline, Run: r.ID})
			}
		}
		for _, s := range subscriptions {
			if slices.ContainsFunc(s.Tables, names(t)) {
				list = append(list, follower{Table: t.String(), Subscription: s.Name})
			}
		}
	}
	return list, nil
}

// names reports whether a text names just one table, and not others by a pattern.
func names(t driver.TableName) func(string) bool {
	return func(text string) bool {
		n, err := driver.ParseTableName(text)
		return err == nil && n == t || text == changefeed.Pattern(t)
	}
}
