package pipelines

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/adhocore/gronx"
	"github.com/gin-gonic/gin"
	"github.com/nats-io/nuid"

	"github.com/athena-pipelines/athena/api/envelope"
	"github.com/athena-pipelines/athena/api/params"
	"github.com/athena-pipelines/athena/pipelines/runs"
	"github.com/athena-pipelines/athena/pipelines/spec"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/auth"
	"github.com/athena-pipelines/athena/pkg/ops"
)

// A pipeline as it is shown.
type pipeline struct {
	Name        string    `json:"name"`
	ID          string    `json:"id"`
	Description string    `json:"description,omitempty"`
	Kind        runs.Kind `json:"kind"`
	// Template says that a run must give values to parameters.
	Template   bool   `json:"template,omitempty"`
	Source     end    `json:"source"`
	Sink       end    `json:"sink"`
	Schedule   string `json:"schedule,omitempty"`
	Generation int    `json:"generation"`
	Revision   uint64 `json:"revision,omitempty"` // absent of an earlier generation
	Key        string `json:"key"`
	// Paused says that the schedule starts no runs; NextAt is when it starts the
	// next one.
	Paused    bool      `json:"paused,omitempty"`
	NextAt    time.Time `json:"next_at,omitzero"`
	LastRun   *run      `json:"last_run,omitempty"`
	CreatedAt time.Time `json:"created_at"`
	UpdatedAt time.Time `json:"updated_at"`
	// Spec is the definition; absent in lists.
	Spec json.RawMessage `json:"spec,omitempty"`
	// Dead is how many rows are kept that could not go on; of one that is listed or
	// asked for.
	Dead *int64 `json:"dead,omitempty"`
}

// end is one end of a pipeline, in short.
type end struct {
	Client string `json:"client,omitempty"`
	Kind   string `json:"kind"` // table, query, cdc, objects, deferred
}

// stored reads a definition that spec.Encode has written.
func stored(raw json.RawMessage) *spec.Pipeline {
	p := new(spec.Pipeline)
	if err := json.Unmarshal(raw, p); err != nil { // then it is read as nothing that anybody may have
		return new(spec.Pipeline)
	}
	return p
}

// Stored lists the definitions that are stored, for a plan to see what they do to
// each other.
func Stored(s *runs.Store) func(context.Context) []*spec.Pipeline {
	return func(context.Context) (all []*spec.Pipeline) {
		for _, d := range s.Definitions() {
			all = append(all, stored(d.Spec))
		}
		return all
	}
}

// view shows a definition. Last is the newest of its runs, if there is one.
func (f *Family) view(d runs.Definition, p *spec.Pipeline, last *runs.Run) pipeline {
	standing := f.cfg.Store.Standing(d.ID)
	v := pipeline{
		Name: d.Name, ID: d.ID, Description: p.Description, Kind: kindOf(p), Template: len(p.Params) > 0,
		Source: end{p.Source.Client, p.Source.Kind()}, Sink: end{p.Sink.Client, p.Sink.Kind()},
		Schedule: p.Schedule, Generation: d.Generation, Revision: d.Revision, Key: d.Key,
		Paused: standing.Paused, CreatedAt: d.CreatedAt, UpdatedAt: d.UpdatedAt,
	}
	if p.Schedule != "" && !standing.Paused {
		if at, err := gronx.NextTickAfter(p.Schedule, time.Now().UTC(), false); err == nil {
			v.NextAt = at
		}
	}
	if last != nil {
		r := f.brief(*last)
		v.LastRun = &r
	}
	return v
}

// count tells how many rows of a pipeline are kept that could not go on.
func (f *Family) count(ctx context.Context, v *pipeline) error {
	n, err := f.cfg.Store.CountRejected(ctx, v.ID)
	v.Dead = &n
	return err
}

func kindOf(p *spec.Pipeline) runs.Kind {
	if p.Streams() {
		return runs.Stream
	}
	return runs.Batch
}

// newer orders runs by when they were made, the newest first.
func newer(a, b runs.Run) int {
	return cmp.Or(b.CreatedAt.Compare(a.CreatedAt), cmp.Compare(b.ID, a.ID))
}

// last returns the newest run of a pipeline; nil if there is none.
func (f *Family) last(name string) *runs.Run {
	list := f.cfg.Store.Runs(name)
	if len(list) == 0 {
		return nil
	}
	r := slices.MinFunc(list, newer)
	return &r
}

// list answers with the pipelines that the key may see, by name, each with its
// newest run.
func (f *Family) list(c *gin.Context) {
	if !allowed(c, auth.Read, params.None(c)) {
		return
	}
	last := map[string]*runs.Run{}
	for _, r := range f.cfg.Store.Runs("") {
		if old := last[r.Pipeline]; old == nil || newer(r, *old) < 0 {
			last[r.Pipeline] = &r
		}
	}
	list := []pipeline{}
	for _, d := range f.cfg.Store.Definitions() {
		if p := stored(d.Spec); sees(c.Request.Context(), p.Source.Client, p.Sink.Client) {
			v := f.view(d, p, last[d.Name])
			if err := f.count(c.Request.Context(), &v); err != nil {
				envelope.Fail(c, err)
				return
			}
			list = append(list, v)
		}
	}
	envelope.OK(c, fmt.Sprintf("%d pipelines", len(list)), list, envelope.Meta{})
}

// get answers with a definition as it is, or as it was at a generation.
func (f *Family) get(c *gin.Context) {
	q := params.Of(c)
	generation := q.Int("generation", 0, 1, 1<<31-1)
	if !allowed(c, auth.Read, q.Err()) {
		return
	}
	d, p, ok := f.definition(c)
	if !ok {
		return
	}
	if generation != 0 && generation != d.Generation {
		old, found := f.cfg.Store.Generation(d.Name, generation)
		if p = stored(old.Spec); !found || old.ID != d.ID || !sees(c.Request.Context(), p.Source.Client, p.Sink.Client) {
			envelope.Fail(c, athena.Errorf(athena.CodeNotFound, "pipeline %q has no generation %d; it is at %d", d.Name, generation, d.Generation).At("generation"))
			return
		}
		old.Revision = 0
		d = old
	} else {
		c.Header("ETag", etag(d.Revision))
		if slices.Contains(etags(c.GetHeader("If-None-Match")), etag(d.Revision)) {
			c.Status(http.StatusNotModified)
			return
		}
	}
	v := f.view(d, p, f.last(d.Name))
	v.Spec = d.Spec
	if err := f.count(c.Request.Context(), &v); err != nil {
		envelope.Fail(c, err)
		return
	}
	envelope.OK(c, fmt.Sprintf("pipeline %s at generation %d", d.Name, d.Generation), v, envelope.Meta{})
}

// put stores a definition as the next generation of its pipeline. The same again,
// by the same key, changes nothing.
func (f *Family) put(c *gin.Context) {
	if !allowed(c, auth.Write, params.None(c)) {
		return
	}
	p, err := decodeNamed(c)
	var match func(old runs.Definition, exists bool) error
	if err == nil {
		match, err = expected(c)
	}
	ctx := c.Request.Context()
	if err == nil {
		err = authorize(ctx, p)
	}
	if err != nil {
		envelope.Fail(c, err)
		return
	}
	old, exists := f.cfg.Store.Definition(p.Name)
	if exists {
		if was := stored(old.Spec); !sees(ctx, was.Source.Client, was.Sink.Client) {
			envelope.Fail(c, athena.Errorf(athena.CodeForbidden, "pipeline %q is of clients that this key is not bound to; take another name", p.Name))
			return
		}
	}
	if err := match(old, exists); err != nil {
		envelope.Fail(c, err)
		return
	}
	if exists {
		if err := f.movable(ctx, old, p); err != nil {
			envelope.Fail(c, err)
			return
		}
	}
	if err := f.judge(ctx, p); err != nil {
		envelope.Fail(c, err)
		return
	}
	d, err := f.store(ctx, p, old, exists)
	if err != nil {
		envelope.Fail(c, err)
		return
	}
	v := f.view(d, p, f.last(d.Name))
	v.Spec = d.Spec
	c.Header("ETag", etag(d.Revision))
	switch {
	case !exists:
		envelope.Created(c, "/pipelines/"+d.Name, fmt.Sprintf("pipeline %s was made", d.Name), v, envelope.Meta{})
	case d.Revision == old.Revision:
		envelope.OK(c, fmt.Sprintf("pipeline %s is defined in this way already", d.Name), v, envelope.Meta{})
	default:
		envelope.OK(c, fmt.Sprintf("pipeline %s is at generation %d", d.Name, d.Generation), v, envelope.Meta{})
	}
}

// movable is a conflict if a pipeline is to have other clients while rows are kept
// of those that it has, or may come: who may see what is between the ones need not
// be let see them.
func (f *Family) movable(ctx context.Context, old runs.Definition, p *spec.Pipeline) error {
	was := stored(old.Spec)
	if was.Source.Client == p.Source.Client && was.Sink.Client == p.Sink.Client {
		return nil
	}
	if err := f.idle(old); err != nil {
		return err
	}
	n, err := f.cfg.Store.CountRejected(ctx, old.ID)
	if err == nil && n > 0 {
		err = athena.Errorf(athena.CodeConflict, "pipeline %q goes from client %s to client %s, and %d rows of theirs could not go on; redrive or delete them first (athena pipeline dead), or take another name", p.Name, was.Source.Client, was.Sink.Client, n)
	}
	return err
}

// store puts a definition in the place of another one, or none.
func (f *Family) store(ctx context.Context, p *spec.Pipeline, old runs.Definition, exists bool) (d runs.Definition, err error) {
	key, now := auth.FromContext(ctx).Key, time.Now().UTC().Truncate(time.Millisecond)
	d = runs.Definition{Name: p.Name, ID: nuid.Next(), Spec: spec.Encode(p), Key: key, CreatedAt: now, UpdatedAt: now}
	if exists {
		if bytes.Equal(old.Spec, d.Spec) && old.Key == key {
			return old, nil
		}
		d.ID, d.Generation, d.CreatedAt, d.Revision = old.ID, old.Generation, old.CreatedAt, old.Revision
	}
	change := ops.Change{Action: "pipeline.put", Client: p.Sink.Client, Target: p.Name, Details: ops.Details{Revision: old.Revision}}
	err = f.cfg.Audit.Do(ctx, change, func(ctx context.Context) error {
		d, err = f.cfg.Store.PutDefinition(ctx, d)
		return err
	})
	return d, err
}

// judge refuses a definition whose plan says that it could not be run. What a
// template will be is not known yet, unless all its parameters have defaults; its
// runs are judged. That a client is frozen says nothing of the definition.
func (f *Family) judge(ctx context.Context, p *spec.Pipeline) error {
	whole, err := p.Instantiate(nil)
	if err != nil {
		return nil // Decode has found it whole, so that it is values that it lacks
	}
	if err = f.permit(ctx, whole); athena.CodeOf(err) == athena.CodeClientFrozen {
		return nil
	}
	return err
}

// remove deletes a pipeline that has no live run.
func (f *Family) remove(c *gin.Context) {
	if !allowed(c, auth.Write, params.None(c)) {
		return
	}
	match, err := expected(c)
	if err == nil && c.GetHeader("If-None-Match") != "" {
		err = athena.Errorf(athena.CodeInvalidRequest, "If-None-Match has no meaning with DELETE; use If-Match").At("If-None-Match")
	}
	if err != nil {
		envelope.Fail(c, err)
		return
	}
	d, p, ok := f.definition(c)
	if !ok {
		return
	}
	ctx := c.Request.Context()
	if err = match(d, true); err == nil {
		err = f.idle(d)
	}
	if err == nil {
		change := ops.Change{Action: "pipeline.delete", Client: p.Sink.Client, Target: d.Name, Details: ops.Details{Revision: d.Revision}}
		err = f.cfg.Audit.Do(ctx, change, func(ctx context.Context) error { return f.cfg.Store.RemoveDefinition(ctx, d) })
	}
	if err == nil {
		err = f.cfg.Store.Sync(ctx) // so that who asks next does not find it
	}
	if err != nil {
		envelope.Fail(c, err)
		return
	}
	envelope.OK(c, fmt.Sprintf("pipeline %s was deleted; its runs are kept as long as others", d.Name), map[string]string{"name": d.Name}, envelope.Meta{})
}

// idle is a conflict if a run of the pipeline is not over.
func (f *Family) idle(d runs.Definition) error {
	for _, r := range f.cfg.Store.Runs(d.Name) {
		if r.PipelineID != d.ID || r.State.Over() {
			continue
		}
		mend := fmt.Sprintf("cancel it first (POST /runs/%s/cancel, athena pipeline cancel %s)", r.ID, r.ID)
		if r.Kind == runs.Stream {
			mend = fmt.Sprintf("stop it first (POST /pipelines/%s/stop, athena pipeline stop %s)", d.Name, d.Name)
		}
		return athena.Errorf(athena.CodeConflict, "run %s of pipeline %q is %s; %s", r.ID, d.Name, r.State, mend).With("run", r.ID)
	}
	return nil
}

// decodeNamed reads a definition whose name is the path's.
func decodeNamed(c *gin.Context) (*spec.Pipeline, error) {
	name := c.Param("name")
	if err := spec.CheckName(name); err != nil {
		return nil, err
	}
	raw, fields, err := object(c)
	if err != nil {
		return nil, err
	}
	if _, given := fields["name"]; !given {
		raw = splice(raw, name, len(fields) > 0)
	}
	p, err := spec.Decode(raw)
	switch {
	case err != nil:
		return nil, err
	case p.Name != name:
		return nil, athena.Errorf(athena.CodeInvalidRequest, "name is %q, and the path names %q; leave it out or make them equal", p.Name, name).At("name")
	case p.Schedule != "" && len(p.Params) > 0:
		return nil, athena.Errorf(athena.CodeInvalidRequest, "a template is run by who gives it values, and has no schedule; store a definition that has the values").At("schedule")
	case p.DryRun:
		return nil, athena.Errorf(athena.CodeInvalidRequest, "dry_run is for a definition that is run at once; plan this one with POST /pipelines/plan").At("dry_run")
	}
	return p, nil
}

// object reads a body that is a JSON object, and its fields.
func object(c *gin.Context) (raw []byte, fields map[string]json.RawMessage, err error) {
	if raw, err = envelope.Body(c); err != nil {
		return nil, nil, err
	}
	if err := athena.DecodeJSON(raw, &fields, ""); err != nil {
		return nil, nil, err
	}
	if fields == nil {
		return nil, nil, athena.Errorf(athena.CodeInvalidRequest, "the body is null; it must be an object")
	}
	return raw, fields, nil
}

// splice puts a name at the front of an object, on the line where it begins, so
// that errors name the lines of who wrote it.
func splice(raw []byte, name string, more bool) []byte {
	rest := raw[bytes.IndexByte(raw, '{')+1:]
	head := fmt.Appendf(nil, `{"name":%q`, name)
	if more {
		head = append(head, ',')
	}
	return append(head, rest...)
}

// expected reads what a change is made against: a revision, nothing there, or
// whatever there is.
func expected(c *gin.Context) (match func(old runs.Definition, exists bool) error, err error) {
	is, none := c.GetHeader("If-Match"), c.GetHeader("If-None-Match")
	bad := func(field, format string, args ...any) error {
		return athena.Errorf(athena.CodeInvalidRequest, format, args...).At(field)
	}
	switch {
	case is != "" && none != "":
		return nil, bad("If-Match", "If-Match and If-None-Match exclude each other; give one")
	case none == "*":
		return func(old runs.Definition, exists bool) error {
			if exists {
				return athena.Errorf(athena.CodeConflict, "there is a pipeline %q already, at revision %d", old.Name, old.Revision).With("revision", old.Revision)
			}
			return nil
		}, nil
	case none != "":
		return nil, bad("If-None-Match", "If-None-Match is %.80q; only * is understood in a change", none)
	case is == "":
		return func(runs.Definition, bool) error { return nil }, nil
	case is == "*":
		return func(_ runs.Definition, exists bool) error {
			if !exists {
				return athena.Errorf(athena.CodeNotFound, "there is no pipeline %.80q to change; leave If-Match out to make it", c.Param("name"))
			}
			return nil
		}, nil
	}
	text, ok := strings.CutPrefix(is, `"`)
	text, closed := strings.CutSuffix(text, `"`)
	revision, err := strconv.ParseUint(text, 10, 63)
	if !ok || !closed || err != nil || revision == 0 {
		return nil, bad("If-Match", "If-Match is %.80q; give one ETag as it was read, such as \"12\"", is)
	}
	return func(old runs.Definition, exists bool) error {
		if !exists || old.Revision != revision {
			return athena.Errorf(athena.CodeConflict, "pipeline %.80q is not at revision %d but at %d; read it again", c.Param("name"), revision, old.Revision).With("revision", old.Revision)
		}
		return nil
	}, nil
}

func etag(revision uint64) string { return `"` + strconv.FormatUint(revision, 10) + `"` }

func etags(header string) []string {
	list := strings.Split(header, ",")
	for i := range list {
		list[i] = strings.TrimPrefix(strings.TrimSpace(list[i]), "W/")
	}
	return list
}
