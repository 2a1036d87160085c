package transform

import (
	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/record"
)

// A route parts rows by where an expression says that they go. Rows of one place
// keep their order.
type route struct {
	*expr
	row    row
	tables bool
}

func (c *compiler) route(text string) (step, *record.Schema, error) {
	e, err := c.compile(text)
	if err == nil {
		err = e.want(cel.StringType, routeExample)
	}
	if err != nil {
		return nil, nil, err
	}
	return &route{expr: e, tables: c.Tables}, c.schema, nil
}

func (r *route) apply(p Part, reject func(int, *RowError)) ([]Part, error) {
	places := map[string]int{}
	var rows [][]bool
	var names []string
	r.row.batch = p.Batch
	for i := range p.Batch.Rows() {
		r.row.i = i
		v, err := r.eval(&r.row)
		to, ok := v.(types.String)
		switch {
		case err != nil:
			reject(i, &RowError{Reason: err.Error()})
			continue
		case v == nil, ok && to == "":
			reject(i, &RowError{Reason: "the route gave nothing, so that the row has no place to go"})
			continue
		case !ok:
			reject(i, &RowError{Reason: "the route gave a " + v.Type().TypeName() + " and not a string"})
			continue
		}
		n, seen := places[string(to)]
		if !seen {
			name, err := r.place(string(to))
			if err != nil {
				reject(i, &RowError{Reason: "the route: " + athena.AsError(err).Message})
				continue
			}
			if n, seen = places[name]; !seen {
				n = len(rows)
				rows, names = append(rows, make([]bool, p.Batch.Rows())), append(names, name)
			}
			places[string(to)], places[name] = n, n
		}
		rows[n][i] = true
	}
	parts := make([]Part, 0, len(rows))
	for n, keep := range rows {
		part := p.keep(keep)[0]
		part.Route = names[n]
		parts = append(parts, part)
	}
	return parts, nil
}

// place is the one name of the place that a row goes to.
func (r *route) place(to string) (string, error) {
	if !r.tables {
		return to, nil
	}
	name, err := driver.ParseTableName(to)
	return name.String(), err
}
