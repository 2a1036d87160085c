package postgres

import (
	"bufio"
	"context"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/athena-pipelines/athena/pkg/driver"
)

// copiedTypes are the built-in types whose binary form is the same on all
// servers, and depends on no setting and no OID. Arrays and ranges of them are
// as well.
var copiedTypes = []uint32{
	boolOID, byteaOID, nameOID, int8OID, int2OID, int4OID, textOID, oidOID, jsonOID, float4OID, float8OID,
	bpcharOID, varcharOID, dateOID, timeOID, timestampOID, timestamptzOID, 1186 /* interval */, 1266 /* timetz */, 1560 /* bit */, 1562, /* varbit */
	numericOID, uuidOID, jsonbOID, 650 /* cidr */, 869 /* inet */, 829 /* macaddr */, 774 /* macaddr8 */, 3220, /* pg_lsn */
	600, 601, 602, 603, 604, 628, 718, // geometry
}

// copyForm describes columns for a verbatim copy: types and sizes, and of an enum
// its values, which the binary form spells out. Empty if a column has a type that
// cannot be copied so.
func copyForm(columns []shapeColumn) string {
	var b strings.Builder
	for _, c := range columns {
		oid := c.oid
		if t := static[oid]; t != nil {
			for t.elem != nil && (t.kind == kindArray || t.kind == kindRange || t.kind == kindMultirange) {
				t = t.elem
			}
			if !slices.ContainsFunc(copiedTypes, func(o uint32) bool { return static[o] == t }) {
				return ""
			}
			b.WriteString(strconv.FormatUint(uint64(oid), 10))
		} else if len(c.enum) > 0 {
			b.WriteString("enum")
			for _, label := range c.enum {
				b.WriteString(strconv.Quote(label))
			}
		} else {
			return ""
		}
		b.WriteString(":" + strconv.Itoa(int(c.typmod)) + ";")
	}
	return b.String()
}

// CopyForm describes how the rows of a table are in binary.
func (b *Backend) CopyForm(ctx context.Context, r driver.TableRead) (string, error) {
	conn, err := b.acquire(ctx)
	if err != nil {
		return "", err
	}
	defer release(conn)
	rel, err := b.shape(ctx, conn.Conn(), r.Table)
	if err != nil {
		return "", err
	}
	_, columns, err := selectPart(rel, r, driver.TablePart{})
	if err != nil {
		return "", err
	}
	return copyForm(columns), nil
}

// CopyTable writes a part in the form of binary COPY.
func (b *Backend) CopyTable(ctx context.Context, r driver.TableRead, p driver.TablePart, w io.Writer) (int64, error) {
	c, err := b.tableRead(ctx)
	if err != nil {
		return 0, err
	}
	rel, err := b.shape(ctx, c.Conn, r.Table)
	if err != nil {
		b.endTable(c, false)
		return 0, err
	}
	sql, _, err := selectPart(rel, r, p)
	if err != nil {
		b.endTable(c, false)
		return 0, err
	}
	began := time.Now()
	out := bufio.NewWriterSize(w, readAhead) // the server sends each row by itself
	rows, err := c.copyOut(ctx, "COPY ("+sql+") TO STDOUT (FORMAT binary)", out)
	if err == nil {
		err = out.Flush()
	}
	b.endTable(c, err != nil)
	return rows, explainRead(ctx, err, driver.Statement{}, began)
}
