package scylla

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/gocql/gocql"
	"golang.org/x/sync/errgroup"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/driver"
)

// checkpoints is the table of checkpoints, in each keyspace that is written to. They
// are compared and set by conditional writes alone, which settle among themselves by
// the cluster's own order. clock is the time of the last write of a stream of changes;
// writer tells an attempt of ours whose answer was lost from another's.
const checkpoints = "athena_checkpoints"

const (
	maxNote       = 64 << 10
	schemaTimeout = time.Minute
	// conditionalTimeout bounds an attempt at a conditional write.
	conditionalTimeout = 15 * time.Second
)

func checkpointsOf(keyspace string) string { return quoteName(keyspace) + "." + checkpoints }

func (b *Backend) prepareCheckpoints(ctx context.Context, keyspace string) error {
	_, err := b.tableMeta(ctx, keyspace, checkpoints)
	if athena.CodeOf(err) != athena.CodeNotFound {
		return err
	}
	return b.alter(ctx, "CREATE TABLE IF NOT EXISTS "+checkpointsOf(keyspace)+` (
	pipeline text, run text, part text, position text, note text, clock bigint, writer uuid, at timestamp,
	PRIMARY KEY ((pipeline), run, part))`)
}

// serial is the consistency of reads that see every conditional write that has taken
// effect.
func (b *Backend) serial() gocql.Consistency {
	if b.conn.Datacenter != "" {
		return gocql.LocalSerial
	}
	return gocql.Serial
}

// stored is a checkpoint as the table has it.
type stored struct {
	position, note string
	clock          int64
	writer         gocql.UUID
}

// checkpoint reads one; false if there is none.
func (b *Backend) checkpoint(ctx context.Context, keyspace string, k driver.CheckpointKey) (s stored, ok bool, err error) {
	err = b.retry(ctx, func() error {
		return b.session.Query("SELECT position, note, clock, writer FROM "+checkpointsOf(keyspace)+" WHERE pipeline = ? AND run = ? AND part = ?", k.Pipeline, k.Run, k.Part).
			WithContext(ctx).SetRequestTimeout(conditionalTimeout).Idempotent(true).Consistency(b.serial()).Scan(&s.position, &s.note, &s.clock, &s.writer)
	})
	switch {
	case errors.Is(err, gocql.ErrNotFound), noSuchTable(err):
		return s, false, nil
	case err != nil:
		return s, false, readError(scanError(ctx, err))
	}
	return s, s.position != "", nil // a row that is being deleted has none
}

// noSuchTable reports that a statement names a table that there is not.
func noSuchTable(err error) bool {
	var e serverError
	if !errors.As(err, &e) || e.GetCode() != gocql.ErrCodeInvalid && e.GetCode() != gocql.ErrCodeConfig {
		return false
	}
	text := strings.ToLower(e.GetMessage())
	return strings.Contains(text, "unconfigured table") || strings.Contains(text, "table "+checkpoints+" does not exist") ||
		strings.Contains(text, "keyspace") && strings.Contains(text, "does not exist")
}

// Checkpoint returns what was committed last under a key, in any of the keyspaces that
// rows were written to.
func (b *Backend) Checkpoint(ctx context.Context, k driver.CheckpointKey) (driver.Checkpoint, bool, error) {
	c := driver.Checkpoint{CheckpointKey: k}
	list, err := b.checkpointKeyspaces(ctx)
	if err != nil {
		return c, false, err
	}
	for _, keyspace := range list {
		s, ok, err := b.checkpoint(ctx, keyspace, k)
		if err != nil {
			return c, false, err
		}
		if ok {
			c.Position = cdc.Position(s.position)
			if s.note != "" {
				c.Note = json.RawMessage(s.note)
			}
			return c, true, nil
		}
	}
	return c, false, nil
}

// checkpointKeyspaces lists the keyspaces that have a table of checkpoints.
func (b *Backend) checkpointKeyspaces(ctx context.Context) (list []string, err error) {
	var keyspace, table string
	err = b.catalog(ctx, "SELECT keyspace_name, table_name FROM system_schema.tables", nil, []any{&keyspace, &table}, func() error {
		if table == checkpoints {
			list = append(list, keyspace)
		}
		return nil
	})
	if err != nil {
		return nil, readError(scanError(ctx, err))
	}
	return list, nil
}

// store compares and sets a checkpoint. It asks again where the answer was lost: then
// the row tells whose it is.
func (b *Backend) store(ctx context.Context, keyspace string, c driver.Checkpoint, clock int64, writer gocql.UUID) error {
	switch {
	case c.Position == "":
		return athena.Errorf(athena.CodeInvalidRequest, "the position of a checkpoint is empty").At("position")
	case len(c.Note) > maxNote:
		return athena.Errorf(athena.CodeInvalidRequest, "the note of a checkpoint has %d bytes; it may have %d", len(c.Note), maxNote).At("note")
	case c.Pipeline == "":
		return athena.Errorf(athena.CodeInvalidRequest, "a checkpoint is of no pipeline").At("pipeline")
	}
	var note *string
	if len(c.Note) > 0 {
		text := string(c.Note)
		note = &text
	}
	text := "INSERT INTO " + checkpointsOf(keyspace) + " (pipeline, run, part, position, note, clock, writer, at) VALUES (?, ?, ?, ?, ?, ?, ?, ?) IF NOT EXISTS"
	args := []any{c.Pipeline, c.Run, c.Part, string(c.Position), note, clock, writer, time.Now()}
	if c.Before != "" {
		text = "UPDATE " + checkpointsOf(keyspace) + " SET position = ?, note = ?, clock = ?, writer = ?, at = ? WHERE pipeline = ? AND run = ? AND part = ? IF position = ?"
		args = []any{string(c.Position), note, clock, writer, time.Now(), c.Pipeline, c.Run, c.Part, string(c.Before)}
	}
	return b.retry(ctx, func() error {
		applied, err := b.session.Query(text, args...).WithContext(ctx).SetRequestTimeout(conditionalTimeout).
			SerialConsistency(b.serial()).MapScanCAS(map[string]any{})
		if err == nil && applied {
			return nil
		}
		if err != nil && !transient(err) {
			return err
		}
		now, ok, rerr := b.checkpoint(ctx, keyspace, c.CheckpointKey)
		switch {
		case rerr != nil:
			return errors.Join(rerr, err)
		case ok && now.writer == writer && now.position == string(c.Position):
			return nil // an earlier attempt of ours
		case err != nil && ok == (c.Before != "") && now.position == string(c.Before):
			return err // as it was: try again
		}
		return fmt.Errorf("scylla: the checkpoint of %s, run %q, part %q is not %q: %w", c.Pipeline, c.Run, c.Part, c.Before, driver.ErrOvertaken)
	})
}

// ForgetCheckpoints drops the checkpoints of a run, or of all runs, one by one: only a
// conditional write is sure to come behind the one that stored it.
func (b *Backend) ForgetCheckpoints(ctx context.Context, pipeline, run string) error {
	list, err := b.checkpointKeyspaces(ctx)
	if err != nil {
		return err
	}
	for _, keyspace := range list {
		if err := b.forget(ctx, keyspace, pipeline, run); err != nil {
			return err
		}
	}
	return nil
}

func (b *Backend) forget(ctx context.Context, keyspace, pipeline, run string) error {
	text, args := "SELECT run, part FROM "+checkpointsOf(keyspace)+" WHERE pipeline = ?", []any{pipeline}
	if run != "" {
		text, args = text+" AND run = ?", append(args, run)
	}
	iter := b.session.Query(text, args...).WithContext(ctx).Idempotent(true).Iter()
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(writers)
	var r, part string
	for iter.Scan(&r, &part) {
		at := []any{pipeline, r, part}
		group.Go(func() error {
			return b.retry(ctx, func() error {
				_, err := b.session.Query("DELETE FROM "+checkpointsOf(keyspace)+" WHERE pipeline = ? AND run = ? AND part = ? IF EXISTS", at...).
					WithContext(ctx).SetRequestTimeout(conditionalTimeout).SerialConsistency(b.serial()).MapScanCAS(map[string]any{})
				return err
			})
		})
	}
	err := iter.Close()
	if noSuchTable(err) {
		err = nil
	}
	return errors.Join(err, group.Wait())
}
