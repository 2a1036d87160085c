package runner_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"testing"

	"github.com/athena-pipelines/athena/pipelines/runs"
	"github.com/athena-pipelines/athena/pipelines/sink"
	"github.com/athena-pipelines/athena/pkg/athena"
)

// A front stands before the store of objects, and fails as it is told.
type front struct {
	mu    sync.Mutex
	which func(*http.Request) bool
	how   fault
	hits  int
}

// A fault answers a request; store passes it on.
type fault func(w http.ResponseWriter, r *http.Request, store http.Handler)

// fail has the requests that which chooses fail until heal.
func (f *front) fail(which func(*http.Request) bool, how fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.which, f.how, f.hits = which, how, 0
}

// heal ends it, and returns how many requests failed.
func (f *front) heal() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.which = nil
	return f.hits
}

// front puts itself between the client lake and its store.
func (d *deployment) front() *front {
	d.t.Helper()
	to, err := url.Parse(d.s3.Endpoint)
	if err != nil {
		d.t.Fatal(err)
	}
	store := &httputil.ReverseProxy{
		Rewrite:      func(r *httputil.ProxyRequest) { r.SetURL(to); r.Out.Host = r.In.Host }, // which is signed
		ErrorHandler: func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
	}
	f := &front{}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		how := f.how
		if f.which == nil || !f.which(r) {
			how = nil
		} else {
			f.hits++
		}
		f.mu.Unlock()
		if how == nil {
			store.ServeHTTP(w, r)
			return
		}
		how(w, r, store)
	}))
	d.t.Cleanup(srv.Close)
	d.redefine("lake", func(c *athena.Client) {
		conn := c.Connection.(athena.S3Conn)
		conn.Endpoint = srv.URL
		c.Connection = conn
	})
	return f
}

// The requests of an object that is staged and published, and of a manifest.
func begins(r *http.Request) bool {
	return r.Method == http.MethodPost && r.URL.Query().Has("uploads")
}

func parts(r *http.Request) bool {
	return r.Method == http.MethodPut && r.URL.Query().Has("uploadId")
}

func publishes(r *http.Request) bool {
	return r.Method == http.MethodPost && r.URL.Query().Has("uploadId")
}

func manifests(r *http.Request) bool {
	return r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/"+sink.ManifestFolder)
}

func reads(r *http.Request) bool {
	return r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, ".ndjson")
}

// busy answers that the store cannot now.
func busy(w http.ResponseWriter, r *http.Request, _ http.Handler) {
	_, _ = io.Copy(io.Discard, r.Body)
	w.WriteHeader(http.StatusServiceUnavailable)
	fmt.Fprint(w, `<?xml version="1.0"?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>`)
}

// cut reads half of what is sent, and hangs up.
func cut(_ http.ResponseWriter, r *http.Request, _ http.Handler) {
	_, _ = io.CopyN(io.Discard, r.Body, r.ContentLength/2)
	panic(http.ErrAbortHandler)
}

// mute does what is asked, and hangs up instead of answering.
func mute(_ http.ResponseWriter, r *http.Request, store http.Handler) {
	store.ServeHTTP(httptest.NewRecorder(), r)
	panic(http.ErrAbortHandler)
}

// short sends half of an answer, and hangs up.
func short(w http.ResponseWriter, r *http.Request, store http.Handler) {
	answer := httptest.NewRecorder()
	store.ServeHTTP(answer, r)
	for name, values := range answer.Header() {
		w.Header()[name] = values
	}
	w.WriteHeader(answer.Code)
	_, _ = w.Write(answer.Body.Bytes()[:answer.Body.Len()/2])
	panic(http.ErrAbortHandler)
}

// gone answers that there is no such bucket.
func gone(w http.ResponseWriter, r *http.Request, _ http.Handler) {
	_, _ = io.Copy(io.Discard, r.Body)
	w.WriteHeader(http.StatusNotFound)
	fmt.Fprint(w, `<?xml version="1.0"?><Error><Code>NoSuchBucket</Code><Message>The specified bucket does not exist</Message></Error>`)
}

// ndjson has the lines of all objects below a prefix.
func (d *deployment) ndjson(prefix string) (lines []string) {
	d.t.Helper()
	for _, key := range d.objects(prefix) {
		if strings.HasSuffix(key, ".ndjson") {
			for line := range bytes.Lines(d.object(key)) {
				lines = append(lines, string(line))
			}
		}
	}
	return lines
}

// whole holds that a run over orders, which has 3000 rows, wrote each of them once
// and says so.
func (d *deployment) whole(r runs.Run) {
	d.t.Helper()
	if r.Totals.Read != 3000 || r.Totals.Written != 3000 || r.Totals.Rejected != 0 {
		d.t.Errorf("the totals are %+v", r.Totals)
	}
	if n := d.listed("orders/"); n != 3000 {
		d.t.Errorf("the manifests list %d rows", n)
	}
	seen := map[string]int{}
	for _, line := range d.ndjson("orders/") {
		seen[line]++
	}
	for line, n := range seen {
		if n != 1 {
			d.t.Errorf("the row %.200s is there %d times", line, n)
		}
	}
	if len(seen) != 3000 {
		d.t.Errorf("%d rows are there", len(seen))
	}
}

const orders = `CREATE TABLE orders (id bigint PRIMARY KEY, status text, note text);
	INSERT INTO orders SELECT i, CASE WHEN i % 3 = 0 THEN 'paid' ELSE 'new' END, md5(i::text) FROM generate_series(1, 3000) i; ANALYZE`

func TestAStoreThatFailsIsWaitedForAndNothingIsLost(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		which func(*http.Request) bool
		how   fault
	}{
		"when it answers 503 to uploads that begin":        {begins, busy},
		"when it answers 503 to parts":                     {parts, busy},
		"when it answers 503 to what is to be published":   {publishes, busy},
		"when it answers 503 to the manifest":              {manifests, busy},
		"when it hangs up in the midst of a part":          {parts, cut},
		"when it takes parts and does not say so":          {parts, mute},
		"when it publishes and does not say so":            {publishes, mute},
		"when it takes the manifest and does not say so":   {manifests, mute},
		"when it begins uploads that nobody is told about": {begins, mute},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := deploy(t)
			exec(t, d.shop, orders)
			f := d.front()
			d.config.PartBytes = 100 << 10
			d.work("one")
			f.fail(tt.which, tt.how)
			r := d.submit(runs.Batch, `
source: {client: shop, table: public.orders}
sink: {client: lake, objects: {prefix: 'orders/status={{status}}/', format: ndjson}}
parallel: 2
`)
			r = d.state(r.ID, runs.Degraded)
			if r.Cause == nil || r.Cause.Code != athena.CodeBackendUnavailable || r.Cause.Stage != "sink" || r.Cause.Final {
				t.Errorf("the cause is %+v", r.Cause)
			}
			if n := f.heal(); n == 0 {
				t.Error("nothing failed")
			}
			d.whole(d.state(r.ID, runs.Succeeded))
		})
	}
}

func TestAStoreThatStandsStillHoldsARunAndNoMore(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	exec(t, d.shop, orders)
	f := d.front()
	d.config.PartBytes = 100 << 10
	d.work("one")
	stalled, release := make(chan struct{}, 100), make(chan struct{})
	f.fail(publishes, func(w http.ResponseWriter, r *http.Request, store http.Handler) {
		stalled <- struct{}{}
		<-release
		store.ServeHTTP(w, r)
	})
	r := d.submit(runs.Batch, `
source: {client: shop, table: public.orders}
sink: {client: lake, objects: {prefix: 'orders/', format: ndjson}}
parallel: 2
`)
	for range 2 { // each of two tasks has one object
		<-stalled
	}
	for _, task := range d.store.Tasks(r.ID) {
		if task.State == runs.TaskDone {
			t.Errorf("task %d says that it is done", task.N)
		}
	}
	if keys := d.objects("orders/"); len(keys) > 0 {
		t.Errorf("%q are there", keys)
	}
	f.heal()
	close(release)
	d.whole(d.state(r.ID, runs.Succeeded))
}

func TestObjectsThatAreCutShortAreReadAgain(t *testing.T) {
	t.Parallel()
	for name, how := range map[string]fault{"when the store answers 503": busy, "when it hangs up in the midst": short} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := deploy(t)
			exec(t, d.shop, orders)
			f := d.front()
			d.config.PartBytes = 100 << 10
			d.work("one")
			out := d.submit(runs.Batch, `
source: {client: shop, table: public.orders}
sink: {client: lake, objects: {prefix: orders/, format: ndjson}}
`)
			d.state(out.ID, runs.Succeeded)
			// The first object is read once in full, for its columns, before it fails.
			described := false
			f.fail(func(r *http.Request) bool {
				if !reads(r) {
					return false
				}
				was := described
				described = true
				return was
			}, how)
			exec(t, d.copy, `CREATE TABLE orders (id bigint, status text, note text)`)
			r := d.submit(runs.Batch, `
source: {client: lake, objects: {prefix: orders/, columns: [{name: id, type: int64}, {name: status, type: text}, {name: note, type: text}]}}
sink: {client: copy, table: public.orders}
`)
			r = d.state(r.ID, runs.Degraded)
			if r.Cause == nil || r.Cause.Code != athena.CodeBackendUnavailable || r.Cause.Stage != "source" {
				t.Errorf("the cause is %+v", r.Cause)
			}
			f.heal()
			r = d.state(r.ID, runs.Succeeded)
			if r.Totals.Read != 3000 || r.Totals.Written != 3000 {
				t.Errorf("the totals are %+v", r.Totals)
			}
			if a, b := sum(t, d.shop, "orders", "*", "id"), sum(t, d.copy, "orders", "*", "id"); a != b {
				t.Errorf("the source has %s, the copy %s", a, b)
			}
		})
	}
}

func TestAStreamWaitsForAStoreThatFails(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		which func(*http.Request) bool
		how   fault
	}{
		"that answers 503 to parts":                   {parts, busy},
		"that answers 503 to what is to be published": {publishes, busy},
		"that publishes and does not say so":          {publishes, mute},
		"that answers 503 to the manifest":            {manifests, busy},
		"that hangs up in the midst of a part":        {parts, cut},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := deploy(t)
			exec(t, d.shop, orders)
			d.capture("orders")
			f := d.front()
			d.work("one")
			f.fail(tt.which, tt.how)
			r := d.submit(runs.Stream, `
source: {client: shop, cdc: {tables: [public.orders]}}
sink: {client: lake, objects: {prefix: 'orders/status={{status}}/', format: ndjson, roll: {rows: 500, every: 1s}}}
`)
			r = d.state(r.ID, runs.Degraded)
			if r.Cause == nil || r.Cause.Code != athena.CodeBackendUnavailable || r.Cause.Stage != "sink" || r.Cause.Final {
				t.Errorf("the cause is %+v", r.Cause)
			}
			if n := f.heal(); n == 0 {
				t.Error("nothing failed")
			}
			d.state(r.ID, runs.Streaming)
			await(t, "the rows", func() string {
				if n := len(d.ndjson("orders/")); n < 3000 {
					return fmt.Sprint(n)
				}
				return ""
			})
			d.want(r.ID, runs.WantStop)
			d.whole(d.state(r.ID, runs.Stopped))
			if strings.Contains(d.log.String(), "are read again") {
				t.Error("what was decided was not published, but read and written again")
			}
		})
	}
}

func TestABucketThatVanishesFailsARunThatCanBeResumed(t *testing.T) {
	t.Parallel()
	for name, which := range map[string]func(*http.Request) bool{
		"before it begins": func(*http.Request) bool { return true },
		"in the midst":     parts,
		"at its end":       manifests,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := deploy(t)
			exec(t, d.shop, orders)
			f := d.front()
			d.config.PartBytes = 100 << 10
			d.work("one")
			f.fail(which, gone)
			r := d.submit(runs.Batch, `
source: {client: shop, table: public.orders}
sink: {client: lake, objects: {prefix: 'orders/status={{status}}/', format: ndjson}}
`)
			r = d.state(r.ID, runs.Failed)
			if r.Cause == nil || r.Cause.Stage != "sink" || !strings.Contains(r.Cause.Message, "the bucket does not exist") {
				t.Errorf("the cause is %+v", r.Cause)
			}
			f.heal()
			d.resume(r.ID)
			d.whole(d.state(r.ID, runs.Succeeded))
		})
	}
}
