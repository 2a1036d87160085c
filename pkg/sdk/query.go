package sdk

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"path"
	"time"

	"github.com/athena-pipelines/athena/pkg/athena"
)

// Client is one logical client of a server. It is safe for concurrent use.
type Client struct {
	api  *API
	name string
}

// Client chooses the logical client with the given name. Whether there is one
// shows in the first request.
func (a *API) Client(name string) *Client { return &Client{a, name} }

// Name is the logical client's name.
func (c *Client) Name() string { return c.name }

// Request is a statement and how it is to be run. The fields from Priority on
// are for deferred ones.
type Request struct {
	Query    string          `json:"query"`
	Params   []any           `json:"params,omitempty"`
	Language string          `json:"language,omitempty"` // sql or cql; the client's own by default
	Timeout  athena.Duration `json:"timeout,omitempty"`
	RowLimit int64           `json:"row_limit,omitempty"`

	Priority   string            `json:"priority,omitempty"` // interactive, normal or batch
	NotBefore  *time.Time        `json:"not_before,omitempty"`
	Deadline   *time.Time        `json:"deadline,omitempty"`
	Idempotent bool              `json:"idempotent,omitempty"`
	Result     *ResultSpec       `json:"result,omitempty"`
	Webhook    *Webhook          `json:"webhook,omitempty"`
	Labels     map[string]string `json:"labels,omitempty"`

	// Raw takes the raw-statement route, which needs raw_sql or raw_cql.
	Raw bool `json:"-"`
	// IdempotencyKey makes submits of the same request one job. A submit that
	// has one is repeated after errors of a moment.
	IdempotencyKey string `json:"-"`
}

// ResultSpec says how a deferred result is kept.
type ResultSpec struct {
	Format string          `json:"format,omitempty"` // json, ndjson or csv; parquet with To
	TTL    athena.Duration `json:"ttl,omitempty"`
	// To has the rows go to objects of a client, as parquet unless Format says
	// otherwise. The job's Result then lists the objects.
	To *Destination `json:"to,omitempty"`
}

// A Destination is a prefix of a client's objects.
type Destination struct {
	Client string `json:"client"`
	Prefix string `json:"prefix"`
}

// Webhook is where the end of a job is announced.
type Webhook struct {
	URL string `json:"url"`
}

// Query runs a statement and returns its rows. A parameter may be anything that
// encoding/json writes.
func (c *Client) Query(ctx context.Context, query string, params ...any) (*Rows, error) {
	return c.Run(ctx, Request{Query: query, Params: params})
}

// Run is Query with everything that can be said of a statement.
func (c *Client) Run(ctx context.Context, q Request) (*Rows, error) {
	resp, err := c.api.send(ctx, c.submit(q, nil, ""))
	if err != nil {
		return nil, err
	}
	return c.api.rows(ctx, resp, "")
}

// Exec runs a statement whose rows are of no interest and returns how many it
// changed, by the engine's own count.
func (c *Client) Exec(ctx context.Context, query string, params ...any) (affected int64, err error) {
	rows, err := c.Query(ctx, query, params...)
	if err != nil {
		return 0, err
	}
	defer rows.Close()
	for rows.Next() {
	}
	if err := rows.Close(); err != nil {
		return 0, err
	}
	if n := rows.Meta().RowsAffected; n != nil {
		affected = *n
	}
	return affected, nil
}

// Defer hands a statement over. Once it returns without an error the job is
// stored for good.
func (c *Client) Defer(ctx context.Context, q Request) (*Job, error) {
	resp, err := c.api.send(ctx, c.submit(q, nil, "respond-async"))
	if err != nil {
		return nil, err
	}
	return c.accepted(ctx, resp)
}

// DeferWait hands a statement over and waits for it up to a limit: the answer
// is its rows, or the job that is still under way.
func (c *Client) DeferWait(ctx context.Context, q Request, wait time.Duration) (*Rows, *Job, error) {
	resp, err := c.api.send(ctx, c.submit(q, nil, "respond-async, wait="+seconds(wait)))
	if err != nil {
		return nil, nil, err
	}
	if resp.StatusCode == http.StatusAccepted {
		job, err := c.accepted(ctx, resp)
		return nil, job, err
	}
	rows, err := c.api.rows(ctx, resp, path.Base(resp.Header.Get("Location")))
	return rows, nil, err
}

func (c *Client) submit(q Request, query url.Values, prefer string) request {
	r := request{method: http.MethodPost, path: "/gateway/query", query: query, client: c.name, body: q, header: http.Header{}}
	if q.Raw {
		r.path = "/gateway/sql"
	}
	if prefer != "" {
		r.header.Set("Prefer", prefer)
	}
	if q.IdempotencyKey != "" {
		r.header.Set("Idempotency-Key", q.IdempotencyKey)
		r.safe = true
	}
	return r
}

func (c *Client) accepted(ctx context.Context, resp *http.Response) (*Job, error) {
	defer resp.Body.Close()
	data, _, err := decodeAnswer[struct {
		ID    string `json:"id"`
		State State  `json:"state"`
	}](ctx, resp)
	if err != nil {
		return nil, err
	}
	return &Job{api: c.api, ID: data.ID, Replayed: resp.Header.Get("Idempotency-Replayed") == "true"}, nil
}

// Count counts the rows of a table. The schema may be empty.
func (c *Client) Count(ctx context.Context, schema, table string) (int64, error) {
	body := map[string]string{"table": table}
	if schema != "" {
		body["schema"] = schema
	}
	r := request{method: http.MethodPost, path: "/query/count", client: c.name, body: body, safe: true}
	data, _, err := answer[struct {
		Count int64 `json:"count"`
	}](ctx, c.api, r)
	return data.Count, err
}

// Plan is what a dry run found.
type Plan struct {
	Client     string          `json:"client"`
	Engine     athena.Engine   `json:"engine"`
	Needs      []string        `json:"needs"` // capabilities that the request needs
	Held       []string        `json:"held"`  // capabilities that the client is granted
	Effect     string          `json:"effect,omitempty"`
	Idempotent bool            `json:"idempotent,omitempty"`
	Plan       json.RawMessage `json:"plan,omitempty"` // the engine's own, where it can tell
}

// DryRun tells what would be done with a request, without doing it. Async asks
// for what Defer would need.
func (c *Client) DryRun(ctx context.Context, q Request, async bool) (*Plan, error) {
	prefer := ""
	if async {
		prefer = "respond-async"
	}
	r := c.submit(q, url.Values{"dry_run": {"true"}}, prefer)
	r.safe = true
	plan, _, err := answer[*Plan](ctx, c.api, r)
	return plan, err
}
