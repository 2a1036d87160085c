// Package plan judges a definition before anything is read or written: for each
// stage whether it may run, and if not, why, with the code that it would fail
// with.
//
// There are three levels. Static dials nobody. Connect asks the backends, and
// changes nothing there. Sample takes some rows through the transforms too, and
// writes none of them. Each client is reached by the road of dispatch alone, in
// the name of the principal in the context: a plan tells a caller of no client
// that the caller's key is not good for.
package plan

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/athena-pipelines/athena/pipelines/spec"
	"github.com/athena-pipelines/athena/pipelines/stage"
	"github.com/athena-pipelines/athena/pipelines/transform"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/auth"
	"github.com/athena-pipelines/athena/pkg/changefeed"
	"github.com/athena-pipelines/athena/pkg/deferred"
	"github.com/athena-pipelines/athena/pkg/dispatch"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/record"
)

// Level says how closely a plan looks.
type Level string

// The levels.
const (
	Static  Level = "static"
	Connect Level = "connect"
	Sample  Level = "sample"
)

// Verdict says whether something may run.
type Verdict string

// The verdicts.
const (
	OK      Verdict = "ok"
	Refused Verdict = "refused"
	Unknown Verdict = "unknown" // the next level can tell, or only the run
)

// Planner judges definitions. Its fields are set once, before use; it is safe for
// concurrent use then.
type Planner struct {
	Dispatcher *dispatch.Dispatcher
	Drivers    map[athena.Engine]driver.Driver
	// Captures are those of clients, and Feeds reads what they have stored.
	Captures *changefeed.Store
	Feeds    *changefeed.Feeds
	// Jobs has the results that a source deferred reads.
	Jobs *deferred.Store
	// Others lists the definitions that are stored.
	Others func(context.Context) []*spec.Pipeline
	// Clients lists the names of the clients that there are, for a slip of one to be
	// told; those that the caller's key may not act as are never named.
	Clients func(context.Context) []string
	// Rows is how many rows a sample has; 20 unless it is set.
	Rows int
}

// A Plan is what was found.
type Plan struct {
	Pipeline string  `json:"pipeline,omitempty"`
	Level    Level   `json:"level"`
	Verdict  Verdict `json:"verdict"` // refused if one stage is, else unknown if one is
	Stages   []Stage `json:"stages"`
	// Source has the columns that are read, and Result those that are written.
	Source *record.Schema `json:"source,omitempty"`
	Result *record.Schema `json:"result,omitempty"`
	Write  Write          `json:"write"`
	// Checkpoint says where it is kept how far the pipeline is.
	Checkpoint string   `json:"checkpoint"`
	Delivery   Delivery `json:"delivery"`
	Tasks      Tasks    `json:"tasks"`
	Rows       *Rows    `json:"sample,omitempty"`
	ElapsedMS  float64  `json:"elapsed_ms"`
}

// A Stage is the verdict of one stage.
type Stage struct {
	Stage     string        `json:"stage"` // source, transforms[0], sink
	Client    string        `json:"client,omitempty"`
	Engine    athena.Engine `json:"engine,omitempty"`
	Operation string        `json:"operation"` // table, cdc, filter …; of a sink with its mode or format
	// Required are the capabilities that the operation needs; of these, Granted has
	// what the client's definition grants, and Supported what its engine can do.
	Required  []athena.Capability `json:"required,omitempty"`
	Granted   []athena.Capability `json:"granted,omitempty"`
	Supported []athena.Capability `json:"supported,omitempty"`
	Verdict   Verdict             `json:"verdict"`
	Code      athena.Code         `json:"code,omitempty"`
	Field     string              `json:"field,omitempty"`
	Detail    string              `json:"detail,omitempty"`

	err *athena.Error
}

// Write says how rows get to where they go.
type Write struct {
	Mode   driver.WriteMode `json:"mode,omitempty"`
	Key    []string         `json:"key,omitempty"`
	Format string           `json:"format,omitempty"`
	// Creates and Alters are the statements that a run begins with.
	Creates  string                 `json:"creates,omitempty"`
	Alters   []string               `json:"alters,omitempty"`
	Mapping  []driver.ColumnMapping `json:"mapping,omitempty"`
	Problems []driver.TableProblem  `json:"problems,omitempty"`
	Notes    []string               `json:"notes,omitempty"`
}

// Tasks says how the work of a run is divided.
type Tasks struct {
	Count    int   `json:"count"` // 0 is not known yet
	Parallel int   `json:"parallel"`
	Rows     int64 `json:"estimated_rows"` // -1 is not known
	Bytes    int64 `json:"estimated_bytes"`
	// Reason says why there is one task only.
	Reason string `json:"reason,omitempty"`
}

// refuse gives a stage its verdict by an error. The first one counts.
func (s *Stage) refuse(err error) {
	if err == nil || s.Verdict == Refused {
		return
	}
	e := athena.AsError(err)
	s.Verdict, s.Code, s.Detail, s.err = Refused, e.Code, e.Message, e
	if field, ok := e.Details["field"].(string); ok && field != "" {
		s.Field = field
		s.Detail = strings.TrimPrefix(e.Message, field+": ") // said once
	}
}

func (s *Stage) unknown(format string, args ...any) {
	if s.Verdict != Refused {
		s.Verdict, s.Detail = Unknown, fmt.Sprintf(format, args...)
	}
}

func (s *Stage) ok(format string, args ...any) {
	if s.Verdict != Refused {
		s.Verdict, s.Detail = OK, fmt.Sprintf(format, args...)
	}
}

// A judgement is one plan in the making.
type judgement struct {
	*Planner
	*Plan
	p           *spec.Pipeline
	source      *Stage
	steps       []*Stage
	sink        *Stage
	resnapshots bool // the capture reads its tables anew after a loss
	// schema is the source's, nil as long as it is not known.
	schema *record.Schema
	chain  *transform.Chain
}

// Plan judges a definition whose parameters are filled in. The error says why it
// cannot be run, and then the plan is there as well: it is that of the first stage
// which is refused, at its field and with the detail "stage". Another error comes
// without a plan.
func (pl *Planner) Plan(ctx context.Context, p *spec.Pipeline, level Level) (*Plan, error) {
	began := time.Now()
	if !slices.Contains([]Level{Static, Connect, Sample}, level) {
		return nil, athena.Errorf(athena.CodeInvalidRequest, "level %.40q is unknown; it must be static, connect or sample", string(level)).At("level")
	}
	if len(p.Params) > 0 {
		return nil, athena.Errorf(athena.CodeInvalidRequest, "the definition is a template; give it values for its params").At("params")
	}
	if err := p.Validate(); err != nil {
		return nil, err
	}
	p = p.Clone()
	p.Normalize()
	j := &judgement{Planner: pl, p: p, Plan: &Plan{Pipeline: p.Name, Level: level}}
	j.begin()
	j.static(ctx)
	if level != Static {
		if err := j.connect(ctx); err != nil {
			return nil, err
		}
	}
	if level == Sample {
		if err := j.sample(ctx); err != nil {
			return nil, err
		}
	}
	j.ElapsedMS = float64(time.Since(began).Microseconds()) / 1000
	return j.Plan, j.end()
}

// begin lays the stages out.
func (j *judgement) begin() {
	p := j.p
	j.Stages = make([]Stage, 0, len(p.Transforms)+2)
	add := func(s Stage) *Stage {
		s.Verdict = Unknown
		j.Stages = append(j.Stages, s)
		return &j.Stages[len(j.Stages)-1]
	}
	j.source = add(Stage{Stage: "source", Client: p.Source.Client, Operation: p.Source.Kind(), Required: stage.SourceOp(p.Source).Needs})
	for i := range p.Transforms {
		j.steps = append(j.steps, add(Stage{Stage: fmt.Sprintf("transforms[%d]", i), Operation: p.Transforms[i].Kind()}))
	}
	operation := "table " + string(p.Sink.Mode)
	j.Write = Write{Mode: p.Sink.Mode, Key: p.Sink.Key}
	if o := p.Sink.Objects; o != nil {
		operation = "objects " + o.Format
		j.Write = Write{Format: o.Format}
	}
	j.sink = add(Stage{Stage: "sink", Client: p.Sink.Client, Operation: operation, Required: stage.SinkOp(p.Sink).Needs})
	j.Tasks = Tasks{Parallel: p.Parallel, Rows: -1, Bytes: -1}
	j.promise()
}

// promise says what the pipeline does, as far as is known.
func (j *judgement) promise() {
	d, known := j.Drivers[j.sink.Engine]
	j.Checkpoint, j.Delivery = delivery(j.p, j.resnapshots, known && !d.Transactional())
}

// end sums the verdicts up.
func (j *judgement) end() error {
	j.Verdict = OK
	var refused error
	for i := range j.Stages {
		s := &j.Stages[i]
		switch {
		case s.Verdict == Refused && refused == nil:
			e := s.err.With("stage", s.Stage)
			if s.Field != "" {
				e = e.At(s.Field)
			}
			refused = e
		case s.Verdict == Unknown && j.Verdict == OK:
			j.Verdict = Unknown
		}
	}
	if refused != nil {
		j.Verdict = Refused
	}
	return refused
}

// interrupted reports whether an error is of the caller's own and says nothing of
// a stage.
func interrupted(ctx context.Context, err error) bool {
	return ctx.Err() != nil && (errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded))
}

// environment is what the chain must know.
func (j *judgement) environment() transform.Env {
	return transform.Env{
		Pipeline: cmp.Or(j.p.Name, "unnamed"), Changes: j.p.Streams(),
		ByKey: j.p.Streams() && j.p.Sink.Mode == driver.Upsert, Tables: j.p.Sink.Table != "",
	}
}

// types gives the types of a client's columns by the engine's names of them.
func (j *judgement) types(e athena.Engine) func(string) record.Type { return j.Drivers[e].ColumnType }

// principal is who asks.
func principal(ctx context.Context) *auth.Principal { return auth.FromContext(ctx) }
