package transform

import (
	"fmt"
	"maps"
	"slices"

	"cel.dev/cel-go/cel"

	"github.com/athena-pipelines/athena/pipelines/spec"
	"github.com/athena-pipelines/athena/pkg/athena"
)

// Check finds what is wrong with the expressions of steps whatever the schema is:
// what is no CEL, functions that there are not, results of a wrong type. Errors
// are as Compile's, one for each expression.
func Check(steps []spec.Transform) (wrong []error) {
	for i := range steps {
		t := &steps[i]
		at := func(field string) string { return fmt.Sprintf("transforms[%d].%s", i, field) }
		check := func(field, text string, want *cel.Type, example string) {
			if err := checkOpen(text, want, example); err != nil {
				e := *athena.AsError(err)
				e.Message = at(field) + ": " + e.Message
				wrong = append(wrong, e.At(at(field)))
			}
		}
		if t.Filter != "" {
			check("filter", t.Filter, cel.BoolType, filterExample)
		}
		if t.Route != "" {
			check("route", t.Route, cel.StringType, routeExample)
		}
		for _, name := range slices.Sorted(maps.Keys(t.Set)) {
			check("set."+name, t.Set[name], nil, "")
		}
	}
	return wrong
}

const (
	filterExample = `row.status == "paid"`
	routeExample  = `"orders_" + row.region`
)

func checkOpen(text string, want *cel.Type, example string) error {
	env, err := open()
	if err != nil {
		return err
	}
	tree, issues := env.Compile(text)
	if issues.Err() != nil {
		return (&compiler{}).explain(issues)
	}
	if want == nil {
		return nil
	}
	return (&expr{out: tree.OutputType()}).want(want, example)
}
