package runner

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/athena-pipelines/athena/pipelines/runs"
	"github.com/athena-pipelines/athena/pipelines/source"
	"github.com/athena-pipelines/athena/pipelines/spec"
	"github.com/athena-pipelines/athena/pipelines/stage"
	"github.com/athena-pipelines/athena/pipelines/transform"
	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/changefeed"
	"github.com/athena-pipelines/athena/pkg/crashpoint"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/record"
	"github.com/athena-pipelines/athena/pkg/telemetry"
)

const (
	// takeMost is how many changes are read at once.
	takeMost = 4096
	// commitRows and commitEvery bound a commit to tables while changes wait; one
	// that has caught up commits at once.
	commitRows  = 20_000
	commitEvery = time.Second
	// idle is how long a stream waits for a change before it looks at the clock.
	idle = 250 * time.Millisecond
	// cursorEvery is how often the cursor of a stream is stored whose sink keeps a
	// checkpoint itself.
	cursorEvery = time.Second
)

// A follower follows a stream of changes until the run is to end.
type follower struct {
	*leader
	to     target
	tables bool // the sink keeps checkpoints; else the cursor is the checkpoint
	roll   spec.Roll

	cursor  runs.Cursor
	changes source.Changes
	chains  map[*record.Schema]*chained
	expect  map[string]*record.Schema // of the source, by table
	flow    *flow
	writer  stage.Writer // nil between commits
	named   string       // part of the commit under way
	begun   time.Time    // of it
	at      cdc.Position // behind all that was read and written
	clean   bool         // nothing was written behind at
	newest  int64        // when the last change was committed at its source
	counts  runs.Counts  // of what has taken effect
	busy    runs.Busy
	stored  time.Time    // when the cursor was
	late    *runs.Cursor // of what has taken effect, and is not stored yet
	told    time.Time
	attempt *int
	end     cdc.Position // behind the rows of the snapshot, once it is done
}

// follow runs one session of a stream: from where it has come to until something
// ends it. It returns errUnwanted, by its context, when the run is to end; what
// was read by then has taken effect.
func (l *leader) follow(ctx context.Context, attempt *int) error {
	if err := l.sole(ctx); err != nil {
		return err
	}
	if l.job.run.State == runs.Queued {
		if _, err := l.become(ctx, runs.Starting, nil, "led by worker %s", l.ID); err != nil {
			return err
		}
	}
	s := l.job.spec.Source
	if _, err := l.Dispatcher.Check(ctx, stage.SourceOp(s), s.Client); err != nil {
		return at(err, "source")
	}
	client, err := l.Catalog.Client(ctx, s.Client)
	if err != nil {
		return at(err, "source")
	}
	return l.job.withSink(ctx, func(ctx context.Context, to target) error {
		f := newFollower(l, to)
		f.attempt = attempt
		from := l.Drivers[client.Engine()]
		f.changes = source.Changes{Store: l.Changes, Client: s.Client, Types: from.ColumnType, Sorts: from.ColumnSorts}
		return f.run(ctx)
	})
}

// sole fails if another run follows the pipeline's source now: it was started
// while somebody had this one go on.
func (l *leader) sole(ctx context.Context) error {
	return l.Store.Claim(ctx, l.job.run.PipelineID, func(st *runs.Standing) error {
		if st.Stream != "" && st.Stream != l.id {
			return athena.Errorf(athena.CodeConflict, "run %s follows the source of this pipeline now; there is one at most", st.Stream).With("run", st.Stream)
		}
		st.Stream = l.id
		return nil
	})
}

func newFollower(l *leader, to target) *follower {
	_, tables := to.(*tableTarget)
	f := &follower{leader: l, to: to, tables: tables, chains: map[*record.Schema]*chained{}}
	if o := l.job.spec.Sink.Objects; o != nil {
		f.roll = o.Roll
	}
	return f
}

func (f *follower) run(ctx context.Context) error {
	f.expect = maps.Clone(f.Store.Standing(f.job.checkpoints()).Schemas)
	if f.expect == nil {
		f.expect = map[string]*record.Schema{}
	}
	if err := f.settle(ctx); err != nil {
		return err
	}
	if err := f.begin(ctx); err != nil {
		return at(err, "source")
	}
	filter, err := changefeed.NewFilter(changefeed.FilterSpec{Tables: quoted(f.job.spec.Source.CDC.Tables), Where: f.job.spec.Source.CDC.Where})
	if err != nil {
		return at(err, "source")
	}
	reader, err := f.Feeds.Open(ctx, f.job.spec.Source.Client, string(f.cursor.Position), filter)
	if err != nil {
		return at(err, "source")
	}
	defer reader.Close()
	reader.Heartbeat = idle
	f.changes.Reader, f.at, f.clean = reader, f.cursor.Position, true
	defer func() {
		if f.writer != nil {
			actx, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
			defer cancel()
			f.writer.Abort(actx)
		}
	}()
	lasts, cancel := lasting(ctx) // for what is written, so that it can be committed at the end
	defer cancel()
	for {
		if err := f.turn(ctx, lasts); err != nil {
			if ctx.Err() != nil { // what was read whole may take effect
				return f.drain(ctx, err)
			}
			return err
		}
	}
}

// turn reads some changes, takes them through, and commits when it is time. What
// is written is under way for longer than the turn, as long as lasts does.
func (f *follower) turn(ctx, lasts context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	read := time.Now()
	chunk, err := f.changes.Next(ctx, takeMost, func(u stage.Unread, pos cdc.Position) error {
		f.clean = false
		return f.open().unread(lasts, u, pos)
	})
	if err != nil {
		return at(err, "source")
	}
	if chunk.Lines > 0 {
		f.busy.Source += time.Since(read)
		crashpoint.Here(crashpoint.StreamRead)
	}
	for _, g := range chunk.Gaps {
		if err := f.gap(ctx, g); err != nil {
			return at(err, "source")
		}
	}
	for _, b := range chunk.Batches {
		f.clean = false
		if err := f.push(lasts, b); err != nil {
			return err
		}
	}
	f.at, f.clean = chunk.Cursor, true
	if f.due(chunk) {
		if err := f.commit(ctx); err != nil {
			return err
		}
		*f.attempt = 0
	}
	return f.tell(ctx, chunk)
}

// gap notes where a capture began anew. What was deleted before is not in the
// stream; a copy by key is right again behind the rows, which begin with a truncate,
// and is refused to go on where the capture reads none.
func (f *follower) gap(ctx context.Context, g changefeed.Gap) error {
	lost := f.job.spec.Source.CDC.Tables
	if g.Tables != nil {
		lost = slices.DeleteFunc(slices.Clone(lost), func(name string) bool {
			t, err := driver.ParseTableName(name)
			return err == nil && !slices.Contains(g.Tables, t)
		})
	}
	client := f.job.spec.Source.Client
	capture, _ := f.Changes.Capture(client)
	keyed := f.tables && f.job.spec.Mode() == driver.Upsert
	if keyed && len(lost) > 0 && g.Snapshot == changefeed.SnapshotNone && capture.Snapshot != changefeed.SnapshotInitial {
		return athena.Errorf(athena.CodeCursorExpired, "the capture of client %q began anew at %s without a snapshot, so that the stream lacks changes of %s; have the rows read anew (athena cdc add --client %s --tables %s --snapshot initial), then resume the run (athena pipeline resume %s)",
			client, g.Begin, strings.Join(lost, ", "), client, changefeed.ShellTables(lost...), f.id)
	}
	f.note(ctx, "changes may be missing before %s: the capture began anew there (see its status)", g.Begin)
	return nil
}

func (f *follower) note(ctx context.Context, format string, args ...any) {
	if _, err := f.Store.Change(ctx, f.id, func(r *runs.Run) error { r.Log(format, args...); return nil }); err != nil && ctx.Err() == nil {
		f.Log.Warn("a step of a run was not stored", "run", f.id, telemetry.KeyError, err)
	}
}

// open returns the flow of the commit under way, and begins one if there is none.
func (f *follower) open() *flow {
	if f.writer == nil {
		f.named = f.part()
		f.writer = f.to.begin(f.named)
		f.begun = time.Now()
		f.flow = &flow{job: f.job, chains: f, writer: f.writer, name: string(f.at)}
	}
	return f.flow
}

// streamPart is the part under which tables keep the checkpoint of a stream.
const streamPart = "stream"

// part names what a commit writes: of tables the checkpoint, which is the same
// for all commits; of objects where they begin.
func (f *follower) part() string {
	if f.tables {
		return streamPart
	}
	return fmt.Sprintf("%012d-%s", f.cursor.Commit+1, f.at)
}

func (f *follower) push(ctx context.Context, b *record.Batch) error {
	fl := f.open()
	for i := len(b.Changes) - 1; i >= 0; i-- {
		if at := b.Changes[i].At; at > 0 {
			f.newest = max(f.newest, at)
			break
		}
	}
	return fl.push(ctx, b)
}

// of returns what takes the rows of b through: for each set of columns that a
// table has had, as the contract has it.
func (f *follower) of(b *record.Batch) (*chained, error) {
	if c, ok := f.chains[b.Schema]; ok {
		return c, nil
	}
	a, err := f.job.agree(f.expect[b.From], b.Schema)
	if err != nil {
		return nil, err
	}
	c, err := f.job.compile(a.Out)
	if err != nil {
		return nil, err
	}
	if was := f.expect[b.From]; !a.Expected.Equal(was) {
		f.expect[b.From] = a.Expected
		if err := f.learnt(b.From, a); err != nil {
			return nil, err
		}
	}
	f.chains[b.Schema] = &chained{a, c}
	return f.chains[b.Schema], nil
}

// learnt stores what is expected of a table from now on.
func (f *follower) learnt(table string, a *transform.Agreement) error {
	ctx, cancel := context.WithTimeout(context.Background(), grace)
	defer cancel()
	if len(a.News) > 0 {
		f.note(ctx, "%s: %s", table, a)
	}
	return f.Store.Remember(ctx, f.job.checkpoints(), func(s *runs.Standing) {
		if s.Schemas == nil {
			s.Schemas = map[string]*record.Schema{}
		}
		s.Schemas[table] = a.Expected
	})
}

// tell stores how far the stream is, now and then.
func (f *follower) tell(ctx context.Context, chunk source.Chunk) error {
	now := time.Now().UTC()
	if now.Sub(f.told) < tellEvery {
		return nil
	}
	f.told = now
	p := runs.Progress{Run: f.id, At: now, Worker: f.ID, Counts: f.counts, Rows: -1, Bytes: -1, Position: f.cursor.Position, Stages: shares(f.busy)}
	if f.flow != nil {
		p.Counts.Add(f.flow.counts)
	}
	p.RowsPerSecond, p.BytesPerSecond = f.rate.of(now, p.Counts.Read, p.Counts.Bytes)
	if chunk.More && f.newest > 0 {
		p.LagSeconds = max(0, now.Sub(time.UnixMicro(f.newest)).Seconds())
	}
	if err := f.Store.PutProgress(ctx, p); err != nil {
		return err
	}
	if f.cursor.Snapshot == "" {
		return nil
	}
	return f.handOver(ctx)
}
