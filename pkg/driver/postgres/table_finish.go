package postgres

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/driver"
)

// FinishTable replaces or merges the target's rows with the staged ones, in one
// transaction with the checkpoint.
//
// To overwrite is TRUNCATE and INSERT, not a swap of names: whatever belongs to
// the table or depends on it (grants, views, triggers, publications, policies,
// sequences, statistics) belongs to it afterwards.
func (b *Backend) FinishTable(ctx context.Context, t driver.TableTarget, c driver.Checkpoint) (changed int64, err error) {
	if err := checkTarget(t); err != nil {
		return 0, err
	}
	if !t.Mode.Staged() {
		return 0, athena.Errorf(athena.CodeInvalidRequest, "mode %s has nothing to finish", t.Mode).At("mode")
	}
	own, err := b.tableConn(ctx, beginWrite)
	if err != nil {
		return 0, err
	}
	defer b.endTable(own, false)
	conn := own.Conn
	target, err := b.shape(ctx, conn, t.Table)
	if err != nil {
		return 0, err
	}
	lock := "SHARE ROW EXCLUSIVE" // writers wait
	if t.Mode == driver.Overwrite && target.truncates {
		lock = "ACCESS EXCLUSIVE" // at once: to take it later than another lock invites deadlocks
	}
	if _, err := conn.PgConn().Exec(ctx, "LOCK TABLE "+quoteTable(t.Table)+" IN "+lock+" MODE").ReadAll(); err != nil {
		return 0, err
	}
	// Whoever finished before had the lock, or its checkpoint is seen now.
	there, err := on(conn)(ctx, "SELECT coalesce((note->>'changed')::bigint, 0) FROM "+checkpoints+" WHERE pipeline = $1 AND run = $2 AND part = $3 AND position = $4",
		[]any{c.Pipeline, c.Run, c.Part, string(c.Position)}, func(rows pgx.Rows) error { return rows.Scan(&changed) })
	if err != nil || there > 0 {
		return changed, err
	}
	f := &finish{t: t, table: target, stage: quoteTable(stageName(t))}
	statements := f.merge
	if t.Mode == driver.Overwrite {
		statements = f.overwrite
	}
	if changed, err = f.run(ctx, conn.PgConn(), statements()); err != nil {
		var e *pgconn.PgError
		if errors.As(err, &e) && e.Code == "42P01" && strings.Contains(e.Message, stageName(t).Table) {
			return 0, athena.Wrap(athena.CodeConflict, err, "the staging table of the run is gone; run it again").At("run")
		}
		return 0, err
	}
	c.Note = fmt.Appendf(nil, `{"changed":%d}`, changed)
	if err := store(ctx, conn, c); err != nil {
		return 0, err
	}
	return changed, commit(ctx, conn)
}

// A finish writes the statements that end a staged run.
type finish struct {
	t     driver.TableTarget
	table *shape
	stage string
}

type finishStep struct {
	sql    string
	counts bool
}

func (f *finish) run(ctx context.Context, pc *pgconn.PgConn, steps []finishStep) (changed int64, err error) {
	for _, s := range steps {
		results, err := pc.Exec(ctx, s.sql).ReadAll()
		if err != nil {
			return 0, err
		}
		if s.counts && len(results) == 1 {
			changed += results[0].CommandTag.RowsAffected()
		}
	}
	return changed, nil
}

// insert copies staged rows that meet a condition.
func (f *finish) insert(where string) finishStep {
	var names, values []string
	overriding := ""
	for _, c := range f.t.Schema.Columns {
		names, values = append(names, quoteName(c.Name)), append(values, "s."+quoteName(c.Name))
		if to := f.table.column(c.Name); to != nil && to.identity == "a" {
			overriding = " OVERRIDING SYSTEM VALUE"
		}
	}
	return finishStep{fmt.Sprintf("INSERT INTO %s (%s)%s SELECT %s FROM %s s%s", quoteTable(f.t.Table), strings.Join(names, ", "), overriding,
		strings.Join(values, ", "), f.stage, where), true}
}

func (f *finish) overwrite() []finishStep {
	empty := finishStep{"DELETE FROM " + quoteTable(f.t.Table), false}
	if f.table.truncates {
		empty.sql = "TRUNCATE " + quoteTable(f.t.Table)
	}
	return []finishStep{empty, f.insert("")}
}

func (f *finish) merge() []finishStep {
	var match, set, differ []string
	key := map[string]bool{}
	for _, k := range f.t.Key {
		key[k] = true
		match = append(match, "t."+quoteName(k)+" = s."+quoteName(k))
	}
	for _, c := range f.t.Schema.Columns {
		if key[c.Name] {
			continue
		}
		to := f.table.column(c.Name)
		if to != nil && to.identity == "a" {
			continue
		}
		name := quoteName(c.Name)
		set = append(set, name+" = s."+name)
		differ = append(differ, comparable("t."+name, to)+" IS DISTINCT FROM "+comparable("s."+name, to))
	}
	on := strings.Join(match, " AND ")
	table := quoteTable(f.t.Table)
	steps := []finishStep{{"ANALYZE " + f.stage, false}} // or the joins are planned for an empty table
	if !f.t.KeepMissing {
		steps = append(steps, finishStep{fmt.Sprintf("DELETE FROM %s t WHERE NOT EXISTS (SELECT FROM %s s WHERE %s)", table, f.stage, on), true})
	}
	if len(set) > 0 {
		steps = append(steps, finishStep{fmt.Sprintf("UPDATE %s t SET %s FROM %s s WHERE %s AND (%s)", table, strings.Join(set, ", "), f.stage, on, strings.Join(differ, " OR ")), true})
	}
	return append(steps, f.insert(fmt.Sprintf(" WHERE NOT EXISTS (SELECT FROM %s t WHERE %s)", table, on)))
}

// comparable is an expression whose values differ whenever those of the column
// do. Equality of a type may be wider than that, or not be there at all.
func comparable(name string, c *shapeColumn) string {
	switch {
	case c == nil:
		return name
	case c.oid == textOID || c.oid == varcharOID || c.oid == bpcharOID || c.oid == nameOID:
		return name + ` COLLATE "C"`
	case c.oid == numericOID && c.typmod < 0, c.oid == jsonOID:
		return name + "::text"
	case sentAsItIs(recordType(c.typ, c.oid, c.typmod).Kind, c.oid), len(c.enum) > 0:
		return name
	}
	return "CASE WHEN " + name + " IS DISTINCT FROM NULL THEN format('%s', " + name + ") END"
}
