package scylla

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/gocql/gocql"
)

// protocol is the version of the native protocol that is spoken: the newest that
// ScyllaDB has.
const protocol = 4

// quoteName writes an identifier of CQL, always within quotes.
func quoteName(name string) string {
	return `"` + strings.ReplaceAll(name, `"`, `""`) + `"`
}

var plainName = regexp.MustCompile(`^[a-z][a-z0-9_]*$`)

// nameText writes an identifier as CQL shows it: within quotes where it needs
// them.
func nameText(name string) string {
	if plainName.MatchString(name) {
		return name
	}
	return quoteName(name)
}

// nativeTypes are the types that have no others within, by the names that
// system_schema gives them.
var nativeTypes = map[string]gocql.Type{
	"ascii": gocql.TypeAscii, "bigint": gocql.TypeBigInt, "blob": gocql.TypeBlob,
	"boolean": gocql.TypeBoolean, "counter": gocql.TypeCounter, "date": gocql.TypeDate,
	"decimal": gocql.TypeDecimal, "double": gocql.TypeDouble, "duration": gocql.TypeDuration,
	"float": gocql.TypeFloat, "inet": gocql.TypeInet, "int": gocql.TypeInt,
	"smallint": gocql.TypeSmallInt, "text": gocql.TypeVarchar, "time": gocql.TypeTime,
	"timestamp": gocql.TypeTimestamp, "timeuuid": gocql.TypeTimeUUID, "tinyint": gocql.TypeTinyInt,
	"uuid": gocql.TypeUUID, "varchar": gocql.TypeVarchar, "varint": gocql.TypeVarint,
}

// typeName is CQL's own text of a type, but for frozen: the protocol does not
// tell what is.
func typeName(t gocql.TypeInfo) string {
	switch t := t.(type) {
	case gocql.CollectionType:
		if t.Type() == gocql.TypeMap {
			return "map<" + typeName(t.Key) + ", " + typeName(t.Elem) + ">"
		}
		return t.Type().String() + "<" + typeName(t.Elem) + ">"
	case gocql.TupleTypeInfo:
		names := make([]string, len(t.Elems))
		for i, e := range t.Elems {
			names[i] = typeName(e)
		}
		return "tuple<" + strings.Join(names, ", ") + ">"
	case gocql.UDTTypeInfo:
		return nameText(t.Name)
	case gocql.VectorType:
		return "vector<" + typeName(t.SubType) + ", " + strconv.Itoa(t.Dimensions) + ">"
	}
	switch t.Type() {
	case gocql.TypeVarchar:
		return "text"
	case gocql.TypeCustom:
		return "'" + t.Custom() + "'"
	}
	return t.Type().String()
}

// A userType is a type that a keyspace has, as system_schema.types has it.
type userType struct {
	fields, types []string
}

// typeParser reads CQL's text of types.
type typeParser struct {
	keyspace string
	user     map[string]userType
}

// parse gives the type that the wire has for the text. What it does not know is a
// custom type.
func (p typeParser) parse(text string) (gocql.TypeInfo, error) {
	t, rest, err := p.next(text, 0)
	if err != nil {
		return nil, fmt.Errorf("scylla: the type %q: %w", text, err)
	}
	if strings.TrimSpace(rest) != "" {
		return nil, fmt.Errorf("scylla: the type %q goes on with %q", text, rest)
	}
	return t, nil
}

// mostNesting bounds types within types; a user-defined type cannot hold itself.
const mostNesting = 64

func (p typeParser) next(text string, depth int) (t gocql.TypeInfo, rest string, err error) {
	if depth > mostNesting {
		return nil, "", fmt.Errorf("nests deeper than %d", mostNesting)
	}
	text = strings.TrimSpace(text)
	if strings.HasPrefix(text, "'") { // the class of a type that CQL has no name for
		class, rest, ok := strings.Cut(text[1:], "'")
		if !ok {
			return nil, "", fmt.Errorf("the class does not end")
		}
		return gocql.NewCustomType(protocol, gocql.TypeCustom, class), rest, nil
	}
	name, rest, quoted, err := cutName(text)
	if err != nil {
		return nil, "", err
	}
	if !quoted && strings.HasPrefix(rest, "<") {
		return p.generic(strings.ToLower(name), rest[1:], depth)
	}
	if native, ok := nativeTypes[name]; ok && !quoted {
		return gocql.NewNativeType(protocol, native), rest, nil
	}
	user, ok := p.user[name]
	if !ok {
		return gocql.NewCustomType(protocol, gocql.TypeCustom, name), rest, nil
	}
	fields := make([]gocql.UDTField, len(user.fields))
	for i, field := range user.fields {
		inner, tail, err := p.next(user.types[i], depth+1)
		if err == nil && strings.TrimSpace(tail) != "" {
			err = fmt.Errorf("it goes on with %q", tail)
		}
		if err != nil {
			return nil, "", fmt.Errorf("the field %s of %s is a %q: %w", field, name, user.types[i], err)
		}
		fields[i] = gocql.UDTField{Name: field, Type: inner}
	}
	return gocql.NewUDTType(protocol, name, p.keyspace, fields...), rest, nil
}

// generic reads what stands in the angles of a type.
func (p typeParser) generic(name, text string, depth int) (gocql.TypeInfo, string, error) {
	var inner []gocql.TypeInfo
	for {
		if name == "vector" && len(inner) == 1 {
			digits, rest, ok := strings.Cut(text, ">")
			n, err := strconv.Atoi(strings.TrimSpace(digits))
			if !ok || err != nil {
				return nil, "", fmt.Errorf("the vector has no number of dimensions")
			}
			return gocql.VectorType{
				NativeType: gocql.NewCustomType(protocol, gocql.TypeCustom, vectorClass),
				SubType:    inner[0], Dimensions: n,
			}, rest, nil
		}
		t, rest, err := p.next(text, depth+1)
		if err != nil {
			return nil, "", err
		}
		inner = append(inner, t)
		rest = strings.TrimSpace(rest)
		if rest == "" || rest[0] != ',' && rest[0] != '>' {
			return nil, "", fmt.Errorf("%s<…> does not end", name)
		}
		text = rest[1:]
		if rest[0] == '>' {
			break
		}
	}
	native := func(t gocql.Type) gocql.NativeType { return gocql.NewNativeType(protocol, t) }
	switch {
	case name == "frozen" && len(inner) == 1:
		return inner[0], text, nil
	case name == "list" && len(inner) == 1:
		return gocql.NewCollectionType(native(gocql.TypeList), nil, inner[0]), text, nil
	case name == "set" && len(inner) == 1:
		return gocql.NewCollectionType(native(gocql.TypeSet), nil, inner[0]), text, nil
	case name == "map" && len(inner) == 2:
		return gocql.NewCollectionType(native(gocql.TypeMap), inner[0], inner[1]), text, nil
	case name == "tuple":
		return gocql.NewTupleType(native(gocql.TypeTuple), inner...), text, nil
	}
	return nil, "", fmt.Errorf("%s<…> of %d is unknown", name, len(inner))
}

// vectorClass is what Cassandra calls vectors on the wire.
const vectorClass = "org.apache.cassandra.db.marshal.VectorType"

// cutName takes the identifier off that text begins with; one without quotes is
// lower case.
func cutName(text string) (name, rest string, quoted bool, err error) {
	if strings.HasPrefix(text, `"`) {
		for i := 1; i < len(text); i++ {
			if text[i] != '"' {
				continue
			}
			if i+1 < len(text) && text[i+1] == '"' {
				i++
				continue
			}
			return strings.ReplaceAll(text[1:i], `""`, `"`), text[i+1:], true, nil
		}
		return "", "", false, fmt.Errorf("a quoted name does not end")
	}
	i := strings.IndexAny(text, "<>, ")
	if i < 0 {
		i = len(text)
	}
	if i == 0 {
		return "", "", false, fmt.Errorf("a name is missing at %q", text)
	}
	return strings.ToLower(text[:i]), strings.TrimLeft(text[i:], " "), false, nil
}
