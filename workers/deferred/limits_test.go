package deferred_test

import (
	"encoding/json"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/deferred"
	worker "github.com/athena-pipelines/athena/workers/deferred"
)

// TestMaxRunningHoldsOverWorkersAndLanes samples the database while two workers
// run the jobs of three lanes.
func TestMaxRunningHoldsOverWorkersAndLanes(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	const limit = 3
	d.client("shop", func(c *athena.Client) { c.Limits.MaxRunning = limit })
	var jobs []*deferred.Job
	for n := range 45 {
		jobs = append(jobs, d.submit("shop", "SELECT 'counted' FROM pg_sleep(0.05)", func(j *deferred.Job) { j.Lane = deferred.Lanes()[n%3] }))
	}
	var most atomic.Int64
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-done:
				return
			case <-time.After(3 * time.Millisecond):
				most.Store(max(most.Load(), int64(d.running("'counted' FROM"))))
			}
		}
	})
	began := time.Now()
	d.work("a", nil)
	d.work("b", nil)
	workers := map[string]int{}
	for _, j := range jobs {
		workers[d.endsIn(j, 40*time.Second, deferred.Succeeded).Attempts[0].Worker]++
	}
	close(done)
	wg.Wait()
	t.Logf("at most %d at once, all done after %s; jobs by worker: %v", most.Load(), time.Since(began), workers)
	if took := time.Since(began); took > 6*time.Second { // a message that was lost on its way takes 9 s more
		t.Errorf("45 jobs of 50 ms, three at once, took %s", took)
	}
	if most.Load() > limit || most.Load() == 0 {
		t.Errorf("%d statements ran at once; max_running is %d", most.Load(), limit)
	}
	d.settled("shop")
}

// TestAnInteractiveJobGoesBeforeABacklog also holds that another client's jobs
// do not wait for the backlog.
func TestAnInteractiveJobGoesBeforeABacklog(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	d.client("shop", func(c *athena.Client) { c.Limits.MaxRunning = 1 })
	d.client("other", func(c *athena.Client) { c.Limits.MaxRunning = 1 })
	var backlog []*deferred.Job
	for range 40 {
		backlog = append(backlog, d.submit("shop", "SELECT pg_sleep(0.1)", func(j *deferred.Job) { j.Lane = deferred.Batch }))
	}
	d.work("w", nil)
	d.ends(backlog[0], deferred.Succeeded)
	for client, lane := range map[string]deferred.Lane{"shop": deferred.Interactive, "other": deferred.Batch} {
		began := time.Now()
		d.ends(d.submit(client, "SELECT 1", func(j *deferred.Job) { j.Lane = lane }), deferred.Succeeded)
		took := time.Since(began)
		t.Logf("%s, %s: done after %s", client, lane, took)
		if took > 1500*time.Millisecond {
			t.Errorf("a job of %s, %s, took %s beside a backlog", client, lane, took)
		}
	}
	if st, _ := d.status(backlog[39]); st.State.Terminal() {
		t.Error("the backlog was gone; the test shows nothing")
	}
}

// TestAWorkerStops holds that a running statement ends within the grace or is
// given back, and that nothing is lost.
func TestAWorkerStops(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	d.exec(`CREATE TABLE effects (n int)`)
	stop := d.work("a", func(c *worker.Config) { c.Grace = 1200 * time.Millisecond })
	short := d.submit("shop", "INSERT INTO effects SELECT 1 FROM pg_sleep(0.8)", nil)
	long := d.submit("shop", "INSERT INTO effects SELECT 2 FROM pg_sleep(3.5)", nil)
	read := d.submit("shop", "SELECT 3 AS n FROM pg_sleep(3.5)", nil)
	for _, j := range []*deferred.Job{short, long, read} {
		d.reaches(j, 5*time.Second, deferred.Running)
	}
	began := time.Now()
	stop()
	took := time.Since(began)
	t.Logf("stopped after %s", took)
	if took > 3*time.Second {
		t.Errorf("the worker stopped after %s, with a grace of 1.2 s", took)
	}
	if st := d.ends(short, deferred.Succeeded); len(st.Attempts) != 1 {
		t.Errorf("short: %s", show(st))
	}
	d.work("b", nil)
	for _, j := range []*deferred.Job{long, read} {
		st := d.ends(j, deferred.Succeeded)
		if len(st.Attempts) != 2 || st.Attempts[0].Outcome != string(deferred.RetryWait) || st.Attempts[1].Worker != "b" {
			t.Errorf("%s", show(st))
		}
	}
	if n := d.count("SELECT count(*) * 10 + count(DISTINCT n) FROM effects"); n != 22 {
		t.Errorf("effects: %d", n)
	}
	d.settled("shop")
}

func TestTheSizeOfAResult(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	d.client("tight", func(c *athena.Client) { c.Limits.MaxResultBytes = 1000 })
	d.work("w", func(c *worker.Config) { c.Sizes = deferred.ResultSizes{Segment: 100 << 10} })

	// {"v":"…"} and a newline are 9 bytes more than the text.
	const inline = 64 << 10
	for size, segments := range map[int]int{inline: 0, inline + 1: 1, 250 << 10: 1} {
		j := d.submit("shop", fmt.Sprintf("SELECT repeat('x', %d) AS v", size-9), nil)
		st := d.ends(j, deferred.Succeeded)
		if len(st.Result.Segments) != segments || st.Result.Bytes != int64(size) || (st.Result.Inline == nil) != (segments > 0) {
			t.Errorf("%d bytes: %d segments, %d bytes", size, len(st.Result.Segments), st.Result.Bytes)
		}
		if rows := d.rows(j, st); len(rows) != 1 || rows[0] != `{"v":"`+strings.Repeat("x", size-9)+`"}` {
			t.Errorf("%d bytes came back as %d rows", size, len(rows))
		}
	}

	hostile := []string{`"`, `,`, "\n", "\r\n", "=1+1", "@x", "a,\"b\"\nc", "ünï", "'; DROP TABLE x; --", "\u2028", `\`, "", "\t", "<script>"}
	raw, err := json.Marshal(hostile)
	if err != nil {
		t.Fatal(err)
	}
	for _, sizes := range []string{"inline", "segments"} {
		query := "SELECT n, v FROM jsonb_array_elements_text($1::jsonb) WITH ORDINALITY AS a(v, n)"
		if sizes == "segments" {
			query = "SELECT n, v, repeat('y', 10000) AS pad FROM jsonb_array_elements_text($1::jsonb) WITH ORDINALITY AS a(v, n)"
		}
		j := d.submit("shop", query, func(j *deferred.Job) { j.Params = []json.RawMessage{raw} })
		st := d.ends(j, deferred.Succeeded)
		if large := len(st.Result.Segments) > 0; large != (sizes == "segments") {
			t.Fatalf("%s: %d segments", sizes, len(st.Result.Segments))
		}
		rows := d.rows(j, st)
		if len(rows) != len(hostile) {
			t.Fatalf("%s: %d rows of %d", sizes, len(rows), len(hostile))
		}
		for i, text := range rows {
			var row struct {
				N int64
				V string
			}
			if err := json.Unmarshal([]byte(text), &row); err != nil || row.V != hostile[i] || row.N != int64(i+1) {
				t.Errorf("%s: row %d is %.80s, want %q", sizes, i, text, hostile[i])
			}
		}
	}

	j := d.submit("shop", "SELECT g FROM generate_series(1, 100) g", func(j *deferred.Job) { j.RowLimit = 10 })
	if st := d.ends(j, deferred.Succeeded); st.Result.Rows != 10 || !st.Result.Truncated || !st.Result.Complete {
		t.Errorf("a row limit: %s", show(st))
	}
	j = d.submit("shop", "SELECT g FROM generate_series(1, 10) g", func(j *deferred.Job) { j.RowLimit = 10 })
	if st := d.ends(j, deferred.Succeeded); st.Result.Rows != 10 || st.Result.Truncated {
		t.Errorf("a row limit that is just met: %s", show(st))
	}
	d.exec(`CREATE TABLE effects (n int)`)
	for _, query := range []string{"SELECT repeat('x', 2000)", "INSERT INTO effects SELECT g FROM generate_series(1, 1000) g RETURNING n"} {
		if st := d.ends(d.submit("tight", query, nil), deferred.Failed); st.Error == nil || st.Error.Code != athena.CodePayloadTooLarge {
			t.Errorf("more than max_result_bytes: %s", show(st))
		}
	}
	if n := d.count("SELECT count(*) FROM effects"); n != 0 {
		t.Errorf("%d effects of a write whose result was too large", n)
	}
}

func TestAResultExpires(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	d.work("w", func(c *worker.Config) { c.Sizes = deferred.ResultSizes{Inline: 10} })
	j := d.submit("shop", "SELECT g FROM generate_series(1, 100) g", func(j *deferred.Job) { j.ResultTTL = athena.Duration(2 * time.Second) })
	st := d.ends(j, deferred.Succeeded)
	if n := len(d.rows(j, st)); n != 100 {
		t.Fatalf("%d rows", n)
	}
	d.until(8*time.Second, "the result is gone", func() bool {
		_, err := d.store.Segment(t.Context(), j, st.Result, 0, nil)
		return athena.CodeOf(err) == athena.CodeNotFound
	})
	if late := time.Since(st.Result.ExpiresAt); late < -1100*time.Millisecond {
		t.Errorf("gone %s before its time", -late)
	}
}

// TestALargeResultNeedsLittleMemory streams a million rows. It is shortened
// under -short.
func TestALargeResultNeedsLittleMemory(t *testing.T) {
	d := deploy(t)
	rows := 1_000_000
	if testing.Short() {
		rows = 200_000
	}
	d.work("w", nil)
	d.ends(d.submit("shop", "SELECT 1", nil), deferred.Succeeded)
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	base, peak := m.HeapAlloc, m.HeapAlloc
	began := time.Now()
	j := d.submit("shop", fmt.Sprintf("SELECT g AS n, md5(g::text) AS a, md5((-g)::text) AS b FROM generate_series(1, %d) g", rows), nil)
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-done:
				return
			case <-time.After(20 * time.Millisecond):
				runtime.ReadMemStats(&m)
				peak = max(peak, m.HeapAlloc)
			}
		}
	})
	st := d.endsIn(j, 55*time.Second, deferred.Succeeded)
	close(done)
	wg.Wait()
	t.Logf("%d rows, %d MiB in %d segments in %s; heap grew by at most %d MiB, with broker and worker in one process",
		rows, st.Result.Bytes>>20, len(st.Result.Segments), time.Since(began), (peak-base)>>20)
	if grown := int64(peak - base); grown > 128<<20 {
		t.Errorf("the heap grew by %d MiB", grown>>20)
	}
	var sum int64
	for n, seg := range st.Result.Segments {
		text, err := d.store.Segment(t.Context(), j, st.Result, n, nil)
		if err != nil {
			t.Fatal(err)
		}
		if lines := strings.Count(string(text), "\n"); int64(lines) != seg.Rows || int64(len(text)) != seg.Bytes {
			t.Errorf("segment %d has %d rows and says %d", n, lines, seg.Rows)
		}
		sum += seg.Rows
	}
	if sum != int64(rows) || st.Result.Rows != sum {
		t.Errorf("%d rows in segments, want %d", sum, rows)
	}
}

// TestOneKeyMakesOneJob has many submitters use one idempotency key at once,
// some with another priority.
func TestOneKeyMakesOneJob(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	d.exec(`CREATE TABLE effects (n int)`)
	d.work("w", nil)
	var wg sync.WaitGroup
	var accepted, replayed, refused atomic.Int64
	var ids sync.Map
	for n := range 50 {
		wg.Go(func() {
			r := deferred.Request{Query: "INSERT INTO effects VALUES (1)", Priority: deferred.Lanes()[n%3]}
			j, err := d.job("shop", "the key", r)
			if err != nil {
				t.Error(err)
				return
			}
			got, again, err := d.store.Submit(t.Context(), j)
			switch {
			case athena.CodeOf(err) == athena.CodeIdempotencyMismatch:
				refused.Add(1)
			case err != nil:
				t.Error(err)
			default:
				ids.Store(got.ID+string(got.Lane), true)
				if again {
					replayed.Add(1)
				} else {
					accepted.Add(1)
				}
			}
		})
	}
	wg.Wait()
	n := 0
	ids.Range(func(_, _ any) bool { n++; return true })
	t.Logf("%d accepted, %d replayed, %d refused", accepted.Load(), replayed.Load(), refused.Load())
	if accepted.Load() != 1 || n != 1 || accepted.Load()+replayed.Load()+refused.Load() != 50 || refused.Load() < 30 {
		t.Errorf("%d accepted, %d replayed, %d refused; %d jobs", accepted.Load(), replayed.Load(), refused.Load(), n)
	}
	j, _, err := d.store.Load(t.Context(), "", deferred.KeyedID("shop", "the key"))
	if err != nil {
		t.Fatal(err)
	}
	d.ends(j, deferred.Succeeded)
	time.Sleep(300 * time.Millisecond)
	if n := d.count("SELECT count(*) FROM effects"); n != 1 {
		t.Errorf("%d effects", n)
	}
}
