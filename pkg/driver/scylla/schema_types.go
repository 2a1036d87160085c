package scylla

import (
	"slices"
	"strings"

	"github.com/gocql/gocql"
)

// createTypes gives the statements that make the user-defined types within t,
// inner ones first.
func createTypes(t gocql.TypeInfo, keyspace string) []string {
	var list []string
	var walk func(gocql.TypeInfo)
	walk = func(t gocql.TypeInfo) {
		for _, inner := range within(t) {
			walk(inner)
		}
		if udt, ok := t.(gocql.UDTTypeInfo); ok {
			if text := createType(udt, keyspace); !slices.Contains(list, text) {
				list = append(list, text)
			}
		}
	}
	walk(t)
	return list
}

func createType(t gocql.UDTTypeInfo, keyspace string) string {
	fields := make([]string, len(t.Elements))
	for i, f := range t.Elements {
		fields[i] = nameText(f.Name) + " " + frozenName(f.Type)
	}
	return "CREATE TYPE " + nameText(keyspace) + "." + nameText(t.Name) + " (" + strings.Join(fields, ", ") + ")"
}

// frozenName is the type as it stands within another: what has parts is frozen.
func frozenName(t gocql.TypeInfo) string {
	if len(within(t)) == 0 {
		return typeName(t)
	}
	return "frozen<" + typeName(t) + ">"
}

// within gives the types that a type holds.
func within(t gocql.TypeInfo) []gocql.TypeInfo {
	switch t := t.(type) {
	case gocql.CollectionType:
		if t.Type() == gocql.TypeMap {
			return []gocql.TypeInfo{t.Key, t.Elem}
		}
		return []gocql.TypeInfo{t.Elem}
	case gocql.TupleTypeInfo:
		return t.Elems
	case gocql.VectorType:
		return []gocql.TypeInfo{t.SubType}
	case gocql.UDTTypeInfo:
		list := make([]gocql.TypeInfo, len(t.Elements))
		for i, f := range t.Elements {
			list[i] = f.Type
		}
		return list
	}
	return nil
}
