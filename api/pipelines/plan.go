package pipelines

import (
	"cmp"
	"context"
	"encoding/json"

	"github.com/gin-gonic/gin"

	"github.com/athena-pipelines/athena/api/envelope"
	"github.com/athena-pipelines/athena/api/params"
	"github.com/athena-pipelines/athena/pipelines/plan"
	"github.com/athena-pipelines/athena/pipelines/runs"
	"github.com/athena-pipelines/athena/pipelines/spec"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/auth"
)

// A Planner judges definitions in the name of the principal in ctx; *plan.Planner
// is one.
type Planner interface {
	// Plan returns the plan also with the error that says why the definition cannot
	// be run. Another error comes without a plan.
	Plan(ctx context.Context, p *spec.Pipeline, level plan.Level) (*plan.Plan, error)
}

// A question is what a plan is asked of: a definition, or the name of one that is
// stored, with the values of its parameters.
type question struct {
	Definition json.RawMessage   `json:"definition"`
	Name       string            `json:"name"`
	Generation int               `json:"generation"`
	Params     map[string]string `json:"params"`
	Level      plan.Level        `json:"level"`
}

// plan answers with the verdict of every stage. A definition that could not be run
// is no error of the request: the plan says so.
func (f *Family) plan(c *gin.Context) {
	q := params.Of(c)
	level := plan.Level(q.OneOf("level", string(plan.Static), string(plan.Connect), string(plan.Sample)))
	if allowed(c, auth.Read, q.Err()) {
		f.answerPlan(c, level)
	}
}

// simulate is plan at the level sample.
func (f *Family) simulate(c *gin.Context) {
	if allowed(c, auth.Read, params.None(c)) {
		f.answerPlan(c, plan.Sample)
	}
}

func (f *Family) answerPlan(c *gin.Context, level plan.Level) {
	ask, p, err := decodeQuestion(c)
	if err == nil && level != "" && ask.Level != "" && ask.Level != level {
		err = athena.Errorf(athena.CodeInvalidRequest, "level is %.40q, and the request asks for %s; give it once", string(ask.Level), level).At("level")
	}
	if err == nil && p == nil {
		p, err = f.asked(c.Request.Context(), ask)
	}
	if err == nil {
		p, err = p.Instantiate(ask.Params)
	}
	if err != nil {
		envelope.Fail(c, err)
		return
	}
	f.show(c, p, cmp.Or(level, ask.Level, plan.Static))
}

// show answers with a plan. What the key may not have looked at, the plan refuses.
func (f *Family) show(c *gin.Context, p *spec.Pipeline, level plan.Level) {
	found, err := f.cfg.Plans.Plan(c.Request.Context(), p, level)
	switch {
	case found == nil:
		envelope.Fail(c, err)
	case err != nil:
		envelope.OK(c, "it cannot be run: "+athena.AsError(err).Message, found, envelope.Meta{})
	default:
		envelope.OK(c, "nothing that was looked at stands in the way", found, envelope.Meta{})
	}
}

// decodeQuestion reads a definition, or what says which one is meant: then p is
// nil.
func decodeQuestion(c *gin.Context) (ask question, p *spec.Pipeline, err error) {
	raw, fields, err := object(c)
	if err != nil {
		return ask, nil, err
	}
	_, source := fields["source"]
	_, sink := fields["sink"]
	_, wrapped := fields["definition"]
	if _, named := fields["name"]; source || sink || !wrapped && !named {
		p, err = spec.Decode(raw)
		return ask, p, err
	}
	if err := athena.DecodeJSON(raw, &ask, ""); err != nil {
		return ask, nil, err
	}
	switch {
	case wrapped && (ask.Name != "" || ask.Generation != 0):
		return ask, nil, athena.Errorf(athena.CodeInvalidRequest, "definition and name exclude each other; give one").At("name")
	case wrapped:
		if p, err = spec.Decode(ask.Definition); err != nil {
			return ask, nil, err
		}
	case ask.Generation < 0:
		return ask, nil, athena.Errorf(athena.CodeInvalidRequest, "generation is %d; it must be 1 or more", ask.Generation).At("generation")
	}
	return ask, p, nil
}

// asked returns the stored definition that is meant.
func (f *Family) asked(ctx context.Context, ask question) (*spec.Pipeline, error) {
	d, ok := f.cfg.Store.Definition(ask.Name)
	if ok && ask.Generation != 0 && ask.Generation != d.Generation {
		var old runs.Definition
		old, ok = f.cfg.Store.Generation(ask.Name, ask.Generation)
		ok = ok && old.ID == d.ID
		d = old
	}
	p := stored(d.Spec)
	if !ok || !sees(ctx, p.Source.Client, p.Sink.Client) {
		return nil, athena.Errorf(athena.CodeNotFound, "there is no pipeline %.80q, or not in this generation; list them with GET /pipelines", ask.Name).At("name")
	}
	return p, nil
}

// permit reports why a definition, with its parameters filled in, may not be run:
// the plan at level static, with the code of the stage that is to blame and the
// plan in the details.
func (f *Family) permit(ctx context.Context, p *spec.Pipeline) error {
	if err := authorize(ctx, p); err != nil {
		return err
	}
	found, refused := f.cfg.Plans.Plan(ctx, p, plan.Static)
	if refused != nil && found != nil {
		return athena.AsError(refused).With("plan", found)
	}
	return refused
}
