package pipecrash

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/athena-pipelines/athena/bench/rig"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/crashpoint"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/driver/s3"
	"github.com/athena-pipelines/athena/pkg/locals3/s3test"
	"github.com/athena-pipelines/athena/pkg/sdk"
)

// What happens to processes beside the points.
const (
	killed = "kill"   // of a worker, from outside
	server = "server" // the server is killed, and its broker with it
	frozen = "freeze" // a worker stands still until another has taken its work, and then goes on
)

// lease is how long a dead worker keeps its work.
const lease = 2 * time.Second

// A stage is a running deployment: the clients shop, which is read, copy and lake,
// and what they stand for.
type stage struct {
	*testing.T
	ctx     context.Context
	rig     *rig.Rig
	victims []*rig.Process
	api     *sdk.API
	shop    *pgx.Conn
	copy    *pgx.Conn
	lake    *s3.Backend
	seed    uint64
	rnd     *rand.Rand
	round   *int // the last one, of all scenarios
	// shown is what was seen of objects when processes died, by key.
	shown map[string]driver.Object
	// haunted says that a worker goes on too late: an upload that it begins then, and
	// is not told of, is upkeep's to clear away.
	haunted bool
}

func newStage(ctx context.Context, t *testing.T, g group, seed uint64) *stage {
	s := &stage{T: t, ctx: ctx, seed: seed, rnd: rand.New(rand.NewPCG(seed, 1)), round: new(int)}
	cfg := g.rig
	cfg.Binary = binary
	terms := fmt.Sprintf("  task_bytes: 24KiB\n  lease: %s\n", lease)
	cfg.WorkerSettings = terms
	cfg.Settings = terms
	if !cfg.Inside { // the server captures, and runs no pipelines
		cfg.Inside = true
		cfg.Settings += "  clients: [shop]\n"
	}
	cfg.Postgres = map[string]string{"fsync": "off", "max_connections": "100", "shared_buffers": "64MB"}
	var err error
	s.rig, err = rig.Start(ctx, cfg)
	t.Cleanup(s.rig.Stop)
	s.check(err)
	if s.victims = s.rig.Workers; len(s.victims) == 0 {
		s.victims = []*rig.Process{s.rig.Server}
	}
	s.api, err = sdk.New(s.rig.URL, rig.AdminKey, sdk.Options{})
	s.check(err)
	s.shop = s.connect(s.rig.DSN())
	s.exec(s.shop, "CREATE DATABASE copy")
	s.copy = s.connect(s.rig.Database.DSN("copy"))
	s.check(s.rig.Client("shop", 4, "cdc", "pipeline_source"))
	s.client("copy", athena.PostgresConn{DSN: s.secret(s.rig.Database.DSN("copy"))}, athena.GatewayQuery)
	conn := s3test.Bucket(t)
	s.lake, err = s3.Open(ctx, conn)
	s.check(err)
	t.Cleanup(func() { _ = s.lake.Close(context.Background()) })
	conn.SecretAccessKey = s.secret(conn.SecretAccessKey.Reveal())
	s.client("lake", conn, athena.ObjectRead, athena.ObjectWrite)
	s.capture(g.tables)
	return s
}

// in is the stage for another test.
func (s *stage) in(t *testing.T) *stage {
	of := *s
	of.T, of.shown = t, map[string]driver.Object{}
	return &of
}

// secret is a reference to a file that holds it, which all processes can read.
func (s *stage) secret(text string) athena.Secret {
	s.Helper()
	file := filepath.Join(s.TempDir(), "secret")
	s.check(os.WriteFile(file, []byte(text), 0o600))
	return athena.NewSecret("file:" + file)
}

func (s *stage) client(name string, conn athena.Connection, grants ...athena.Capability) {
	s.Helper()
	grants = append(grants, athena.PipelineSource, athena.PipelineSink)
	_, err := s.api.Admin().PutClient(s.ctx, &athena.Client{Name: name, Lifecycle: athena.Active, Connection: conn, Capabilities: athena.Allow(grants...)}, sdk.Absent)
	s.check(err)
}

func (s *stage) connect(dsn string) *pgx.Conn {
	s.Helper()
	conn, err := pgx.Connect(s.ctx, dsn)
	s.check(err)
	s.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

// check ends the scenario if err is one.
func (s *stage) check(err error) {
	s.Helper()
	if err != nil {
		s.Fatalf("%v\n%s", err, s.rig.Logs())
	}
}

func (s *stage) exec(db *pgx.Conn, sql string, args ...any) {
	s.Helper()
	if _, err := db.Exec(s.ctx, sql, args...); err != nil {
		s.Fatalf("%s: %v", sql, err)
	}
}

// one reads one value.
func one[T any](s *stage, db *pgx.Conn, sql string, args ...any) (v T) {
	s.Helper()
	if err := db.QueryRow(s.ctx, sql, args...).Scan(&v); err != nil {
		s.Fatalf("%s: %v", sql, err)
	}
	return v
}

// A definition of a pipeline, as it is sent.
type definition map[string]any

func (d definition) json() json.RawMessage {
	raw, err := json.Marshal(d)
	if err != nil {
		panic(err) // maps of texts and numbers
	}
	return raw
}

// A stop says how a process dies.
type stop struct {
	point string
	n     int           // the time that it passes the point
	after time.Duration // for what comes from outside
}

// assault has the victims die at the stops until there are none left, so many came,
// or over is closed, and leaves them running. It returns how often one died.
func (s *stage) assault(stops []stop, most int, over <-chan struct{}) (kills int) {
	var mu sync.Mutex
	take := func() (st stop, ok bool) {
		mu.Lock()
		defer mu.Unlock()
		select {
		case <-over:
			return st, false
		default:
		}
		if ok = len(stops) > 0 && kills < most && s.ctx.Err() == nil; ok {
			st, stops = stops[0], stops[1:]
		}
		return st, ok
	}
	var killers sync.WaitGroup
	for _, p := range s.victims {
		killers.Go(func() {
			for {
				st, ok := take()
				if !ok {
					break
				}
				if s.suffer(p, st, over) {
					mu.Lock()
					kills++
					s.unchanged()
					mu.Unlock()
				}
			}
			s.start(p, "")
		})
	}
	killers.Wait()
	return kills
}

func (s *stage) start(p *rig.Process, armed string) {
	if err := p.Start(armed); err != nil {
		s.Error(err)
	}
}

// wait reports whether the time passed before over was closed.
func (s *stage) wait(d time.Duration, over <-chan struct{}) bool {
	select {
	case <-time.After(d):
		return true
	case <-over:
	case <-s.ctx.Done():
	}
	return false
}

// patience is how long a process may take to come to a point: then it is killed
// where it is.
const patience = 6 * time.Second

// suffer has p die, and reports whether it did.
func (s *stage) suffer(p *rig.Process, st stop, over <-chan struct{}) (died bool) {
	switch st.point {
	case killed:
		s.start(p, "")
		if !s.wait(st.after, over) {
			return false
		}
		p.Kill()
	case server:
		s.start(p, "")
		if !s.wait(st.after, over) {
			return false
		}
		s.start(s.rig.Server, "") // which kills it
		if err := s.rig.Ready(s.ctx); err != nil {
			s.Errorf("the server after a kill: %v", err)
		}
	default:
		s.start(p, fmt.Sprintf("%s:%d", st.point, cmp.Or(st.n, 1)))
		late := time.NewTimer(patience)
		defer late.Stop()
		select {
		case <-p.Done():
			if !p.Killed() { // it could not start while the broker was away
				s.wait(200*time.Millisecond, over)
				return false
			}
		case <-late.C:
			p.Kill()
			st.point = killed
		case <-over:
			return false
		case <-s.ctx.Done():
			return false
		}
	}
	count.died(st.point)
	return true
}

// haunt has one worker stand still at a point, while another takes its work over,
// and then go on, as if it were not too late.
func (s *stage) haunt(point string, over <-chan struct{}) {
	ghost, other := s.victims[0], s.victims[1]
	other.Kill()
	s.start(ghost, fmt.Sprintf("%s:%d:freeze", point, 1+s.rnd.IntN(2)))
	for end := time.Now().Add(patience); !ghost.Stopped() && time.Now().Before(end); {
		s.wait(20*time.Millisecond, over)
	}
	s.start(other, "")
	if !ghost.Stopped() {
		return
	}
	s.wait(2*lease, over)
	if err := ghost.Signal(syscall.SIGCONT); err != nil {
		s.Error(err)
	}
	count.died(frozen)
	s.wait(lease/2, nil)
}

// outside is a death that comes from outside at some moment.
func (s *stage) outside(point string) stop {
	return stop{point: point, after: 300*time.Millisecond + time.Duration(s.rnd.Int64N(int64(lease+time.Second)))}
}

// batchStops are deaths in the order in which a run of a batch can suffer them: as
// many as are wanted, or of one or two a few more, since not all of them come.
func (s *stage) batchStops(wanted, tasks int, objects bool) []stop {
	early := []stop{{point: crashpoint.RunPrepared}, {point: crashpoint.RunTasks, n: 1 + s.rnd.IntN(tasks)}}
	middle := []string{crashpoint.TaskTaken, crashpoint.TaskWritten, crashpoint.TaskCommitted, crashpoint.TaskDone}
	if objects {
		middle = append(middle, crashpoint.TaskStaged, crashpoint.TaskDecided)
	}
	var stops []stop
	for _, p := range middle {
		stops = append(stops, stop{point: p, n: 1 + s.rnd.IntN(min(3, tasks))})
	}
	stops = append(stops, s.outside(killed))
	if len(s.victims) > 1 {
		stops = append(stops, s.outside(server))
	}
	s.rnd.Shuffle(len(stops), func(i, j int) { stops[i], stops[j] = stops[j], stops[i] })
	stops = append(append(early, stops...), stop{point: crashpoint.RunFinishing}, stop{point: crashpoint.RunFinished})
	for len(stops) > max(wanted, 3) {
		i := s.rnd.IntN(len(stops))
		stops = append(stops[:i], stops[i+1:]...)
	}
	return stops
}

// streamStops are deaths of a stream, more than are wanted.
func (s *stage) streamStops(wanted int, objects bool) (stops []stop) {
	points := []string{crashpoint.StreamRead, crashpoint.StreamWritten, crashpoint.StreamCommitted, crashpoint.StreamStored}
	if objects {
		points = append(points, crashpoint.StreamDecided)
	}
	for len(stops) < 2*wanted {
		s.rnd.Shuffle(len(points), func(i, j int) { points[i], points[j] = points[j], points[i] })
		for _, p := range points {
			stops = append(stops, stop{point: p, n: 1 + s.rnd.IntN(4)})
		}
		stops = append(stops, s.outside(killed))
		if len(s.victims) > 1 {
			stops = append(stops, s.outside(server))
		}
	}
	return stops
}

// A watch follows a run.
type watch struct {
	over chan struct{}
	end  *sdk.RunInfo
	seen []sdk.RunState
}

// watch asks for a run until it is over, and holds what it says of itself against
// what can be: it does not fail, and has not written more than there is. most is -1
// for a stream.
func (s *stage) watch(id string, most int64) *watch {
	w := &watch{over: make(chan struct{})}
	go func() {
		defer close(w.over)
		for s.ctx.Err() == nil {
			info, err := s.api.Run(id).Get(s.ctx)
			switch {
			case err != nil: // the server is away
			case info.State == sdk.RunFailed || info.State == sdk.RunCancelled:
				s.Errorf("the run is %s: %v", info.State, info.Err())
				fallthrough
			case info.State.Over():
				w.end = info
				return
			case most >= 0 && info.Counts.Written > most:
				s.Errorf("a run over %d rows says, %s, that it has written %d", most, info.State, info.Counts.Written)
			}
			if err == nil && (len(w.seen) == 0 || w.seen[len(w.seen)-1] != info.State) {
				w.seen = append(w.seen, info.State)
			}
			select {
			case <-time.After(100 * time.Millisecond):
			case <-s.ctx.Done():
			}
		}
	}()
	return w
}

// ends waits until the run is over.
func (s *stage) ends(w *watch) *sdk.RunInfo {
	s.Helper()
	select {
	case <-w.over:
	case <-time.After(2 * time.Minute):
		s.Fatalf("the run did not end; it was seen as %v\n%s", w.seen, s.rig.Logs())
	}
	if w.end == nil {
		s.Fatalf("the run was not seen to end: %v", s.ctx.Err())
	}
	return w.end
}
