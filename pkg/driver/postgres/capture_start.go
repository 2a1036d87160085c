package postgres

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/driver"
)

const plugin = "pgoutput"

const (
	objectInUse     = "55006"
	undefinedObject = "42704"
	duplicateObject = "42710"
)

// A slot is a replication slot as the server has it.
type slot struct {
	name, database string
	there          bool
	plugin         string // empty for a physical slot
	pid            int32  // of the session that has it; 0 if none has
	application    string // of that session
	confirmed      string // an LSN; empty while the slot is being made
	lost           bool   // the server gave it up
	// read says that changes were read from it. The server counts that in its
	// statistics, which a crash of it may lose.
	read bool
}

func slotOf(ctx context.Context, query queryFunc, version int, name string) (slot, error) {
	x := slot{name: name}
	lost := `coalesce(s.wal_status = 'lost', false)`
	switch {
	case version >= 170000:
		lost += ` OR s.invalidation_reason IS NOT NULL`
	case version >= 160000:
		lost += ` OR coalesce(s.conflicting, false)`
	}
	n, err := query(ctx, `
		SELECT coalesce(s.database, ''), coalesce(s.plugin, ''), coalesce(s.active_pid, 0), coalesce(a.application_name, ''),
		       coalesce(s.confirmed_flush_lsn::text, ''), `+lost+`, coalesce(t.total_bytes, 0) > 0
		FROM pg_catalog.pg_replication_slots s
		LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = s.active_pid
		LEFT JOIN pg_catalog.pg_stat_replication_slots t ON t.slot_name = s.slot_name
		WHERE s.slot_name = $1`, []any{name},
		func(rows pgx.Rows) error {
			return rows.Scan(&x.database, &x.plugin, &x.pid, &x.application, &x.confirmed, &x.lost, &x.read)
		})
	x.there = n > 0
	return x, err
}

// leftOver reports whether the slot must be of a start of ours that did not come
// to its end, or was given up by the server, so that nothing is lost with it. A
// slot has no mark; so it goes by the name that only we give, and by nobody
// having read it.
func (x *slot) leftOver(s driver.ChangeSetup) bool {
	if x.name != defaultName(s.Client) || x.plugin != plugin {
		return false
	}
	if x.pid != 0 { // it is being made by a session whose worker is gone
		return x.confirmed == "" && x.application == replicationName(s.Client)
	}
	return !x.read || x.lost
}

// refuse says why a slot that is there cannot be used, or dropped and made anew.
func (x *slot) refuse(s driver.ChangeSetup, database string) error {
	conflict := func(format string, args ...any) error {
		return athena.Errorf(athena.CodeConflict, "the slot %q %s", x.name, fmt.Sprintf(format, args...)).At("slot")
	}
	drop := "drop it: SELECT pg_drop_replication_slot(" + quoteLiteral(x.name) + ")"
	switch {
	case x.plugin != plugin || x.database != database:
		what := "is physical"
		if x.plugin != "" {
			what = fmt.Sprintf("is of the plugin %s and the database %q", x.plugin, x.database)
		}
		return conflict("%s; give the capture another slot, or %s", what, drop)
	case x.leftOver(s):
		return nil
	case x.pid != 0:
		return conflict("is in use by the session %d of %q; end that one, or give the capture another slot", x.pid, x.application)
	case s.TakeOver && x.lost:
		return conflict("was given up by the server, so that changes are missing; %s", drop)
	case s.TakeOver:
		return nil
	}
	return conflict("is there, and may be another's, such as another Athena's; take it over with take_over, give the capture another slot, or %s", drop)
}

// source identifies the database and its history, as system/timeline/database.
func (b *Backend) source(ctx context.Context, conn *pgconn.PgConn) (string, error) {
	r, err := pglogrepl.IdentifySystem(ctx, conn)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%s/%d/%s", r.SystemID, r.Timeline, r.DBName), nil
}

// StartChanges makes the slot, with its snapshot, or uses the one that is there.
// A slot of the name that we give, which nobody has read from, is what a start
// that was interrupted left behind: it is made anew. To begin again where a
// slot was read, DropChanges comes first.
func (b *Backend) StartChanges(ctx context.Context, s driver.ChangeSetup, progress func(string)) (driver.ChangeStart, driver.ChangeSnapshot, error) {
	start, snap, err := b.start(ctx, s, progress)
	if err != nil || snap == nil {
		return start, nil, err // not snap: a typed nil would not compare equal to nil
	}
	return start, snap, nil
}

func (b *Backend) start(ctx context.Context, s driver.ChangeSetup, progress func(string)) (start driver.ChangeStart, _ *snapshot, err error) {
	if err := checkNames(s); err != nil {
		return start, nil, err
	}
	server, err := serverOf(ctx, b.catalog)
	if err != nil {
		return start, nil, err
	}
	x, err := slotOf(ctx, b.catalog, server.version, s.Slot)
	if err != nil {
		return start, nil, err
	}
	if x.there {
		if err := x.refuse(s, server.database); err != nil {
			return start, nil, err
		}
	}
	log, err := b.connectReplication(ctx, s.Client)
	if err != nil {
		return start, nil, err
	}
	keep := false
	defer func() {
		if !keep {
			closeReplication(log)
		}
	}()
	if start.Source, err = b.source(ctx, log.pg); err != nil {
		return start, nil, err
	}
	if x.there && s.TakeOver && x.pid == 0 && !x.lost {
		return start, nil, startFrom(&start, x.confirmed)
	}
	if x.there {
		if err := b.dropSlot(ctx, server, s); err != nil {
			return start, nil, err
		}
	}
	made, err := b.makeSlot(ctx, server, s, log, progress)
	if err != nil {
		return start, nil, err
	}
	if err := startFrom(&start, made.point); err != nil {
		return start, nil, err
	}
	keep = true
	return start, &snapshot{backend: b, setup: s, version: server.version, log: log, name: made.snapshot, tables: map[driver.TableName]*published{}}, nil
}

// startFrom sets where the capture begins: transactions are sent whose commit
// record stands at lsn or behind it.
func startFrom(start *driver.ChangeStart, text string) error {
	lsn, err := pglogrepl.ParseLSN(text)
	if err != nil {
		return fmt.Errorf("postgres: the slot begins at %q: %w", text, err)
	}
	start.Confirmed = formatLSN(uint64(lsn))
	start.Begin = cdc.Position(start.Confirmed + ".00000000")
	return nil
}

type madeSlot struct{ point, snapshot string }

// noTimeouts are off while a slot is made and its snapshot held, whatever the
// role's own settings say.
const noTimeouts = `SELECT pg_catalog.set_config(name, '0', false) FROM pg_catalog.pg_settings WHERE name IN
	('statement_timeout', 'lock_timeout', 'transaction_timeout', 'idle_in_transaction_session_timeout', 'idle_session_timeout')`

// makeSlot makes the slot on a replication connection, which keeps the snapshot
// until it is closed. If it fails, or ctx is done, there is no slot.
func (b *Backend) makeSlot(ctx context.Context, server serverFacts, s driver.ChangeSetup, log *logConn, progress func(string)) (made madeSlot, err error) {
	if _, err := log.pg.Exec(ctx, noTimeouts).ReadAll(); err != nil {
		return made, err
	}
	options := "EXPORT_SNAPSHOT"
	switch {
	case server.version >= 170000 && !server.standby: // a standby's slots cannot be carried on
		options = "(SNAPSHOT 'export', FAILOVER true)"
	case server.version >= 150000:
		options = "(SNAPSHOT 'export')"
	}
	type answer struct {
		rows [][]string
		err  error
	}
	answered := make(chan answer, 1)
	go func() {
		// The server's own answer is waited for, for it alone says whether there
		// is a slot.
		rows, err := simpleQuery(context.WithoutCancel(ctx), log.pg, "CREATE_REPLICATION_SLOT "+quoteName(s.Slot)+" LOGICAL "+plugin+" "+options)
		answered <- answer{rows, err}
	}()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	done, cut := ctx.Done(), make(<-chan time.Time)
	for {
		select {
		case a := <-answered:
			var refusal *pgconn.PgError
			switch {
			case ctx.Err() == nil && a.err == nil && len(a.rows) == 1 && len(a.rows[0]) >= 3:
				return madeSlot{point: a.rows[0][1], snapshot: a.rows[0][2]}, nil
			case errors.As(a.err, &refusal) && (ctx.Err() == nil || refusal.Code == duplicateObject):
				return made, a.err // it did not come to a slot of ours
			case a.err == nil && ctx.Err() == nil:
				a.err = fmt.Errorf("postgres: the answer to CREATE_REPLICATION_SLOT is %v", a.rows)
			}
			pid := log.pg.PID()
			closeReplication(log)
			return made, errors.Join(ctx.Err(), a.err, b.unmake(ctx, server, s, pid))
		case <-tick.C:
			if text := b.waitsFor(ctx, server, log.pg.PID()); text != "" && progress != nil {
				progress(text)
			}
		case <-done:
			done, cut = nil, time.After(cancelGrace)
			go func() {
				c, cancel := context.WithTimeout(context.WithoutCancel(ctx), cancelGrace)
				defer cancel()
				log.pg.CancelRequest(c) // if it fails, the connection is cut
			}()
		case <-cut:
			log.pg.Conn().Close()
		}
	}
}

// dropGrace bounds the wait for a session that was told to end.
const dropGrace = 10 * time.Second

// unmake drops a slot that was made for nobody.
func (b *Backend) unmake(ctx context.Context, server serverFacts, s driver.ChangeSetup, pid uint32) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitGrace)
	defer cancel()
	return b.endSlot(ctx, server, s, func(x slot) bool { return x.pid == int32(pid) })
}

// dropSlot drops the slot if it can be ours; it is taken from a session of ours
// that has it.
func (b *Backend) dropSlot(ctx context.Context, server serverFacts, s driver.ChangeSetup) error {
	return b.endSlot(ctx, server, s, func(x slot) bool { return x.application == replicationName(s.Client) })
}

// endSlot drops the slot once no session has it; those that are ours it ends.
func (b *Backend) endSlot(ctx context.Context, server serverFacts, s driver.ChangeSetup, ours func(slot) bool) error {
	began := time.Now()
	for wait := 10 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		x, err := slotOf(ctx, b.catalog, server.version, s.Slot)
		if err != nil || !x.there || x.plugin != plugin || x.database != server.database {
			return err
		}
		switch {
		case x.pid == 0:
			_, err := b.catalog(ctx, `SELECT pg_drop_replication_slot($1)`, []any{s.Slot}, nil)
			var e *pgconn.PgError
			if !errors.As(err, &e) || e.Code != objectInUse && e.Code != undefinedObject {
				return err
			}
			// A session was faster to take it, or to drop it.
		case ours(x) && time.Since(began) < dropGrace:
			if _, err := b.catalog(ctx, `SELECT pg_terminate_backend($1)`, []any{x.pid}, nil); err != nil {
				return err
			}
		default:
			return athena.Errorf(athena.CodeConflict, "the slot %q cannot be dropped, since the session %d of %q has it; end that one: SELECT pg_terminate_backend(%d)",
				s.Slot, x.pid, x.application, x.pid).At("slot")
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// waitsFor says what holds up the making of a slot by the session pid: the
// transactions that ran as it began, of all databases, prepared ones included.
func (b *Backend) waitsFor(ctx context.Context, server serverFacts, pid uint32) string {
	ctx, cancel := context.WithTimeout(ctx, closeGrace)
	defer cancel()
	var text strings.Builder
	n := 0
	_, err := b.catalog(ctx, `
		WITH waits AS (SELECT waitstart FROM pg_catalog.pg_locks WHERE pid = $1 AND locktype = 'transactionid' AND NOT granted),
		running AS (
			SELECT DISTINCT l.pid, l.virtualtransaction FROM pg_catalog.pg_locks l, waits
			WHERE l.locktype = 'transactionid' AND l.mode = 'ExclusiveLock' AND l.granted AND l.pid IS NOT NULL AND l.pid <> $1),
		named AS (
			SELECT coalesce(a.xact_start, 'infinity') AS since,
			       'pid ' || r.pid || coalesce(', application ' || nullif(a.application_name, ''), '') AS who
			FROM running r LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = r.pid
			UNION ALL
			SELECT p.prepared, 'prepared as ' || quote_literal(p.gid) FROM pg_catalog.pg_prepared_xacts p, waits)
		SELECT count(*) OVER ()::int, CASE WHEN isfinite(since) THEN to_char(since, 'YYYY-MM-DD"T"HH24:MI:SS"Z"') ELSE '' END, who
		FROM named, waits WHERE since <= coalesce(waitstart, now()) OR NOT isfinite(since) ORDER BY since LIMIT 1`, []any{int32(pid)},
		func(rows pgx.Rows) error {
			var since, who string
			err := rows.Scan(&n, &since, &who)
			switch {
			case n == 1:
				text.WriteString("waits for 1 transaction to end, which runs")
			default:
				fmt.Fprintf(&text, "waits for %d transactions to end, the oldest of which runs", n)
			}
			if since != "" {
				text.WriteString(" since " + since)
			}
			text.WriteString(" (" + who + ")")
			return err
		})
	switch {
	case err != nil:
		return ""
	case n == 0 && server.standby:
		return "waits for the primary to log which transactions run; SELECT pg_log_standby_snapshot() there has it do so at once"
	case n == 0:
		return "makes the slot"
	}
	return text.String()
}
