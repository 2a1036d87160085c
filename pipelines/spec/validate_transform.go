package spec

import (
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/athena-pipelines/athena/pkg/athena"
)

// TransformKinds lists the fields of a Transform.
var TransformKinds = []string{"filter", "set", "rename", "select", "drop", "cast", "mask", "flatten", "route", "dedupe", "aggregate"}

// TimeUnits are what an aggregate can cut a time to.
var TimeUnits = []string{"minute", "hour", "day", "week", "month"}

func (v validator) transforms() {
	list := v.p.Transforms
	if len(list) > mostTransforms {
		v.refuse("transforms", "there are %d; the most is %d", len(list), mostTransforms)
	}
	routed := -1
	for i := range list {
		at := index("transforms", i)
		set := list[i].kinds()
		switch len(set) {
		case 0:
			v.refuse(at, "the step does nothing; it needs one of %s, not empty", strings.Join(TransformKinds, ", "))
			continue
		case 1:
		default:
			v.refuse(at+"."+set[1], "the step has %s already; make a step of each", set[0])
			continue
		}
		v.step(at, &list[i])
		switch kind := set[0]; {
		case kind == "route" && routed >= 0:
			v.refuse(at+".route", "transforms[%d] routes already; a pipeline has one route", routed)
		case kind == "route":
			routed = i
			if mode := v.p.Mode(); v.p.Sink.Table != "" && mode.Staged() {
				v.refuse(at+".route", "%s takes effect in the one table of the sink; behind a route its mode is append or upsert", mode)
			}
		case (kind == "dedupe" || kind == "aggregate") && routed >= 0:
			v.refuse(at+"."+kind, "it looks at all rows, which transforms[%d] has parted; put the route behind it", routed)
		}
	}
}

func (v validator) step(at string, t *Transform) {
	v.expression(at+".filter", t.Filter)
	v.expression(at+".route", t.Route)
	for _, m := range t.Set {
		path := join(at+".set", m.Name)
		v.column(path, m.Name)
		if strings.TrimSpace(m.Value) == "" {
			v.refuse(path, "it has no expression")
		}
		v.expression(path, m.Value)
	}
	taken := map[string]string{}
	for _, old := range slices.Sorted(maps.Keys(t.Rename)) {
		path, name := join(at+".rename", old), t.Rename[old]
		v.column(path, name)
		if first, ok := taken[name]; ok {
			v.refuse(path, "%q becomes the name of two columns, %s and %s", clip(name), first, old)
		}
		taken[name] = old
	}
	v.names(at+".select", t.Select)
	v.names(at+".drop", t.Drop)
	for _, name := range slices.Sorted(maps.Keys(t.Cast)) {
		if t.Cast[name].Kind == 0 {
			v.refuse(join(at+".cast", name), "it has no type")
		}
	}
	for _, name := range slices.Sorted(maps.Keys(t.Mask)) {
		if t.Mask[name] == "" {
			v.refuse(join(at+".mask", name), "it must be hash, redact or last4")
		}
		v.oneOf(join(at+".mask", name), t.Mask[name], MaskHash, MaskRedact, MaskLast4)
	}
	if f := t.Flatten; f != nil {
		v.flatten(at+".flatten", f)
	}
	if t.Dedupe != nil {
		if len(t.Dedupe.Key) == 0 {
			v.refuse(at+".dedupe", "it needs a key: the columns that tell rows apart")
		}
		v.names(at+".dedupe.key", t.Dedupe.Key)
	}
	if t.Aggregate != nil {
		v.aggregate(at+".aggregate", t.Aggregate)
	}
}

// mostName bounds the bytes of a column's name.
const mostName = 255

func (v validator) column(path, name string) {
	switch {
	case name == "":
		v.refuse(path, "a column needs a name")
	case len(name) > mostName:
		v.refuse(path, "the column's name has %d bytes; the most is %d", len(name), mostName)
	}
}

func (v validator) flatten(at string, f *Flatten) {
	if f.Column == "" {
		v.refuse(at, "it needs a column, which has JSON objects")
	}
	if len(f.Fields) == 0 {
		v.refuse(at, "it needs fields: the names in the object, and the types that they become")
	}
	for _, m := range f.Fields {
		if m.Name == "" || m.Value.Kind == 0 {
			v.refuse(join(at+".fields", m.Name), "a field has a name and a type")
		}
	}
}

func (v validator) aggregate(at string, a *Aggregate) {
	if v.p.Streams() {
		v.refuse(at, "changes have no end, so that no group is ever complete; aggregate is for batches")
	}
	if len(a.Columns) == 0 {
		v.refuse(at, "it needs columns: the results, such as {orders: count()}")
	}
	v.names(at+".group_by", a.GroupBy)
	for _, m := range a.Columns {
		path := join(at+".columns", m.Name)
		v.column(path, m.Name)
		if slices.Contains(a.GroupBy, m.Name) {
			v.refuse(path, "a column of group_by has the name already")
		}
		v.syntax(path, m.Value, func(s string) error { _, err := ParseAggregation(s); return err })
	}
	for _, name := range slices.Sorted(maps.Keys(a.Time)) {
		path := join(at+".time", name)
		if !slices.Contains(a.GroupBy, name) {
			v.refuse(path, "it is not among group_by; only a column of the group is cut")
		}
		v.oneOf(path, a.Time[name], TimeUnits...)
	}
}

// An Aggregation is a function over the rows of a group.
type Aggregation struct {
	Func   string // count, sum, min, max, avg
	Column string // empty for count()
}

var aggregation = regexp.MustCompile(`^\s*(count|sum|min|max|avg)\s*\(\s*(.*?)\s*\)\s*$`)

// ParseAggregation reads count(), count(column), sum(column), min, max or avg.
func ParseAggregation(text string) (Aggregation, error) {
	m := aggregation.FindStringSubmatch(text)
	if m == nil || m[1] != "count" && m[2] == "" {
		return Aggregation{}, athena.Errorf(athena.CodeInvalidRequest, "%q is no aggregation; write count(), or count, sum, min, max, avg of a column, such as sum(total)", clip(text))
	}
	return Aggregation{m[1], m[2]}, nil
}
