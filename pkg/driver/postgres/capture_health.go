package postgres

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/driver"
)

// ChangeHealth describes the slot. A slot that does not exist is a not_found
// error.
func (b *Backend) ChangeHealth(ctx context.Context, s driver.ChangeSetup) (driver.ChangeHealth, error) {
	h := driver.ChangeHealth{Slot: s.Slot}
	conn, err := b.acquire(ctx)
	if err != nil {
		return h, err
	}
	defer release(conn)
	invalidated, failover := `CASE WHEN s.wal_status = 'lost' THEN 'wal_removed' ELSE '' END`, `false`
	switch major := serverMajor(conn.Conn().PgConn()); {
	case major >= 17:
		invalidated, failover = `coalesce(s.invalidation_reason, '')`, `s.failover`
	case major >= 16:
		invalidated = `CASE WHEN s.conflicting THEN 'conflicting' WHEN s.wal_status = 'lost' THEN 'wal_removed' ELSE '' END`
	}
	n, err := on(conn.Conn())(ctx, fmt.Sprintf(`
		SELECT s.active, coalesce(s.wal_status, 'lost'), %s, coalesce(log.here - s.restart_lsn, 0)::bigint,
		       CASE WHEN s.wal_status = 'lost' THEN 0 ELSE coalesce(s.safe_wal_size, -1) END,
		       coalesce(greatest(log.here - s.confirmed_flush_lsn, 0), 0)::bigint, %s, s.two_phase, s.temporary
		FROM pg_catalog.pg_replication_slots s,
		     (SELECT CASE WHEN pg_is_in_recovery() THEN coalesce(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())
		                  ELSE pg_current_wal_lsn() END AS here) log
		WHERE s.slot_name = $1`, invalidated, failover), []any{s.Slot},
		func(rows pgx.Rows) error {
			return rows.Scan(&h.Active, &h.WALStatus, &h.Invalidated, &h.Retained, &h.Safe, &h.Lag, &h.Failover, &h.TwoPhase, &h.Temporary)
		})
	if err == nil && n == 0 {
		err = athena.Errorf(athena.CodeNotFound, "there is no replication slot %q", s.Slot)
	}
	if err != nil {
		return h, err
	}
	schemas, tables := namesOf(s.Tables)
	_, err = on(conn.Conn())(ctx, `
		SELECT w.schema, w.name FROM unnest($1::text[], $2::text[]) AS w (schema, name)
		WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_publication_tables p
		                  WHERE p.pubname = ANY ($3) AND p.schemaname = w.schema AND p.tablename = w.name)`,
		[]any{schemas, tables, []string{s.Publication, s.Publication + insertsSuffix}},
		func(rows pgx.Rows) error {
			var t driver.TableName
			err := rows.Scan(&t.Schema, &t.Table)
			h.Unpublished = append(h.Unpublished, t)
			return err
		})
	return h, err
}
