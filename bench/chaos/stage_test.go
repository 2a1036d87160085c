package chaos

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/athena-pipelines/athena/bench/judge"
	"github.com/athena-pipelines/athena/bench/rig"
	"github.com/athena-pipelines/athena/pkg/bus"
	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/changefeed"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/localpg/pgtest"
)

// A stage is a running deployment with a database that is written to, and a
// judge to be. What fails ends the scenario, with the logs.
type stage struct {
	*testing.T
	ctx     context.Context
	rig     *rig.Rig
	rnd     *rand.Rand
	seed    uint64
	source  *Source
	main    *Session // for what the scenario itself writes
	replica string
	tables  []judge.Table
	again   bool // see judge.Config
	bus     *bus.Bus
	begun   time.Time
	notes   []string
}

const (
	client      = "shop"
	slot        = "athena_shop"
	publication = "athena_shop"
)

func newStage(ctx context.Context, t *testing.T, cfg rig.Config, seed uint64) *stage {
	s := &stage{T: t, ctx: ctx, rnd: rand.New(rand.NewPCG(seed, 1000)), seed: seed, tables: Tables(), begun: time.Now()}
	cfg.Binary = binary
	if cfg.Workers == 0 && !cfg.Inside {
		cfg.Workers = 2
	}
	settings := map[string]string{
		// The machine does not lose power here, and the processes' deaths do not
		// touch what the system has.
		"fsync":                     "off",
		"max_prepared_transactions": "20",
		"max_connections":           "60",
		"shared_buffers":            "64MB",
		"deadlock_timeout":          "100ms",
	}
	for name, value := range cfg.Postgres {
		settings[name] = value
	}
	cfg.Postgres = settings
	var err error
	s.rig, err = rig.Start(ctx, cfg)
	t.Cleanup(s.rig.Stop)
	s.check(err)
	s.source = &Source{DSN: s.rig.DSN()}
	s.main = s.source.Session(seed, 2000)
	t.Cleanup(s.main.Close)
	s.exec(Schema + uncaptured)
	s.replica = pgtest.DSN(t)
	s.execOn(s.replica, Schema)
	s.check(s.rig.Client(client, 4, "cdc"))
	nc, err := s.rig.Broker(ctx)
	s.check(err)
	t.Cleanup(nc.Close)
	s.bus, err = bus.New(nc, bus.Config{})
	s.check(err)
	return s
}

// check ends the scenario if err is one.
func (s *stage) check(err error) {
	s.Helper()
	if err != nil {
		s.Fatalf("%v\n%s", err, s.logs())
	}
}

func (s *stage) logs() string {
	st, _ := s.status()
	raw, _ := json.Marshal(st)
	return fmt.Sprintf("status: %s\n%s", raw, s.rig.Logs())
}

// note adds to what the scenario says in the end.
func (s *stage) note(format string, args ...any) {
	s.notes = append(s.notes, fmt.Sprintf(format, args...))
}

// exec runs SQL in the source.
func (s *stage) exec(sql string) {
	s.Helper()
	s.execOn(s.rig.DSN(), sql)
}

func (s *stage) execOn(dsn, sql string) {
	s.Helper()
	conn, err := pgx.Connect(s.ctx, dsn)
	s.check(err)
	defer conn.Close(context.WithoutCancel(s.ctx))
	_, err = conn.Exec(s.ctx, sql, pgx.QueryExecModeSimpleProtocol)
	s.check(err)
}

// ask reads one value from the source.
func ask[T any](s *stage, sql string, args ...any) (v T) {
	s.Helper()
	conn, err := pgx.Connect(s.ctx, s.rig.DSN())
	s.check(err)
	defer conn.Close(context.WithoutCancel(s.ctx))
	s.check(conn.QueryRow(s.ctx, sql, args...).Scan(&v))
	return v
}

// setup is what a capture is asked for with.
type setup map[string]any

// enable asks for the capture of all tables, and waits until it streams. What is
// committed from then on has to arrive.
func (s *stage) enable(with setup) {
	s.Helper()
	s.request(with)
	s.await(time.Minute, changefeed.Streaming)
	s.source.Exact()
}

// request asks for the capture of all tables.
func (s *stage) request(with setup) {
	s.Helper()
	body := setup{"snapshot": changefeed.SnapshotNone}
	names := make([]string, len(s.tables))
	for i, t := range s.tables {
		names[i] = driver.TableName{Schema: t.Schema, Table: t.Name}.String()
	}
	body["tables"] = names
	for k, v := range with {
		body[k] = v
	}
	s.call(http.MethodPost, "/cdc/"+client+"/enable", body)
}

// call makes a request that has to succeed, once the server answers.
func (s *stage) call(method, path string, body any) (reply rig.Reply) {
	s.Helper()
	var code int
	var err error
	until := rig.Until(s.ctx, 30*time.Second, func() bool {
		code, reply, err = s.rig.Call(method, path, "", body)
		return err == nil && code < 500
	})
	if until != nil || code >= 300 {
		s.Fatalf("%s %s: %d %s %v\n%s", method, path, code, reply.Message, err, s.logs())
	}
	return reply
}

// status is how the capture fares; the error is one of the request.
func (s *stage) status() (changefeed.Status, error) {
	var data struct {
		Status changefeed.Status `json:"status"`
	}
	code, reply, err := s.rig.Call(http.MethodGet, "/cdc/"+client, "", nil)
	if err == nil && code != http.StatusOK {
		err = fmt.Errorf("%d %s", code, reply.Message)
	}
	if err == nil {
		err = json.Unmarshal(reply.Data, &data)
	}
	return data.Status, err
}

// await waits for one of the states.
func (s *stage) await(most time.Duration, states ...changefeed.State) (st changefeed.Status) {
	s.Helper()
	if err := rig.Until(s.ctx, most, func() (ok bool) {
		var err error
		st, err = s.status()
		return err == nil && slices.Contains(states, st.State)
	}); err != nil {
		s.Fatalf("the capture did not become %v: %v\n%s", states, err, s.logs())
	}
	return st
}

// fails waits until the capture has failed, and checks why.
func (s *stage) fails(code string) {
	s.Helper()
	st := s.await(90*time.Second, changefeed.Failed)
	if st.Cause == nil || st.Cause.Code != code {
		s.Fatalf("it failed because of %+v, want %s\n%s", st.Cause, code, s.logs())
	}
	if st.Cause.Message == "" || st.Cause.Runbook == "" {
		s.Errorf("the cause says nothing to people: %+v", st.Cause)
	}
	s.note("it says: %s — %s", st.Cause.Message, st.Cause.Runbook)
}

// worker is the process that has the capture, and the one that has not.
func (s *stage) worker() (has, other *rig.Process) {
	s.Helper()
	if err := rig.Until(s.ctx, time.Minute, func() bool {
		st, err := s.status()
		if err != nil || st.State != changefeed.Streaming {
			return false
		}
		for _, p := range s.rig.Workers {
			if p.Name == st.Worker {
				has = p
			} else {
				other = p
			}
		}
		return has != nil
	}); err != nil {
		s.Fatalf("no worker has the capture: %v\n%s", err, s.logs())
	}
	return has, other
}

// load starts a load, and returns what stops it and waits for its end.
func (s *stage) load(l Load) (stop func()) {
	s.Helper()
	l.Source, l.Seed, l.Publication = s.source, s.seed, publication
	if l.Connections == 0 {
		l.Connections = 3
	}
	if l.Pace == 0 {
		l.Pace = 15 * time.Millisecond
	}
	ctx, cancel := context.WithCancel(s.ctx)
	var running sync.WaitGroup
	var err error
	running.Go(func() { err = l.Run(ctx) })
	end := func() {
		cancel()
		running.Wait()
	}
	s.Cleanup(end)
	return func() {
		s.Helper()
		end()
		s.check(err)
	}
}

// transact runs one transaction of the scenario's own, again if the load was in
// its way, and expects it to do what it has to.
func (s *stage) transact(fate Fate, body func(w *Work) error) {
	s.Helper()
	s.main.Refresh(s.ctx)
	for again := true; again; {
		var failed error
		s.check(s.main.Transact(s.ctx, fate, func(w *Work) error {
			failed = body(w)
			return failed
		}))
		if again = failed != nil; again && failure(failed) != "55P03" && failure(failed) != "40P01" {
			s.Fatalf("the scenario's own transaction: %v", failed)
		}
	}
}

// rest lets the load run on for a while.
func (s *stage) rest(d time.Duration) {
	select {
	case <-time.After(d):
	case <-s.ctx.Done():
	}
}

// verdict commits a last row, reads the stream up to it, and fails if the judge
// finds anything. Everything that was broken is whole again by then.
func (s *stage) verdict(most time.Duration) {
	s.Helper()
	mark, err := s.main.Mark(s.ctx)
	s.check(err)
	ctx, cancel := context.WithTimeout(s.ctx, most)
	defer cancel()
	j, err := judge.New(ctx, judge.Config{Client: client, Replica: s.replica, Object: s.object, Again: s.again})
	s.check(err)
	defer j.Close(context.WithoutCancel(ctx))
	begin := time.Now()
	if err := s.read(ctx, j, mark); err != nil {
		s.Errorf("the stream was not read to the last row: %v\n%s", err, s.logs())
	}
	caught := time.Since(begin)
	problems, err := j.Verdict(s.ctx, s.rig.DSN(), s.tables, &s.source.Ledger)
	if err != nil || len(problems) > 0 {
		s.Errorf("seed %d: %v\n%s\n%s", s.seed, err, strings.Join(problems, "\n"), s.logs())
	}
	s.note("%d changes judged %v, %d values from the object store, of transactions %s; read to the end %.1f s after it", j.Changes, j.Ops, j.Refs, s.source.Did(), caught.Seconds())
	s.Logf("%.0f s: %s", time.Since(s.begun).Seconds(), strings.Join(s.notes, "; "))
	if most := s.source.Ledger.Len(); j.Changes < most {
		s.Errorf("only %d changes for %d that were committed", j.Changes, most)
	}
}

// stores waits until a change is stored.
func (s *stage) stores(t judge.Token, most time.Duration) {
	s.Helper()
	ctx, cancel := context.WithTimeout(s.ctx, most)
	defer cancel()
	replica := pgtest.DSN(s.T)
	s.execOn(replica, Schema)
	j, err := judge.New(ctx, judge.Config{Client: client, Replica: replica, Object: s.object, Again: s.again})
	s.check(err)
	defer j.Close(context.WithoutCancel(ctx))
	if err := s.read(ctx, j, t); err != nil {
		s.Fatalf("%v\n%s", err, s.logs())
	}
}

// read gives the stream to the judge, up to a change.
func (s *stage) read(ctx context.Context, j *judge.Judge, last judge.Token) error {
	for from := uint64(1); ; {
		messages, err := s.bus.Scan(ctx, bus.CDCStream(client), "ath.>", from, 200)
		for _, m := range messages {
			if m.Sequence != from {
				return fmt.Errorf("message %d follows %d", m.Sequence, from-1)
			}
			if err := j.Message(ctx, judge.Message{Subject: m.Subject, Sequence: m.Sequence, Header: m.Header, Data: m.Data}); err != nil {
				return err
			}
			from = m.Sequence + 1
		}
		if j.Arrived(last) {
			return nil
		}
		if len(messages) == 0 {
			select {
			case <-ctx.Done():
				return fmt.Errorf("%w; message %d was the last, at %s: %w", ctx.Err(), from-1, s.end(), err)
			case <-time.After(100 * time.Millisecond):
			}
		}
	}
}

// end is the position at the end of the stream.
func (s *stage) end() cdc.Position {
	raw, err := s.bus.LastMsg(context.WithoutCancel(s.ctx), bus.CDCStream(client), "ath.>")
	if err != nil {
		return cdc.Position("(" + err.Error() + ")")
	}
	return cdc.Position(raw.Header.Get(changefeed.HeaderPos))
}

// object reads a value that was too large for a message.
func (s *stage) object(ctx context.Context, name string) ([]byte, error) {
	store, err := s.bus.JetStream().ObjectStore(ctx, bus.CDCObjects(client))
	if err != nil {
		return nil, err
	}
	return store.GetBytes(ctx, name)
}

// stored is how many messages the stream has had.
func (s *stage) stored() uint64 {
	s.Helper()
	var info *jetstream.StreamInfo
	s.check(rig.Until(s.ctx, 30*time.Second, func() bool {
		stream, err := s.bus.JetStream().Stream(s.ctx, bus.CDCStream(client))
		if err == nil {
			info = stream.CachedInfo()
		}
		return err == nil
	}))
	return info.State.LastSeq
}

// passes commits a row, and waits until it is stored.
func (s *stage) passes() {
	s.Helper()
	before := s.stored()
	s.transact(Commit, func(w *Work) error { return w.Write("insert into scratch default values returning ver") })
	if err := rig.Until(s.ctx, time.Minute, func() bool { return s.stored() > before }); err != nil {
		s.Fatalf("one row is not stored: %v\n%s", err, s.logs())
	}
}

// advances waits until more is stored than there was. It needs a load.
func (s *stage) advances(most time.Duration) {
	s.Helper()
	before := s.stored()
	if err := rig.Until(s.ctx, most, func() bool { return s.stored() > before }); err != nil {
		s.Fatalf("nothing more is stored: %v\n%s", err, s.logs())
	}
}
