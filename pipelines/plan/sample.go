package plan

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/athena-pipelines/athena/pipelines/source"
	"github.com/athena-pipelines/athena/pipelines/stage"
	"github.com/athena-pipelines/athena/pipelines/transform"
	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/changefeed"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/record"
)

// Rows are what a sample showed. Nothing of it was written.
type Rows struct {
	Read int       `json:"read"`
	Out  []Row     `json:"out"`
	Dead []DeadRow `json:"dead,omitempty"`
	Note string    `json:"note,omitempty"`
}

// A Row is one that would be written.
type Row struct {
	Route string          `json:"route,omitempty"`
	Op    cdc.Op          `json:"op,omitempty"` // behind cdc
	Row   json.RawMessage `json:"row"`
}

// A DeadRow is one that would become a dead letter.
type DeadRow struct {
	Stage  string `json:"stage"`
	Column string `json:"column,omitempty"`
	Reason string `json:"reason"`
	Row    string `json:"row"` // as JSON, or as the source has it where it is no row
}

const (
	defaultRows = 20
	// mostShown bounds the bytes of a row that is shown.
	mostShown = 16 << 10
	// awaits bounds how long changes are waited for.
	awaits = 250 * time.Millisecond
)

func (j *judgement) rows() int {
	if j.Planner.Rows > 0 {
		return j.Planner.Rows
	}
	return defaultRows
}

// size is that of batches: a plan needs no more rows than a sample has.
func (j *judgement) size() driver.BatchSize { return driver.BatchSize{Rows: j.rows()} }

// errEnough ends a reading.
var errEnough = errors.New("plan: the sample is full")

// sample takes rows through the transforms.
func (j *judgement) sample(ctx context.Context) error {
	for i := range j.Stages {
		if s := &j.Stages[i]; s != j.sink && s.Verdict == Refused {
			return nil
		}
	}
	if j.chain == nil {
		return nil
	}
	j.Plan.Rows = &Rows{Out: []Row{}}
	var err error
	if j.p.Streams() {
		err = j.sampleChanges(ctx)
	} else {
		err = j.sampleBatch(ctx)
	}
	if errors.Is(err, errEnough) {
		err = nil
	}
	if interrupted(ctx, err) {
		return err
	}
	j.source.refuse(err)
	if err == nil && j.chain.Whole() {
		j.Plan.Rows.Note = "a step looks at all rows, and here it has seen those of the sample alone"
	}
	j.warn()
	if err := j.routed(ctx); interrupted(ctx, err) {
		return err
	}
	return nil
}

// warn says that a run with rows as those of the sample would not go on.
func (j *judgement) warn() {
	dead, read, most := len(j.Plan.Rows.Dead), j.Plan.Rows.Read, *j.p.Errors.MaxRate
	if dead > 0 && (dead == read || float64(dead) > most*float64(read)) {
		j.Write.Notes = append(j.Write.Notes, fmt.Sprintf("%d of the %d rows of the sample could not go on; a run in which more do not than errors.max_rate allows (%g) fails", dead, read, most))
	}
}

func (j *judgement) sampleBatch(ctx context.Context) error {
	err := j.withSource(ctx, func(ctx context.Context, s stage.Source) error {
		if t, ok := s.(*source.Table); ok { // the database need not prepare for more
			limited := *t
			if most := int64(j.rows()); limited.What.Limit == 0 || limited.What.Limit > most {
				limited.What.Limit = most
			}
			s = &limited
		}
		parts, err := s.Split(ctx, true)
		if err != nil || len(parts) == 0 {
			return err
		}
		err = s.Read(ctx, parts[0], func(b *record.Batch) error {
			if err := j.take(b); err != nil {
				return err
			}
			if j.Plan.Rows.Read >= j.rows() {
				return errEnough
			}
			return nil
		}, j.unread)
		if errors.Is(err, errEnough) {
			return nil
		}
		return err
	})
	if err != nil {
		return err
	}
	rest, err := j.chain.Flush(func(int, int, error) {})
	j.show(rest)
	return err
}

// sampleChanges takes the first changes that are stored.
func (j *judgement) sampleChanges(ctx context.Context) error {
	op, client := stage.SourceOp(j.p.Source), j.p.Source.Client
	if _, err := j.Dispatcher.Check(ctx, op, client); err != nil {
		return err
	}
	filter, err := changefeed.NewFilter(changefeed.FilterSpec{Tables: j.p.Source.CDC.Tables, Where: j.p.Source.CDC.Where})
	if err != nil {
		return err
	}
	reader, err := j.Feeds.Open(ctx, client, "earliest", filter)
	if err != nil {
		return err
	}
	defer reader.Close()
	reader.Heartbeat = awaits
	changes := &source.Changes{Store: j.Captures, Client: client, Types: j.types(j.source.Engine), Sorts: j.Drivers[j.source.Engine].ColumnSorts, Reader: reader}
	for j.Plan.Rows.Read < j.rows() {
		chunk, err := changes.Next(ctx, j.rows(), func(u stage.Unread, _ cdc.Position) error { return j.unread(u) })
		if err != nil {
			return err
		}
		for _, b := range chunk.Batches {
			if err := j.take(b); err != nil {
				return err
			}
		}
		if chunk.Lines == 0 && !chunk.More {
			return nil
		}
	}
	return nil
}

// take has a batch go through the steps.
func (j *judgement) take(b *record.Batch) error {
	if left := j.rows() - j.Plan.Rows.Read; b.Rows() > left {
		b = b.Slice(0, left)
	}
	j.Plan.Rows.Read += b.Rows()
	chain := j.chain
	if !b.Schema.Equal(j.schema) { // another table, or the same at another time
		var err error
		if chain, err = transform.Compile(j.p.Transforms, b.Schema, j.environment()); err != nil {
			return err
		}
	}
	parts, err := chain.Apply(b, func(step, row int, cause error) {
		dead := DeadRow{Stage: transform.StageName(step), Reason: cause.Error()}
		var re *transform.RowError
		if errors.As(cause, &re) {
			dead.Column = re.Column
		}
		if row >= 0 {
			dead.Row = shown(b.AppendJSON(nil, row))
		}
		j.Plan.Rows.Dead = append(j.Plan.Rows.Dead, dead)
	})
	j.show(parts)
	return err
}

func (j *judgement) unread(u stage.Unread) error {
	if j.Plan.Rows.Read++; j.Plan.Rows.Read > j.rows() {
		return errEnough
	}
	j.Plan.Rows.Dead = append(j.Plan.Rows.Dead, DeadRow{Stage: "source", Column: u.Column, Reason: u.Reason, Row: shown([]byte(u.Text))})
	return nil
}

func shown(row []byte) string {
	if len(row) > mostShown {
		return string(row[:mostShown]) + "…"
	}
	return string(row)
}

func (j *judgement) show(parts []transform.Part) {
	for _, p := range parts {
		for i := range p.Batch.Rows() {
			row := Row{Route: p.Route, Row: p.Batch.AppendJSON(nil, i)}
			if p.Batch.Changes != nil {
				row.Op = p.Batch.Changes[i].Op
			}
			if len(row.Row) > mostShown {
				row.Row = json.RawMessage("null")
				j.Plan.Rows.Note = fmt.Sprintf("a row with more than %d bytes is not shown", mostShown)
			}
			j.Plan.Rows.Out = append(j.Plan.Rows.Out, row)
		}
	}
}

// routed asks for the tables that the rows of the sample would go to.
func (j *judgement) routed(ctx context.Context) error {
	if j.p.Sink.Table == "" {
		return nil
	}
	seen := map[string]bool{}
	for _, row := range j.Plan.Rows.Out {
		if row.Route == "" || seen[row.Route] || j.sink.Verdict == Refused {
			continue
		}
		seen[row.Route] = true
		name, err := driver.ParseTableName(row.Route)
		if err == nil {
			err = j.lookAtTable(ctx, name)
		}
		if interrupted(ctx, err) {
			return err
		}
		j.sink.refuse(err)
	}
	if len(seen) > 0 {
		j.sink.ok("the sample goes to %d tables, which take the rows", len(seen))
	}
	return nil
}
