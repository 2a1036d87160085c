package telemetry_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/telemetry"
	"github.com/nats-io/nats.go"
	"go.opentelemetry.io/otel/trace"
)

func scrape(t *testing.T, m *telemetry.Metrics) string {
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if w.Code != http.StatusOK {
		t.Fatalf("the scrape answered %d", w.Code)
	}
	return w.Body.String()
}

func TestMetrics(t *testing.T) {
	t.Parallel()
	m := telemetry.NewMetrics("v1.2.3")
	m.Operation("shop", "postgres", "query", "", 3*time.Millisecond)
	m.Operation("shop", "postgres", "query", "timeout", time.Second)
	m.Operation("made-up-by-a-stranger", "", "query", "client_not_found", time.Millisecond)
	m.JobMoved("shop", "running")
	m.JobStarted("shop", -time.Second)
	m.WebhookTried("delivered")
	m.OpsDropped(3)
	m.Published("ATH_JOBS", time.Millisecond)
	m.Gauge("answer", "The answer.", func() float64 { return 42 })
	got := scrape(t, m)
	for _, want := range []string{
		`athena_operations_total{client="shop",code="ok",engine="postgres",family="query"} 1`,
		`athena_operations_total{client="shop",code="timeout",engine="postgres",family="query"} 1`,
		`athena_operations_total{client="",code="client_not_found",engine="",family="query"} 1`,
		`athena_operation_duration_seconds_count{client="shop",engine="postgres",family="query"} 2`,
		`athena_job_transitions_total{client="shop",state="running"} 1`,
		`athena_jobs_running{client="shop"} 1`,
		`athena_job_wait_seconds_sum{client="shop"} 0`,
		`athena_webhook_deliveries_total{outcome="delivered"} 1`,
		`athena_operation_log_dropped_total 3`,
		`athena_bus_publish_seconds_count{stream="ATH_JOBS"} 1`,
		`version="v1.2.3"`, `athena_answer 42`, `go_goroutines`, `process_resident_memory_bytes`,
	} {
		if !strings.Contains(got, want) {
			t.Errorf("the scrape lacks %s", want)
		}
	}
	if strings.Contains(got, "stranger") {
		t.Error("a name that is no client became a label")
	}
	m.JobEnded("shop")
	m.Forget("shop")
	m.Forget("")
	if got := scrape(t, m); strings.Contains(got, `"shop"`) || !strings.Contains(got, "client_not_found") {
		t.Errorf("after Forget the scrape has %s", got)
	}
}

func TestNilMetricsCountNothing(t *testing.T) {
	t.Parallel()
	var m *telemetry.Metrics
	m.Operation("a", "b", "c", "", 0)
	m.JobMoved("a", "b")
	m.JobStarted("a", 0)
	m.JobEnded("a")
	m.WebhookTried("a")
	m.OpsDropped(1)
	m.Published("a", 0)
	m.Forget("a")
	m.Gauge("a", "b", nil)
	m.Pipelines(nil)
}

func TestLogger(t *testing.T) {
	t.Parallel()
	const planted = "planted-4711"
	secret := athena.NewSecret(planted)
	conn := athena.PostgresConn{DSN: secret}
	for _, format := range []string{"text", "json"} {
		t.Run(format, func(t *testing.T) {
			t.Parallel()
			var out bytes.Buffer
			log, err := telemetry.NewLogger(&out, "info", format)
			if err != nil {
				t.Fatal(err)
			}
			ctx := telemetry.WithRequestID(t.Context(), "req-1")
			log.DebugContext(ctx, "quiet")
			log.With("a", secret).InfoContext(ctx, "loud", "secret", secret, "conn", conn, "pointer", &conn, slog.Group("g", "s", secret), "list", []athena.Secret{secret})
			log.InfoContext(ctx, "own id", telemetry.KeyRequest, "mine")
			got := out.String()
			if strings.Contains(got, planted) {
				t.Errorf("a secret is in the log: %s", got)
			}
			if strings.Contains(got, "quiet") || strings.Count(got, "req-1") != 1 || !strings.Contains(got, athena.Redacted) {
				t.Errorf("the log is %s", got)
			}
			if line, _, _ := strings.Cut(got, "\n"); format == "json" && !json.Valid([]byte(line)) {
				t.Errorf("%s is not JSON", line)
			}
		})
	}
	for _, bad := range [][2]string{{"loud", "text"}, {"info", "xml"}, {"", ""}} {
		if _, err := telemetry.NewLogger(io.Discard, bad[0], bad[1]); err == nil {
			t.Errorf("level %q and format %q were taken", bad[0], bad[1])
		}
	}
}

// collector is an OTLP collector that keeps what it is sent.
type collector struct {
	mu     sync.Mutex
	paths  []string
	bodies bytes.Buffer
}

func (c *collector) ServeHTTP(_ http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.paths = append(c.paths, r.URL.Path)
	io.Copy(&c.bodies, r.Body)
}

func TestTracing(t *testing.T) {
	t.Parallel()
	c := &collector{}
	server := httptest.NewServer(c)
	defer server.Close()
	tracing, err := telemetry.NewTracing(t.Context(), telemetry.TraceConfig{Endpoint: server.URL, Service: "athena", Version: "v1"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, root := tracing.Start(telemetry.WithRequestID(t.Context(), "req-1"), "the request", trace.SpanKindServer)
	message := nats.Header{}
	telemetry.Inject(ctx, message)
	if message.Get(telemetry.HeaderTraceparent) == "" || message.Get(telemetry.HeaderRequestID) != "req-1" {
		t.Errorf("the message's headers are %v", message)
	}

	received := telemetry.Extract(context.Background(), message)
	if telemetry.RequestID(received) != "req-1" {
		t.Errorf("the request's id came as %q", telemetry.RequestID(received))
	}
	worker, span := tracing.Start(received, "the job", trace.SpanKindConsumer)
	_, inner := telemetry.Span(worker, "the statement", trace.SpanKindClient)
	if got, want := inner.SpanContext().TraceID(), root.SpanContext().TraceID(); got != want {
		t.Errorf("the trace is %v, want %v", got, want)
	}
	telemetry.End(inner, "timeout")
	telemetry.End(span, "")
	telemetry.End(root, "")
	if err := tracing.Shutdown(t.Context()); err != nil {
		t.Fatalf("Shutdown: %v", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.paths) == 0 || c.paths[0] != "/v1/traces" {
		t.Fatalf("the collector was asked for %v", c.paths)
	}
	for _, want := range []string{"the request", "the job", "the statement", "timeout", "athena"} {
		if !strings.Contains(c.bodies.String(), want) {
			t.Errorf("the collector did not get %q", want)
		}
	}
}

func TestTracingThatIsOffPassesTracesOn(t *testing.T) {
	t.Parallel()
	tracing, err := telemetry.NewTracing(t.Context(), telemetry.TraceConfig{})
	if err != nil {
		t.Fatal(err)
	}
	const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	in := http.Header{}
	in.Set("traceparent", parent)
	in.Set(telemetry.HeaderRequestID, "no\nsane id")
	ctx := telemetry.Extract(t.Context(), in)
	if id := telemetry.RequestID(ctx); id != "" {
		t.Errorf("the id %q was taken", id)
	}
	ctx, span := tracing.Start(ctx, "request", trace.SpanKindServer)
	inner, child := telemetry.Span(ctx, "inner", trace.SpanKindInternal)
	out := http.Header{}
	telemetry.Inject(inner, out)
	if span.IsRecording() || child.IsRecording() || out.Get("traceparent") != parent {
		t.Errorf("recording %v and %v, passed on %v", span.IsRecording(), child.IsRecording(), out)
	}
	telemetry.End(child, "")
	telemetry.End(span, "internal")
	if err := tracing.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestSpanThatIsNotRecordedCostsNothing(t *testing.T) { // not parallel: it counts allocations
	ctx := t.Context()
	if allocs := testing.AllocsPerRun(100, func() { telemetry.Span(ctx, "x", trace.SpanKindInternal) }); allocs > 0 {
		t.Errorf("it costs %v allocations", allocs)
	}
}

func TestSaneRequestID(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		id   string
		want bool
	}{
		"one of ours":        {telemetry.NewRequestID(), true},
		"a UUID":             {"0190b5c2-7e1a-7cc3-98c4-dc0c0c07398f", true},
		"with colon and dot": {"a:b.c_d", true},
		"an empty one":       {"", false},
		"a long one":         {strings.Repeat("a", 129), false},
		"with a line break":  {"a\nb", false},
		"with a space":       {"a b", false},
		"not ASCII":          {"ä", false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := telemetry.SaneRequestID(tt.id); got != tt.want {
				t.Errorf("SaneRequestID(%q) = %v", tt.id, got)
			}
		})
	}
}
