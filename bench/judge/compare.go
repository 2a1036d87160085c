package judge

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
)

// A Table is one that is compared.
type Table struct{ Schema, Name string }

// Compare compares the rows of tables of two databases, all columns as text:
// ordered by key, or by all columns in a table without one, where equal rows
// count. It returns the first few differences of each table.
func Compare(ctx context.Context, source, replica string, tables []Table) ([]string, error) {
	var sides [2]*pgx.Conn
	for i, dsn := range []string{source, replica} {
		conn, err := pgx.Connect(ctx, dsn)
		if err != nil {
			return nil, err
		}
		defer conn.Close(context.WithoutCancel(ctx))
		for _, stmt := range []string{"set TimeZone = 'UTC'", "set DateStyle = 'ISO'", "set IntervalStyle = 'iso_8601'", "set extra_float_digits = 1", "set bytea_output = 'hex'"} {
			if _, err := conn.Exec(ctx, stmt); err != nil {
				return nil, err
			}
		}
		sides[i] = conn
	}
	var all []string
	for _, t := range tables {
		found, err := compare(ctx, sides, t)
		if err != nil {
			return all, fmt.Errorf("%s.%s: %w", t.Schema, t.Name, err)
		}
		all = append(all, found...)
	}
	return all, nil
}

const differencesMost = 5

func compare(ctx context.Context, sides [2]*pgx.Conn, t Table) ([]string, error) {
	name := pgx.Identifier{t.Schema, t.Name}.Sanitize()
	var queries [2]string
	for i, conn := range sides {
		columns, key, err := describe(ctx, conn, name)
		if err != nil {
			return nil, err
		}
		text := join(columns, ", ", func(_ int, c string) string { return ident(c) + "::text" })
		order := list(key)
		if len(key) == 0 {
			order = join(columns, ", ", func(_ int, c string) string { return ident(c) + `::text collate "C"` })
		}
		queries[i] = "select " + text + " from " + name + " order by " + order
	}
	if queries[0] != queries[1] {
		return []string{fmt.Sprintf("%s is read in the source by %s, and in the replica by %s", name, queries[0], queries[1])}, nil
	}
	var rows [2]pgx.Rows
	for i, conn := range sides {
		r, err := conn.Query(ctx, queries[i])
		if err != nil {
			return nil, err
		}
		defer r.Close()
		rows[i] = r
	}
	var found []string
	for n := 1; len(found) < differencesMost; n++ {
		var lines [2]string
		for i, r := range rows {
			if r.Next() {
				lines[i] = line(r)
			} else if err := r.Err(); err != nil {
				return nil, err
			}
		}
		if lines[0] == "" && lines[1] == "" {
			break
		}
		if lines[0] != lines[1] {
			a, b := differ(lines[0], lines[1])
			found = append(found, fmt.Sprintf("row %d of %s is %s in the source, and %s in the replica", n, name, a, b))
		}
	}
	return found, nil
}

// describe returns a table's columns in the order of their names, and its key.
func describe(ctx context.Context, conn *pgx.Conn, name string) (columns, key []string, err error) {
	for i, sql := range []string{
		"select attname from pg_attribute where attrelid = to_regclass($1) and attnum > 0 and not attisdropped order by attname collate \"C\"",
		`select a.attname from pg_index i, unnest(i.indkey) with ordinality k(num, at), pg_attribute a
			where i.indrelid = to_regclass($1) and i.indisprimary and a.attrelid = i.indrelid and a.attnum = k.num order by k.at`,
	} {
		rows, err := conn.Query(ctx, sql, name)
		if err != nil {
			return nil, nil, err
		}
		found, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			return nil, nil, err
		}
		if i == 0 {
			columns = found
		} else {
			key = found
		}
	}
	if len(columns) == 0 {
		return nil, nil, fmt.Errorf("there is no table %s", name)
	}
	return columns, key, nil
}

func line(r pgx.Rows) string {
	var b strings.Builder
	for i, v := range r.RawValues() {
		if i > 0 {
			b.WriteString(" | ")
		}
		if v == nil {
			b.WriteString("∅")
		} else {
			b.Write(v)
		}
	}
	return b.String()
}

// differ cuts two lines to where they begin to differ.
func differ(a, b string) (string, string) {
	at := 0
	for at < len(a) && at < len(b) && a[at] == b[at] {
		at++
	}
	cut := func(s string) string {
		if s == "" {
			return "not there"
		}
		if at < 150 && len(s) <= 300 {
			return "(" + s + ")"
		}
		from, to := max(0, at-60), min(len(s), at+100)
		return fmt.Sprintf("(%.60s … %s … of %d bytes)", s, s[from:to], len(s))
	}
	return cut(a), cut(b)
}
