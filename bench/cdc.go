package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/athena-pipelines/athena/bench/rig"
	"github.com/athena-pipelines/athena/pkg/bus"
	"github.com/athena-pipelines/athena/pkg/changefeed"
	"github.com/athena-pipelines/athena/pkg/localpg"
)

// cdcPostgres keeps checkpoints out of the figures; all else is as installed.
var cdcPostgres = map[string]string{"max_wal_size": "16GB", "checkpoint_timeout": "1h", "shared_buffers": "256MB"}

const (
	// changed is a table of rows of some 200 bytes.
	changed = `create table changed (
		id bigint generated always as identity primary key, account bigint, status text, total numeric(12,2),
		at timestamptz default clock_timestamp(), reference uuid default gen_random_uuid(), note text)`
	changedRow  = "(account, status, total, note) select g, 'status ' || g % 7, g % 100000 / 100.0, repeat(md5(g::text), 3)"
	changedSlot = "athena_shop"
)

// capture asks for the capture of the table changed, and waits until it streams.
func capture(ctx context.Context, r *rig.Rig, snapshot changefeed.SnapshotMode, more map[string]any) error {
	body := map[string]any{"tables": []string{"public.changed"}, "snapshot": snapshot, "max_bytes": int64(64 << 30)}
	for k, v := range more {
		body[k] = v
	}
	status, reply, err := r.Call(http.MethodPost, "/cdc/shop/enable", "", body)
	if err == nil && status >= 300 {
		err = fmt.Errorf("enable: %d %s", status, reply.Message)
	}
	if err != nil {
		return err
	}
	return streams(ctx, r)
}

func streams(ctx context.Context, r *rig.Rig) error {
	var last rig.Reply
	if err := rig.Until(ctx, 10*time.Minute, func() bool {
		var err error
		_, last, err = r.Call(http.MethodGet, "/cdc/shop", "", nil)
		var data struct {
			Status changefeed.Status `json:"status"`
		}
		return err == nil && json.Unmarshal(last.Data, &data) == nil && data.Status.State == changefeed.Streaming
	}); err != nil {
		return fmt.Errorf("the capture does not stream: %w: %s", err, last.Data)
	}
	return nil
}

// prepared is a rig whose table is captured.
func prepared(ctx context.Context, r *rig.Rig) (*pgx.Conn, *bus.Bus, error) {
	if err := r.Client("shop", 8, "cdc"); err != nil {
		return nil, nil, err
	}
	conn, err := pgx.Connect(ctx, r.DSN())
	if err != nil {
		return nil, nil, err
	}
	if _, err := conn.Exec(ctx, changed); err != nil {
		return nil, nil, err
	}
	nc, err := r.Broker(ctx)
	if err != nil {
		return nil, nil, err
	}
	b, err := bus.New(nc, bus.Config{})
	return conn, b, err
}

// stored is what a stream holds behind a sequence.
type stored struct {
	changes     int
	messages    int
	bytes       int
	first, last time.Time
}

// readStream reads the messages behind a sequence until there are so many
// changes, and hands each over.
func readStream(ctx context.Context, b *bus.Bus, after uint64, changes int, most time.Duration, each func(bus.Raw)) (s stored, last uint64, err error) {
	deadline := time.Now().Add(most)
	for s.changes < changes {
		found, err := b.Scan(ctx, bus.CDCStream("shop"), "ath.cdc.shop.public.changed", after+1, 500)
		if err != nil {
			return s, after, err
		}
		for _, m := range found {
			n, err := strconv.Atoi(m.Header.Get(changefeed.HeaderCount))
			if err != nil {
				return s, after, fmt.Errorf("message %d counts %q", m.Sequence, m.Header.Get(changefeed.HeaderCount))
			}
			if s.messages == 0 {
				s.first = m.Time
			}
			s.changes, s.messages, s.bytes, s.last, after = s.changes+n, s.messages+1, s.bytes+len(m.Data), m.Time, m.Sequence
			if each != nil {
				each(m)
			}
		}
		if len(found) == 0 {
			if time.Now().After(deadline) {
				return s, after, fmt.Errorf("only %d of %d changes were stored", s.changes, changes)
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
	if s.changes > changes {
		err = fmt.Errorf("%d changes were stored of %d", s.changes, changes)
	}
	return s, after, err
}

// pgRecvlogical drains a slot with PostgreSQL's own program, to nowhere.
func pgRecvlogical(ctx context.Context, r *rig.Rig, slot, publication, end string) (time.Duration, error) {
	bin, err := localpg.Find()
	if err != nil {
		return 0, err
	}
	begin := time.Now()
	out, err := exec.CommandContext(ctx, filepath.Join(bin, "pg_recvlogical"), "-d", r.DSN(), "--slot", slot, "--start",
		"-o", "proto_version=1", "-o", "publication_names="+publication, "-f", "/dev/null", "--endpos="+end, "--no-loop").CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("pg_recvlogical: %w: %s", err, out)
	}
	return time.Since(begin), nil
}

// drain measures how fast a backlog is stored, beside how fast PostgreSQL's own
// client reads the same backlog and throws it away, before and after.
func drain(name string, changes, perTransaction int, targetRate, targetShare float64) func(context.Context, *rig.Rig, bool) ([]figure, error) {
	return func(ctx context.Context, r *rig.Rig, quick bool) ([]figure, error) {
		n := changes
		if quick {
			n /= 5
		}
		conn, b, err := prepared(ctx, r)
		if err != nil {
			return nil, err
		}
		defer conn.Close(ctx)
		defer b.Conn().Close()
		if err := capture(ctx, r, changefeed.SnapshotNone, nil); err != nil {
			return nil, err
		}
		// Warm, as a worker is that has run for a while.
		if _, err := conn.Exec(ctx, "insert into changed "+changedRow+" from generate_series(1, 20000) g"); err != nil {
			return nil, err
		}
		_, after, err := readStream(ctx, b, 0, 20000, time.Minute, nil)
		if err != nil {
			return nil, err
		}
		r.Workers[0].Kill()
		for _, slot := range []string{"before", "after"} {
			if _, err := conn.Exec(ctx, "select pg_create_logical_replication_slot($1, 'pgoutput')", slot); err != nil {
				return nil, err
			}
		}
		// In one session, or the machine would be busy with commits for minutes.
		if _, err := conn.Exec(ctx, "set synchronous_commit = off"); err != nil {
			return nil, err
		}
		if _, err := conn.Exec(ctx, fmt.Sprintf(`do $$ begin for t in 1..%d loop
			insert into changed %s from generate_series(1, %d) g; commit; end loop; end $$`, n/perTransaction, changedRow, perTransaction)); err != nil {
			return nil, err
		}
		if _, err := conn.Exec(ctx, "checkpoint"); err != nil {
			return nil, err
		}
		var end string
		if err := conn.QueryRow(ctx, "select pg_current_wal_flush_lsn()::text").Scan(&end); err != nil {
			return nil, err
		}
		peerBefore, err := pgRecvlogical(ctx, r, "before", changedSlot, end)
		if err != nil {
			return nil, err
		}
		if err := r.Workers[0].Start(""); err != nil {
			return nil, err
		}
		// It begins when the slot is read, once the lease of the worker that was
		// killed is over.
		if err := rig.Until(ctx, time.Minute, func() (active bool) {
			err := conn.QueryRow(ctx, "select active from pg_replication_slots where slot_name = $1", changedSlot).Scan(&active)
			return err == nil && active
		}); err != nil {
			return nil, fmt.Errorf("the slot is not read: %w", err)
		}
		begin := time.Now()
		s, _, err := readStream(ctx, b, after, n, 10*time.Minute, nil)
		if err != nil {
			return nil, err
		}
		took := s.last.Sub(begin)
		peerAfter, err := pgRecvlogical(ctx, r, "after", changedSlot, end)
		if err != nil {
			return nil, err
		}
		rate := float64(n) / took.Seconds()
		peer := float64(n) / min(peerBefore, peerAfter).Seconds()
		return []figure{
			{name + " stored", rate, "changes/s", targetRate, false,
				note("%d changes of %d B in %d messages, in %.1f s from the slot's first reading to the last message; synced", n, s.bytes/n, s.messages, took.Seconds())},
			{name + " against pg_recvlogical", rate / peer, "×", targetShare, false,
				note("pg_recvlogical -f /dev/null drained the same log at %.0f/s before and %.0f/s after", float64(n)/peerBefore.Seconds(), float64(n)/peerAfter.Seconds())},
		}, nil
	}
}

// latency measures from commits to their changes being stored, while 5,000 rows
// are written each second, and the worker's memory at that.
func latency(sync string, p99 float64) func(context.Context, *rig.Rig, bool) ([]figure, error) {
	return func(ctx context.Context, r *rig.Rig, quick bool) ([]figure, error) {
		span := 30 * time.Second
		if quick {
			span = 8 * time.Second
		}
		conn, b, err := prepared(ctx, r)
		if err != nil {
			return nil, err
		}
		defer conn.Close(ctx)
		defer b.Conn().Close()
		if err := capture(ctx, r, changefeed.SnapshotNone, nil); err != nil {
			return nil, err
		}
		var warm, rows atomic.Int64
		if err := write(ctx, r, 5000, 2*time.Second, &warm); err != nil {
			return nil, err
		}
		_, after, err := readStream(ctx, b, 0, int(warm.Load()), time.Minute, nil)
		if err != nil {
			return nil, err
		}
		begin := time.Now()
		if err := write(ctx, r, 5000, span, &rows); err != nil {
			return nil, err
		}
		wrote := time.Since(begin)
		rss, _, err := r.Workers[0].RSS()
		if err != nil {
			return nil, err
		}
		var took []time.Duration
		var bad error
		s, _, err := readStream(ctx, b, after, int(rows.Load()), time.Minute, func(m bus.Raw) {
			for line := range bytes.Lines(m.Data) {
				var c struct {
					Tx struct {
						At time.Time `json:"at"`
					} `json:"tx"`
				}
				if err := json.Unmarshal(line, &c); err != nil {
					bad = err
				}
				took = append(took, m.Time.Sub(c.Tx.At))
			}
		})
		if err := errors.Join(err, bad); err != nil {
			return nil, err
		}
		of := note("sync %s; %.0f rows/s in transactions of 1 to 20, %.1f changes a message", sync, float64(rows.Load())/wrote.Seconds(), float64(s.changes)/float64(s.messages))
		return []figure{
			{"commit to stored, p50, sync " + sync, ms(quantile(took, 0.5)), "ms", 10, true, of},
			{"commit to stored, p99, sync " + sync, ms(quantile(took, 0.99)), "ms", p99, true, note("worst %.1f ms", ms(quantile(took, 1)))},
			{"worker RSS, steady, sync " + sync, mib(rss), "MiB", 64, true, "at the end of it"},
		}, nil
	}
}

// write inserts so many rows a second, over a few connections, in transactions
// of 1 to 20 rows.
func write(ctx context.Context, r *rig.Rig, rate int, span time.Duration, rows *atomic.Int64) error {
	const connections = 4
	errs := make([]error, connections)
	var running sync.WaitGroup
	for i := range connections {
		running.Go(func() {
			errs[i] = func() error {
				conn, err := pgx.Connect(ctx, r.DSN())
				if err != nil {
					return err
				}
				defer conn.Close(ctx)
				rnd := rand.New(rand.NewPCG(1, uint64(i)))
				begin, wrote := time.Now(), 0
				for time.Since(begin) < span {
					n := 1 + rnd.IntN(20)
					if _, err := conn.Exec(ctx, "insert into changed "+changedRow+" from generate_series(1, $1::int) g", n); err != nil {
						return err
					}
					wrote += n
					due := begin.Add(time.Duration(wrote*connections) * time.Second / time.Duration(rate))
					time.Sleep(time.Until(due))
				}
				rows.Add(int64(wrote))
				return nil
			}()
		})
	}
	running.Wait()
	return errors.Join(errs...)
}

// largeTransaction measures the worker's memory while one transaction of ten
// million rows passes.
func largeTransaction(ctx context.Context, r *rig.Rig, quick bool) ([]figure, error) {
	n := 10_000_000
	if quick {
		n = 1_000_000
	}
	conn, b, err := prepared(ctx, r)
	if err != nil {
		return nil, err
	}
	defer conn.Close(ctx)
	defer b.Conn().Close()
	if err := capture(ctx, r, changefeed.SnapshotNone, nil); err != nil {
		return nil, err
	}
	stop := sample(ctx, r.Workers[0])
	begin := time.Now()
	if _, err := conn.Exec(ctx, fmt.Sprintf("insert into changed %s from generate_series(1, %d) g", changedRow, n)); err != nil {
		return nil, err
	}
	committed := time.Since(begin)
	s, _, err := readStream(ctx, b, 0, n, 20*time.Minute, nil)
	if err != nil {
		return nil, err
	}
	all := time.Since(begin)
	return []figure{{"worker RSS, a transaction of " + millions(n) + " rows", mib(stop()), "MiB", 128, true,
		note("peak; written in %.0f s, all stored after %.0f s (%.0f/s from its first message on)", committed.Seconds(), all.Seconds(), float64(n)/s.last.Sub(s.first).Seconds())}}, nil
}

func millions(n int) string {
	return strings.TrimSuffix(fmt.Sprintf("%.1f", float64(n)/1e6), ".0") + " M"
}

// sample watches a process's memory until the returned function is called, which
// returns the most that it had.
func sample(ctx context.Context, p *rig.Process) (stop func() int64) {
	ctx, cancel := context.WithCancel(ctx)
	var peak int64
	var running sync.WaitGroup
	running.Go(func() {
		for ctx.Err() == nil {
			if now, _, err := p.RSS(); err == nil {
				peak = max(peak, now)
			}
			time.Sleep(50 * time.Millisecond)
		}
	})
	return func() int64 { cancel(); running.Wait(); return peak }
}

// snapshotRate measures how fast the rows that are there are read and stored.
func snapshotRate(ctx context.Context, r *rig.Rig, quick bool) ([]figure, error) {
	n := 2_000_000
	if quick {
		n = 300_000
	}
	conn, b, err := prepared(ctx, r)
	if err != nil {
		return nil, err
	}
	defer conn.Close(ctx)
	defer b.Conn().Close()
	if _, err := conn.Exec(ctx, fmt.Sprintf("insert into changed %s from generate_series(1, %d) g; analyze changed", changedRow, n)); err != nil {
		return nil, err
	}
	if err := capture(ctx, r, changefeed.SnapshotInitial, nil); err != nil {
		return nil, err
	}
	s, _, err := readStream(ctx, b, 0, n, 10*time.Minute, nil)
	if err != nil {
		return nil, err
	}
	took := s.last.Sub(s.first)
	return []figure{{"snapshot, stored", float64(n) / took.Seconds(), "rows/s", 60_000, false,
		note("%d rows of %d B in %d messages, in %.1f s from the first to the last; synced", n, s.bytes/n, s.messages, took.Seconds())}}, nil
}

// idleSubscribers measures what a subscriber costs that waits.
func idleSubscribers(ctx context.Context, r *rig.Rig, quick bool) ([]figure, error) {
	const n = 1000
	conn, b, err := prepared(ctx, r)
	if err != nil {
		return nil, err
	}
	defer conn.Close(ctx)
	defer b.Conn().Close()
	if err := capture(ctx, r, changefeed.SnapshotNone, nil); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err == nil {
		limit.Cur = limit.Max
		syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	var heard atomic.Int64
	open := func(n int) error {
		for range n {
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.URL+"/cdc/shop/stream?from=now", nil)
			if err != nil {
				return err
			}
			req.Header.Set("Authorization", "Bearer "+rig.AdminKey)
			req.Header.Set("Accept", "text/event-stream")
			resp, err := client.Do(req)
			if err != nil {
				return err
			}
			if resp.StatusCode != http.StatusOK {
				return fmt.Errorf("a subscriber is answered %s", resp.Status)
			}
			go func() {
				defer resp.Body.Close()
				buf := make([]byte, 512)
				for told := false; ; {
					n, err := resp.Body.Read(buf)
					if err != nil {
						return
					}
					if !told && bytes.Contains(buf[:n], []byte("data:")) {
						told = true
						heard.Add(1)
					}
				}
			}()
		}
		return nil
	}
	if err := open(20); err != nil { // what the first ones cost once
		return nil, err
	}
	time.Sleep(3 * time.Second)
	before, _, err := r.Server.RSS()
	if err != nil {
		return nil, err
	}
	if err := open(n); err != nil {
		return nil, err
	}
	time.Sleep(10 * time.Second)
	after, _, err := r.Server.RSS()
	if err != nil {
		return nil, err
	}
	begin := time.Now()
	if _, err := conn.Exec(ctx, "insert into changed "+changedRow+" from generate_series(1, 1) g"); err != nil {
		return nil, err
	}
	if err := rig.Until(ctx, 30*time.Second, func() bool { return heard.Load() == n+20 }); err != nil {
		return nil, fmt.Errorf("only %d of %d subscribers got a change", heard.Load(), n+20)
	}
	return []figure{{"an idle SSE subscriber", float64(after-before) / n / 1024, "KiB", 64, true,
		note("RSS growth of the API for %d of them; one change then reached all in %.0f ms", n, ms(time.Since(begin)))}}, nil
}
