package transform

import (
	"slices"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"

	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/record"
)

// A filter keeps rows for which an expression is true.
type filter struct {
	*expr
	byKey bool
	row   row
}

func (c *compiler) filter(text string) (step, *record.Schema, error) {
	e, err := c.compile(text)
	if err == nil {
		err = e.want(cel.BoolType, filterExample)
	}
	if err != nil {
		return nil, nil, err
	}
	return &filter{expr: e, byKey: c.Changes && c.ByKey}, c.schema, nil
}

// overwrites reports whether there may have been a row before the change. What a
// snapshot found is told by changes too.
func overwrites(c *record.Change) bool { return c.Op == cdc.Update || c.Blind() && c.At != 0 }

func (f *filter) apply(p Part, reject func(int, *RowError)) ([]Part, error) {
	keep := make([]bool, p.Batch.Rows())
	var changes []record.Change // a copy with those that became deletes
	f.row.batch = p.Batch
	for i := range keep {
		f.row.i = i
		op := f.row.op()
		if lost(op) { // law 4
			keep[i] = true
			continue
		}
		v, err := f.eval(&f.row)
		switch {
		case err != nil:
			reject(i, &RowError{Reason: err.Error()})
		case v == types.True:
			keep[i] = true
		case v != nil && v != types.False:
			reject(i, &RowError{Reason: "the filter gave a " + v.Type().TypeName() + " and not true or false"})
		case f.byKey && overwrites(&p.Batch.Changes[i]): // law 4
			if changes == nil {
				changes = slices.Clone(p.Batch.Changes)
			}
			changes[i].Op = cdc.Delete
			keep[i] = true
		}
	}
	if changes != nil {
		b := *p.Batch
		b.Changes = changes
		p.Batch = &b
	}
	return p.keep(keep), nil
}
