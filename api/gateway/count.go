package gateway

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/athena-pipelines/athena/api/envelope"
	"github.com/athena-pipelines/athena/api/params"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/auth"
	"github.com/athena-pipelines/athena/pkg/deferred"
	"github.com/athena-pipelines/athena/pkg/dispatch"
	"github.com/athena-pipelines/athena/pkg/driver"
)

// counting is the body of POST /query/count: a table, or one SELECT.
type counting struct {
	Table    string            `json:"table,omitempty"`
	Schema   string            `json:"schema,omitempty"`
	Query    string            `json:"query,omitempty"`
	Params   []json.RawMessage `json:"params,omitempty"`
	Language driver.Language   `json:"language,omitempty"`
	Timeout  athena.Duration   `json:"timeout,omitempty"`
}

type counted struct {
	Count int64 `json:"count"`
}

// count answers with how many rows a table has, or a query gives.
func (f *Family) count(c *gin.Context) {
	ctx := c.Request.Context()
	q, name, err := readCounting(c)
	if err != nil {
		envelope.Fail(c, err)
		return
	}
	op := dispatch.Op{Family: "gateway", Right: auth.Query, Access: auth.Read, Needs: []athena.Capability{athena.GatewayQuery}}
	var client *athena.Client
	n, err := dispatch.Do(ctx, f.cfg.Dispatcher, op, name,
		func(ctx context.Context, call dispatch.Call, b driver.Backend) (int64, error) {
			client = call.Client
			limit := client.Limits.WithDefaults().StatementTimeout
			if q.Timeout > limit {
				return 0, athena.Errorf(athena.CodeInvalidRequest, "timeout is %s; this client's limit is %s", q.Timeout, limit).At("timeout")
			}
			if l := f.cfg.Drivers[client.Engine()].Language; q.Language != "" && q.Language != l {
				return 0, athena.Errorf(athena.CodeInvalidRequest, "language is %.40q; this client understands %q", string(q.Language), l).At("language")
			}
			timeout := cmp.Or(q.Timeout, limit).Std()
			ctx, cancel := context.WithTimeout(ctx, timeout+slack)
			defer cancel()
			if q.Table != "" {
				return countTable(ctx, client, b, q, timeout)
			}
			return f.countQuery(ctx, client, b, q, timeout)
		})
	if err != nil {
		envelope.Fail(c, err)
		return
	}
	envelope.OK(c, "the rows were counted", counted{n}, envelope.Of(client))
}

func readCounting(c *gin.Context) (q counting, name string, err error) {
	if err := params.None(c); err != nil {
		return q, "", err
	}
	if name, err = client(c); err != nil {
		return q, "", err
	}
	if err := envelope.Decode(c, &q); err != nil {
		return q, "", err
	}
	bad := func(field, format string, args ...any) error {
		return athena.Errorf(athena.CodeInvalidRequest, format, args...).At(field)
	}
	switch {
	case (q.Table == "") == (q.Query == ""):
		return q, "", bad("table", "give either table or query: what is to be counted")
	case q.Query != "" && q.Schema != "":
		return q, "", bad("schema", "schema goes with table; a query names its own")
	case q.Table != "" && q.Params != nil:
		return q, "", bad("params", "params go with query; a table has none")
	case len(q.Table) > 255 || !params.Printable(q.Table):
		return q, "", bad("table", "table is %.80q, which cannot be a table's name", q.Table)
	case len(q.Schema) > 255 || !params.Printable(q.Schema):
		return q, "", bad("schema", "schema is %.80q, which cannot be a schema's name", q.Schema)
	}
	if in, bare, ok := strings.Cut(q.Table, "."); ok && q.Schema == "" {
		q.Schema, q.Table = in, bare
		if in == "" || bare == "" {
			return q, "", bad("table", "table is %.80q; write table, or schema.table, or give the schema apart", in+"."+bare)
		}
	}
	return q, name, nil
}

func countTable(ctx context.Context, client *athena.Client, b driver.Backend, q counting, timeout time.Duration) (int64, error) {
	counter, ok := b.(driver.Counter)
	if !ok {
		return 0, athena.Errorf(athena.CodeCapabilityUnsupported, "client %q cannot count a table: engine %s does not support it", client.Name, client.Engine())
	}
	return counter.Count(ctx, q.Schema, q.Table, timeout)
}

// countQuery counts the rows of a SELECT by making it a subquery of one. The
// engine holds both to reading.
func (f *Family) countQuery(ctx context.Context, client *athena.Client, b driver.Backend, q counting, timeout time.Duration) (int64, error) {
	querier, ok := b.(driver.Querier)
	if !ok || querier.Language() != driver.SQL {
		return 0, athena.Errorf(athena.CodeCapabilityUnsupported, "client %q cannot count a query's rows: engine %s has no subqueries; count a table instead", client.Name, client.Engine())
	}
	r := deferred.Request{Query: q.Query, Params: q.Params}
	if err := r.Check(querier.Language(), client.Limits, f.cfg.Bounds); err != nil {
		return 0, err
	}
	// The line break ends a comment at the end.
	text := "select count(*) as count from (" + strings.TrimRight(q.Query, "; \t\r\n") + "\n) as counted"
	for _, t := range []string{q.Query, text} {
		if a := querier.Analyze(t); a.Effect != driver.Read {
			return 0, athena.Errorf(athena.CodeInvalidRequest, "query must be one SELECT that changes nothing").At("query")
		}
	}
	rows, err := querier.Query(ctx, driver.Statement{Text: text, Params: q.Params, Timeout: timeout, ReadOnly: true})
	if err != nil {
		return 0, err
	}
	defer rows.Close()
	var row struct{ Count json.Number }
	for rows.Next() {
		if err := json.Unmarshal(rows.AppendJSON(nil), &row); err != nil {
			return 0, fmt.Errorf("gateway: a count does not decode: %w", err)
		}
	}
	if err := rows.Err(); err != nil {
		return 0, err
	}
	return row.Count.Int64()
}
