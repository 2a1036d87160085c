package gateway_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"filippo.io/age"

	"github.com/athena-pipelines/athena/api"
	"github.com/athena-pipelines/athena/api/gateway"
	"github.com/athena-pipelines/athena/api/middleware"
	"github.com/athena-pipelines/athena/api/openapi/openapitest"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/auth"
	"github.com/athena-pipelines/athena/pkg/bus/bustest"
	"github.com/athena-pipelines/athena/pkg/deferred"
	"github.com/athena-pipelines/athena/pkg/dispatch"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/driver/memory"
	"github.com/athena-pipelines/athena/pkg/localpg/pgtest"
	"github.com/athena-pipelines/athena/pkg/resolver"
	"github.com/athena-pipelines/athena/pkg/secret"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// world is a served gateway with all that is behind it.
type world struct {
	t       testing.TB
	url     string
	http    *http.Client // holds each exchange to the OpenAPI document
	db      *memory.DB
	catalog *catalog
	store   *deferred.Store
	ops     *ops
	stop    func() // has the server drain and stop
}

// catalog is a map of definitions.
type catalog struct {
	mu      sync.Mutex
	clients map[string]*athena.Client
}

func (c *catalog) Client(_ context.Context, name string) (*athena.Client, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if def, ok := c.clients[name]; ok {
		return def, nil
	}
	return nil, athena.Errorf(athena.CodeClientNotFound, "there is no client %q", name)
}

func (c *catalog) put(def athena.Client) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.clients[def.Name] = &def
}

func (c *catalog) lifecycle(name string, l athena.Lifecycle) {
	def, _ := c.Client(context.Background(), name)
	next := *def
	next.Lifecycle = l
	c.put(next)
}

// ops collects what the road observed.
type ops struct {
	mu  sync.Mutex
	all []dispatch.Outcome
}

func (o *ops) Observe(_ context.Context, out dispatch.Outcome) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.all = append(o.all, out)
}

func (o *ops) last() dispatch.Outcome {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.all[len(o.all)-1]
}

// keys are the tokens of Authorization: Bearer and what they may do.
var keys = map[string][]string{
	"full":     {"query", "deferred"},
	"reader":   {"query:read", "deferred"},
	"watcher":  {"deferred:read"},
	"asker":    {"query"},
	"deferrer": {"deferred"},
	"other":    {"query", "deferred"}, // bound to another client
	"nothing":  {"schema"},
}

type verifier struct{}

func (verifier) Verify(_ context.Context, token string) (*auth.Principal, error) {
	grants, ok := keys[token]
	if !ok {
		return nil, athena.Errorf(athena.CodeUnauthenticated, "the key is not valid")
	}
	p := &auth.Principal{Key: token}
	for _, text := range grants {
		g, err := auth.ParseGrant(text)
		if err != nil {
			return nil, err
		}
		p.Grants = append(p.Grants, g)
	}
	if token == "other" {
		p.Clients = []string{"elsewhere"}
	}
	return p, nil
}

func newAgeKey(t testing.TB) string {
	t.Helper()
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	return id.String()
}

// start serves a gateway on a real socket, with a real bus and the engine in
// memory. Change may alter its configuration.
func start(t testing.TB, change func(*gateway.Config, *api.Config)) *world {
	t.Helper()
	w := &world{t: t, db: memory.New(), catalog: &catalog{clients: map[string]*athena.Client{}}, ops: &ops{}}
	all := athena.Allow(athena.GatewayQuery, athena.RawSQL, athena.DeferredQuery)
	dsn := athena.PostgresConn{DSN: athena.NewSecret("memory")}
	for _, c := range []athena.Client{
		{Name: "shop", Lifecycle: athena.Active, Capabilities: all, Connection: dsn},
		{Name: "elsewhere", Lifecycle: athena.Active, Capabilities: all, Connection: dsn},
		{Name: "iced", Lifecycle: athena.Frozen, Capabilities: all, Connection: dsn},
		{Name: "gone", Lifecycle: athena.Inactive, Capabilities: all, Connection: dsn},
		{Name: "poor", Lifecycle: athena.Active, Connection: dsn},
		{Name: "small", Lifecycle: athena.Active, Capabilities: all, Connection: dsn, Limits: athena.Limits{MaxQueued: 2}},
		{Name: "cql", Lifecycle: athena.Active, Capabilities: athena.Allow(athena.RawCQL), Connection: dsn},
		{Name: "bucket", Lifecycle: athena.Active, Capabilities: all, Connection: athena.S3Conn{Bucket: "b"}},
	} {
		w.catalog.put(c)
	}
	drivers := map[athena.Engine]driver.Driver{athena.EnginePostgres: memory.Driver(w.db)}
	keyring, err := secret.Parse(newAgeKey(t), func(string) string { return "" })
	if err != nil {
		t.Fatal(err)
	}
	if w.store, err = deferred.NewStore(bustest.Start(t)); err != nil {
		t.Fatal(err)
	}
	res := resolver.New(w.catalog, drivers, resolver.Config{Open: func(_ string, s athena.Secret) (athena.Secret, error) { return s, nil }})
	t.Cleanup(func() { res.Close(context.Background()) })
	cfg := gateway.Config{
		Dispatcher: &dispatch.Dispatcher{Resolver: res, Observer: w.ops},
		Drivers:    drivers, Jobs: w.store, Cursors: keyring,
		Heartbeat: 100 * time.Millisecond, Glance: 20 * time.Millisecond,
	}
	router := api.Config{Keys: verifier{}, Rates: middleware.Rates{Strangers: 1e6}}
	if change != nil {
		change(&cfg, &router)
	}
	router.Families = []api.Family{gateway.New(cfg)}
	e, err := api.New(router)
	if err != nil {
		t.Fatal(err)
	}
	openapitest.Walk(t, e.Routes(), "query", "deferred")

	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	stopped := make(chan error, 1)
	go func() { stopped <- (&api.Server{Handler: e}).Run(ctx, ln) }()
	transport := &http.Transport{DisableCompression: true}
	w.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-stopped; err != nil {
			t.Errorf("the server did not stop cleanly: %v", err)
		}
		transport.CloseIdleConnections()
	})
	t.Cleanup(w.stop)
	w.url, w.http = "http://"+ln.Addr().String(), openapitest.Client(t, transport)
	w.seed("create table items (id int primary key, name text)", "insert into items values (1, 'one')", "insert into items values (2, 'two')")
	return w
}

func (w *world) seed(statements ...string) {
	w.t.Helper()
	b, err := w.db.Open(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	defer b.Close(w.t.Context())
	for _, s := range statements {
		rows, err := b.Query(w.t.Context(), driver.Statement{Text: s})
		if err == nil {
			err = rows.Close()
		}
		if err != nil {
			w.t.Fatalf("%s: %v", s, err)
		}
	}
}

// call is a request to be made: "POST /path", and what goes with it.
type call struct {
	do     string
	key    string // full by default; "-" for none
	client string // shop by default; "-" for none
	header map[string]string
	body   any // a string is sent as it is
}

// answer is what came back.
type answer struct {
	status int
	header http.Header
	raw    []byte

	Status, Message, Code string
	Data                  json.RawMessage
	Details               map[string]any
	Meta                  struct {
		Client, Engine string
		Columns        []driver.Column
		RowsAffected   *int64 `json:"rows_affected"`
		Truncated      bool
		NextCursor     string `json:"next_cursor"`
	}
}

func (w *world) request(ctx context.Context, q call) *http.Request {
	w.t.Helper()
	method, path, _ := strings.Cut(q.do, " ")
	var body io.Reader
	switch b := q.body.(type) {
	case nil:
	case string:
		body = strings.NewReader(b)
	default:
		raw, err := json.Marshal(b)
		if err != nil {
			w.t.Fatal(err)
		}
		body = bytes.NewReader(raw)
	}
	req, err := http.NewRequestWithContext(ctx, method, w.url+path, body)
	if err != nil {
		w.t.Fatal(err)
	}
	if q.key != "-" {
		key := q.key
		if key == "" {
			key = "full"
		}
		req.Header.Set("Authorization", "Bearer "+key)
	}
	if q.client != "-" {
		name := q.client
		if name == "" {
			name = "shop"
		}
		req.Header.Set("X-Athena-Client", name)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	for k, v := range q.header {
		req.Header.Set(k, v)
	}
	return req
}

func (w *world) do(q call) *answer {
	w.t.Helper()
	resp, err := w.http.Do(w.request(w.t.Context(), q))
	if err != nil {
		w.t.Fatalf("%s: %v", q.do, err)
	}
	defer resp.Body.Close()
	a := &answer{status: resp.StatusCode, header: resp.Header}
	if a.raw, err = io.ReadAll(resp.Body); err != nil {
		w.t.Fatalf("%s: %v", q.do, err)
	}
	if strings.HasPrefix(resp.Header.Get("Content-Type"), "application/json") {
		if err := json.Unmarshal(a.raw, a); err != nil {
			w.t.Fatalf("%s: %v: %s", q.do, err, a.raw)
		}
	}
	return a
}

// want makes the request and fails unless it is answered with the status and,
// if it is an error, the code.
func (w *world) want(status int, code string, q call) *answer {
	w.t.Helper()
	a := w.do(q)
	if a.status != status || a.Code != code {
		w.t.Fatalf("%s: got %d %s, want %d %s: %.500s", q.do, a.status, a.Code, status, code, a.raw)
	}
	return a
}

func decode[T any](t testing.TB, a *answer) (v T) {
	t.Helper()
	if err := json.Unmarshal(a.Data, &v); err != nil {
		t.Fatalf("%v: %s", err, a.Data)
	}
	return v
}

type stmt map[string]any

// view is a job as it is shown.
type view struct {
	ID, Client, State, Query string
	ETag                     string
	ReadOnly                 bool `json:"read_only"`
	Attempts                 []deferred.Attempt
	Requeues                 int
	Error                    *deferred.Failure
	Result                   *struct {
		Rows, Bytes int64
		Segments    int
		Complete    bool
	}
}

// submit hands a statement over and returns its job's id.
func (w *world) submit(client string, body stmt) string {
	w.t.Helper()
	body["deferred"] = true
	a := w.want(http.StatusAccepted, "", call{do: "POST /gateway/query", client: client, body: body})
	return decode[view](w.t, a).ID
}

// advance plays a worker: it takes the job's state a step further.
func (w *world) advance(id string, next func(*deferred.Job, deferred.Status) deferred.Status) deferred.Status {
	w.t.Helper()
	for {
		j, st, err := w.store.Load(w.t.Context(), "", id)
		if err != nil {
			w.t.Fatal(err)
		}
		st, err = w.store.Advance(w.t.Context(), j, st, next(j, st))
		if errors.Is(err, deferred.ErrMoved) {
			continue
		}
		if err != nil {
			w.t.Fatal(err)
		}
		return st
	}
}

func (w *world) begin(id string) {
	w.t.Helper()
	w.advance(id, func(_ *deferred.Job, s deferred.Status) deferred.Status { return s.Begin("w1", false, time.Now()) })
}

// finish plays a worker that runs the job's statement.
func (w *world) finish(id string, sizes deferred.ResultSizes) {
	w.t.Helper()
	w.begin(id)
	w.advance(id, func(j *deferred.Job, s deferred.Status) deferred.Status {
		return s.Succeed(w.collect(j, sizes, nil), time.Now())
	})
}

func (w *world) collect(j *deferred.Job, sizes deferred.ResultSizes, onSegment func(*deferred.Result)) *deferred.Result {
	w.t.Helper()
	ctx := w.t.Context()
	b, err := w.db.Open(ctx)
	if err != nil {
		w.t.Fatal(err)
	}
	defer b.Close(ctx)
	rows, err := b.Query(ctx, driver.Statement{Text: j.Query, Params: j.Params})
	if err != nil {
		w.t.Fatal(err)
	}
	defer rows.Close()
	out := w.store.NewResult(j, 1, rows.Columns(), 1<<30, sizes)
	out.OnSegment = onSegment
	for full := false; !full && rows.Next(); {
		if full, err = out.Append(ctx, rows); err != nil {
			w.t.Fatal(err)
		}
	}
	r, err := out.Finish(ctx, rows.RowsAffected())
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}
