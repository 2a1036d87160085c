package postgres

import (
	"fmt"
	"strings"
	"sync"

	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/record"
)

var _ driver.ColumnTyper = (*Backend)(nil)

// builtinsByName has the built-in types by the name that format_type gives.
var builtinsByName = sync.OnceValue(func() map[string]uint32 {
	m := make(map[string]uint32, len(builtins))
	for _, b := range builtins {
		m[b.name] = b.oid
	}
	return m
})

// ColumnType is the type that values of a type have in records, by the name that
// format_type gives it, such as numeric(12,2). What is not built in is text: an
// enum is, and a composite is as its JSON.
func (*Backend) ColumnType(native string) record.Type {
	name, mod := native, int32(-1)
	if i := strings.IndexByte(native, '('); i >= 0 {
		j := strings.IndexByte(native[i:], ')')
		if j < 0 {
			return record.TypeText
		}
		var p, s int32
		switch n, _ := fmt.Sscanf(native[i:i+j+1], "(%d,%d)", &p, &s); n {
		case 1, 2:
			mod = p<<16 | s&0x7ff + 4
		}
		name = native[:i] + native[i+j+1:] // timestamp(3) with time zone
	}
	oid, ok := builtinsByName()[name]
	if !ok {
		if strings.HasSuffix(name, "[]") {
			return record.TypeJSON
		}
		return record.TypeText
	}
	return recordType(static[oid], oid, mod)
}
