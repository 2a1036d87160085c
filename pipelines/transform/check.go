package transform

import (
	"cel.dev/cel-go/cel"

	"github.com/athena-pipelines/athena/pipelines/spec"
)

// Check finds what is wrong with the expressions of steps whatever the schema is:
// what is no CEL, functions that there are not, results of a wrong type. Errors
// are as Compile's, one for each step.
func Check(steps []spec.Transform) (wrong []error) {
	for i := range steps {
		t := &steps[i]
		var err error
		if t.Filter != "" {
			err = checkOpen(t.Filter, cel.BoolType, filterExample)
		}
		if t.Route != "" {
			err = checkOpen(t.Route, cel.StringType, routeExample)
		}
		for _, m := range t.Set {
			if e := checkOpen(m.Value, nil, ""); e != nil {
				err = also(err, m.Name, e)
			}
		}
		if err != nil {
			wrong = append(wrong, inStep(i, t.Kind(), err))
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
