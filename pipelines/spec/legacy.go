package spec

import (
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// The older, smaller form of a definition:
//
//	source:    {client, table_name, columns, conditions, limit}
//	transform: {group_by, aggregation_column, aggregation_strategy, column_aliases}
//	sink:      {client, table_name}
//	dry_run:   true
//
// A condition is {eq_column, eq_value} or {column, operator, value}. An
// aggregation gives the column COLUMN_STRATEGY, or count; column_aliases rename
// that, named by either the result or the column, and the others.
//
// translate makes today's form of it, field by field, so that the two can be
// mixed. What it does not know it leaves for the decoder to refuse.
func (d *decoder) translate(root *yaml.Node) {
	if source := field(root, "source"); source != nil {
		d.renameField(source, "source", "table_name", "table")
		if conditions := field(source, "conditions"); conditions != nil && d.renameField(source, "source", "conditions", "where") {
			for _, c := range conditions.Content {
				translateCondition(c)
			}
		}
	}
	if sink := field(root, "sink"); sink != nil {
		d.renameField(sink, "sink", "table_name", "table")
	}
	if transform := field(root, "transform"); transform != nil && d.renameField(root, "", "transform", "transforms") {
		d.translateTransform(transform)
	}
}

// field returns the value of a field, nil if there is none.
func field(n *yaml.Node, name string) *yaml.Node {
	if i := fieldIndex(n, name); i >= 0 {
		return n.Content[i+1]
	}
	return nil
}

func fieldIndex(n *yaml.Node, name string) int {
	if n.Kind == yaml.MappingNode {
		for i := 0; i+1 < len(n.Content); i += 2 {
			if n.Content[i].Value == name {
				return i
			}
		}
	}
	return -1
}

// renameField gives a field today's name; false if both are there, which is
// refused.
func (d *decoder) renameField(n *yaml.Node, path, old, name string) bool {
	i := fieldIndex(n, old)
	if i < 0 {
		return false
	}
	if field(n, name) != nil {
		d.at(n.Content[i].Line, join(path, old), "%s is given as well; it is the same in today's form", name)
		return false
	}
	n.Content[i].Value = name
	return true
}

var olderOperators = map[string]string{
	"eq": "=", "==": "=", "ne": "!=", "neq": "!=", "<>": "!=", "lt": "<", "lte": "<=", "le": "<=", "gt": ">", "gte": ">=", "ge": ">=",
	"is null": "is_null", "is not null": "not_null",
}

func translateCondition(c *yaml.Node) {
	if i := fieldIndex(c, "eq_column"); i >= 0 {
		c.Content[i].Value = "column"
		if j := fieldIndex(c, "eq_value"); j >= 0 {
			c.Content[j].Value = "value"
		}
		line := c.Content[i].Line
		c.Content = append(c.Content, text("op", line), text("=", line))
	}
	if i := fieldIndex(c, "operator"); i >= 0 {
		c.Content[i].Value = "op"
		op := c.Content[i+1]
		op.Value = strings.ToLower(strings.TrimSpace(op.Value))
		if today, ok := olderOperators[op.Value]; ok {
			op.Value = today
		}
	}
}

func (d *decoder) translateTransform(n *yaml.Node) {
	if n.Kind != yaml.MappingNode {
		if n.Kind != yaml.SequenceNode { // a list is today's form under the older name
			d.at(n.Line, "transform", "it is %s; it must be an object, or a list under transforms", nodeName(n))
			*n = yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq", Line: n.Line}
		}
		return
	}
	known := []string{"group_by", "aggregation_column", "aggregation_strategy", "column_aliases"}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if name := n.Content[i].Value; !slices.Contains(known, name) {
			d.at(n.Content[i].Line, join("transform", name), "this field is unknown%s", hint(name, known))
		}
	}
	groupBy, aliases := field(n, "group_by"), field(n, "column_aliases")
	strategy, column := scalar(field(n, "aggregation_strategy")), scalar(field(n, "aggregation_column"))
	line := n.Line
	var steps []*yaml.Node
	if groupBy != nil || strategy != "" || column != "" {
		strategy = strings.ToLower(strategy)
		if strategy == "" {
			strategy = "count"
		}
		result := strategy
		if column != "" && strategy != "count" {
			result = column + "_" + strategy
		}
		aggregate := mapping(line, "columns", mapping(line, result, text(strategy+"("+column+")", line)))
		if groupBy != nil {
			if groupBy.Kind == yaml.ScalarNode {
				groupBy = &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq", Line: groupBy.Line, Content: []*yaml.Node{groupBy}}
			}
			aggregate.Content = append(aggregate.Content, text("group_by", groupBy.Line), groupBy)
		}
		steps = append(steps, mapping(line, "aggregate", aggregate))
		if aliases != nil && column != "" && !slices.Contains(sequence(groupBy), column) {
			if i := fieldIndex(aliases, column); i >= 0 {
				aliases.Content[i].Value = result
			}
		}
	}
	if aliases != nil && len(aliases.Content) > 0 {
		steps = append(steps, mapping(line, "rename", aliases))
	}
	*n = yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq", Line: line, Content: steps}
}

func scalar(n *yaml.Node) string {
	if n == nil || n.Kind != yaml.ScalarNode || n.ShortTag() == "!!null" {
		return ""
	}
	return n.Value
}

func sequence(n *yaml.Node) (list []string) {
	if n != nil {
		for _, item := range n.Content {
			list = append(list, item.Value)
		}
	}
	return list
}

func text(s string, line int) *yaml.Node {
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: s, Line: line}
}

func mapping(line int, name string, value *yaml.Node) *yaml.Node {
	return &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map", Line: line, Content: []*yaml.Node{text(name, line), value}}
}
