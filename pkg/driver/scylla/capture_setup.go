package scylla

import (
	"context"
	"strings"
	"time"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/driver"
)

var _ driver.ChangeSource = (*Backend)(nil)

// PrepareChanges changes nothing: the option cdc of a table is its owner's. It
// refuses tables whose logs cannot be read.
func (b *Backend) PrepareChanges(ctx context.Context, s driver.ChangeSetup) error {
	switch {
	case len(s.Tables) == 0:
		return athena.Errorf(athena.CodeInvalidRequest, "tables is empty; name the tables whose changes are captured").At("tables")
	case s.TakeOver:
		return athena.Errorf(athena.CodeInvalidRequest, "take_over is set, and ScyllaDB has neither slot nor publication that could be taken over; leave it out").At("take_over")
	}
	check, err := b.CheckChanges(ctx, s)
	if err != nil {
		return err
	}
	for _, f := range check.Findings {
		if f.Level != "error" {
			continue
		}
		where := f.Table
		if where != "" {
			where = " of " + where
		}
		e := athena.Errorf(athena.CodeInvalidRequest, "%s%s is %s, and must be %s", f.Name, where, f.Found, f.Want)
		if f.Mend != "" {
			e = athena.Errorf(athena.CodeInvalidRequest, "%s%s is %s, and must be %s: %s", f.Name, where, f.Found, f.Want, f.Mend).With("mend", f.Mend)
		}
		return e.At("tables")
	}
	return nil
}

// checkSetup refuses what cannot be meant of this engine.
func checkSetup(s driver.ChangeSetup) error {
	own := "athena_" + strings.ReplaceAll(s.Client, "-", "_") // where none is given
	for field, name := range map[string]string{"slot": s.Slot, "publication": s.Publication} {
		if name != "" && name != own {
			return athena.Errorf(athena.CodeInvalidRequest, "%s is %.80q, and ScyllaDB has none: nothing is made there; leave it out", field, name).At(field)
		}
	}
	switch {
	case s.InsertsOnly:
		return athena.Errorf(athena.CodeInvalidRequest, "inserts_only is set, and all tables of ScyllaDB have a key; leave it out").At("inserts_only")
	case s.LocalOnly:
		return athena.Errorf(athena.CodeInvalidRequest, "local_only is set, and the log of ScyllaDB does not say where a change was made; leave it out").At("local_only")
	case s.Confidence < 0:
		return athena.Errorf(athena.CodeInvalidRequest, "confidence is %s; give a time, or leave it out for %s", s.Confidence, defaultConfidence).At("confidence")
	case s.Sweep > 0 && s.Sweep <= newPace(s).confidence:
		return athena.Errorf(athena.CodeInvalidRequest, "sweep is %s, and changes are read when they are %s old (confidence), so that none of them is late by then; give a longer time, or no_sweep", s.Sweep, newPace(s).confidence).At("sweep")
	}
	for i := range s.Tables {
		if err := checkHashes(s.Tables[:i+1]); err != nil {
			return err
		}
	}
	return nil
}

// StartChanges begins at a time a little ago, as much as clocks may differ and
// writes take: what is written with a later time comes from the log, and what has
// an earlier one with the rows.
func (b *Backend) StartChanges(ctx context.Context, s driver.ChangeSetup, progress func(string)) (driver.ChangeStart, driver.ChangeSnapshot, error) {
	now := time.Now()
	begin := ticksOf(now.Add(-newPace(s).confidence).Truncate(time.Microsecond))
	src, err := b.askSource(ctx, s.Tables)
	if err != nil {
		return driver.ChangeStart{}, nil, err
	}
	for name, t := range src.Tables {
		t.Since = begin
		src.Tables[name] = t
	}
	// The first counter is beyond all that an earlier capture has given out, which
	// had not a million batches a second.
	counter := uint64(now.UnixMicro())
	start := driver.ChangeStart{
		Begin: place{counter: counter}.position(), Source: src.String(),
		Confirmed: mark{begin, counter, begin, counter, counter}.String(),
	}
	return start, &snapshot{backend: b, setup: s, begin: begin, tables: map[driver.TableName]*captureTable{}}, nil
}

// DropChanges has nothing to remove: no place was made.
func (b *Backend) DropChanges(context.Context, driver.ChangeSetup) error { return nil }

// ChangeHealth tells when the first change that is not confirmed leaves its log,
// and which tables have none any more.
func (b *Backend) ChangeHealth(ctx context.Context, s driver.ChangeSetup) (driver.ChangeHealth, error) {
	h := driver.ChangeHealth{Slot: s.Slot, Safe: -1}
	var floor ticks
	stream := b.captures.of(s.Client)
	if stream != nil {
		h.Active = true
		stream.mu.Lock()
		floor = stream.sure.floor
		if stream.confirmed >= stream.mark.counter {
			floor = stream.mark.floor
		}
		stream.mu.Unlock()
	}
	for _, name := range s.Tables {
		t, err := b.captureTable(ctx, name)
		switch {
		case athena.CodeOf(err) == athena.CodeNotFound:
			h.Unpublished = append(h.Unpublished, name)
			continue
		case err != nil:
			return h, err
		case !t.options.enabled:
			h.Unpublished = append(h.Unpublished, name)
			continue
		}
		if ttl := t.ttl(); ttl > 0 && stream != nil {
			if at := floor.time().Add(ttl); h.Expires.IsZero() || at.Before(h.Expires) {
				h.Expires = at
			}
		}
	}
	if len(s.Tables) > 0 && len(h.Unpublished) == len(s.Tables) {
		return h, athena.Errorf(athena.CodeNotFound, "none of the tables has a log of changes")
	}
	return h, nil
}
