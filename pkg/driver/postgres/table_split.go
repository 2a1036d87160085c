package postgres

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/driver"
)

const (
	maxParts = 10_000
	// sampledBlocks is how many blocks are looked at for each part: keys of one
	// block often lie together, so that a single one would tell little.
	sampledBlocks = 4
	// A smaller table is looked at as a whole.
	wholeBlocks = 256
)

// A keyRange is a part of a table: the rows whose key is not below From and below
// To, in the order that the columns themselves have. Nil is open. It holds
// whatever the values are, since both sides of a bound compare with the same
// text; the sample only makes the parts alike.
type keyRange struct {
	Key   []string `json:"key"`
	Types []string `json:"types"`
	From  []string `json:"from,omitempty"`
	To    []string `json:"to,omitempty"`
}

// rangeConditions restrict a statement to a part.
func rangeConditions(rel *shape, text string) ([]string, error) {
	if text == "" {
		return nil, nil
	}
	var r keyRange
	bad := json.Unmarshal([]byte(text), &r) != nil || len(r.Key) == 0 || len(r.Types) != len(r.Key) ||
		r.From != nil && len(r.From) != len(r.Key) || r.To != nil && len(r.To) != len(r.Key)
	if bad {
		return nil, athena.Errorf(athena.CodeInvalidRequest, "the range of a part of %s is none of this driver's", rel.name).At("range")
	}
	for i, name := range r.Key {
		if c := rel.column(name); c == nil || c.native != r.Types[i] {
			return nil, athena.Errorf(athena.CodeConflict, "the key of %s is not what it was when the table was split; start again", rel.name).At("range")
		}
	}
	var list []string
	for _, bound := range []struct {
		op     string
		values []string
	}{{">=", r.From}, {"<", r.To}} {
		if bound.values == nil {
			continue
		}
		values := make([]string, len(bound.values))
		for i, v := range bound.values {
			values[i] = quoteLiteral(v) + "::" + r.Types[i] // a name that the catalog has
		}
		list = append(list, rowOf(quoteAll(r.Key))+" "+bound.op+" "+rowOf(values))
	}
	return list, nil
}

// rowOf writes a row constructor; one value stands for itself.
func rowOf(list []string) string {
	if len(list) == 1 {
		return list[0]
	}
	return "(" + strings.Join(list, ", ") + ")"
}

func quoteAll(names []string) []string {
	out := make([]string, len(names))
	for i, n := range names {
		out[i] = quoteName(n)
	}
	return out
}

// SplitTable divides a table by ranges of its key, whose bounds come from
// a sample of its blocks. At most 10,000 parts are made.
func (b *Backend) SplitTable(ctx context.Context, r driver.TableRead, size int64) ([]driver.TablePart, error) {
	if size <= 0 {
		size = 64 << 20
	}
	c, err := b.tableRead(ctx)
	if err != nil {
		return nil, err
	}
	defer b.endTable(c, false)
	rel, err := b.shape(ctx, c.Conn, r.Table)
	if err != nil {
		return nil, err
	}
	if _, _, err := selectPart(rel, r, driver.TablePart{}); err != nil { // what cannot be read cannot be split
		return nil, err
	}
	whole := []driver.TablePart{{Rows: rel.rows, Bytes: rel.bytes}}
	key := rel.schema(rel.columns).Key
	n := min((rel.bytes+size-1)/size, maxParts)
	if r.Limit > 0 || n < 2 || len(key) == 0 || slices.ContainsFunc(key, func(k string) bool { return !rel.column(k).notNull }) {
		return whole, nil
	}
	bounds, err := keyBounds(ctx, c.Conn, rel, key, n)
	if err != nil || len(bounds) == 0 {
		return whole, err
	}
	types := make([]string, len(key))
	for i, k := range key {
		types[i] = rel.column(k).native
	}
	parts := make([]driver.TablePart, len(bounds)+1)
	for i := range parts {
		kr := keyRange{Key: key, Types: types}
		if i > 0 {
			kr.From = bounds[i-1]
		}
		if i < len(bounds) {
			kr.To = bounds[i]
		}
		text, err := json.Marshal(kr)
		if err != nil {
			return nil, err
		}
		parts[i] = driver.TablePart{Range: string(text), Rows: rel.rows, Bytes: rel.bytes / int64(len(parts))}
		if rel.rows > 0 {
			parts[i].Rows = rel.rows / int64(len(parts))
		}
	}
	return parts, nil
}

// keyBounds finds at most n-1 keys that divide the table into alike parts. They
// differ, and are in the order of the key.
func keyBounds(ctx context.Context, conn *pgx.Conn, rel *shape, key []string, n int64) (bounds [][]string, err error) {
	percent := 100.0
	if rel.blocks > wholeBlocks {
		percent = min(100, 100*float64(max(wholeBlocks, sampledBlocks*n))/float64(rel.blocks))
	}
	names, texts := quoteAll(key), make([]string, len(key))
	for i, name := range names {
		texts[i] = "format('%s', " + name + ")" // the output of the type, which a cast need not be
	}
	// The rows of the sample are numbered in the order of the key, and one of each
	// n-th of them is taken; then the ranks of equal keys are one.
	sql := fmt.Sprintf(`SELECT ARRAY[%[1]s] FROM (
		SELECT %[2]s, row_number() OVER w AS n, count(*) OVER () AS total
		FROM %[3]s TABLESAMPLE SYSTEM (%[4]g) WINDOW w AS (ORDER BY %[2]s)) AS sample
		WHERE n > 1 AND (n - 1) * $1::bigint / total <> (n - 2) * $1::bigint / total
		GROUP BY %[2]s ORDER BY %[2]s`, strings.Join(texts, ", "), strings.Join(names, ", "), quoteTable(rel.name), percent)
	_, err = on(conn)(ctx, sql, []any{n}, func(rows pgx.Rows) error {
		var bound []string
		err := rows.Scan(&bound)
		bounds = append(bounds, bound)
		return err
	})
	return bounds, err
}
