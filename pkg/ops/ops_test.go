package ops_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/auth"
	"github.com/athena-pipelines/athena/pkg/bus"
	"github.com/athena-pipelines/athena/pkg/bus/bustest"
	"github.com/athena-pipelines/athena/pkg/dispatch"
	"github.com/athena-pipelines/athena/pkg/ops"
	"github.com/athena-pipelines/athena/pkg/telemetry"
	"github.com/nats-io/nats.go"
)

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// events reads all events of a subject.
func events(t *testing.T, b *bus.Bus, subject string) (list []ops.Event, messages int) {
	t.Helper()
	raws, err := b.Scan(t.Context(), bus.StreamOps, subject, 1, 10_000)
	if err != nil {
		t.Fatal(err)
	}
	for _, raw := range raws {
		es, err := ops.Decode(raw.Data)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, es...)
	}
	return list, len(raws)
}

func TestOperationLog(t *testing.T) {
	t.Parallel()
	b := bustest.Start(t)
	metrics := telemetry.NewMetrics("test")
	var log bytes.Buffer
	logger, err := telemetry.NewLogger(&log, "debug", "json")
	if err != nil {
		t.Fatal(err)
	}
	recorder := ops.NewRecorder(b, metrics, logger)
	observer := ops.NewObserver(metrics, logger, recorder)

	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- recorder.Run(ctx) }()
	query := dispatch.Op{Family: "query"}
	var g sync.WaitGroup
	for i := range 10 {
		g.Go(func() {
			for k := range 100 {
				ctx := telemetry.WithRequestID(ctx, fmt.Sprintf("r%d-%d", i, k))
				observer.Observe(ctx, dispatch.Outcome{Op: query, Client: "shop", Engine: "postgres", Principal: "k1", Started: time.Now(), Elapsed: 1500 * time.Microsecond})
			}
		})
	}
	g.Wait()
	stranger := strings.Repeat("made.up > ", 50)
	observer.Observe(ctx, dispatch.Outcome{Op: query, Client: stranger, Code: athena.CodeClientNotFound, Err: athena.Errorf(athena.CodeClientNotFound, "no such client")})
	hidden := athena.Wrap(athena.CodeBackendUnavailable, errors.New("dial tcp: refused"), "client cannot be reached")
	observer.Observe(ctx, dispatch.Outcome{Op: query, Client: "lake", Engine: "s3", Code: athena.CodeBackendUnavailable, Err: fmt.Errorf("open: %w", hidden)})
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Run: %v", err)
	}

	got, messages := events(t, b, bus.Ops("shop", "query"))
	seen := map[string]bool{}
	for _, e := range got {
		seen[e.RequestID] = true
	}
	if len(got) != 1000 || len(seen) != 1000 || messages > 100 {
		t.Errorf("%d events of %d requests in %d messages; want 1000 of 1000 in few", len(got), len(seen), messages)
	}
	if e := got[0]; e.Client != "shop" || e.Engine != "postgres" || e.Family != "query" || e.Principal != "k1" || e.Code != "" || e.Elapsed != 1.5 || e.Time.IsZero() {
		t.Errorf("an event is %+v", e)
	}
	got, _ = events(t, b, bus.Ops("_", "query"))
	if len(got) != 1 || got[0].Code != athena.CodeClientNotFound || len(got[0].Client) > 64 {
		t.Errorf("events of no client are %+v; want one, with a short name", got)
	}
	lines := log.String()
	if !strings.Contains(lines, "dial tcp: refused") || strings.Count(lines, `"level":"WARN"`) != 1 || !strings.Contains(lines, `"request_id":"r3-7"`) {
		t.Errorf("the log lacks the cause, or the one warning, or ids: %.500s", lines)
	}
}

func TestOperationLogDropsWhatTheBusCannotTake(t *testing.T) {
	t.Parallel()
	b := bustest.Start(t)
	metrics := telemetry.NewMetrics("test")
	recorder := ops.NewRecorder(b, metrics, quiet())
	start := time.Now()
	for range 10_000 { // nobody takes them
		recorder.Record(ops.Event{Client: "shop", Engine: "postgres", Family: "query"})
	}
	if took := time.Since(start); took > time.Second {
		t.Errorf("recording took %v", took)
	}
	b.Conn().Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := recorder.Run(ctx); err != nil {
		t.Errorf("Run: %v", err)
	}
	w := httptest.NewRecorder()
	metrics.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
	if want := "athena_operation_log_dropped_total 10000"; !strings.Contains(w.Body.String(), want) {
		t.Errorf("the metrics lack %q", want)
	}
}

func TestAudit(t *testing.T) {
	t.Parallel()
	b := bustest.Start(t)
	audit := ops.NewAudit(b, quiet())
	ctx := auth.NewContext(telemetry.WithRequestID(t.Context(), "req-1"), &auth.Principal{Key: "k1", Name: "Ada"})
	put := ops.Change{Action: "client.put", Client: "shop", Details: ops.Details{Revision: 7, Before: athena.Active, After: athena.Frozen, Fields: []string{"lifecycle"}}}

	t.Run("the entry is stored before the change is made", func(t *testing.T) {
		err := audit.Do(ctx, put, func(context.Context) error {
			page, _, err := audit.Read(ctx, ops.Filter{}, "", 0)
			if err != nil || len(page) != 1 {
				t.Fatalf("the audit holds %+v, %v; want the entry", page, err)
			}
			got := page[0]
			if got.Actor != "k1" || got.ActorName != "Ada" || got.RequestID != "req-1" || time.Since(got.At) > time.Minute ||
				got.Action != "client.put" || got.Client != "shop" || got.Details.Revision != 7 || got.Details.After != athena.Frozen || got.Details.Failed != "" {
				t.Errorf("the entry is %+v", got)
			}
			return nil
		})
		if err != nil {
			t.Errorf("Do: %v", err)
		}
	})
	t.Run("a change that fails has a second entry", func(t *testing.T) {
		ctx, cancel := context.WithCancel(ctx)
		conflict := athena.Errorf(athena.CodeConflict, "revision mismatch")
		err := audit.Do(ctx, put, func(context.Context) error { cancel(); return conflict })
		if !errors.Is(err, conflict) {
			t.Errorf("Do returned %v, want the error of the change", err)
		}
		page, _, err := audit.Read(t.Context(), ops.Filter{}, "", 0)
		if err != nil || len(page) != 3 || page[0].Details.Failed != athena.CodeConflict || page[1].Details.Failed != "" {
			t.Errorf("the audit holds %+v, %v", page, err)
		}
	})
	t.Run("events of the operation log are no entries", func(t *testing.T) {
		recorder := ops.NewRecorder(b, nil, quiet())
		recorder.Record(ops.Event{Client: "shop", Engine: "postgres", Family: "admin"})
		done, cancel := context.WithCancel(t.Context())
		cancel()
		if err := recorder.Run(done); err != nil {
			t.Fatal(err)
		}
		if page, _, err := audit.Read(ctx, ops.Filter{}, "", 0); err != nil || len(page) != 3 {
			t.Errorf("the audit holds %d entries, %v; want 3", len(page), err)
		}
	})
	t.Run("a change that cannot be audited is not made", func(t *testing.T) {
		dead := bustest.Start(t)
		dead.Conn().Close()
		ctx, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
		defer cancel()
		err := ops.NewAudit(dead, quiet()).Do(ctx, put, func(context.Context) error {
			t.Error("it was made")
			return nil
		})
		if athena.CodeOf(err) != athena.CodeBusUnavailable {
			t.Errorf("the error is %v, want bus_unavailable", err)
		}
	})
}

func TestAuditPages(t *testing.T) {
	t.Parallel()
	b := bustest.Start(t)
	audit := ops.NewAudit(b, quiet())
	made := func(context.Context) error { return nil }
	start := time.Now()
	var middle time.Time
	clients := []string{"shop", "lake", ""}
	for i := range 60 {
		if i == 30 {
			time.Sleep(5 * time.Millisecond)
			middle = time.Now()
			time.Sleep(5 * time.Millisecond)
		}
		c := ops.Change{Actor: fmt.Sprintf("k%d", i%2), Action: "a", Client: clients[i%3], Target: fmt.Sprint(i)}
		if err := audit.Do(t.Context(), c, made); err != nil {
			t.Fatal(err)
		}
	}
	// want lists the targets that a filter should give, newest first.
	want := func(keep func(i int) bool) (list []string) {
		for i := 59; i >= 0; i-- {
			if keep(i) {
				list = append(list, fmt.Sprint(i))
			}
		}
		return list
	}
	tests := map[string]struct {
		filter ops.Filter
		want   []string
	}{
		"all":                        {ops.Filter{}, want(func(int) bool { return true })},
		"one client":                 {ops.Filter{Clients: []string{"shop"}}, want(func(i int) bool { return i%3 == 0 })},
		"two clients":                {ops.Filter{Clients: []string{"shop", "lake"}}, want(func(i int) bool { return i%3 < 2 })},
		"an actor":                   {ops.Filter{Actor: "k1"}, want(func(i int) bool { return i%2 == 1 })},
		"a client and an actor":      {ops.Filter{Clients: []string{"lake"}, Actor: "k0"}, want(func(i int) bool { return i%6 == 4 })},
		"since the middle":           {ops.Filter{Since: middle}, want(func(i int) bool { return i >= 30 })},
		"since before the first":     {ops.Filter{Since: start.Add(-time.Hour)}, want(func(int) bool { return true })},
		"a client that is not there": {ops.Filter{Clients: []string{"no.such > one"}}, nil},
	}
	for name, tt := range tests {
		for _, limit := range []int{1, 7, 20, 60, 0} {
			t.Run(fmt.Sprintf("%s by %d", name, limit), func(t *testing.T) {
				t.Parallel()
				var got []string
				cursor := ""
				for pages := 0; ; pages++ {
					page, next, err := audit.Read(t.Context(), tt.filter, cursor, limit)
					if err != nil || page == nil || pages > 60 {
						t.Fatalf("page %d: %v, %v", pages, page, err)
					}
					for _, c := range page {
						got = append(got, c.Target)
					}
					if next == "" {
						break
					}
					if len(page) != limit && limit > 0 {
						t.Errorf("a page before the last has %d entries, want %d", len(page), limit)
					}
					cursor = next
				}
				if !slices.Equal(got, tt.want) {
					t.Errorf("got %v, want %v", got, tt.want)
				}
			})
		}
	}
	for name, cursor := range map[string]string{"a word": "x", "a sign": "+5", "a zero in front": "05", "a fraction": "1.5", "a large number": "99999999999999999999"} {
		t.Run("a forged cursor is refused: "+name, func(t *testing.T) {
			t.Parallel()
			if _, _, err := audit.Read(t.Context(), ops.Filter{}, cursor, 0); athena.CodeOf(err) != athena.CodeInvalidRequest {
				t.Errorf("the error is %v, want invalid_request", err)
			}
		})
	}
	for _, limit := range []int{-1, 1001} {
		if _, _, err := audit.Read(t.Context(), ops.Filter{}, "", limit); athena.CodeOf(err) != athena.CodeInvalidRequest {
			t.Errorf("limit %d: the error is %v, want invalid_request", limit, err)
		}
	}
}

// Entries that stand far apart in the stream are found, and old windows are
// looked through as well as the newest.
func TestAuditAmongManyEvents(t *testing.T) {
	t.Parallel()
	b := bustest.Start(t)
	audit := ops.NewAudit(b, quiet())
	publisher := bus.NewPublisher(b, bus.StreamOps)
	made := func(context.Context) error { return nil }
	for i := range 3 {
		if err := audit.Do(t.Context(), ops.Change{Actor: "k", Action: "a", Client: "shop", Target: fmt.Sprint(i)}, made); err != nil {
			t.Fatal(err)
		}
		fill(t, publisher, 4500)
	}
	page, next, err := audit.Read(t.Context(), ops.Filter{}, "", 2)
	if err != nil || len(page) != 2 || page[0].Target != "2" || page[1].Target != "1" || next == "" {
		t.Fatalf("the first page is %+v, %q, %v", page, next, err)
	}
	page, next, err = audit.Read(t.Context(), ops.Filter{}, next, 2)
	if err != nil || len(page) != 1 || page[0].Target != "0" || next != "" {
		t.Errorf("the second page is %+v, %q, %v", page, next, err)
	}
}

func TestFields(t *testing.T) {
	t.Parallel()
	client := func(dsn string, change func(*athena.Client)) *athena.Client {
		c := &athena.Client{Name: "shop", Lifecycle: athena.Active, Capabilities: athena.Allow(athena.RawSQL),
			Connection: athena.PostgresConn{DSN: athena.NewSecret(dsn), MaxConns: 4}, Metadata: map[string]any{"team": "a", "tags": []any{1}}}
		if change != nil {
			change(c)
		}
		return c
	}
	old := client("planted-1", nil)
	tests := map[string]struct {
		before, after *athena.Client
		want          []string
	}{
		"nothing":               {old, client("planted-1", func(c *athena.Client) { c.Revision = 9 }), nil},
		"a secret":              {old, client("planted-2", nil), []string{"connection.dsn"}},
		"a lifecycle and more":  {old, client("planted-1", func(c *athena.Client) { c.Lifecycle = athena.Frozen; c.Limits.MaxRunning = 2 }), []string{"lifecycle", "limits.max_running"}},
		"a capability":          {old, client("planted-1", func(c *athena.Client) { c.Capabilities |= athena.Allow(athena.CDC) }), []string{"capabilities.cdc"}},
		"metadata":              {old, client("planted-1", func(c *athena.Client) { c.Metadata = map[string]any{"team": "b", "tags": []any{1}} }), []string{"metadata.team"}},
		"another kind of value": {old, client("planted-1", func(c *athena.Client) { c.Metadata = map[string]any{"team": map[string]any{"x": 1}, "tags": []any{1}} }), []string{"metadata.team", "metadata.team.x"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := ops.Fields(tt.before, tt.after)
			if err != nil || !slices.Equal(got, tt.want) {
				t.Errorf("Fields = %v, %v; want %v", got, err, tt.want)
			}
		})
	}
	for name, pair := range map[string][2]*athena.Client{"a new one": {nil, old}, "a deleted one": {old, nil}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := ops.Fields(pair[0], pair[1])
			if err != nil || !slices.Contains(got, "connection.dsn") || !slices.Contains(got, "client_name") || strings.Contains(fmt.Sprint(got), "planted") {
				t.Errorf("Fields = %v, %v; want the names of all, and no values", got, err)
			}
		})
	}
}

// fill publishes messages of the operation log.
func fill(t *testing.T, p *bus.Publisher, n int) {
	t.Helper()
	for n > 0 {
		batch := make([]*nats.Msg, min(n, 1000))
		for i := range batch {
			batch[i] = nats.NewMsg(bus.Ops("shop", "query"))
			batch[i].Data = []byte("{}\n")
		}
		if _, err := p.PublishAtomic(t.Context(), batch); err != nil {
			t.Fatal(err)
		}
		n -= len(batch)
	}
}
