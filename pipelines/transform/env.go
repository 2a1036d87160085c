package transform

import (
	"fmt"
	"strings"
	"sync"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/ext"

	"github.com/athena-pipelines/athena/pipelines/spec"
	"github.com/athena-pipelines/athena/pkg/record"
)

// The names that expressions have for a row, and the types of them.
const (
	rowName  = "row"
	metaName = "meta"
	rowType  = "athena.Row"
	metaType = "athena.Meta"
)

// base is what expressions have whatever the schema is.
var base = sync.OnceValues(func() (*cel.Env, error) {
	return cel.NewEnv(
		ext.Strings(),
		ext.Math(),
		cel.CrossTypeNumericComparisons(true),
		cel.ParserExpressionSizeLimit(4096),
		cel.ParserRecursionLimit(64),
		// row["name with blank"] is a column like any other.
		cel.Macros(cel.GlobalMacro(operators.Index, 2, column)),
	)
})

// column makes a selection of an index into row.
func column(h cel.MacroExprFactory, _ ast.Expr, args []ast.Expr) (ast.Expr, *cel.Error) {
	if args[0].Kind() != ast.IdentKind || args[0].AsIdent() != rowName || args[1].Kind() != ast.LiteralKind {
		return nil, nil
	}
	name, ok := args[1].AsLiteral().(types.String)
	if !ok {
		return nil, nil
	}
	return h.NewSelect(args[0], string(name)), nil
}

// open is for expressions whose schema is not known: a row may have any column.
var open = sync.OnceValues(func() (*cel.Env, error) {
	env, err := base()
	if err != nil {
		return nil, err
	}
	return env.Extend(
		cel.Variable(rowName, cel.MapType(cel.StringType, cel.DynType)),
		cel.Variable(metaName, cel.MapType(cel.StringType, cel.DynType)),
	)
})

// A provider knows the columns of the schema that it has at the moment: when an
// expression is compiled.
type provider struct {
	types.Provider
	schema  *record.Schema
	changes bool
	missed  string // what is wrong with a name that was asked for
}

// newEnv returns an environment for expressions on rows that p describes.
func newEnv(p *provider) (*cel.Env, error) {
	env, err := base()
	if err != nil {
		return nil, err
	}
	p.Provider = env.CELTypeProvider()
	return env.Extend(
		cel.CustomTypeProvider(p),
		cel.Variable(rowName, cel.ObjectType(rowType)),
		cel.Variable(metaName, cel.ObjectType(metaType)),
	)
}

func (p *provider) FindStructType(name string) (*types.Type, bool) {
	if name == rowType || name == metaType {
		return types.NewTypeTypeWithParam(types.NewObjectType(name)), true
	}
	return p.Provider.FindStructType(name)
}

func (p *provider) FindStructFieldNames(name string) ([]string, bool) {
	switch name {
	case rowType:
		return p.schema.Names(), true
	case metaType:
		return metaNames, true
	}
	return p.Provider.FindStructFieldNames(name)
}

func (p *provider) FindStructFieldType(structure, field string) (*types.FieldType, bool) {
	switch structure {
	case rowType:
		return p.column(field)
	case metaType:
		return p.meta(field)
	}
	return p.Provider.FindStructFieldType(structure, field)
}

func (p *provider) column(name string) (*types.FieldType, bool) {
	c := p.schema.Index(name)
	if c < 0 {
		p.missed = missing(p.schema, name)
		return nil, false
	}
	t := celType(p.schema.Columns[c].Type)
	if p.schema.Columns[c].Nullable || p.changes {
		t = cel.NullableType(t)
	}
	if k := p.schema.Columns[c].Type.Kind; k == record.Timestamp || k == record.TimestampTZ || k == record.JSON {
		t = celType(p.schema.Columns[c].Type) // these take a null as they are
	}
	return &types.FieldType{
		Type:    t,
		IsSet:   func(target any) bool { return target.(*row).present(c) },
		GetFrom: func(target any) (any, error) { return target.(*row).value(c) },
	}, true
}

var metaNames = []string{"op", "pos", "ts", "table"}

func (p *provider) meta(name string) (*types.FieldType, bool) {
	var t *types.Type
	var get func(r *row) (any, error)
	switch name {
	case "table":
		t, get = types.StringType, func(r *row) (any, error) { return types.String(r.batch.From), nil }
	case "op":
		t, get = types.StringType, func(r *row) (any, error) { return types.String(r.op()), nil }
	case "pos":
		t, get = types.StringType, func(r *row) (any, error) { return types.String(r.batch.Changes[r.i].Pos), nil }
	case "ts":
		t, get = types.TimestampType, func(r *row) (any, error) {
			if at := r.batch.Changes[r.i].At; at != 0 {
				return timestamp(at)
			}
			r.null = true
			return types.NullValue, nil
		}
	default:
		p.missed = fmt.Sprintf("meta has no %q; it has %s", name, strings.Join(metaNames, ", "))
		return nil, false
	}
	if !p.changes && name != "table" {
		p.missed = fmt.Sprintf("meta.%s is known of changes, and this source is none of cdc; meta.table is known always", name)
		return nil, false
	}
	return &types.FieldType{
		Type:    t,
		IsSet:   func(any) bool { return true },
		GetFrom: func(target any) (any, error) { return get(target.(meta).row) },
	}, true
}

// missing says that there is no such column, and which was meant.
func missing(s *record.Schema, name string) string {
	if near := spec.Nearest(name, s.Names()); near != "" {
		return fmt.Sprintf("there is no column %q; did you mean %q?", name, near)
	}
	names := s.Names()
	if len(names) > 20 {
		names = append(names[:20:20], "…")
	}
	return fmt.Sprintf("there is no column %q; the columns are %s", name, strings.Join(names, ", "))
}

// celType is what values of a type are in an expression.
func celType(t record.Type) *cel.Type {
	switch t.Kind {
	case record.Bool:
		return cel.BoolType
	case record.Int:
		return cel.IntType
	case record.Float:
		return cel.DoubleType
	case record.Bytes:
		return cel.BytesType
	case record.Timestamp, record.TimestampTZ:
		return cel.TimestampType
	case record.JSON:
		return cel.DynType
	}
	return cel.StringType
}
