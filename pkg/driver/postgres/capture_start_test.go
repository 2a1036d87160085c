package postgres

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/localpg/pgtest"
)

// beginWriting opens a transaction that has an id.
func beginWriting(t *testing.T, dsn, sql string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn+"&application_name=slowpoke")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	if _, err := conn.Exec(t.Context(), "BEGIN; "+sql); err != nil {
		t.Fatal(err)
	}
	return conn
}

func TestStartWaitsForTransactionsAndSaysSo(t *testing.T) {
	t.Parallel()
	server := pgtest.Server(t, map[string]string{"fsync": "off", "max_prepared_transactions": "2", "statement_timeout": "1500ms",
		"idle_in_transaction_session_timeout": "0", "lock_timeout": "1500ms"})
	dsn := server.DSN("postgres")
	l := newLab(t, dsn)
	l.exec(`CREATE TABLE a (id int PRIMARY KEY)`, `INSERT INTO a VALUES (1)`)
	s := l.setup("a")
	l.prepare(s)
	slow := beginWriting(t, dsn, `INSERT INTO a VALUES (2)`)
	l.exec(`BEGIN`, `INSERT INTO a VALUES (3)`, `PREPARE TRANSACTION 'the gid'`)

	var told []string
	start, snap, err := l.StartChanges(t.Context(), s, func(text string) {
		told = append(told, text)
		switch len(told) {
		case 2: // longer than the role's statement_timeout
			if _, err := slow.Exec(t.Context(), "COMMIT"); err != nil {
				t.Error(err)
			}
		case 3:
			l.exec(`COMMIT PREPARED 'the gid'`)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	defer snap.Close(t.Context())
	if len(told) < 3 || !strings.HasPrefix(told[0], "waits for 2 transactions to end, the oldest of which runs since 20") || !strings.Contains(told[0], "application slowpoke") ||
		!strings.HasPrefix(told[2], "waits for 1 transaction to end") || !strings.Contains(told[2], "prepared as 'the gid'") {
		t.Errorf("told: %q", told)
	}
	if got := readAll(t, snap, 1); len(got) != 3 {
		t.Errorf("the snapshot has %v", got)
	}
	if parts := strings.Split(start.Source, "/"); len(parts) != 3 || parts[1] != "1" || parts[2] != "postgres" {
		t.Errorf("source %q", start.Source)
	}
	if len(start.Confirmed) != 16 || string(start.Begin) != start.Confirmed+".00000000" {
		t.Errorf("start %+v", start)
	}
}

func TestCancelledStartLeavesNoSlot(t *testing.T) {
	t.Parallel()
	server := pgtest.Server(t, map[string]string{"fsync": "off"})
	dsn := server.DSN("postgres")
	l := newLab(t, dsn)
	l.exec(`CREATE TABLE a (id int PRIMARY KEY)`)
	s := l.setup("a")
	l.prepare(s)
	slow := beginWriting(t, dsn, `INSERT INTO a VALUES (2)`)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	_, snap, err := l.StartChanges(ctx, s, func(string) { cancel() })
	if !errors.Is(err, context.Canceled) || snap != nil {
		t.Errorf("got %v, %v", snap, err)
	}
	if got := l.ask(`SELECT slot_name::text FROM pg_replication_slots`); len(got) != 0 {
		t.Errorf("slots: %v", got)
	}
	// The server, too, waits no longer.
	l.until(`SELECT 'x' WHERE NOT EXISTS (SELECT FROM pg_stat_replication)`)
	if _, err := slow.Exec(t.Context(), "COMMIT"); err != nil {
		t.Fatal(err)
	}
	_, snap, err = l.StartChanges(t.Context(), s, nil)
	if err != nil {
		t.Fatal(err)
	}
	snap.Close(t.Context())
}

func TestSlotThatIsThere(t *testing.T) {
	t.Parallel()
	l := newLab(t, pgtest.DSN(t))
	l.exec(`CREATE TABLE a (id int PRIMARY KEY)`)
	s := l.setup("a")
	first, snap := l.started(s)

	snap.Close(t.Context())
	l.exec(`INSERT INTO a VALUES (1)`)
	// Never read, under the name that we give: a worker died before it could
	// store where it began.
	again, snap, err := l.StartChanges(t.Context(), s, nil)
	if err != nil {
		t.Fatal(err)
	}
	if again.Confirmed <= first.Confirmed {
		t.Errorf("began at %s, and again at %s", first.Confirmed, again.Confirmed)
	}
	if got := readAll(t, snap, 1); len(got) != 1 {
		t.Errorf("%v", got)
	}
	snap.Close(t.Context())

	l.read(s)
	wantCode(t, second(l.StartChanges(t.Context(), s, nil)), athena.CodeConflict, "pg_drop_replication_slot")
	s.TakeOver = true
	taken, none, err := l.StartChanges(t.Context(), s, nil)
	if err != nil || none != nil {
		t.Fatalf("%v, %v", none, err)
	}
	at := l.ask(`SELECT (confirmed_flush_lsn - '0/0')::text FROM pg_replication_slots WHERE slot_name = $1`, s.Slot)
	if lsn, err := parseLSN(taken.Confirmed); err != nil || at[0] != strconv.FormatUint(lsn, 10) || taken.Source != first.Source {
		t.Errorf("%+v, %v; the slot is at %s", taken, err, at)
	}

	s.TakeOver = false
	s.Slot = "custom_" + strings.ReplaceAll(s.Client, "-", "_")
	l.exec(`SELECT pg_create_logical_replication_slot('` + s.Slot + `', 'pgoutput')`)
	wantCode(t, second(l.StartChanges(t.Context(), s, nil)), athena.CodeConflict, "another's")
	if err := l.DropChanges(t.Context(), s); err != nil {
		t.Error(err)
	}
	l.exec(`SELECT pg_create_logical_replication_slot('` + s.Slot + `', 'test_decoding')`)
	s.TakeOver = true
	wantCode(t, second(l.StartChanges(t.Context(), s, nil)), athena.CodeConflict, "test_decoding")
	if err := l.DropChanges(t.Context(), s); err != nil {
		t.Error(err)
	}
	if got := l.ask(`SELECT slot_name::text FROM pg_replication_slots WHERE slot_name = $1`, s.Slot); len(got) != 1 {
		t.Error("a slot of another plugin was dropped")
	}
	l.exec(`SELECT pg_drop_replication_slot('` + s.Slot + `')`)
}

func second[A, B any](_ A, _ B, err error) error { return err }

func TestHalfMadeSlotOfADeadWorkerIsTakenAway(t *testing.T) {
	t.Parallel()
	server := pgtest.Server(t, map[string]string{"fsync": "off"})
	dsn := server.DSN("postgres")
	l := newLab(t, dsn)
	l.exec(`CREATE TABLE a (id int PRIMARY KEY)`)
	s := l.setup("a")
	l.prepare(s)
	slow := beginWriting(t, dsn, `INSERT INTO a VALUES (1)`)
	dead, err := l.connectReplication(t.Context(), s.Client)
	if err != nil {
		t.Fatal(err)
	}
	failed := make(chan error, 1)
	go func() {
		_, err := simpleQuery(context.Background(), dead.pg, `CREATE_REPLICATION_SLOT `+s.Slot+` LOGICAL pgoutput`)
		failed <- err
	}()
	l.until(`SELECT 'x' FROM pg_replication_slots WHERE active`)
	var told bool
	_, snap, err := l.StartChanges(t.Context(), s, func(string) {
		if !told {
			if _, err := slow.Exec(t.Context(), "COMMIT"); err != nil {
				t.Error(err)
			}
		}
		told = true
	})
	if err != nil {
		t.Fatal(err)
	}
	defer snap.Close(t.Context())
	if err := <-failed; err == nil {
		t.Error("the other session made its slot")
	}
	if got := readAll(t, snap, 1); len(got) != 1 {
		t.Errorf("%v", got)
	}
}

func TestDropEndsOurSessionAndNoOther(t *testing.T) {
	t.Parallel()
	l := newLab(t, pgtest.DSN(t))
	l.exec(`CREATE TABLE a (id int PRIMARY KEY)`)
	s := l.setup("a")
	s.Client += strings.Repeat("x", 50) // its session has a name that the server cuts
	l.prepare(s)
	stream := func(client string) *logConn {
		conn, err := l.connectReplication(t.Context(), client)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { closeReplication(conn) })
		conn.pg.Frontend().SendQuery(&pgproto3.Query{String: "START_REPLICATION SLOT " + s.Slot + " LOGICAL 0/0 (proto_version '1', publication_names '" + s.Publication + "')"})
		if err := conn.pg.Frontend().Flush(); err != nil {
			t.Fatal(err)
		}
		l.until(`SELECT 'x' FROM pg_replication_slots WHERE active AND slot_name = $1`, s.Slot)
		return conn
	}
	_, snap := l.started(s)
	snap.Close(t.Context())
	other := stream("another")
	wantCode(t, l.DropChanges(t.Context(), s), athena.CodeConflict, "pg_terminate_backend")
	closeReplication(other)
	l.until(`SELECT 'x' FROM pg_replication_slots WHERE NOT active AND slot_name = $1`, s.Slot)
	stream(s.Client)
	if err := l.DropChanges(t.Context(), s); err != nil {
		t.Error(err)
	}
	if got := l.ask(`SELECT slot_name::text FROM pg_replication_slots WHERE slot_name = $1`, s.Slot); len(got) != 0 {
		t.Error("the slot is there")
	}
}
