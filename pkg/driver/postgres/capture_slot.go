package postgres

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/driver"
)

// simpleQuery runs a query of our own in the simple protocol, which replication
// connections understand; NULL is the empty text.
func simpleQuery(ctx context.Context, conn *pgconn.PgConn, sql string) ([][]string, error) {
	results, err := conn.Exec(ctx, sql).ReadAll()
	if err != nil {
		return nil, err
	}
	var out [][]string
	for _, r := range results {
		for _, row := range r.Rows {
			texts := make([]string, len(row))
			for i, v := range row {
				texts[i] = string(v)
			}
			out = append(out, texts)
		}
	}
	return out, nil
}

// serverMajor is the major version of the server, such as 15.
func serverMajor(conn *pgconn.PgConn) int {
	text, _, _ := strings.Cut(conn.ParameterStatus("server_version"), ".")
	end := len(text)
	for i, c := range text {
		if c < '0' || c > '9' {
			end = i
			break
		}
	}
	n, _ := strconv.Atoi(text[:end]) // 0 if it is unreadable: then only what every server has is asked for
	return n
}

func quoteLiteral(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }

// verifySource refuses a database that is not the one that was captured so far,
// or whose history took another way. A standby that was promoted goes on where
// its slot is one that is kept for that, and nothing is stored that it never had:
// what it wrote in its place would be taken for stored too.
func (b *Backend) verifySource(ctx context.Context, conn *logConn, cfg driver.ChangeConfig) (source string, err error) {
	if source, err = b.source(ctx, conn.pg); err != nil {
		return "", err
	}
	if cfg.Source == "" || source == cfg.Source {
		return source, nil
	}
	was, is := strings.SplitN(cfg.Source, "/", 3), strings.SplitN(source, "/", 3)
	if len(was) == 3 && len(is) == 3 && was[0] == is[0] && was[2] == is[2] && serverMajor(conn.pg) >= 17 {
		rows, err := simpleQuery(ctx, conn.pg, "SELECT failover FROM pg_replication_slots WHERE slot_name = "+quoteLiteral(cfg.Slot))
		if err != nil {
			return "", err
		}
		if len(rows) == 1 && rows[0][0] == "t" && is[1] != "1" { // the first one has no history
			timeline, err := strconv.ParseInt(is[1], 10, 32)
			if err != nil {
				return "", err
			}
			history, err := pglogrepl.TimelineHistory(ctx, conn.pg, int32(timeline))
			if err != nil {
				return "", err
			}
			if has(string(history.Content), was[1], cfg.After) {
				return source, nil
			}
		}
	}
	return "", &driver.SourceLost{Code: "other_source", Message: fmt.Sprintf(
		"the database is not the one where the capture began (system/timeline/database was %s and is %s), so that changes may be missing; disable the capture and enable it again", cfg.Source, source)}
}

// has reports whether a history, which has a line of timeline, the place where it
// was left, and the reason for each one before, has a change of a timeline.
func has(history, timeline string, at cdc.Position) bool {
	for line := range strings.Lines(history) {
		if fields := strings.Fields(line); len(fields) >= 2 && fields[0] == timeline {
			left, err := pglogrepl.ParseLSN(fields[1]) // no commit record there, or behind it, is of that timeline
			return err == nil && at < cdc.Position(formatLSN(uint64(left))+".00000001")
		}
	}
	return false
}

// A slotState is a slot as we found it.
type slotState struct {
	confirmed uint64
	twoPhase  bool
}

// claimSlot looks at the slot, and frees it from a session of ours that was left
// behind: whoever opens a capture has its lease, so no other may be reading.
func (b *Backend) claimSlot(ctx context.Context, conn *logConn, cfg driver.ChangeConfig, covered uint64) (s slotState, err error) {
	twoPhase, invalidated := "false", "''"
	if serverMajor(conn.pg) >= 15 {
		twoPhase = "s.two_phase"
	}
	if serverMajor(conn.pg) >= 17 {
		invalidated = "coalesce(s.invalidation_reason, '')"
	}
	sql := fmt.Sprintf(`SELECT coalesce(s.confirmed_flush_lsn - '0/0', 0), s.plugin, coalesce(s.wal_status, ''), %s, %s, coalesce(s.active_pid, 0), coalesce(a.application_name, '')
		FROM pg_replication_slots s LEFT JOIN pg_stat_activity a ON a.pid = s.active_pid
		WHERE s.slot_name = %s`, twoPhase, invalidated, quoteLiteral(cfg.Slot))
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		rows, err := simpleQuery(ctx, conn.pg, sql)
		if err != nil {
			return s, err
		}
		if len(rows) == 0 {
			return s, &driver.SourceLost{Code: "slot_missing", Message: fmt.Sprintf(
				"the replication slot %q does not exist any more, so that changes made since it was dropped are missing; disable the capture and enable it again, or set on_loss to resnapshot", cfg.Slot)}
		}
		r := rows[0]
		switch {
		case r[1] != "pgoutput":
			return s, athena.Errorf(athena.CodeConflict, "slot %q is of the plugin %s; a capture needs one of pgoutput", cfg.Slot, r[1]).At("slot")
		case r[2] == "lost", r[4] != "":
			return s, &driver.SourceLost{Code: "slot_lost", Message: fmt.Sprintf(
				"the server gave the replication slot %q up (%s), so that changes are missing; raise max_slot_wal_keep_size, drop the slot, and disable and enable the capture, or set on_loss to resnapshot", cfg.Slot, lostBecause(r[4]))}
		}
		if s.confirmed, err = strconv.ParseUint(r[0], 10, 64); err != nil {
			return s, fmt.Errorf("postgres: confirmed_flush_lsn of slot %q: %w", cfg.Slot, err)
		}
		s.twoPhase = r[3] == "t"
		if cfg.Confirmed != "" && s.confirmed > covered {
			return s, &driver.SourceLost{Code: "slot_recreated", Message: fmt.Sprintf(
				"the replication slot %q is at %s, beyond %s where we left it: it was made anew, or somebody else has read from it, so that changes are missing; disable the capture and enable it again, or set on_loss to resnapshot", cfg.Slot, formatLSN(s.confirmed), cfg.Confirmed)}
		}
		pid, name := r[5], r[6]
		if pid == "0" {
			return s, nil
		}
		if name != replicationName(cfg.Client) {
			return s, athena.Errorf(athena.CodeBackendUnavailable, "slot %q is in use by the session %s of %q; end that one, or give the capture another slot", cfg.Slot, pid, name)
		}
		if _, err := simpleQuery(ctx, conn.pg, "SELECT pg_terminate_backend("+pid+")"); err != nil {
			return s, err
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return s, ctx.Err()
		}
	}
}

func lostBecause(reason string) string {
	if reason == "" {
		return "it kept more log than max_slot_wal_keep_size allows"
	}
	return reason
}
