package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/athena-pipelines/athena/bench/rig"
)

// startup measures the start on an existing data directory, and the memory of an
// idle process.
func startup(ctx context.Context, r *rig.Rig, quick bool) ([]figure, error) {
	if err := r.Client("shop", 4); err != nil {
		return nil, err
	}
	var starts []time.Duration
	for range 5 {
		begin := time.Now()
		if err := r.Server.Start(""); err != nil {
			return nil, err
		}
		if err := r.Ready(ctx); err != nil {
			return nil, err
		}
		starts = append(starts, time.Since(begin))
	}
	time.Sleep(10 * time.Second)
	rss, _, err := r.Server.RSS()
	return []figure{
		{"ready after start", ms(quantile(starts, 0.5)), "ms", 500, true, "existing data directory; polled every 20 ms"},
		{"idle RSS", mib(rss), "MiB", 80, true, "broker, API and worker in one process"},
	}, err
}

// syncOverhead measures one small query over HTTP against the same through raw
// pgx, one by one and in turns.
func syncOverhead(ctx context.Context, r *rig.Rig, quick bool) ([]figure, error) {
	if err := r.Client("shop", 4); err != nil {
		return nil, err
	}
	conn, err := pgx.Connect(ctx, r.DSN())
	if err != nil {
		return nil, err
	}
	defer conn.Close(ctx)
	n := 5000
	if quick {
		n = 500
	}
	body := map[string]any{"query": "select 1 as one"}
	var direct, road []time.Duration
	for i := range n + n/10 {
		begin := time.Now()
		var one int
		if err := conn.QueryRow(ctx, "select 1 as one").Scan(&one); err != nil {
			return nil, err
		}
		between := time.Now()
		status, reply, err := r.Call(http.MethodPost, "/gateway/query", "", body)
		if err != nil || status != http.StatusOK {
			return nil, fmt.Errorf("%d %s: %w", status, reply.Message, err)
		}
		if i >= n/10 { // after a warm-up
			direct = append(direct, between.Sub(begin))
			road = append(road, time.Since(between))
		}
	}
	return []figure{
		{"sync query above raw pgx, p50", ms(quantile(road, 0.5) - quantile(direct, 0.5)), "ms", 0.5, true,
			note("p50 %.3f ms over HTTP, %.3f ms raw pgx", ms(quantile(road, 0.5)), ms(quantile(direct, 0.5)))},
	}, nil
}

// submitRate measures accepting jobs, each synced to disk before its answer,
// with no worker there to run them.
func submitRate(ctx context.Context, r *rig.Rig, quick bool) ([]figure, error) {
	if err := r.Client("shop", 4); err != nil {
		return nil, err
	}
	span := 10 * time.Second
	if quick {
		span = 2 * time.Second
	}
	took, err := submitFor(ctx, r, "shop", 32, span, -1)
	if err != nil {
		return nil, err
	}
	rate := float64(len(took)) / span.Seconds()
	return []figure{
		{"submits, synced", rate, "/s", 2500, false, "32 connections"},
		{"submit latency, p99", ms(quantile(took, 0.99)), "ms", 15, true, note("p50 %.2f ms, in the same run", ms(quantile(took, 0.5)))},
	}, nil
}

// submitFor submits no-op jobs over several connections for a time, or until
// there are most of them, and returns how long each took to be accepted.
func submitFor(ctx context.Context, r *rig.Rig, client string, connections int, span time.Duration, most int64) ([]time.Duration, error) {
	body := map[string]any{"query": "select 1 as one", "deferred": true}
	ctx, cancel := context.WithTimeout(ctx, span)
	defer cancel()
	var mu sync.Mutex
	var all []time.Duration
	var failed error
	var left atomic.Int64
	left.Store(most)
	var wg sync.WaitGroup
	for range connections {
		wg.Go(func() {
			var took []time.Duration
			for ctx.Err() == nil && (most < 0 || left.Add(-1) >= 0) {
				begin := time.Now()
				status, reply, err := r.Call(http.MethodPost, client+":/gateway/query", "", body)
				if err == nil && status != http.StatusAccepted {
					err = fmt.Errorf("%d %s", status, reply.Message)
				}
				if err != nil {
					mu.Lock()
					failed = err
					mu.Unlock()
					return
				}
				took = append(took, time.Since(begin))
			}
			mu.Lock()
			all = append(all, took...)
			mu.Unlock()
		})
	}
	wg.Wait()
	return all, failed
}

// noopJobs measures jobs from their submit to their recorded end, everything in
// one process, while they keep coming.
func noopJobs(ctx context.Context, r *rig.Rig, quick bool) ([]figure, error) {
	if err := r.Client("shop", 48); err != nil {
		return nil, err
	}
	n := int64(40_000)
	if quick {
		n = 4000
	}
	if _, err := submitFor(ctx, r, "shop", 32, time.Minute, 500); err != nil { // warm up
		return nil, err
	}
	begin, before := time.Now(), ended(r)
	took, err := submitFor(ctx, r, "shop", 32, 5*time.Minute, n)
	if err != nil {
		return nil, err
	}
	submitted := time.Since(begin)
	if err := rig.Until(ctx, 5*time.Minute, func() bool { return ended(r) >= before+int64(len(took)) }); err != nil {
		return nil, err
	}
	all := time.Since(begin)
	return []figure{
		{"no-op jobs, end to end", float64(n) / all.Seconds(), "/s", 2500, false,
			note("%d jobs in %.1f s while submitted over HTTP on the same cores (submits took %.1f s)", n, all.Seconds(), submitted.Seconds())},
	}, nil
}

// ended reads how many jobs have ended from the metrics.
func ended(r *rig.Rig) (n int64) {
	resp, err := http.Get(r.URL + "/metrics")
	if err != nil {
		return 0
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		if strings.HasPrefix(lines.Text(), "athena_job_transitions_total{") && strings.Contains(lines.Text(), `state="succeeded"`) {
			var v float64
			fmt.Sscan(lines.Text()[strings.LastIndexByte(lines.Text(), ' ')+1:], &v)
			n += int64(v)
		}
	}
	return n
}

// fairness measures how long jobs of one client wait to start, alone and beside
// another client with a large backlog.
func fairness(ctx context.Context, r *rig.Rig, quick bool) ([]figure, error) {
	n, backlog := 200, int64(100_000)
	if quick {
		n, backlog = 50, 10_000
	}
	for _, c := range []string{"shop", "crowd"} {
		if err := r.Client(c, 4); err != nil {
			return nil, err
		}
	}
	alone, err := startDelays(ctx, r, n)
	if err != nil {
		return nil, err
	}
	if status, reply, err := r.Call(http.MethodPut, "/admin/clients/crowd/lifecycle", "", map[string]string{"lifecycle": "frozen"}); err != nil || status != http.StatusOK {
		return nil, fmt.Errorf("freeze: %d %s: %w", status, reply.Message, err)
	}
	if _, err := submitFor(ctx, r, "crowd", 32, 5*time.Minute, backlog); err != nil {
		return nil, err
	}
	if status, reply, err := r.Call(http.MethodPut, "/admin/clients/crowd/lifecycle", "", map[string]string{"lifecycle": "active"}); err != nil || status != http.StatusOK {
		return nil, fmt.Errorf("thaw: %d %s: %w", status, reply.Message, err)
	}
	time.Sleep(time.Second)
	before := ended(r)
	crowded, err := startDelays(ctx, r, n)
	if err != nil {
		return nil, err
	}
	if ran := ended(r) - before; ran < int64(n) {
		return nil, errors.New("the backlog was not being worked on")
	}
	return []figure{
		{"start delay beside a backlog, p99", float64(quantile(crowded, 0.99)) / float64(quantile(alone, 0.99)), "×", 2, true,
			note("%d jobs queued for another client; p99 %.1f ms alone, %.1f ms beside it", backlog, ms(quantile(alone, 0.99)), ms(quantile(crowded, 0.99)))},
	}, nil
}

// startDelays submits jobs one after the other and returns how long each waited
// between its submit and its start.
func startDelays(ctx context.Context, r *rig.Rig, n int) ([]time.Duration, error) {
	var delays []time.Duration
	for range n {
		begin := time.Now()
		job, err := submit(r, map[string]any{"query": "select 1 as one", "deferred": true})
		if err != nil {
			return nil, err
		}
		if job, err = finish(ctx, r, job.ID); err != nil {
			return nil, err
		}
		delays = append(delays, job.Attempts[0].Started.Sub(begin))
		time.Sleep(20 * time.Millisecond)
	}
	return delays, nil
}

func submit(r *rig.Rig, body map[string]any) (rig.Job, error) {
	status, reply, err := r.Call(http.MethodPost, "/gateway/query", "", body)
	if err == nil && status != http.StatusAccepted {
		err = fmt.Errorf("%d %s", status, reply.Message)
	}
	return reply.Job(), err
}

// finish waits for a job's end, and expects it to be a good one.
func finish(ctx context.Context, r *rig.Rig, id string) (job rig.Job, err error) {
	until := rig.Until(ctx, 10*time.Minute, func() bool {
		var reply rig.Reply
		_, reply, err = r.Call(http.MethodGet, "/gateway/deferred/"+id+"?wait=5s", "", nil)
		job = reply.Job()
		return err != nil || job.Ended()
	})
	switch {
	case err != nil:
		return job, err
	case until != nil:
		return job, until
	case job.State != "succeeded":
		return job, fmt.Errorf("job %s: %s", id, job.State)
	}
	return job, nil
}

// thaw measures from the thaw of a client to the start of a job that it held.
func thaw(ctx context.Context, r *rig.Rig, quick bool) ([]figure, error) {
	if err := r.Client("shop", 4); err != nil {
		return nil, err
	}
	var took []time.Duration
	for range 10 {
		if _, reply, err := r.Call(http.MethodPut, "/admin/clients/shop/lifecycle", "", map[string]string{"lifecycle": "frozen"}); err != nil {
			return nil, fmt.Errorf("%s: %w", reply.Message, err)
		}
		time.Sleep(300 * time.Millisecond)
		job, err := submit(r, map[string]any{"query": "select 1 as one", "deferred": true})
		if err != nil {
			return nil, err
		}
		time.Sleep(2 * time.Second)
		_, reply, err := r.Call(http.MethodGet, "/gateway/deferred/"+job.ID, "", nil)
		if err != nil || reply.Job().State != "held" {
			return nil, fmt.Errorf("a frozen client's job is %q: %w", reply.Job().State, err)
		}
		begin := time.Now()
		if _, reply, err := r.Call(http.MethodPut, "/admin/clients/shop/lifecycle", "", map[string]string{"lifecycle": "active"}); err != nil {
			return nil, fmt.Errorf("%s: %w", reply.Message, err)
		}
		if job, err = finish(ctx, r, job.ID); err != nil {
			return nil, err
		}
		took = append(took, job.Attempts[0].Started.Sub(begin))
	}
	return []figure{{"thaw to running, worst of 10", ms(quantile(took, 1)), "ms", 1000, true, note("median %.0f ms", ms(quantile(took, 0.5)))}}, nil
}

// takeover measures from the SIGKILL of a worker to its job running elsewhere.
func takeover(ctx context.Context, r *rig.Rig, quick bool) ([]figure, error) {
	if err := r.Client("shop", 4); err != nil {
		return nil, err
	}
	rounds := 3
	if quick {
		rounds = 1
	}
	var took []time.Duration
	for range rounds {
		job, err := submit(r, map[string]any{"query": "select pg_sleep(5)", "deferred": true})
		if err != nil {
			return nil, err
		}
		var running rig.Job
		if err := rig.Until(ctx, 20*time.Second, func() bool {
			_, reply, err := r.Call(http.MethodGet, "/gateway/deferred/"+job.ID, "", nil)
			running = reply.Job()
			return err == nil && running.State == "running"
		}); err != nil {
			return nil, err
		}
		var victim *rig.Process
		for _, w := range r.Workers {
			if w.Name == running.Attempts[0].Worker {
				victim = w
			}
		}
		if victim == nil {
			return nil, fmt.Errorf("the job runs on %q, which is none of ours", running.Attempts[0].Worker)
		}
		begin := time.Now()
		victim.Kill()
		if job, err = finish(ctx, r, job.ID); err != nil {
			return nil, err
		}
		took = append(took, job.Attempts[len(job.Attempts)-1].Started.Sub(begin))
		if err := victim.Start(""); err != nil {
			return nil, err
		}
		time.Sleep(2 * time.Second)
	}
	return []figure{{"lost worker to running elsewhere, worst", quantile(took, 1).Seconds(), "s", 15, true, note("of %d", rounds)}}, nil
}

// largeResult measures the memory that ten million rows cost: the worker that
// spools them, and the API that hands them out.
func largeResult(ctx context.Context, r *rig.Rig, quick bool) ([]figure, error) {
	if err := r.Client("shop", 4); err != nil {
		return nil, err
	}
	rows := 10_000_000
	if quick {
		rows = 1_000_000
	}
	job, err := submit(r, map[string]any{"query": "select 1 as n", "deferred": true}) // the first job's own costs
	if err != nil {
		return nil, err
	}
	if _, err := finish(ctx, r, job.ID); err != nil {
		return nil, err
	}
	worker, server := r.Workers[0], r.Server
	workerBefore, _, err := worker.RSS()
	if err != nil {
		return nil, err
	}
	serverBefore, _, err := server.RSS()
	if err != nil {
		return nil, err
	}
	var workerPeak, serverPeak atomic.Int64
	sampled, stop := context.WithCancel(ctx)
	var sampling sync.WaitGroup
	sampling.Go(func() {
		for sampled.Err() == nil {
			for p, peak := range map[*rig.Process]*atomic.Int64{worker: &workerPeak, server: &serverPeak} {
				if now, _, err := p.RSS(); err == nil && now > peak.Load() {
					peak.Store(now)
				}
			}
			time.Sleep(50 * time.Millisecond)
		}
	})
	defer sampling.Wait()
	defer stop()
	begin := time.Now()
	job, err = submit(r, map[string]any{
		"query":    fmt.Sprintf("select g as id, 'customer ' || g as name, g * 1.5 as total, now() as at from generate_series(1, %d) g", rows),
		"deferred": true, "timeout": "10m", "result": map[string]any{"format": "ndjson"},
	})
	if err != nil {
		return nil, err
	}
	if _, err := finish(ctx, r, job.ID); err != nil {
		return nil, err
	}
	spooled := time.Since(begin)
	begin = time.Now()
	got, size, err := download(ctx, r, job.ID)
	if err != nil {
		return nil, err
	}
	if got != rows {
		return nil, fmt.Errorf("%d rows came back of %d", got, rows)
	}
	fetched := time.Since(begin)
	return []figure{
		{"worker RSS growth, large result", mib(workerPeak.Load() - workerBefore), "MiB", 64, true,
			note("%d rows, %.0f MiB of NDJSON, spooled at %.0f rows/s", rows, mib(size), float64(rows)/spooled.Seconds())},
		{"API and broker RSS growth, large result", mib(serverPeak.Load() - serverBefore), "MiB", 64, true,
			note("stored, then handed out at %.0f rows/s", float64(rows)/fetched.Seconds())},
	}, nil
}

// download reads a job's whole result as NDJSON and counts its rows and bytes.
func download(ctx context.Context, r *rig.Rig, id string) (rows int, size int64, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.URL+"/gateway/deferred/"+id+"/result", nil)
	if err != nil {
		return 0, 0, err
	}
	req.Header.Set("Authorization", "Bearer "+rig.AdminKey)
	req.Header.Set("Accept", "application/x-ndjson")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, 0, err
	}
	defer resp.Body.Close()
	buf := make([]byte, 256<<10)
	for {
		n, err := resp.Body.Read(buf)
		size += int64(n)
		for _, c := range buf[:n] {
			if c == '\n' {
				rows++
			}
		}
		if errors.Is(err, io.EOF) {
			return rows, size, nil
		}
		if err != nil {
			return rows, size, err
		}
	}
}
