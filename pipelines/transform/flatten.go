package transform

import (
	"slices"

	"github.com/athena-pipelines/athena/pipelines/spec"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/record"
)

// A flatten makes columns of the fields of a JSON object. The column itself stays,
// and fields that are not named are left in it.
type flatten struct {
	schema *record.Schema
	column int
	fields *record.Schema // under their names in the object
	parser *record.Parser
}

func (c *compiler) flatten(f *spec.Flatten) (step, *record.Schema, error) {
	at, err := c.find("column", f.Column)
	if err != nil {
		return nil, nil, err
	}
	if k := c.schema.Columns[at].Type.Kind; k != record.JSON && k != record.Text {
		return nil, nil, athena.Errorf(athena.CodeInvalidRequest, "column %q is %s; it must be json, or text that is JSON", f.Column, c.schema.Columns[at].Type).At("column")
	}
	prefix := f.Prefix
	if prefix == "" {
		prefix = f.Column + "_"
	}
	s := &flatten{schema: &record.Schema{Columns: slices.Clone(c.schema.Columns), Key: c.schema.Key}, column: at, fields: &record.Schema{}}
	for _, m := range f.Fields {
		s.fields.Columns = append(s.fields.Columns, record.Column{Name: m.Name, Type: m.Value, Nullable: true})
		s.schema.Columns = append(s.schema.Columns, record.Column{Name: prefix + m.Name, Type: m.Value, Nullable: true})
	}
	s.parser = record.NewParser(s.fields)
	if err := unique(s.schema); err != nil {
		return nil, nil, err
	}
	return s, s.schema, nil
}

func (s *flatten) apply(p Part, reject func(int, *RowError)) ([]Part, error) {
	keep := all(p.Batch.Rows())
	src := &p.Batch.Columns[s.column]
	made := record.New(s.fields, len(keep))
	for i := range keep {
		if src.Null(i) {
			for c := range made.Columns {
				if src.Absent(i) {
					made.Columns[c].AppendAbsent()
				} else {
					made.Columns[c].AppendNull()
				}
			}
			made.Done()
			continue
		}
		if _, err := s.parser.Parse(made, src.Bytes(i)); err != nil {
			keep[i] = drop(keep[i], i, rowError(p.Batch.Schema.Columns[s.column].Name, err), reject)
			for c := range made.Columns {
				made.Columns[c].AppendNull()
			}
			made.Done()
		}
	}
	columns := append(slices.Clone(p.Batch.Columns), made.Columns...)
	return p.with(p.batch(s.schema, columns))[0].keep(keep), nil
}
