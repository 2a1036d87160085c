package scylla

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gocql/gocql"
	scyllacdc "github.com/scylladb/scylla-cdc-go"

	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/driver"
)

// A logReader has scylla-cdc-go read the log of one table and gives what it reads
// to the stream. One reader has one table: the library knows one table with
// tablets only, and we one floor for each.
//
// It is all that the library asks for: the factory of consumers, and the manager
// of a progress that is kept elsewhere.
type logReader struct {
	stream  *changeStream
	name    driver.TableName
	hash    uint32
	gate    *gate
	session *gocql.Session
	advance scyllacdc.AdvancedReaderConfig
	ctx     context.Context // of run, which it belongs to
	// take is given each batch. It returns once the batch is on its way.
	take  func(ctx context.Context, r *logReader, id batchID, change *scyllacdc.Change) error
	start ticks
	// done is by stream the last batch that the stream of changes has, which is
	// not read again. It is not written to once reading has begun.
	done map[string]gocql.UUID
	// others is the same for the streams that done does not have.
	others gocql.UUID
	// passed, if set, is told from where on a group of streams is asked for.
	passed func(begin ticks) error

	table atomic.Pointer[captureTable]
	ttl   atomic.Int64 // of the log
	alter sync.Mutex

	floor *floor // of Run's goroutine
}

// openTimeout bounds what the library does before it reads: it asks for schemas
// without a way to stop it.
const openTimeout = time.Minute

// stopGrace is how long the library has to notice that it is to stop.
const stopGrace = 200 * time.Millisecond

var errHangs = errors.New("scylla: the cluster does not answer questions about its schema")

// run reads until ctx is done or something fails. The library is not told by a
// context that it is to end: one of its goroutines would wait for ever where two
// generations follow. It is told to stop, and what it still reads is dropped.
func (r *logReader) run(ctx context.Context) error {
	r.ctx = ctx
	lib, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	type opened struct {
		reader *scyllacdc.Reader
		err    error
	}
	ready := make(chan opened, 1)
	go func() {
		reader, err := scyllacdc.NewReader(lib, &scyllacdc.ReaderConfig{
			Session: r.session, TableNames: []string{r.name.Schema + "." + r.name.Table}, Consistency: r.stream.backend.level(),
			ChangeConsumerFactory: r, ProgressManager: r, Advanced: r.advance,
		})
		ready <- opened{reader, err}
	}()
	var reader *scyllacdc.Reader
	select {
	case o := <-ready:
		if o.err != nil {
			return o.err
		}
		reader = o.reader
	case <-time.After(openTimeout):
		return errHangs
	case <-ctx.Done():
		return ctx.Err()
	}
	stop := context.AfterFunc(ctx, func() {
		reader.Stop()
		time.AfterFunc(stopGrace, cancel) // else it goes on to generations that it has met
	})
	defer stop()
	err := reader.Run(lib)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err == nil:
		return fmt.Errorf("scylla: the reader of %s has stopped", r.name)
	case isMissing(err):
		return logMissing(r.name, "the log is gone")
	}
	return err
}

// isMissing reports whether the library gave up since the table is not there.
func isMissing(err error) bool { return strings.Contains(err.Error(), "no longer exists") }

// CreateChangeConsumer never fails: the library would go on without a consumer,
// and end the process with its first change.
func (r *logReader) CreateChangeConsumer(_ context.Context, in scyllacdc.CreateChangeConsumerInput) (scyllacdc.ChangeConsumer, error) {
	return consumer{r}, nil
}

// A consumer takes the changes of one stream.
type consumer struct{ *logReader }

// Consume never fails either. Once it cannot go on it ends the stream, and drops
// what comes behind.
func (c consumer) Consume(_ context.Context, change scyllacdc.Change) error {
	if c.stream.over.Load() || c.ctx.Err() != nil {
		return nil
	}
	if err := c.consume(&change); err != nil && c.ctx.Err() == nil {
		c.stream.abort(err)
	}
	return nil
}

func (c consumer) consume(change *scyllacdc.Change) (err error) {
	defer recovered(&err)
	id := batchID{table: c.hash, at: change.Time}
	if len(change.StreamID) != streamBytes {
		return fmt.Errorf("scylla: the log of %s has a stream whose id has %d bytes: 0x%x", c.name, len(change.StreamID), []byte(change.StreamID))
	}
	copy(id.stream[:], change.StreamID)
	return c.take(c.ctx, c.logReader, id, change)
}

func (c consumer) End() error { return nil }

// recovered makes an error of a panic: in a goroutine of the library it would end
// the process.
func recovered(err *error) {
	if p := recover(); p != nil {
		*err = fmt.Errorf("scylla: panic: %v\n%s", p, debug.Stack())
	}
}

// GetCurrentGeneration leaves it to the time where reading begins.
func (r *logReader) GetCurrentGeneration(context.Context) (time.Time, error) {
	return time.Time{}, nil
}

// GetApplicationReadStartTime is where reading begins.
func (r *logReader) GetApplicationReadStartTime(context.Context) (time.Time, error) {
	return r.start.time(), nil
}

// SaveApplicationReadStartTime is not called, since there is one.
func (r *logReader) SaveApplicationReadStartTime(context.Context, time.Time) error { return nil }

// GetProgress is the last batch of a stream that need not be read again.
func (r *logReader) GetProgress(_ context.Context, _ time.Time, _ string, stream scyllacdc.StreamID) (scyllacdc.Progress, error) {
	at, ok := r.done[string(stream)]
	if !ok {
		at = r.others
	}
	return scyllacdc.Progress{LastProcessedRecordTime: at}, nil
}

// SaveProgress is not called: the stream of changes is the progress.
func (r *logReader) SaveProgress(context.Context, time.Time, string, scyllacdc.StreamID, scyllacdc.Progress) error {
	return nil
}

// StartGeneration is called when all of the generation before is read, before
// anything of this one is. It fails if there are no streams, since the library
// would divide by their number; what else goes wrong ends the stream.
func (r *logReader) StartGeneration(_ context.Context, at time.Time) error {
	groups, known := r.gate.known(at)
	if !known {
		var err error
		if groups, err = r.gate.groups(r.ctx, at); err != nil {
			return err
		}
	}
	if len(groups) == 0 {
		return fmt.Errorf("scylla: the generation of %s has no streams", at.UTC().Format(time.RFC3339Nano))
	}
	begin := ticksOf(at)
	err := r.stream.do(r.ctx, func(context.Context, driver.ChangeSink) error {
		r.floor.start(max(r.start, begin), groups)
		return r.inTime(time.Now())
	})
	if err != nil && r.ctx.Err() == nil {
		return err
	}
	return nil
}

// decode makes changes of a batch. Where the table was altered it is asked for
// anew.
func (r *logReader) decode(ctx context.Context, id batchID, change *scyllacdc.Change) (*batch, error) {
	t := r.table.Load()
	changes, rejected, err := t.decode(ctx, change)
	if errors.Is(err, errColumns) {
		if t, err = r.altered(ctx, t); err != nil {
			return nil, err
		}
		changes, rejected, err = t.decode(ctx, change)
	}
	if err != nil {
		return nil, fmt.Errorf("the batch %s of %s: %w", id.tx(), r.name, err)
	}
	return &batch{batchID: id, reader: r, table: t, changes: changes, rejected: rejected}, nil
}

// altered describes the table again, once for all that met the change.
func (r *logReader) altered(ctx context.Context, was *captureTable) (*captureTable, error) {
	r.alter.Lock()
	defer r.alter.Unlock()
	if now := r.table.Load(); now != was {
		return now, nil
	}
	now, err := r.stream.describe(ctx, r.name)
	if err != nil {
		return nil, err
	}
	r.table.Store(now)
	return now, nil
}

// A batch of the log, decoded.
type batch struct {
	batchID
	reader   *logReader
	table    *captureTable
	late     bool
	changes  []cdc.Change
	rejected []driver.Rejected
}

// A watch sees what the library asks one session: a group of streams is asked for
// from where all before has been consumed. It is called by the goroutine that
// asks, before that has the answer.
type watch struct {
	stream  *changeStream
	session *gocql.Session

	mu      sync.Mutex
	ctx     context.Context // of the readers, which it belongs to
	readers map[driver.TableName]*logReader
}

// follow has the watch see what these readers ask.
func (w *watch) follow(ctx context.Context, readers []*logReader) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ctx, w.readers = ctx, map[driver.TableName]*logReader{}
	for _, r := range readers {
		w.readers[r.name] = r
	}
}

func (w *watch) ObserveQuery(_ context.Context, q gocql.ObservedQuery) {
	var err error
	defer func() {
		if err != nil {
			w.stream.abort(err)
		}
	}()
	defer recovered(&err)
	switch {
	case strings.HasPrefix(q.Statement, "SELECT ") && strings.Contains(q.Statement, logSuffix+" WHERE "):
		err = w.polled(q)
	case q.Err != nil:
	case q.Statement == vnodeTimes, q.Statement == tabletTimes:
		err = w.looked(q)
	case q.Statement == oldTimes:
		err = errOldGenerations
	}
}

// reader finds whose question it is.
func (w *watch) reader(t driver.TableName) (context.Context, *logReader) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.ctx, w.readers[t]
}

// polled sees a page of a log that was asked for.
func (w *watch) polled(q gocql.ObservedQuery) error {
	text, _, _ := strings.Cut(q.Statement, logSuffix+" WHERE ")
	schema, table, _ := strings.Cut(text[strings.LastIndexByte(text, ' ')+1:], ".")
	ctx, r := w.reader(driver.TableName{Schema: schema, Table: table})
	n := len(q.Values) - 2
	if r == nil || n < 1 || w.stream.over.Load() || r.ctx.Err() != nil {
		return nil // over: what was consumed before may have been dropped
	}
	if q.Err != nil {
		return w.stream.refused(r.name, q.Err)
	}
	w.stream.answered()
	id, ok := q.Values[0].(scyllacdc.StreamID)
	begin, ok2 := q.Values[n].(gocql.UUID)
	if !ok || !ok2 {
		return fmt.Errorf("scylla: the log of %s was asked for by values that are not known: %T, %T", r.name, q.Values[0], q.Values[n])
	}
	stream := string(id)
	return ignoreDone(ctx, w.stream.do(ctx, func(context.Context, driver.ChangeSink) error {
		if !r.floor.pass(stream, ticks(begin.Timestamp())) {
			return errOtherStreams(r.name, stream)
		}
		if r.passed != nil {
			return r.passed(ticks(begin.Timestamp()))
		}
		return nil
	}))
}

// looked holds the library where it has asked when generations begin, until all
// of them have streams, and notes what is known.
func (w *watch) looked(q gocql.ObservedQuery) error {
	w.mu.Lock()
	ctx := w.ctx
	var readers []*logReader
	for name, r := range w.readers {
		of := len(q.Values) == 2 && q.Values[0] == name.Schema && q.Values[1] == name.Table
		if r.gate.tablets == of && (of || q.Statement == vnodeTimes) {
			readers = append(readers, r)
		}
	}
	w.mu.Unlock()
	if len(readers) == 0 {
		return nil
	}
	start := readers[0].start
	for _, r := range readers {
		start = min(start, r.start)
	}
	asked := ticksOf(time.Now().Add(-w.stream.pace.confidence / 2)) // what began by then is told now
	begins, err := readers[0].gate.pass(ctx, start)
	if err != nil {
		return ignoreDone(ctx, err)
	}
	list := make([]ticks, len(begins))
	for i, b := range begins {
		list[i] = ticksOf(b)
	}
	return ignoreDone(ctx, w.stream.do(ctx, func(context.Context, driver.ChangeSink) error {
		for _, r := range readers {
			r.floor.look(list, asked)
		}
		return nil
	}))
}

func ignoreDone(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}
