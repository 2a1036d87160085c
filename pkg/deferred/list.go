package deferred

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/athena-pipelines/athena/pkg/bus"
)

// A Filter chooses jobs for List. Empty fields choose all.
type Filter struct {
	Client  string
	Clients []string // those that the caller may see; empty means all
	State   State
	Labels  map[string]string
}

// An Entry is one job of a list. State is what a caller sees.
type Entry struct {
	Job    *Job
	Status Status
	State  State
	seq    uint64
}

// How far one List looks: in steps of listWindow messages, listMost in all.
const (
	listWindow = 1000
	listMost   = 20_000
)

// List returns up to limit jobs, newest first, that stand before a position, and
// the position to go on from. Position 0 asks for the newest, and is returned
// when there are no more. One call looks at a bounded number of messages, so a
// page may be short, or empty, and still have a position to go on from.
func (s *Store) List(ctx context.Context, f Filter, before uint64, limit int, frozen func(client string) bool) ([]Entry, uint64, error) {
	str, err := s.bus.JetStream().Stream(ctx, bus.StreamJobs)
	if err != nil {
		return nil, 0, lookup(err, "")
	}
	span := str.CachedInfo().State
	if before == 0 || before > span.LastSeq {
		before = span.LastSeq + 1
	}
	client := f.Client
	if client == "" {
		client = "*"
	}
	var page []Entry
	for looked := 0; before > span.FirstSeq && looked < listMost; looked += listWindow {
		from := max(span.FirstSeq, before-min(before, listWindow))
		raws, err := s.bus.Scan(ctx, bus.StreamJobs, bus.JobAny(client, "*"), from, int(before-from))
		if err != nil {
			return nil, 0, lookup(err, "")
		}
		raws = slices.DeleteFunc(raws, func(m bus.Raw) bool { return m.Sequence >= before })
		found, err := s.entries(ctx, raws, f, frozen)
		if err != nil {
			return nil, 0, err
		}
		for _, e := range slices.Backward(found) {
			page = append(page, e)
			if len(page) == limit {
				return page, e.seq, nil
			}
		}
		before = from
	}
	if before <= span.FirstSeq {
		before = 0
	}
	return page, before, nil
}

// entries decodes the jobs of a window and keeps those that f chooses.
func (s *Store) entries(ctx context.Context, raws []bus.Raw, f Filter, frozen func(string) bool) ([]Entry, error) {
	entries := make([]Entry, 0, len(raws))
	subjects := make([]string, 0, len(raws))
	for _, m := range raws {
		var j Job
		if err := json.Unmarshal(m.Data, &j); err != nil {
			return nil, fmt.Errorf("deferred: job at %d: %w", m.Sequence, err)
		}
		if f.shows(&j) {
			entries = append(entries, Entry{Job: &j, seq: m.Sequence})
			subjects = append(subjects, bus.JobEvent(j.Client, j.ID))
		}
	}
	last, err := s.bus.LastFor(ctx, bus.StreamJobEvents, subjects)
	if err != nil {
		return nil, lookup(err, "")
	}
	now := time.Now()
	kept := entries[:0]
	for i, e := range entries {
		if m, ok := last[subjects[i]]; ok {
			if e.Status, err = decodeStatus(m.Data, m.Sequence); err != nil {
				return nil, err
			}
		}
		e.State = View(e.Job, e.Status, frozen(e.Job.Client), now)
		if f.State == "" || f.State == e.State {
			kept = append(kept, e)
		}
	}
	return kept, nil
}

func (f Filter) shows(j *Job) bool {
	if len(f.Clients) > 0 && !slices.Contains(f.Clients, j.Client) {
		return false
	}
	for k, v := range f.Labels {
		if got, ok := j.Labels[k]; !ok || got != v {
			return false
		}
	}
	return true
}
