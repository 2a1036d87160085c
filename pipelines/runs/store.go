package runs

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/bus"
	"github.com/athena-pipelines/athena/pkg/documents"
)

// Kinds of keys in the bucket.
const (
	keyDefinition = "def."      // name
	keyGeneration = "gen."      // name.generation
	keyStanding   = "standing." // id of the pipeline
	keyRun        = "run."      // id
	keyProgress   = "progress." // id of the run
	keyTask       = "task."     // id of the run, set, number
	keyCursor     = "cursor."   // id of the pipeline
)

// Store keeps pipelines and runs. Reads come from this process's copy of the
// bucket, which Run keeps, unless said otherwise. It is safe for concurrent use.
type Store struct {
	bus      *bus.Bus
	docs     *documents.Bucket
	rejected *bus.Publisher

	mu   sync.Mutex
	over map[string]uint64 // keys of runs that are over, at the revision that was looked at
}

// NewStore returns the store on b.
func NewStore(ctx context.Context, b *bus.Bus, log *slog.Logger) (*Store, error) {
	docs, err := documents.Open(ctx, b.JetStream(), bus.BucketPipelines, log)
	return &Store{bus: b, docs: docs, rejected: bus.NewPublisher(b, bus.StreamRejected), over: map[string]uint64{}}, err
}

// Run follows the bucket until ctx is done.
func (s *Store) Run(ctx context.Context) error { return s.docs.Run(ctx) }

// Ready returns once the copy is complete for the first time.
func (s *Store) Ready(ctx context.Context) error { return s.docs.Ready(ctx) }

// Sync returns once the copy has everything that was stored when it was called.
func (s *Store) Sync(ctx context.Context) error { return s.docs.Sync(ctx) }

// Subscribe has fn called with the id of each run that changes, its tasks and its
// progress with it, and with "" when a pipeline does. fn must return quickly.
func (s *Store) Subscribe(fn func(run string)) (cancel func()) {
	return s.docs.Subscribe(func(key string) {
		kind, rest, _ := strings.Cut(key, ".")
		switch kind + "." {
		case keyRun, keyTask, keyProgress:
			id, _, _ := strings.Cut(rest, ".")
			fn(id)
		case keyDefinition, keyStanding:
			fn("")
		}
	})
}

// Definitions lists the pipelines, by name.
func (s *Store) Definitions() []Definition {
	return documents.List(s.docs, keyDefinition, func(d *Definition, rev uint64) { d.Revision = rev })
}

// Definition returns a pipeline; false if there is none.
func (s *Store) Definition(name string) (Definition, bool) {
	d, rev, ok := documents.Load[Definition](s.docs, keyDefinition+name)
	d.Revision = rev
	return d, ok
}

// Generation returns an earlier version of a pipeline; false if there is none.
func (s *Store) Generation(name string, generation int) (Definition, bool) {
	d, _, ok := documents.Load[Definition](s.docs, fmt.Sprint(keyGeneration, name, ".", generation))
	return d, ok
}

// PutDefinition stores d as the version after the one at its Revision; 0 is a new
// pipeline. A conflict error says that it is another one now.
func (s *Store) PutDefinition(ctx context.Context, d Definition) (Definition, error) {
	d.Generation++
	// The version first: what runs have run can then be looked up. One that is
	// left over from a lost race is replaced by who wins the next.
	if err := s.docs.Set(ctx, fmt.Sprint(keyGeneration, d.Name, ".", d.Generation), d); err != nil {
		return d, err
	}
	rev, err := s.docs.Put(ctx, keyDefinition+d.Name, d, d.Revision)
	d.Revision = rev
	return d, err
}

// RemoveDefinition removes a pipeline, at the revision that it has, with all that
// is kept of it but its runs.
func (s *Store) RemoveDefinition(ctx context.Context, d Definition) error {
	if err := s.docs.Remove(ctx, keyDefinition+d.Name, jetstream.LastRevision(d.Revision)); err != nil {
		return err
	}
	for n := 1; n <= d.Generation; n++ {
		if err := s.docs.Remove(ctx, fmt.Sprint(keyGeneration, d.Name, ".", n)); err != nil {
			return err
		}
	}
	for _, key := range []string{keyStanding, keyCursor} {
		if err := s.docs.Remove(ctx, key+d.ID); err != nil {
			return err
		}
	}
	return s.DropRejected(ctx, d.ID, 0)
}

// Standing returns what is remembered of a pipeline.
func (s *Store) Standing(id string) Standing {
	st, rev, _ := documents.Load[Standing](s.docs, keyStanding+id)
	st.Revision = rev
	return st
}

// Remember changes what is remembered of a pipeline.
func (s *Store) Remember(ctx context.Context, id string, change func(*Standing)) error {
	return s.Claim(ctx, id, func(st *Standing) error { change(st); return nil })
}

// Claim is Remember for a change that may be refused: an error of change is
// returned, and nothing is stored.
func (s *Store) Claim(ctx context.Context, id string, change func(*Standing) error) (err error) {
	var refused error
	err = s.retry(ctx, func() error {
		st, rev, _, err := documents.Get[Standing](ctx, s.docs, keyStanding+id)
		if err != nil {
			return err
		}
		if refused = change(&st); refused != nil {
			return nil
		}
		_, err = s.docs.Put(ctx, keyStanding+id, st, rev)
		return err
	})
	return cmp.Or(refused, err)
}

// retry does what may be overtaken by another write, a few times.
func (s *Store) retry(ctx context.Context, do func() error) (err error) {
	for range 10 {
		if err = do(); athena.CodeOf(err) != athena.CodeConflict || ctx.Err() != nil {
			return err
		}
	}
	return err
}

// Runs lists runs, oldest first; those of one pipeline if it is named.
func (s *Store) Runs(pipeline string) []Run {
	all := documents.List(s.docs, keyRun, func(r *Run, rev uint64) { r.Revision = rev })
	if pipeline == "" {
		return all
	}
	var out []Run
	for _, r := range all {
		if r.Pipeline == pipeline {
			out = append(out, r)
		}
	}
	return out
}

// Live lists the runs that are not over, oldest first. Those that are, of which
// many are kept, are decoded once.
func (s *Store) Live() []Run {
	s.mu.Lock()
	defer s.mu.Unlock()
	var live []Run
	over := make(map[string]uint64, len(s.over))
	s.docs.Each(keyRun, func(key string, rev uint64, raw []byte) {
		if s.over[key] == rev {
			over[key] = rev
			return
		}
		var r Run
		if json.Unmarshal(raw, &r) != nil || r.State.Over() {
			over[key] = rev
			return
		}
		r.Revision = rev
		live = append(live, r)
	})
	s.over = over
	slices.SortFunc(live, func(a, b Run) int { return strings.Compare(a.ID, b.ID) })
	return live
}

// Load returns a run; false if there is none.
func (s *Store) Load(id string) (Run, bool) {
	r, rev, ok := documents.Load[Run](s.docs, keyRun+id)
	r.Revision = rev
	return r, ok
}

// Put stores r over the revision that it has; 0 is a new run.
func (s *Store) Put(ctx context.Context, r Run) (Run, error) {
	rev, err := s.docs.Put(ctx, keyRun+r.ID, r, r.Revision)
	if err == nil {
		r.Revision = rev
	}
	return r, err
}

// Change changes a run as it is stored now, whoever else writes it. An error of
// change is returned, and nothing is stored.
func (s *Store) Change(ctx context.Context, id string, change func(*Run) error) (r Run, err error) {
	var refused error
	err = s.retry(ctx, func() error {
		var ok bool
		if r, r.Revision, ok, err = documents.Get[Run](ctx, s.docs, keyRun+id); err != nil {
			return err
		}
		if !ok {
			return athena.Errorf(athena.CodeNotFound, "there is no run %.80q; list them with GET /runs", id)
		}
		rev := r.Revision
		if refused = change(&r); refused != nil {
			return nil
		}
		r.Revision = rev
		r, err = s.Put(ctx, r)
		return err
	})
	return r, cmp.Or(refused, err)
}

// Forget removes a run and all that is kept of it.
func (s *Store) Forget(ctx context.Context, r Run) error {
	if err := s.ForgetTasks(ctx, r.ID); err != nil {
		return err
	}
	if err := s.docs.Remove(ctx, keyProgress+r.ID); err != nil {
		return err
	}
	return s.docs.Remove(ctx, keyRun+r.ID)
}

// ForgetTasks removes the tasks of a run that is over, those of all sets.
func (s *Store) ForgetTasks(ctx context.Context, run string) error {
	var keys []string
	s.docs.Each(keyTask+run+".", func(key string, _ uint64, _ []byte) { keys = append(keys, key) })
	for _, key := range keys {
		if err := s.docs.Remove(ctx, key); err != nil {
			return err
		}
	}
	return nil
}

// Progress returns how far a run is, as far as was told.
func (s *Store) Progress(run string) (Progress, bool) {
	p, _, ok := documents.Load[Progress](s.docs, keyProgress+run)
	return p, ok
}

// PutProgress tells how far a run is.
func (s *Store) PutProgress(ctx context.Context, p Progress) error {
	return s.docs.Set(ctx, keyProgress+p.Run, p)
}

// Tasks lists the tasks of a run; none until all of them are made.
func (s *Store) Tasks(run string) []Task {
	r, ok := s.Load(run)
	if !ok || !r.Made {
		return nil
	}
	return documents.List(s.docs, keyTask+run+"."+r.Set+".", func(t *Task, rev uint64) { t.Revision = rev })
}

// PutTask stores t over the revision that it has; 0 is a new task. A conflict
// error says that somebody else has it.
func (s *Store) PutTask(ctx context.Context, t Task) (Task, error) {
	rev, err := s.docs.Put(ctx, fmt.Sprintf("%s%s.%s.%06d", keyTask, t.Run, t.Set, t.N), t, t.Revision)
	if err == nil {
		t.Revision = rev
	}
	return t, err
}

// Cursor returns how far a stream is, as it is stored now; the zero Cursor if it
// has not begun.
func (s *Store) Cursor(ctx context.Context, pipelineID string) (Cursor, error) {
	c, rev, _, err := documents.Get[Cursor](ctx, s.docs, keyCursor+pipelineID)
	c.Revision = rev
	return c, err
}

// PutCursor stores c over the revision that it has; a conflict error says that
// another worker follows the stream.
func (s *Store) PutCursor(ctx context.Context, pipelineID string, c Cursor) (Cursor, error) {
	rev, err := s.docs.Put(ctx, keyCursor+pipelineID, c, c.Revision)
	if err == nil {
		c.Revision = rev
	}
	return c, err
}

// DropCursor has a stream begin anew.
func (s *Store) DropCursor(ctx context.Context, pipelineID string) error {
	return s.docs.Remove(ctx, keyCursor+pipelineID)
}
