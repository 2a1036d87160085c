package spec

import (
	"encoding/json"
	"math"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/adhocore/gronx"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/driver"
)

// Bounds of a definition.
const (
	mostTransforms = 256
	mostText       = 64 << 10 // bytes of a query
	mostExpression = 4096     // bytes
	mostTests      = 200
	mostTables     = 64
)

var nameForm = regexp.MustCompile(`^[a-z][a-z0-9_-]{0,62}$`)

// CheckName reports whether a pipeline can have a name.
func CheckName(name string) error {
	if !nameForm.MatchString(name) {
		return athena.Errorf(athena.CodeInvalidRequest, "name %q is not allowed; it must start with a letter and hold at most 63 of a-z, 0-9, _ and -", clip(name)).At("name")
	}
	return nil
}

// Validate checks a definition that was made in another way than by Decode, whose
// error it gives.
func (p *Pipeline) Validate() error {
	d := &decoder{}
	if d.encodable(p); !d.failed() {
		d.validate(p)
	}
	if d.failed() {
		return d.err()
	}
	return nil
}

// encodable refuses values that no document could have given.
func (d *decoder) encodable(p *Pipeline) {
	raws := map[string][]json.RawMessage{"source.params": p.Source.Params}
	for i, c := range p.Source.Where {
		if c.Value != nil {
			raws[index("source.where", i)+".value"] = []json.RawMessage{c.Value}
		}
	}
	for i, t := range p.Tests {
		raws[index("tests", i)+".in"], raws[index("tests", i)+".out"] = t.In, t.Out
	}
	for path, list := range raws {
		if slices.ContainsFunc(list, func(raw json.RawMessage) bool { return !json.Valid(raw) }) {
			d.refuse(path, "it is not JSON")
		}
	}
	if r := p.Errors.MaxRate; r != nil && (math.IsNaN(*r) || math.IsInf(*r, 0)) {
		d.refuse("errors.max_rate", "it is %v; it must be between 0 and 1", *r)
	}
}

func (d *decoder) validate(p *Pipeline) {
	d.check(p)
	d.placeholders(p)
}

// check is validate but for placeholders.
func (d *decoder) check(p *Pipeline) {
	v := validator{d, p, len(p.Params) > 0}
	if p.Name != "" {
		v.syntax("name", p.Name, CheckName)
	}
	v.source()
	v.sink()
	v.transforms()
	v.schedule()
	v.policies()
	v.tests()
}

type validator struct {
	*decoder
	p *Pipeline
	// template says that texts may have placeholders, so that their syntax is
	// known only once they are filled in.
	template bool
}

// open reports whether a text cannot be judged yet.
func (v validator) open(text string) bool { return v.template && strings.Contains(text, "${") }

func (v validator) syntax(path, text string, check func(string) error) {
	if v.open(text) {
		return
	}
	if err := check(text); err != nil {
		v.refuse(path, "%s", athena.AsError(err).Message)
	}
}

func (v validator) oneOf(path, text string, words ...string) {
	if text != "" && !v.open(text) && !slices.Contains(words, text) {
		v.refuse(path, "it is %q; it must be %s", clip(text), either(words))
	}
}

// either lists words: a, b or c.
func either(words []string) string {
	last := len(words) - 1
	if last <= 0 {
		return strings.Join(words, "")
	}
	return strings.Join(words[:last], ", ") + " or " + words[last]
}

func (v validator) client(path, name string) {
	if name == "" {
		v.refuse(path, "no client is named")
		return
	}
	v.syntax(path+".client", name, athena.CheckName)
}

func tableName(text string) error {
	_, err := driver.ParseTableName(text)
	return err
}

func (v validator) names(path string, names []string) {
	for i, n := range names {
		switch {
		case n == "":
			v.refuse(index(path, i), "it is empty")
		case slices.Index(names, n) < i:
			v.refuse(index(path, i), "%q is given twice", clip(n))
		}
	}
}

func (v validator) source() {
	s := &v.p.Source
	var kinds []string
	for _, k := range []struct {
		name string
		set  bool
	}{{"table", s.Table != ""}, {"query", s.Query != ""}, {"cdc", s.CDC != nil}, {"objects", s.Objects != nil}, {"deferred", s.Deferred != ""}} {
		if k.set {
			kinds = append(kinds, k.name)
		}
	}
	switch len(kinds) {
	case 0:
		v.refuse("source", "it says nothing of what is read; it needs one of table, query, cdc, objects and deferred")
	case 1:
	default:
		v.refuse("source."+kinds[1], "there is %s already; a source has exactly one of table, query, cdc, objects and deferred", kinds[0])
	}
	v.client("source", s.Client)
	for _, f := range []struct {
		name string
		set  bool
		of   string
	}{
		{"columns", s.Columns != nil, "table"}, {"where", s.Where != nil, "table"},
		{"limit", s.Limit != 0, "table"}, {"params", s.Params != nil, "query"},
	} {
		if f.set && !slices.Contains(kinds, f.of) {
			v.refuse("source."+f.name, "it belongs to a source %s", f.of)
		}
	}
	if s.Table != "" {
		v.syntax("source.table", s.Table, tableName)
	}
	v.names("source.columns", s.Columns)
	for i, c := range s.Where {
		v.condition(index("source.where", i), c)
	}
	if s.Limit < 0 {
		v.refuse("source.limit", "it is %d; it must be 1 or more", s.Limit)
	}
	if len(s.Query) > mostText {
		v.refuse("source.query", "it has %d bytes; the most is %d", len(s.Query), mostText)
	}
	if s.CDC != nil {
		v.cdc(s.CDC)
	}
	if s.Objects != nil {
		v.objects(s.Objects)
	}
}

// operators are those of conditions.
var operators = []string{"=", "!=", "<", "<=", ">", ">=", "like", "in", "is_null", "not_null"}

func (v validator) condition(path string, c driver.Condition) {
	if c.Column == "" {
		v.refuse(path+".column", "a condition names a column")
	}
	if c.Op == "" {
		v.refuse(path+".op", "a condition has one of the operators %s", strings.Join(operators, " "))
		return
	}
	v.oneOf(path+".op", c.Op, operators...)
	switch null := len(c.Value) == 0 || string(c.Value) == "null"; {
	case c.Op == "is_null" || c.Op == "not_null":
		if !null {
			v.refuse(path+".value", "%s takes no value", c.Op)
		}
	case null:
		v.refuse(path, "%s needs a value; a null is asked for with is_null", c.Op)
	case c.Op == "in" && (c.Value[0] != '[' || string(c.Value) == "[]"):
		v.refuse(path+".value", "in needs a list of values")
	case c.Op != "in" && (c.Value[0] == '[' || c.Value[0] == '{'):
		v.refuse(path+".value", "%s needs one value", c.Op)
	}
}

func (v validator) cdc(c *CDCSource) {
	if len(c.Tables) == 0 {
		v.refuse("source.cdc.tables", "it needs at least one table")
	}
	if len(c.Tables) > mostTables {
		v.refuse("source.cdc.tables", "it has %d tables; the most is %d", len(c.Tables), mostTables)
	}
	v.names("source.cdc.tables", c.Tables)
	for i, t := range c.Tables {
		v.syntax(index("source.cdc.tables", i), t, tableName)
	}
	v.oneOf("source.cdc.snapshot", c.Snapshot, SnapshotInitial, SnapshotNever)
	v.expression("source.cdc.where", c.Where)
	if len(c.Tables) > 1 && !v.p.Routes() {
		v.refuse("source.cdc.tables", "the rows of %d tables cannot go to one place; part them with a route, such as meta.table, or make a pipeline of each", len(c.Tables))
	}
}

func (v validator) expression(path, text string) {
	if len(text) > mostExpression {
		v.refuse(path, "the expression has %d bytes; the most is %d", len(text), mostExpression)
	}
}

func (v validator) objects(o *ObjectSource) {
	if !v.open(o.Prefix) {
		if wrong := checkKey(o.Prefix); wrong != "" {
			v.refuse("source.objects.prefix", "prefix %q %s", clip(o.Prefix), wrong)
		}
		if strings.Contains(o.Prefix, "{{") {
			v.refuse("source.objects.prefix", "{{column}} is for a sink's prefix; a source reads all that is below its own")
		}
	}
	v.oneOf("source.objects.format", o.Format, FormatParquet, FormatNDJSON, FormatCSV)
	names := make([]string, len(o.Columns))
	for i, c := range o.Columns {
		names[i] = c.Name
		if c.Type.Kind == 0 {
			v.refuse(index("source.objects.columns", i)+".type", "the column has no type")
		}
	}
	v.names("source.objects.columns", names)
	if len(o.Columns) > 0 && o.Format == FormatParquet {
		v.refuse("source.objects.columns", "parquet has names and types of its own; cast them in a transform")
	}
}

var modes = []string{string(driver.Append), string(driver.Upsert), string(driver.Merge), string(driver.Overwrite)}

func (v validator) sink() {
	s := &v.p.Sink
	switch {
	case s.Table == "" && s.Objects == nil:
		v.refuse("sink", "it says nothing of what is written; it needs one of table and objects")
	case s.Table != "" && s.Objects != nil:
		v.refuse("sink.objects", "there is table already; a sink has exactly one of table and objects")
	}
	v.client("sink", s.Client)
	if s.Table != "" {
		v.syntax("sink.table", s.Table, tableName)
	}
	for _, f := range []struct {
		name string
		set  bool
	}{{"mode", s.Mode != ""}, {"key", s.Key != nil}, {"create", s.Create}, {"write_time", s.WriteTime != ""}, {"ttl", s.TTL != ""}} {
		if f.set && s.Table == "" {
			v.refuse("sink."+f.name, "it belongs to a sink table")
		}
	}
	v.oneOf("sink.mode", string(s.Mode), modes...)
	v.names("sink.key", s.Key)
	if s.Table != "" {
		v.mode()
	}
	if s.Objects != nil {
		v.objectSink(s.Objects)
	}
}

func (v validator) mode() {
	s, mode := &v.p.Sink, v.p.Mode()
	switch {
	case v.p.Streams() && mode.Staged():
		v.refuse("sink.mode", "%s takes all rows at once and cannot follow changes; behind cdc it is append or upsert", mode)
	case (mode == driver.Append || mode == driver.Overwrite) && s.Key != nil:
		v.refuse("sink.key", "%s has no use for a key; it is of upsert and merge", mode)
	case (mode == driver.Upsert || mode == driver.Merge) && s.Key == nil && slices.Contains([]string{"query", "objects", "deferred"}, v.p.Source.Kind()) && !v.aggregates():
		v.refuse("sink", "%s needs a key, and a source %s has none; name its columns under key", mode, v.p.Source.Kind())
	}
	for _, f := range []struct{ name, column string }{{"write_time", s.WriteTime}, {"ttl", s.TTL}} {
		switch {
		case f.column == "":
		case mode.Staged():
			v.refuse("sink."+f.name, "%s takes all rows at once, as if they were written then; it is of append and upsert", mode)
		case slices.Contains(s.Key, f.column):
			v.refuse("sink."+f.name, "column %q is part of the key, and this one is not written", clip(f.column))
		}
	}
	if s.WriteTime != "" && s.WriteTime == s.TTL {
		v.refuse("sink.ttl", "column %q is the write time already", clip(s.TTL))
	}
}

func (v validator) aggregates() bool {
	return slices.ContainsFunc(v.p.Transforms, func(t Transform) bool { return t.Aggregate != nil })
}

func (v validator) objectSink(o *ObjectSink) {
	if o.Prefix == "" {
		v.refuse("sink.objects", "it needs a prefix, so that its objects stand apart from others")
	}
	v.syntax("sink.objects.prefix", o.Prefix, func(s string) error { _, err := ParsePrefix(s); return err })
	v.oneOf("sink.objects.format", o.Format, FormatParquet, FormatNDJSON, FormatCSV)
	v.oneOf("sink.objects.compression", o.Compression, CompressionNone, CompressionGzip, CompressionZstd, CompressionSnappy)
	if o.Compression == CompressionSnappy && o.Format != "" && o.Format != FormatParquet && !v.open(o.Format) {
		v.refuse("sink.objects.compression", "snappy is for parquet; for %s it is none, gzip or zstd", o.Format)
	}
	if o.Roll.Rows < 0 {
		v.refuse("sink.objects.roll.rows", "it is %d; it must be 1 or more", o.Roll.Rows)
	}
	// Upkeep takes uploads that are older than a day for left behind.
	if o.Roll.Every != 0 && (o.Roll.Every.Std() < time.Second || o.Roll.Every.Std() > 12*time.Hour) {
		v.refuse("sink.objects.roll.every", "it is %s; it must be between 1s and 12h", o.Roll.Every)
	}
}

func (v validator) schedule() {
	s := v.p.Schedule
	switch {
	case s == "" || v.open(s):
	case v.p.Streams():
		v.refuse("schedule", "a source cdc runs until it is stopped and has no schedule")
	case len(strings.Fields(s)) != 5 || !gronx.IsValid(s):
		v.refuse("schedule", "%q is not a cron expression of five fields, such as */15 * * * *", clip(s))
	case v.p.Name == "":
		v.refuse("schedule", "a pipeline without a name cannot be stored, and so not be scheduled")
	}
}

func (v validator) policies() {
	p := v.p
	policies := []string{string(Evolve), string(Freeze), string(DiscardRow), string(DiscardValue), string(Quarantine)}
	v.oneOf("schema.columns", string(p.Schema.Columns), policies...)
	v.oneOf("schema.types", string(p.Schema.Types), policies...)
	if r := p.Errors.MaxRate; r != nil && (*r < 0 || *r > 1) {
		v.refuse("errors.max_rate", "it is %v; it must be between 0 and 1", *r)
	}
	v.oneOf("errors.to", p.Errors.To, ToDead, ToDrop)
	if p.Parallel < 0 || p.Parallel > MostParallel {
		v.refuse("parallel", "it is %d; it must be between 1 and %d", p.Parallel, MostParallel)
	}
}

func (v validator) tests() {
	if len(v.p.Tests) > mostTests {
		v.refuse("tests", "there are %d; the most is %d", len(v.p.Tests), mostTests)
	}
	for i, t := range v.p.Tests {
		at := index("tests", i)
		if t.Name == "" {
			v.refuse(at, "a test needs a name that says what it shows")
		}
		if slices.IndexFunc(v.p.Tests, func(o Test) bool { return o.Name == t.Name }) < i && t.Name != "" {
			v.refuse(at+".name", "another test has the name %q", clip(t.Name))
		}
		if t.Dead < 0 {
			v.refuse(at+".dead", "it is %d; it must be 0 or more", t.Dead)
		}
		for _, rows := range []struct {
			name string
			list []json.RawMessage
		}{{"in", t.In}, {"out", t.Out}} {
			for n, row := range rows.list {
				if len(row) == 0 || row[0] != '{' {
					v.refuse(index(at+"."+rows.name, n), "a row is an object of its columns")
				}
			}
		}
	}
}
