package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/driver"
)

const (
	// ownSchema is where the checkpoints and the staging tables are, in the
	// target's database.
	ownSchema   = "athena"
	checkpoints = ownSchema + ".checkpoints"
	maxNote     = 64 << 10
)

const createCheckpoints = `CREATE TABLE IF NOT EXISTS ` + checkpoints + ` (
	pipeline text NOT NULL,
	run text NOT NULL,
	part text NOT NULL,
	position text NOT NULL,
	note json,
	at timestamptz NOT NULL DEFAULT now(),
	PRIMARY KEY (pipeline, run, part))`

// prepareCheckpoints makes the schema and its table, in a transaction that holds
// ownLock: IF NOT EXISTS alone lets two creators collide.
func prepareCheckpoints(ctx context.Context, conn *pgx.Conn, f targetFacts) error {
	if !f.ownThere {
		if _, err := conn.PgConn().Exec(ctx, "CREATE SCHEMA IF NOT EXISTS "+ownSchema).ReadAll(); err != nil {
			return err
		}
	}
	if f.checkpointsThere {
		return nil
	}
	_, err := conn.PgConn().Exec(ctx, createCheckpoints).ReadAll()
	return err
}

// ownLock is the advisory lock of those who create in our schema.
const ownLock = "4702111234474983745"

// Checkpoint reads what was committed last.
func (b *Backend) Checkpoint(ctx context.Context, k driver.CheckpointKey) (driver.Checkpoint, bool, error) {
	c := driver.Checkpoint{CheckpointKey: k}
	n, err := b.catalog(ctx, `SELECT position, coalesce(note::text, '') FROM `+checkpoints+` WHERE pipeline = $1 AND run = $2 AND part = $3`,
		[]any{k.Pipeline, k.Run, k.Part}, scanCheckpoint(&c))
	if noSuchTable(err) {
		return c, false, nil
	}
	return c, n > 0, err
}

func scanCheckpoint(c *driver.Checkpoint) func(pgx.Rows) error {
	return func(rows pgx.Rows) error {
		var position, note string
		err := rows.Scan(&position, &note)
		c.Position = cdc.Position(position)
		if note != "" {
			c.Note = json.RawMessage(note)
		}
		return err
	}
}

func noSuchTable(err error) bool {
	var e *pgconn.PgError
	return errors.As(err, &e) && (e.Code == "42P01" || e.Code == "3F000")
}

// store compares and sets a checkpoint. Whoever else sets it now, or has set it
// and not committed yet, is waited for.
func store(ctx context.Context, conn *pgx.Conn, c driver.Checkpoint) error {
	switch {
	case c.Position == "":
		return athena.Errorf(athena.CodeInvalidRequest, "the position of a checkpoint is empty").At("position")
	case len(c.Note) > maxNote:
		return athena.Errorf(athena.CodeInvalidRequest, "the note of a checkpoint has %d bytes; it may have %d", len(c.Note), maxNote).At("note")
	case strings.IndexByte(string(c.Position)+c.Pipeline+c.Run+c.Part, 0) >= 0:
		return athena.Errorf(athena.CodeInvalidRequest, "a checkpoint holds the character U+0000").At("position")
	}
	var note *string
	if len(c.Note) > 0 {
		text := string(c.Note)
		note = &text
	}
	sql := `INSERT INTO ` + checkpoints + ` (pipeline, run, part, position, note) VALUES ($1, $2, $3, $4, $5::text::json) ON CONFLICT DO NOTHING`
	args := []any{c.Pipeline, c.Run, c.Part, string(c.Position), note}
	if c.Before != "" {
		sql = `UPDATE ` + checkpoints + ` SET position = $4, note = $5::text::json, at = now() WHERE pipeline = $1 AND run = $2 AND part = $3 AND position = $6`
		args = append(args, string(c.Before))
	}
	tag, err := conn.Exec(ctx, sql, args...)
	if err == nil && tag.RowsAffected() == 0 {
		return fmt.Errorf("postgres: the checkpoint of %s, run %q, part %q is not %q: %w", c.Pipeline, c.Run, c.Part, c.Before, driver.ErrOvertaken)
	}
	return err
}

// Commit stores the checkpoint and commits. The commit itself is not interrupted
// by ctx: that would only make its outcome unknown.
func (tx *tableTx) Commit(ctx context.Context, c driver.Checkpoint) error {
	if tx.conn == nil {
		return tx.over()
	}
	if err := store(ctx, tx.conn.Conn, c); err != nil {
		return tx.fail(ctx, err)
	}
	if err := commit(ctx, tx.conn.Conn); err != nil {
		tx.failed = err
		tx.end()
		return err
	}
	tx.end()
	return nil
}

func commit(ctx context.Context, conn *pgx.Conn) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitGrace)
	defer cancel()
	results, err := conn.PgConn().Exec(ctx, "COMMIT").ReadAll()
	if err != nil {
		return err
	}
	if n := len(results); n != 1 || results[n-1].CommandTag.String() != "COMMIT" {
		return errors.New("postgres: the transaction was rolled back")
	}
	return nil
}

// ForgetCheckpoints drops the checkpoints of a run, or of all runs.
func (b *Backend) ForgetCheckpoints(ctx context.Context, pipeline, run string) error {
	_, err := b.catalog(ctx, `DELETE FROM `+checkpoints+` WHERE pipeline = $1 AND ($2 = '' OR run = $2)`, []any{pipeline, run}, nil)
	if noSuchTable(err) {
		return nil
	}
	return err
}
