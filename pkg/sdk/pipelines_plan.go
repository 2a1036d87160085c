package sdk

import (
	"cmp"
	"context"
	"encoding/json"
	"net/http"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/record"
)

// Levels of a plan.
const (
	PlanStatic  = "static"  // dials nobody
	PlanConnect = "connect" // asks the backends
	PlanSample  = "sample"  // takes some rows through the transforms, and writes nothing
)

// Verdicts of a plan and its stages.
const (
	PlanOK      = "ok"
	PlanRefused = "refused"
	PlanUnknown = "unknown" // the next level can tell, or only the run
)

// A PlanQuestion says what is to be planned: a definition in JSON, or one that is
// stored, with values of its parameters.
type PlanQuestion struct {
	Definition json.RawMessage   `json:"definition,omitempty"`
	Name       string            `json:"name,omitempty"`
	Generation int               `json:"generation,omitempty"` // the newest if it is 0
	Params     map[string]string `json:"params,omitempty"`
	Level      string            `json:"level,omitempty"` // PlanStatic unless it is set
}

// A PipelinePlan says of each stage of a definition whether it may run.
type PipelinePlan struct {
	Pipeline string      `json:"pipeline,omitempty"`
	Level    string      `json:"level"`
	Verdict  string      `json:"verdict"` // refused if one stage is, else unknown if one is
	Stages   []PlanStage `json:"stages"`
	// Source has the columns that are read, and Result those that are written.
	Source     *record.Schema `json:"source,omitempty"`
	Result     *record.Schema `json:"result,omitempty"`
	Write      PlanWrite      `json:"write"`
	Checkpoint string         `json:"checkpoint,omitempty"` // where it is kept how far it is
	Delivery   PlanDelivery   `json:"delivery"`
	Tasks      PlanTasks      `json:"tasks"`
	Sample     *PlanSampled   `json:"sample,omitempty"`
	ElapsedMS  float64        `json:"elapsed_ms"`
}

// PlanSampled is what a sample showed. Nothing of it was written.
type PlanSampled struct {
	Read int          `json:"read"`
	Out  []SampledRow `json:"out"`
	Dead []SampledRow `json:"dead,omitempty"`
	Note string       `json:"note,omitempty"`
}

// A SampledRow is one that would be written, or, with a stage and a reason, one
// that could not go on.
type SampledRow struct {
	Route  string          `json:"route,omitempty"`
	Op     string          `json:"op,omitempty"` // behind cdc
	Row    json.RawMessage `json:"row"`          // of one that could not go on, a text
	Stage  string          `json:"stage,omitempty"`
	Column string          `json:"column,omitempty"`
	Reason string          `json:"reason,omitempty"`
}

// PlanStage is the verdict of one stage.
type PlanStage struct {
	Stage     string        `json:"stage"` // source, transforms[0], sink
	Client    string        `json:"client,omitempty"`
	Engine    athena.Engine `json:"engine,omitempty"`
	Operation string        `json:"operation"`
	// Required are the capabilities that the operation needs; of these, Granted has
	// what the client's definition grants, and Supported what its engine can do.
	Required  []string    `json:"required,omitempty"`
	Granted   []string    `json:"granted,omitempty"`
	Supported []string    `json:"supported,omitempty"`
	Verdict   string      `json:"verdict"`
	Code      athena.Code `json:"code,omitempty"`
	Field     string      `json:"field,omitempty"`
	Detail    string      `json:"detail,omitempty"`
}

// PlanWrite says how rows get to where they go.
type PlanWrite struct {
	Mode     driver.WriteMode       `json:"mode,omitempty"`
	Key      []string               `json:"key,omitempty"`
	Format   string                 `json:"format,omitempty"`
	Creates  string                 `json:"creates,omitempty"` // statement that a run begins with
	Alters   []string               `json:"alters,omitempty"`  // and these
	Mapping  []driver.ColumnMapping `json:"mapping,omitempty"`
	Problems []driver.TableProblem  `json:"problems,omitempty"`
	Notes    []string               `json:"notes,omitempty"`
}

// PlanDelivery says what a pipeline promises, and by what.
type PlanDelivery struct {
	Class  string `json:"class"` // exactly_once, effectively_once, at_least_once
	Reason string `json:"reason"`
}

// PlanTasks says how the work of a run is divided.
type PlanTasks struct {
	Count    int    `json:"count"` // 0 is not known yet
	Parallel int    `json:"parallel"`
	Rows     int64  `json:"estimated_rows"` // -1 is not known
	Bytes    int64  `json:"estimated_bytes"`
	Reason   string `json:"reason,omitempty"` // why there is one task only
}

// Err is why the definition cannot be run, with the code of the first stage that is
// refused; nil if none is.
func (p *PipelinePlan) Err() error {
	for _, s := range p.Stages {
		if s.Verdict != PlanRefused {
			continue
		}
		e := athena.Errorf(s.Code, "%s: %s", cmp.Or(s.Field, s.Stage), s.Detail).With("stage", s.Stage)
		if s.Field != "" {
			e = e.At(s.Field)
		}
		return e
	}
	return nil
}

// Plan says whether a definition can be run. That it cannot is no error: Err of
// the plan tells.
func (p *Pipelines) Plan(ctx context.Context, q PlanQuestion) (*PipelinePlan, error) {
	r := request{method: http.MethodPost, path: "/pipelines/plan", body: q, safe: true}
	plan, _, err := answer[*PipelinePlan](ctx, p.api, r)
	return plan, err
}

// PlanOf returns the plan that an error has which says that a definition cannot be
// run; nil if it has none.
func PlanOf(err error) *PipelinePlan {
	if err == nil {
		return nil
	}
	raw, bad := json.Marshal(athena.AsError(err).Details["plan"])
	var plan *PipelinePlan
	if bad != nil || json.Unmarshal(raw, &plan) != nil {
		return nil
	}
	return plan
}
