package plan

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/athena-pipelines/athena/pipelines/spec"
	"github.com/athena-pipelines/athena/pipelines/stage"
	"github.com/athena-pipelines/athena/pipelines/transform"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/changefeed"
	"github.com/athena-pipelines/athena/pkg/dispatch"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/record"
)

// static judges all that needs no backend.
func (j *judgement) static(ctx context.Context) {
	j.check(ctx, j.source, stage.SourceOp(j.p.Source))
	j.check(ctx, j.sink, stage.SinkOp(j.p.Sink))
	j.writes()
	if j.p.Streams() {
		j.capture()
	}
	j.promise()
	if o := j.p.Source.Objects; o != nil && len(o.Columns) > 0 {
		j.schema = declared(o.Columns)
	}
	j.expressions()
	if j.schema != nil {
		j.compile()
	}
	j.conflicts(ctx)
}

// check asks the road whether a stage's client lets the operation through.
func (j *judgement) check(ctx context.Context, s *Stage, op dispatch.Op) {
	client, err := j.Dispatcher.Check(ctx, op, s.Client)
	if client != nil {
		s.Engine = client.Engine()
		s.Granted = among(op.Needs, client.Capabilities)
		s.Supported = among(op.Needs, j.Dispatcher.Resolver.Supports(client.Engine()))
	}
	if athena.CodeOf(err) == athena.CodeClientNotFound {
		err = athena.Errorf(athena.CodeClientNotFound, "there is no client %q%s", s.Client, j.slip(ctx, s.Client))
	}
	if err != nil {
		if _, told := athena.AsError(err).Details["field"]; !told {
			err = athena.AsError(err).At(s.Stage + ".client")
		}
		s.refuse(err)
		return
	}
	s.unknown(checked)
}

// writes refuses a mode in which the sink's engine cannot write: what no grant of a
// capability could mend is said before what one could.
func (j *judgement) writes() {
	modes := j.Drivers[j.sink.Engine].WriteModes
	if j.p.Sink.Table == "" || len(modes) == 0 || slices.Contains(modes, j.p.Sink.Mode) {
		return // an engine without modes is none for tables, and refused as such
	}
	words := make([]string, len(modes))
	for i, m := range modes {
		words[i] = string(m)
	}
	err := athena.Errorf(athena.CodeCapabilityUnsupported, "client %q cannot be written to in mode %s: engine %s does not support it; use %s", j.sink.Client, j.p.Sink.Mode, j.sink.Engine, strings.Join(words, " or "))
	if j.sink.Code == athena.CodeCapabilityDenied {
		j.sink.Verdict = Unknown
	}
	j.sink.refuse(err.At("sink.mode"))
}

// slip says which client of those that the key may act as was meant.
func (j *judgement) slip(ctx context.Context, name string) string {
	names := slices.DeleteFunc(slices.Clone(j.Clients(ctx)), func(other string) bool { return !principal(ctx).MayActAs(other) })
	if near := spec.Nearest(name, names); near != "" {
		return fmt.Sprintf("; did you mean %q?", near)
	}
	return ""
}

const checked = "the client lets it through; its backend was not asked"

// among lists those capabilities that are in a set.
func among(list []athena.Capability, set athena.Capabilities) (in []athena.Capability) {
	for _, c := range list {
		if set.Has(c) {
			in = append(in, c)
		}
	}
	return in
}

func declared(columns []spec.ObjectColumn) *record.Schema {
	s := &record.Schema{}
	for _, c := range columns {
		s.Columns = append(s.Columns, record.Column{Name: c.Name, Type: c.Type, Nullable: true})
	}
	return s
}

// capture judges whether the changes are there to be followed. What a caller may
// not know of was refused before.
func (j *judgement) capture() {
	if j.source.Verdict == Refused {
		return
	}
	client, c := j.p.Source.Client, j.p.Source.CDC
	if _, err := changefeed.NewFilter(changefeed.FilterSpec{Where: c.Where}); err != nil {
		j.source.refuse(athena.AsError(err).At("source.cdc.where"))
		return
	}
	capture, ok := j.Captures.Capture(client)
	if !ok || capture.Removing {
		j.source.refuse(athena.Errorf(athena.CodeConflict, "the changes of client %q are not captured; enable that first, with its tables: athena cdc enable --client %s --tables %s", client, client, changefeed.ShellTables(c.Tables...)).At("source.cdc"))
		return
	}
	for i, text := range c.Tables {
		name, err := driver.ParseTableName(text)
		if err == nil && !slices.Contains(capture.Tables, name) {
			err = athena.Errorf(athena.CodeConflict, "table %s of client %q is not captured; add it to the capture: athena cdc add --client %s --tables %s", name, client, client, changefeed.ShellTables(name.String()))
		}
		if err != nil {
			j.source.refuse(athena.AsError(err).At(fmt.Sprintf("source.cdc.tables[%d]", i)))
			return
		}
	}
	if status, ok := j.Captures.Status(client); ok && status.Capture == capture.ID && status.State == changefeed.Failed {
		message := "it needs a hand"
		if status.Cause != nil {
			message = status.Cause.Message
		}
		j.source.refuse(athena.Errorf(athena.CodeConflict, "the capture of client %q has failed: %s", client, message).At("source.cdc"))
	}
	j.resnapshots = capture.OnLoss == changefeed.Resnapshot
}

// expressions judges what of the transforms needs no schema.
func (j *judgement) expressions() {
	for i, s := range j.steps {
		switch j.p.Transforms[i].Kind() {
		case "filter", "set", "route":
			s.unknown("the expression is well-formed; the columns are not known yet")
		default:
			s.unknown("the columns are not known yet")
		}
	}
	for _, err := range transform.Check(j.p.Transforms) {
		j.blame(err)
	}
}

// blame refuses the step that an error names.
func (j *judgement) blame(err error) {
	field, _ := athena.AsError(err).Details["field"].(string)
	for _, s := range j.steps {
		if strings.HasPrefix(field, s.Stage) {
			s.refuse(err)
		}
	}
}

// compile holds the transforms against the source's schema.
func (j *judgement) compile() {
	j.Source = j.schema
	chain, err := transform.Compile(j.p.Transforms, j.schema, j.environment())
	failed := len(j.steps)
	if err != nil {
		j.blame(err)
		failed = slices.IndexFunc(j.steps, func(s *Stage) bool { return s.Verdict == Refused })
	}
	for i, s := range j.steps {
		switch {
		case i < failed:
			s.ok("it fits the columns")
		case i > failed:
			s.unknown("it comes behind a step that is refused")
		}
	}
	if err == nil {
		j.chain, j.Result = chain, chain.Schema()
		j.keys()
	}
}

// keys settles the key of a sink that needs one, and the columns in its prefix.
func (j *judgement) keys() {
	sink, out := j.p.Sink, j.chain.Schema()
	if o := sink.Objects; o != nil {
		parts, err := spec.ParsePrefix(o.Prefix)
		if err != nil {
			j.sink.refuse(athena.AsError(err).At("sink.objects.prefix"))
		}
		for _, p := range parts {
			if p.Column != "" && out.Index(p.Column) < 0 {
				j.sink.refuse(noColumn(out, p.Column).At("sink.objects.prefix"))
			}
		}
		return
	}
	for _, f := range []struct{ field, column string }{{"sink.write_time", sink.WriteTime}, {"sink.ttl", sink.TTL}} {
		if f.column != "" && out.Index(f.column) < 0 {
			j.sink.refuse(noColumn(out, f.column).At(f.field))
		}
	}
	if sink.Mode != driver.Upsert && sink.Mode != driver.Merge {
		return
	}
	key := sink.Key
	if key == nil {
		key = out.Key
	}
	if len(key) == 0 {
		j.sink.refuse(athena.Errorf(athena.CodeInvalidRequest, "%s needs a key, and no column that comes out of the transforms tells rows apart; name them under key", sink.Mode).At("sink.key"))
	}
	for i, name := range key {
		if out.Index(name) < 0 {
			j.sink.refuse(noColumn(out, name).At(fmt.Sprintf("sink.key[%d]", i)))
		}
	}
	j.Write.Key = key
}

func noColumn(s *record.Schema, name string) *athena.Error {
	meant := ""
	if near := spec.Nearest(name, s.Names()); near != "" {
		meant = fmt.Sprintf("; did you mean %q?", near)
	}
	return athena.Errorf(athena.CodeInvalidRequest, "no column %q comes out of the transforms%s", name, meant)
}
