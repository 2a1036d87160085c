package remote

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"pgregory.net/rapid"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/auth"
	"github.com/athena-pipelines/athena/pkg/bus"
	"github.com/athena-pipelines/athena/pkg/bus/bustest"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/telemetry"
)

const beat = 150 * time.Millisecond

var columns = []driver.Column{{Name: "n", Type: "int8"}, {Name: "text", Type: "text"}}

// result is a driver's rows, made as they are read.
type result struct {
	n      int
	row    func(i int) string
	err    error // after the rows
	i      int
	made   atomic.Int64
	closed atomic.Bool
}

func (r *result) Columns() []driver.Column { return columns }
func (r *result) Next() bool {
	if r.i >= r.n {
		return false
	}
	r.i++
	r.made.Add(1)
	return true
}
func (r *result) AppendJSON(dst []byte) []byte { return append(dst, r.row(r.i-1)...) }
func (r *result) RowsAffected() int64          { return int64(r.i) }
func (r *result) Err() error                   { return r.err }
func (r *result) Close() error                 { r.closed.Store(true); return r.err }

func small(i int) string { return fmt.Sprintf(`{"n":%d,"text":"row"}`, i) }

// A bench is a bus with a connection for callers.
type bench struct {
	t   *testing.T
	srv *bus.Server
}

func newBench(t *testing.T) *bench {
	return &bench{t, bustest.Server(t, bus.ServerConfig{Dir: t.TempDir()})}
}

func (b *bench) conn() *nats.Conn {
	b.t.Helper()
	nc, err := b.srv.Connect()
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(nc.Close)
	return nc
}

func (b *bench) caller() *Caller { return &Caller{Conn: b.conn()} }

// hasty is a caller that soon takes a worker for lost. It is for tests of just
// that: a machine that is busy may be as silent.
func (b *bench) hasty() *Caller { return &Caller{Conn: b.conn(), Heartbeat: beat} }

type execute = func(context.Context, Request, RowSink) error

// worker serves the client shop on a connection of its own until the test ends
// or stop is called, which waits for it.
func (b *bench) worker(do execute, set ...func(*Server)) (s *Server, stop func()) {
	b.t.Helper()
	ready := make(chan struct{})
	s = &Server{
		Conn: b.conn(), Execute: do, Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
		Watch: func(ctx context.Context, serve func([]string) error) error {
			if err := serve([]string{"shop"}); err != nil {
				return err
			}
			close(ready)
			<-ctx.Done()
			return ctx.Err()
		},
	}
	for _, f := range set {
		f(s)
	}
	return s, b.run(s, ready)
}

func (b *bench) run(s *Server, ready <-chan struct{}) (stop func()) {
	b.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			select {
			case err := <-done:
				if err != nil {
					b.t.Errorf("Run: %v", err)
				}
			case <-time.After(15 * time.Second):
				b.t.Error("Run does not end")
			}
		})
	}
	b.t.Cleanup(stop)
	await(b.t, ready, "the worker to serve")
	if err := s.Conn.Flush(); err != nil {
		b.t.Fatal(err)
	}
	return stop
}

func await[T any](t *testing.T, ch <-chan T, what string) (v T) {
	t.Helper()
	select {
	case v = <-ch:
	case <-time.After(10 * time.Second):
		t.Fatalf("waited in vain for %s", what)
	}
	return v
}

func gives(r func() *result) execute {
	return func(_ context.Context, req Request, sink RowSink) error { return Copy(sink, r(), req.RowLimit) }
}

func read(rows driver.Rows) (out []string, err error) {
	for rows.Next() {
		out = append(out, string(rows.AppendJSON(nil)))
	}
	return out, rows.Close()
}

func TestRowsArriveAsTheyWere(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	var next atomic.Pointer[result]
	b.worker(func(_ context.Context, req Request, sink RowSink) error { return Copy(sink, next.Load(), req.RowLimit) })
	c := b.caller()
	rapid.Check(t, func(t *rapid.T) {
		sizes := rapid.SliceOfN(rapid.OneOf(rapid.IntRange(0, 200), rapid.IntRange(chunkSize-40, chunkSize+40), rapid.IntRange(0, 5*chunkSize)), 0, 30).Draw(t, "sizes")
		limit := rapid.IntRange(0, 40).Draw(t, "limit")
		row := func(i int) string { return fmt.Sprintf(`{"n":%d,"text":"%s"}`, i, strings.Repeat("x", sizes[i])) }
		next.Store(&result{n: len(sizes), row: row})
		rows, err := c.Query(context.Background(), "shop", Request{Statement: "select", RowLimit: int64(limit)})
		if err != nil {
			t.Fatal(err)
		}
		if got := rows.Columns(); !slices.Equal(got, columns) {
			t.Fatalf("columns are %v", got)
		}
		got, err := read(rows)
		if err != nil {
			t.Fatal(err)
		}
		want := len(sizes)
		cut := limit > 0 && limit < want
		if cut {
			want = limit
		}
		if len(got) != want || rows.(*Rows).Truncated() != cut {
			t.Fatalf("got %d rows, truncated %t; want %d, %t", len(got), rows.(*Rows).Truncated(), want, cut)
		}
		if !cut && rows.RowsAffected() != int64(len(sizes)) {
			t.Fatalf("%d rows affected, want %d", rows.RowsAffected(), len(sizes))
		}
		for i := range got {
			if got[i] != row(i) {
				t.Fatalf("row %d is %.80s, want %.80s", i, got[i], row(i))
			}
		}
	})
}

func TestAStatementWithoutRows(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.worker(func(_ context.Context, _ Request, sink RowSink) error {
		if err := sink.Columns(nil); err != nil {
			return err
		}
		sink.Done(42, false)
		return nil
	})
	rows, err := b.caller().Query(t.Context(), "shop", Request{Statement: "update"})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := read(rows); err != nil || len(got) != 0 || len(rows.Columns()) != 0 || rows.RowsAffected() != 42 {
		t.Errorf("got %v, %v, %d affected", got, err, rows.RowsAffected())
	}
}

func TestTheRequestTravelsWhole(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	got := make(chan Request, 1)
	b.worker(func(ctx context.Context, req Request, sink RowSink) error {
		if p := auth.FromContext(ctx); p == nil || p.Key != "k1" || telemetry.RequestID(ctx) != "r1" {
			t.Errorf("the context has principal %+v and request %q", p, telemetry.RequestID(ctx))
		}
		got <- req
		return Copy(sink, &result{}, 0)
	})
	want := Request{
		Client: "shop", Statement: "select $1", Params: []json.RawMessage{json.RawMessage(`"a"`)}, Language: driver.SQL,
		Timeout: athena.Duration(time.Second), ReadOnly: true, RowLimit: 7, Raw: true, Op: "gateway",
		Principal: &auth.Principal{Key: "k1", Grants: []auth.Grant{{Right: auth.Query, Access: auth.Read}}, Clients: []string{"shop"}},
		RequestID: "r1", Traceparent: "00-…",
	}
	rows, err := b.caller().Query(t.Context(), "shop", want)
	if err != nil {
		t.Fatal(err)
	}
	rows.Close()
	a, _ := json.Marshal(want)
	if g, _ := json.Marshal(await(t, got, "the request")); string(g) != string(a) {
		t.Errorf("got  %s\nwant %s", g, a)
	}
}

func TestALargeResultIsHeldByNeitherSide(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	const n = 1_000_000
	pad := strings.Repeat("x", 80)
	var src atomic.Pointer[result]
	b.worker(gives(func() *result {
		r := &result{n: n, row: func(i int) string { return `{"n":` + fmt.Sprint(i) + `,"text":"` + pad + `"}` }}
		src.Store(r)
		return r
	}))
	rows, err := b.caller().Query(t.Context(), "shop", Request{})
	if err != nil {
		t.Fatal(err)
	}
	var buf []byte
	var count, bytes, ahead int64
	for rows.Next() {
		buf = rows.AppendJSON(buf[:0])
		count, bytes = count+1, bytes+int64(len(buf))
		ahead = max(ahead, src.Load().made.Load()-count)
	}
	if err := rows.Close(); err != nil || count != n {
		t.Fatalf("got %d rows, %v", count, err)
	}
	// What the worker is ahead of the reader is all that can be held anywhere.
	if most := int64((window + 3) * chunkSize / 90); ahead > most {
		t.Errorf("the worker was %d rows ahead of the reader; the window allows %d", ahead, most)
	}
	t.Logf("%d MB, at most %d rows (%d KiB) on the way", bytes>>20, ahead, ahead*bytes/count>>10)
}

func TestMemoryDoesNotGrowWithTheResult(t *testing.T) { // alone: it measures the heap
	b := newBench(t)
	row := `{"text":"` + strings.Repeat("x", 1000) + `"}`
	b.worker(gives(func() *result { return &result{n: 200_000, row: func(int) string { return row }} }))
	rows, err := b.caller().Query(t.Context(), "shop", Request{})
	if err != nil {
		t.Fatal(err)
	}
	var before, now runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	var grown uint64
	for i := 0; rows.Next(); i++ {
		if i%20_000 == 0 {
			runtime.GC()
			runtime.ReadMemStats(&now)
			grown = max(grown, now.HeapAlloc-min(now.HeapAlloc, before.HeapAlloc))
		}
	}
	if err := rows.Close(); err != nil {
		t.Fatal(err)
	}
	if grown > 32<<20 {
		t.Errorf("the heap grew by %d MiB while 200 MB passed", grown>>20)
	}
}

func TestASlowReaderHoldsTheWorkerBack(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	const n = 60_000
	row := func(i int) string { return fmt.Sprintf(`{"n":%d,"text":"%s"}`, i, strings.Repeat("x", 100)) }
	src := &result{n: n, row: row}
	b.worker(gives(func() *result { return src }))
	rows, err := b.hasty().Query(t.Context(), "shop", Request{})
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(5 * beat) // longer than silence: heartbeats keep the call
	first := src.made.Load()
	time.Sleep(beat)
	if again := src.made.Load(); first >= n/2 || again != first {
		t.Errorf("the worker made %d and then %d of %d rows that nobody reads", first, again, n)
	}
	got, err := read(rows)
	if err != nil || len(got) != n || got[n-1] != row(n-1) {
		t.Errorf("got %d rows, %v", len(got), err)
	}
}

func TestAReaderThatTakesNothingIsGivenUp(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	src := &result{n: 1 << 30, row: small}
	ended := make(chan error, 1)
	b.worker(func(_ context.Context, _ Request, sink RowSink) error {
		err := Copy(sink, src, 0)
		ended <- err
		return err
	}, func(s *Server) { s.Patience = 2 * beat })
	rows, err := b.caller().Query(t.Context(), "shop", Request{})
	if err != nil {
		t.Fatal(err)
	}
	if err := await(t, ended, "the worker to give up"); athena.CodeOf(err) != athena.CodeTimeout || !src.closed.Load() {
		t.Errorf("the worker ended with %v; closed: %t", err, src.closed.Load())
	}
	if got, err := read(rows); athena.CodeOf(err) != athena.CodeTimeout || len(got) == 0 {
		t.Errorf("got %d rows and %v", len(got), err)
	}
}

// blocks until it is cancelled, and says so.
func blocks(started, stopped chan<- error) execute {
	return func(ctx context.Context, _ Request, sink RowSink) error {
		started <- nil
		<-ctx.Done()
		stopped <- context.Cause(ctx)
		return ctx.Err()
	}
}

func TestTheCallersEndReachesTheBackend(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		leave func(cancel func(), c *Caller)
		cause error
		code  athena.Code
	}{
		"by cancelling":                 {func(cancel func(), _ *Caller) { cancel() }, errCancelled, athena.CodeCancelled},
		"by losing its process or wire": {func(_ func(), c *Caller) { c.Conn.Close() }, errCallerGone, athena.CodeBackendUnavailable},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			started, stopped := make(chan error, 1), make(chan error, 1)
			b.worker(blocks(started, stopped))
			c := b.hasty()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			failed := make(chan error, 1)
			go func() {
				_, err := c.Query(ctx, "shop", Request{})
				failed <- err
			}()
			await(t, started, "the start")
			left := time.Now()
			tc.leave(cancel, c)
			if cause := await(t, stopped, "the cancel at the backend"); !errors.Is(cause, tc.cause) {
				t.Errorf("the cause is %v, want %v", cause, tc.cause)
			}
			if d := time.Since(left); d > time.Second {
				t.Errorf("it took %s", d)
			}
			if err := await(t, failed, "the caller's error"); athena.CodeOf(err) != tc.code {
				t.Errorf("the caller got %v, want %s", err, tc.code)
			}
		})
	}
}

func TestADeadlineIsATimeout(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	started, stopped := make(chan error, 1), make(chan error, 1)
	b.worker(blocks(started, stopped))
	ctx, cancel := context.WithTimeout(t.Context(), beat)
	defer cancel()
	if _, err := b.caller().Query(ctx, "shop", Request{}); athena.CodeOf(err) != athena.CodeTimeout {
		t.Errorf("got %v", err)
	}
	await(t, stopped, "the cancel at the backend")
}

func TestClosingTheRowsEndsTheQuery(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	src := &result{n: 1 << 30, row: small}
	ended := make(chan error, 1)
	b.worker(func(_ context.Context, _ Request, sink RowSink) error {
		err := Copy(sink, src, 0)
		ended <- err
		return err
	})
	rows, err := b.caller().Query(t.Context(), "shop", Request{})
	if err != nil || !rows.Next() {
		t.Fatalf("no row: %v", err)
	}
	if err := rows.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	if rows.Next() {
		t.Error("there is a row after Close")
	}
	if err := await(t, ended, "the worker's end"); !errors.Is(err, errCancelled) || !src.closed.Load() {
		t.Errorf("the worker ended with %v; closed: %t", err, src.closed.Load())
	}
}

// The worker vanishes, as by kill -9, after the first rows.
func TestALostWorkerIsToldAndNothingSentAgain(t *testing.T) {
	t.Parallel()
	for name, readOnly := range map[string]bool{"of a statement that may write": false, "of one that only reads": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			var runs atomic.Int32
			do := func(ctx context.Context, _ Request, sink RowSink) error {
				runs.Add(1)
				if err := sink.Columns(columns); err != nil {
					return err
				}
				for i := range chunkSize / 10 {
					if err := sink.Row([]byte(small(i))); err != nil {
						return err
					}
				}
				<-ctx.Done()
				return ctx.Err()
			}
			one, _ := b.worker(do)
			two, _ := b.worker(do)
			rows, err := b.hasty().Query(t.Context(), "shop", Request{ReadOnly: readOnly})
			if err != nil || !rows.Next() {
				t.Fatalf("no row: %v", err)
			}
			one.Conn.Close()
			two.Conn.Close()
			for rows.Next() {
			}
			e := athena.AsError(rows.Close())
			if e == nil || e.Code != athena.CodeBackendUnavailable {
				t.Fatalf("got %v", e)
			}
			if unknown := e.Details["effect"] == athena.EffectUnknown; unknown == readOnly {
				t.Errorf("read-only %t: %s, %v", readOnly, e.Message, e.Details)
			}
			if n := runs.Load(); n != 1 {
				t.Errorf("the statement was run %d times", n)
			}
		})
	}
}

func TestWithoutAWorkerTheAnswerIsQuick(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	start := time.Now()
	_, err := b.caller().Query(t.Context(), "shop", Request{})
	if athena.CodeOf(err) != athena.CodeBackendUnavailable || time.Since(start) > time.Second {
		t.Errorf("got %v after %s", err, time.Since(start))
	}
	c := b.caller()
	c.Conn.Close()
	if _, err := c.Query(t.Context(), "shop", Request{}); athena.CodeOf(err) != athena.CodeBusUnavailable {
		t.Errorf("without a bus: got %v", err)
	}
}

func TestErrorsPassWithoutTheirCause(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	secret := errors.New("password=hunter2 host=10.0.0.7")
	tests := map[string]struct {
		err  error
		code athena.Code
	}{
		"one of athena":      {athena.Wrap(athena.CodeQueryFailed, secret, "no such table").With("sqlstate", "42P01").RetryIn(3 * time.Second), athena.CodeQueryFailed},
		"one of anybody":     {secret, athena.CodeInternal},
		"one after the rows": {athena.Wrap(athena.CodeQueryFailed, secret, "no such table").With("sqlstate", "42P01").RetryIn(3 * time.Second), athena.CodeQueryFailed},
	}
	b.worker(func(_ context.Context, req Request, sink RowSink) error {
		tc := tests[req.Statement]
		if strings.Contains(req.Statement, "after") {
			return Copy(sink, &result{n: 3, row: small, err: tc.err}, 0)
		}
		return tc.err
	})
	spy := b.conn()
	var mu sync.Mutex
	var wire strings.Builder
	if _, err := spy.Subscribe(">", func(m *nats.Msg) { mu.Lock(); wire.Write(m.Data); mu.Unlock() }); err != nil {
		t.Fatal(err)
	}
	if err := spy.Flush(); err != nil {
		t.Fatal(err)
	}
	c := b.caller()
	for name, tc := range tests {
		rows, err := c.Query(t.Context(), "shop", Request{Statement: name})
		if err == nil {
			var got []string
			if got, err = read(rows); len(got) != 3 {
				t.Errorf("%s: got %d rows before the error", name, len(got))
			}
		}
		e := athena.AsError(err)
		if e == nil || e.Code != tc.code {
			t.Errorf("%s: got %v", name, err)
		} else if tc.code == athena.CodeQueryFailed && (e.Message != "no such table" || e.Details["sqlstate"] != "42P01" || e.RetryAfter != 3*time.Second) {
			t.Errorf("%s: got %+v", name, e)
		}
	}
	if err := spy.Flush(); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	defer mu.Unlock()
	if s := wire.String(); strings.Contains(s, "hunter2") || !strings.Contains(s, "no such table") {
		t.Errorf("the wire shows the cause, or nothing: %.300s", s)
	}
}

func TestWhatAWorkerDoesWrongIsAnErrorOfOneCall(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.worker(func(_ context.Context, req Request, sink RowSink) error {
		switch req.Statement {
		case "panic":
			panic("at the disco")
		case "no columns":
			return sink.Row([]byte("{}"))
		case "no end":
			return sink.Columns(columns)
		}
		return Copy(sink, &result{n: 1, row: small}, 0)
	})
	c := b.caller()
	for _, statement := range []string{"panic", "no columns", "no end"} {
		rows, err := c.Query(t.Context(), "shop", Request{Statement: statement})
		if err == nil {
			_, err = read(rows)
		}
		if athena.CodeOf(err) != athena.CodeInternal {
			t.Errorf("%s: got %v", statement, err)
		}
	}
	rows, err := c.Query(t.Context(), "shop", Request{})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := read(rows); err != nil || len(got) != 1 {
		t.Errorf("afterwards: got %v, %v", got, err)
	}
}

func TestARefusedWriteIsKnownAsSuch(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.worker(func(context.Context, Request, RowSink) error {
		return athena.Wrap(athena.CodeQueryFailed, fmt.Errorf("pg: %w", driver.ErrWrites), "the statement writes")
	})
	_, err := b.caller().Query(t.Context(), "shop", Request{ReadOnly: true})
	if !errors.Is(err, driver.ErrWrites) || athena.CodeOf(err) != athena.CodeQueryFailed {
		t.Errorf("got %v", err)
	}
}

// Law 1: what the caller does not confirm is not run.
func TestWithoutCreditNothingRuns(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	var runs atomic.Int32
	_, stop := b.worker(func(context.Context, Request, RowSink) error { runs.Add(1); return nil })
	nc := b.conn()
	m := nats.NewMsg(bus.QueryRequest("shop"))
	m.Header.Set(headerHeartbeat, beat.String())
	m.Data = []byte(`{"statement":"delete"}`)
	got, err := nc.RequestMsg(m, 5*time.Second)
	if err != nil || kind(got.Header.Get(headerKind)) != kindAccept {
		t.Fatalf("got %+v, %v", got, err)
	}
	time.Sleep(2 * beat)
	stop()
	if runs.Load() != 0 {
		t.Error("the statement was run")
	}
}

func TestAFullWorkerSaysSo(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	started, stopped := make(chan error, 1), make(chan error, 1)
	b.worker(blocks(started, stopped), func(s *Server) { s.Concurrency = 1 })
	c := b.caller()
	ctx, cancel := context.WithCancel(t.Context())
	go func() { _, _ = c.Query(ctx, "shop", Request{}) }()
	await(t, started, "the start")
	if _, err := c.Query(t.Context(), "shop", Request{}); athena.CodeOf(err) != athena.CodeTooManyRequests || athena.AsError(err).RetryAfter == 0 {
		t.Errorf("got %v", err)
	}
	cancel()
	await(t, stopped, "the cancel")
}

func TestARefusedRequestIsPutToOthersAFewTimes(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	nc := b.conn()
	var asked atomic.Int32
	_, err := nc.Subscribe(bus.QueryRequest("shop"), func(m *nats.Msg) {
		asked.Add(1)
		(&session{server: &Server{Conn: nc}, inbox: m.Reply}).finish(kindRefuse, end{Error: newFailure(athena.Errorf(athena.CodeTooManyRequests, "full"))})
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	if _, err := b.caller().Query(t.Context(), "shop", Request{}); athena.CodeOf(err) != athena.CodeTooManyRequests || asked.Load() != tries {
		t.Errorf("got %v after %d requests", err, asked.Load())
	}
}

func TestServedClientsFollowTheCatalog(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	sets, applied, ready := make(chan []string), make(chan struct{}), make(chan struct{})
	s := &Server{
		Conn: b.conn(), Log: slog.New(slog.NewTextHandler(io.Discard, nil)), Execute: gives(func() *result { return &result{} }),
		Watch: func(ctx context.Context, serve func([]string) error) error {
			close(ready)
			for {
				select {
				case set := <-sets:
					if err := serve(set); err != nil {
						return err
					}
					applied <- struct{}{}
				case <-ctx.Done():
					return nil
				}
			}
		},
	}
	b.run(s, ready)
	c := b.caller()
	for _, set := range [][]string{{"shop"}, {"shop", "lake"}, {"lake"}, {}, {"shop"}} {
		sets <- set
		await(t, applied, "the set")
		for _, name := range []string{"shop", "lake"} {
			served := func() bool {
				rows, err := c.Query(t.Context(), name, Request{})
				if err == nil {
					rows.Close()
				}
				return err == nil
			}
			// Taking a service away is not waited for by NATS.
			for end := time.Now().Add(5 * time.Second); served() != slices.Contains(set, name); time.Sleep(10 * time.Millisecond) {
				if time.Now().After(end) {
					t.Fatalf("of %v, %s is served: %t", set, name, served())
				}
			}
		}
	}
}

func TestStoppingFinishesWhatItCan(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	started, release := make(chan struct{}, 2), make(chan struct{})
	_, stop := b.worker(func(ctx context.Context, req Request, sink RowSink) error {
		started <- struct{}{}
		if req.Statement == "short" {
			<-release
			return Copy(sink, &result{n: 1, row: small}, 0)
		}
		<-ctx.Done()
		return ctx.Err()
	}, func(s *Server) { s.Grace = 3 * beat })
	c := b.caller()
	results := map[string]chan error{"short": make(chan error, 1), "long": make(chan error, 1)}
	for name, ch := range results {
		go func() {
			rows, err := c.Query(context.Background(), "shop", Request{Statement: name})
			if err == nil {
				_, err = read(rows)
			}
			ch <- err
		}()
		await(t, started, "the start")
	}
	go func() { time.Sleep(beat); close(release) }()
	stop()
	if err := await(t, results["short"], "the short one"); err != nil {
		t.Errorf("the short one: %v", err)
	}
	e := athena.AsError(await(t, results["long"], "the long one"))
	if e == nil || e.Code != athena.CodeBackendUnavailable || e.Details["effect"] != athena.EffectUnknown {
		t.Errorf("the long one: %+v", e)
	}
}

// Law 4, against a worker that drops a chunk.
func TestAGapIsNeverAShorterResult(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	nc := b.conn()
	control := nc.NewInbox()
	credit, err := nc.SubscribeSync(control)
	if err != nil {
		t.Fatal(err)
	}
	_, err = nc.Subscribe(bus.QueryRequest("shop"), func(m *nats.Msg) {
		say := func(k kind, n, body string) {
			out := nats.NewMsg(m.Reply)
			out.Reply = control
			out.Header.Set(headerKind, string(k))
			out.Header.Set(headerNumber, n)
			out.Data = []byte(body)
			_ = nc.PublishMsg(out)
		}
		say(kindAccept, "", "")
		if _, err := credit.NextMsg(5 * time.Second); err != nil {
			t.Error("no credit came")
		}
		say(kindColumns, "1", `[]`)
		say(kindRows, "2", "{}\n")
		say(kindEnd, "4", `{}`)
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	rows, err := b.caller().Query(t.Context(), "shop", Request{})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := read(rows); !errors.Is(err, errGap) || len(got) != 1 {
		t.Errorf("got %v, %v", got, err)
	}
}

func TestManyCallsAtOnceKeepApart(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	do := func(_ context.Context, req Request, sink RowSink) error {
		return Copy(sink, &result{n: 3000, row: func(i int) string { return fmt.Sprintf(`{"of":%q,"n":%d}`, req.Statement, i) }}, 0)
	}
	b.worker(do)
	b.worker(do)
	c := b.caller()
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			name := fmt.Sprint("s", i)
			rows, err := c.Query(t.Context(), "shop", Request{Statement: name})
			if err != nil {
				t.Error(err)
				return
			}
			got, err := read(rows)
			if err != nil || len(got) != 3000 || got[2999] != fmt.Sprintf(`{"of":%q,"n":2999}`, name) {
				t.Errorf("%s: got %d rows, %v", name, len(got), err)
			}
		})
	}
	wg.Wait()
	if n := c.Conn.NumSubscriptions(); n != 0 {
		t.Errorf("%d subscriptions are left", n)
	}
}

func TestAMessageTooLargeIsSaidToBe(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	_, err := b.caller().Query(t.Context(), "shop", Request{Statement: strings.Repeat("x", bus.MaxPayload)})
	if athena.CodeOf(err) != athena.CodePayloadTooLarge {
		t.Errorf("got %v", err)
	}
}
