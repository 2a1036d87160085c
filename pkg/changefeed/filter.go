package changefeed

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/interpreter"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/driver"
)

// A FilterSpec says which changes are wanted. Each field that is empty wants
// all; a change must be wanted by each.
type FilterSpec struct {
	// Tables are patterns over schema.table, of which one must match; see
	// docs/cdc.md. Messages of the log belong to no table and match none, but
	// for those of a gap, which pass every filter.
	Tables []string
	Ops    []cdc.Op
	// Where is an expression in CEL over op, schema, table, key, before, after.
	// Changes of columns (op schema) are not asked of it.
	Where string
}

// Bounds of a filter.
const (
	mostTables = 64
	mostWhere  = 4096 // bytes
	// whereCost bounds one evaluation, in CEL's units: a comparison is about one.
	whereCost = 100_000
)

// A Filter chooses changes. It does not change, and is safe for concurrent use.
type Filter struct {
	tables []glob
	ops    []cdc.Op
	where  cel.Program // nil is all
}

// NewFilter makes a filter. Its errors are invalid_request and name tables, ops
// or where.
func NewFilter(s FilterSpec) (*Filter, error) {
	f := &Filter{ops: s.Ops}
	if len(s.Tables) > mostTables {
		return nil, athena.Errorf(athena.CodeInvalidRequest, "tables holds %d patterns; the most is %d", len(s.Tables), mostTables).At("tables")
	}
	for _, text := range s.Tables {
		g, err := parseGlob("tables", text)
		if err != nil {
			return nil, err
		}
		f.tables = append(f.tables, g)
	}
	for _, op := range s.Ops {
		if !slices.Contains(cdc.Ops(), op) {
			return nil, athena.Errorf(athena.CodeInvalidRequest, "ops holds %.40q; the operations are %s", string(op), opNames()).At("ops")
		}
	}
	if strings.TrimSpace(s.Where) == "" {
		return f, nil
	}
	var err error
	f.where, err = compileWhere(s.Where)
	return f, err
}

func opNames() string {
	var names []string
	for _, op := range cdc.Ops() {
		names = append(names, string(op))
	}
	return strings.Join(names, ", ")
}

// whereEnv is what an expression knows. Objects are open: a column's type is
// known when there is a value.
var whereEnv = sync.OnceValues(func() (*cel.Env, error) {
	row := cel.MapType(cel.StringType, cel.DynType)
	return cel.NewEnv(
		cel.Variable("op", cel.StringType),
		cel.Variable("schema", cel.StringType),
		cel.Variable("table", cel.StringType),
		cel.Variable("key", row),
		cel.Variable("before", row),
		cel.Variable("after", row),
		cel.CrossTypeNumericComparisons(true),
		cel.ParserExpressionSizeLimit(mostWhere),
		cel.ParserRecursionLimit(64),
	)
})

func compileWhere(text string) (cel.Program, error) {
	refuse := func(format string, args ...any) error {
		return athena.Errorf(athena.CodeInvalidRequest, "where "+format, args...).At("where")
	}
	if len(text) > mostWhere {
		return nil, refuse("has %d bytes; the most is %d", len(text), mostWhere)
	}
	env, err := whereEnv()
	if err != nil {
		return nil, err
	}
	ast, issues := env.Compile(text)
	if issues.Err() != nil {
		first := issues.Errors()[0]
		return nil, refuse("cannot be understood at line %d, column %d: %.300s", first.Location.Line(), first.Location.Column()+1, first.Message)
	}
	switch out := ast.OutputType(); {
	case out.IsExactType(cel.DynType):
		return nil, refuse("gives a value whose type is not known before there is one; compare it, as in after.paid == true")
	case !out.IsExactType(cel.BoolType):
		return nil, refuse("gives a value of type %s; it must give a bool, as in after.id > 100", cel.FormatCELType(out))
	}
	program, err := env.Program(ast, cel.EvalOptions(cel.OptOptimize), cel.CostLimit(whereCost))
	if err != nil {
		return nil, refuse("cannot be used: %.300s", err)
	}
	return program, nil
}

// wants reports whether changes of a table can be wanted.
func (f *Filter) wants(t driver.TableName) bool {
	if f == nil || len(f.tables) == 0 || t == (driver.TableName{}) { // a message may be a gap
		return true
	}
	return slices.ContainsFunc(f.tables, func(g glob) bool { return g.match(t) })
}

// match reports whether a line is wanted, of a table that is. It decodes the
// line only where the expression asks for what is in it.
//
// What an expression cannot be evaluated on, it does not choose: a column that
// is not there, a comparison of a text with a number. An expression that costs
// more than it may is an error, since nobody knows what it would have chosen.
func (f *Filter) match(t driver.TableName, op []byte, line []byte, scratch *row) (bool, error) {
	if f == nil {
		return true, nil
	}
	if string(op) == string(cdc.Message) {
		if isGap(line) {
			return true, nil
		}
		if len(f.tables) > 0 {
			return false, nil
		}
	}
	if len(f.ops) > 0 && !slices.Contains(f.ops, cdc.Op(op)) {
		return false, nil
	}
	if f.where == nil || string(op) == string(cdc.Schema) {
		return true, nil
	}
	scratch.reset(t, op, line)
	out, _, err := f.where.Eval(scratch)
	var stopped interpreter.EvalCancelledError
	switch {
	case scratch.err != nil:
		return false, scratch.err
	case errors.As(err, &stopped):
		return false, athena.Errorf(athena.CodeInvalidRequest, "where costs more than it may on the change at %s; make it simpler", scratch.change.Pos).At("where")
	case err != nil:
		return false, nil
	}
	return out == types.True, nil
}

// PrefixBegin is the prefix of the message by which a capture that begins anew
// tells the readers of an earlier one's changes that some may be missing.
const PrefixBegin = "athena.begin"

// Gap is the content of that message.
type Gap struct {
	Capture  string       `json:"capture"` // its ID
	Begin    cdc.Position `json:"begin"`
	Snapshot SnapshotMode `json:"snapshot"` // initial: a truncate and the rows of the tables follow
	// Tables are those that the stream had before. Messages of earlier versions do
	// not tell, and have null.
	Tables []driver.TableName `json:"tables"`
}

// isGap reports whether a message tells of a gap. Every reader is told, whatever
// it filters.
func isGap(line []byte) bool {
	var c cdc.Change
	return bytes.Contains(line, []byte(PrefixBegin)) && cdc.Decode(line, &c) == nil && c.Prefix == PrefixBegin
}

// A row is a change as an expression sees it. It is used for one after another.
type row struct {
	table   driver.TableName
	op      string
	line    []byte
	change  cdc.Change
	decoded bool
	objects [3]map[string]any // key, before, after; nil where not yet decoded
	err     error
}

func (r *row) reset(t driver.TableName, op, line []byte) {
	r.table, r.line, r.decoded, r.objects, r.err = t, line, false, [3]map[string]any{}, nil
	if r.op != string(op) {
		r.op = string(op)
	}
}

// Parent is no other activation.
func (r *row) Parent() cel.Activation { return nil }

// ResolveName gives the value of a variable.
func (r *row) ResolveName(name string) (any, bool) {
	switch name {
	case "op":
		return r.op, true
	case "schema":
		return r.table.Schema, true
	case "table":
		return r.table.Table, true
	case "key":
		return r.object(0), true
	case "before":
		return r.object(1), true
	case "after":
		return r.object(2), true
	}
	return nil, false
}

// object is one of the line's objects; empty where it has none.
func (r *row) object(i int) map[string]any {
	if r.objects[i] != nil {
		return r.objects[i]
	}
	if !r.decoded {
		r.decoded = true
		if err := cdc.Decode(r.line, &r.change); err != nil {
			r.err = fmt.Errorf("changefeed: %w", err)
		}
	}
	m := map[string]any{}
	if raw := [...]json.RawMessage{r.change.Key, r.change.Before, r.change.After}[i]; raw != nil && r.err == nil {
		if m, r.err = decodeObject(raw); r.err != nil {
			r.err = fmt.Errorf("changefeed: the change at %s: %w", r.change.Pos, r.err)
		}
	}
	r.objects[i] = m
	return m
}
