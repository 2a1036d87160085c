package pipecrash

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/athena-pipelines/athena/bench/rig"
	"github.com/athena-pipelines/athena/pipelines/sink"
	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/sdk"
)

// seeded is how many rows a captured table has when its capture begins.
const seeded = 300

// capture makes tables, with rows, and has them captured. What is done to them from
// then on is kept by triggers in the table audit, in the transaction that does it: of
// the changes to one key, and of truncates, its order is theirs.
func (s *stage) capture(tables []string) {
	s.Helper()
	if len(tables) == 0 {
		return
	}
	s.exec(s.shop, `
		CREATE SEQUENCE ids; CREATE SEQUENCE versions;
		CREATE TABLE audit (seq bigserial PRIMARY KEY, of text, op text, id bigint, ver bigint);
		CREATE FUNCTION note_row() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
			IF TG_OP = 'DELETE' THEN INSERT INTO audit (of, op, id) VALUES (TG_TABLE_NAME, 'delete', OLD.id);
			ELSE INSERT INTO audit (of, op, id, ver) VALUES (TG_TABLE_NAME, lower(TG_OP), NEW.id, NEW.ver); END IF;
			RETURN NULL; END $$;
		CREATE FUNCTION note_truncate() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
			INSERT INTO audit (of, op) VALUES (TG_TABLE_NAME, 'truncate'); RETURN NULL; END $$;`)
	for _, t := range tables {
		s.exec(s.shop, fmt.Sprintf(`
			CREATE TABLE %[1]s (id bigint PRIMARY KEY DEFAULT nextval('ids'), region text, total numeric(12,2), body text, ver bigint NOT NULL DEFAULT nextval('versions'));
			ALTER TABLE %[1]s ALTER body SET STORAGE external;
			INSERT INTO %[1]s (region, total, body) SELECT 'seeded', g, 'row ' || g FROM generate_series(1, %[2]d) g;
			INSERT INTO audit (of, op, id, ver) SELECT '%[1]s', 'read', id, ver FROM %[1]s;
			CREATE TRIGGER note_row AFTER INSERT OR UPDATE OR DELETE ON %[1]s FOR EACH ROW EXECUTE FUNCTION note_row();
			CREATE TRIGGER note_truncate AFTER TRUNCATE ON %[1]s FOR EACH STATEMENT EXECUTE FUNCTION note_truncate()`, t, seeded))
	}
	for _, w := range s.rig.Workers { // the server is to have the capture
		w.Kill()
	}
	var named []string
	for _, t := range tables {
		named = append(named, "public."+t)
	}
	c := s.api.Client("shop").CDC()
	_, err := c.Enable(s.ctx, sdk.CaptureSpec{Tables: named, Snapshot: "initial"})
	s.check(err)
	var got *sdk.Captured
	s.until("the capture", func() bool {
		got, err = c.Get(s.ctx)
		return err == nil && got.Status.State == "streaming"
	})
	for _, w := range s.rig.Workers {
		s.start(w, "")
	}
}

// until waits for something that has to come.
func (s *stage) until(what string, done func() bool) {
	s.Helper()
	if err := rig.Until(s.ctx, 90*time.Second, done); err != nil {
		s.Fatalf("%s did not come: %v\n%s", what, err, s.rig.Logs())
	}
}

// write changes rows of a table over a few connections, until it is told to stop.
func (s *stage) write(table string) (stop func()) {
	ctx, cancel := context.WithCancel(s.ctx)
	var writers sync.WaitGroup
	var done atomic.Int64
	for n := range 2 {
		rnd := rand.New(rand.NewPCG(s.seed, 100+uint64(n)))
		writers.Go(func() {
			conn, err := pgx.Connect(s.ctx, s.rig.DSN())
			if err != nil {
				s.Error(err)
				return
			}
			defer conn.Close(context.Background())
			for ctx.Err() == nil {
				switch err := transact(s.ctx, conn, table, rnd); {
				case err == nil:
					done.Add(1)
				case !inTheWay(err):
					s.Errorf("a transaction of the scenario's: %v", err)
					return
				}
				time.Sleep(time.Duration(rnd.IntN(60)) * time.Millisecond)
			}
		})
	}
	return func() {
		cancel()
		writers.Wait()
		if done.Load() < 20 {
			s.Errorf("only %d transactions were made", done.Load())
		}
	}
}

// inTheWay reports that another transaction was.
func inTheWay(err error) bool {
	var e *pgconn.PgError
	return errors.As(err, &e) && (e.Code == "40P01" || e.Code == "23505")
}

// transact is a transaction of a few statements, some of which are rolled back.
func transact(ctx context.Context, conn *pgx.Conn, table string, rnd *rand.Rand) error {
	tx, err := conn.Begin(ctx)
	if err != nil {
		return err
	}
	defer tx.Rollback(context.WithoutCancel(ctx))
	for range 1 + rnd.IntN(4) {
		some := fmt.Sprintf("id IN (SELECT id FROM %s ORDER BY md5(id::text || '%d') LIMIT %d FOR UPDATE SKIP LOCKED)", table, rnd.IntN(1000), 1+rnd.IntN(5))
		var sql string
		switch n := rnd.IntN(100); {
		case n < 40:
			sql = fmt.Sprintf("INSERT INTO %s (region, total, body) SELECT (ARRAY['north', 'süd', 'o/st', NULL])[1 + g %% 4], g, repeat(md5(g::text), %d) FROM generate_series(%d, %d) g",
				table, []int{1, 1, 1, 200}[rnd.IntN(4)], n, n+1+rnd.IntN(8))
		case n < 65:
			sql = fmt.Sprintf("UPDATE %s SET total = total + 1, ver = nextval('versions') WHERE %s", table, some)
		case n < 75: // the region parts the log
			sql = fmt.Sprintf("UPDATE %s SET region = 'west', body = 'changed', ver = nextval('versions') WHERE %s", table, some)
		case n < 85:
			sql = fmt.Sprintf("UPDATE %s SET id = nextval('ids'), ver = nextval('versions') WHERE %s", table, some)
		case n < 90: // a key that was there before comes again, or is in the way
			sql = fmt.Sprintf("INSERT INTO %s (id, region) VALUES (%d, 'again')", table, 1+rnd.IntN(400))
		case n < 99:
			sql = fmt.Sprintf("DELETE FROM %s WHERE %s", table, some)
		default:
			sql = "TRUNCATE " + table
		}
		if _, err := tx.Exec(ctx, sql); err != nil {
			return err
		}
	}
	if rnd.IntN(10) == 0 {
		return nil // rolled back
	}
	return tx.Commit(ctx)
}

// A stream is a pipeline that follows a table while its workers are killed.
type stream struct {
	table   string
	objects bool
	sink    definition
	// reached reports whether all that was committed has come.
	reached func(s *stage) bool
	judge   func(s *stage, info *sdk.RunInfo)
}

func (st stream) run(s *stage, kills int) {
	s.Helper()
	name := "follow-" + st.table
	def := definition{"source": definition{"client": "shop", "cdc": definition{"tables": []string{"public." + st.table}}}, "sink": st.sink}
	_, err := s.api.Pipelines().Put(s.ctx, name, def.json(), sdk.Absent)
	s.check(err)
	info, err := s.api.Pipelines().Start(s.ctx, name, sdk.RunOptions{})
	s.check(err)
	w := s.watch(info.ID, -1)
	stop := s.write(st.table)
	died := s.assault(s.streamStops(kills, st.objects), kills, w.over)
	stop()
	if died < kills {
		s.Errorf("%d of %d kills came", died, kills)
	}
	s.until("what was committed", func() bool { return st.reached(s) })
	s.until("the stop", func() bool { return s.api.Pipelines().Stop(s.ctx, name) == nil })
	info = s.ends(w)
	if info.State != sdk.RunStopped {
		s.Errorf("the run ended as %s", info.State)
	}
	st.judge(s, info)
	if s.Failed() {
		s.Fatalf("seed %d: seen as %v, the steps were %+v\n%s", s.seed, w.seen, info.Steps, s.rig.Logs())
	}
}

// mirrored keeps a copy of a table.
func mirrored(table string) func(s *stage, kills int) {
	return func(s *stage, kills int) {
		stream{
			table: table, sink: definition{"client": "copy", "table": "public." + table, "mode": "upsert", "create": true},
			reached: func(s *stage) bool {
				s.exec(s.shop, "INSERT INTO "+table+" (region) VALUES ('mark')")
				last := one[int64](s, s.shop, "SELECT max(ver) FROM "+table)
				return rig.Until(s.ctx, 5*time.Second, func() bool {
					var there bool
					err := s.copy.QueryRow(s.ctx, "SELECT EXISTS (SELECT FROM "+table+" WHERE ver = $1)", last).Scan(&there)
					return err == nil && there
				}) == nil
			},
			judge: func(s *stage, _ *sdk.RunInfo) {
				s.show("SELECT * FROM "+table, "SELECT * FROM "+table)
				s.equal()
				if n := one[int](s, s.copy, "SELECT count(*) FROM athena.checkpoints WHERE run = '' AND part = 'stream'"); n != 1 {
					s.Errorf("%d checkpoints are kept of a stream", n)
				}
			},
		}.run(s, kills)
	}
}

// logged keeps a log of a table's changes in another table.
func logged(table string) func(s *stage, kills int) {
	return func(s *stage, kills int) {
		stream{
			table: table, sink: definition{"client": "copy", "table": "public.log_" + table, "mode": "append", "create": true},
			reached: func(s *stage) bool {
				var n int64
				err := s.copy.QueryRow(s.ctx, "SELECT count(*) FROM log_"+table).Scan(&n)
				return err == nil && n >= one[int64](s, s.shop, "SELECT count(*) FROM audit WHERE of = $1", table)
			},
			judge: func(s *stage, info *sdk.RunInfo) {
				rows, err := s.copy.Query(s.ctx, "SELECT _pos, _op, coalesce(id, 0), CASE WHEN _op = 'delete' THEN 0 ELSE coalesce(ver, 0) END FROM log_"+table)
				s.check(err)
				log, err := pgx.CollectRows(rows, pgx.RowToStructByPos[change])
				s.check(err)
				s.judgeLog(table, log)
				if info.Counts.Written != int64(len(log)) {
					s.Errorf("the run says that it wrote %d changes; the log has %d", info.Counts.Written, len(log))
				}
			},
		}.run(s, kills)
	}
}

// logObjects keeps a log of a table's changes in objects that a column parts.
func logObjects(table, format string) func(s *stage, kills int) {
	return func(s *stage, kills int) {
		prefix := "log-" + table + "/"
		read := map[string]sink.Manifest{}
		stream{
			table: table, objects: true,
			sink: definition{"client": "lake", "objects": definition{"prefix": prefix + "region={{region}}/", "format": format, "roll": definition{"rows": 150, "every": "1s"}}},
			reached: func(s *stage) bool {
				var n int64
				for _, m := range s.manifests(prefix, read) {
					n += m.Rows
				}
				return n >= one[int64](s, s.shop, "SELECT count(*) FROM audit WHERE of = $1", table)
			},
			judge: func(s *stage, info *sdk.RunInfo) {
				var log []change
				objects := s.listed(prefix, func(key string, rows []json.RawMessage) {
					last := cdc.Position("")
					for _, raw := range rows {
						var c change
						s.check(json.Unmarshal(raw, &c))
						if c.Pos <= last {
							s.Errorf("object %s has %s behind %s", key, c.Pos, last)
						}
						if last = c.Pos; c.Op == "delete" {
							c.Ver = 0
						}
						log = append(log, c)
					}
				})
				s.judgeLog(table, log)
				if info.Counts.Written != int64(len(log)) || info.Counts.Objects != objects {
					s.Errorf("the run says that it wrote %d changes in %d objects; the log has %d in %d", info.Counts.Written, info.Counts.Objects, len(log), objects)
				}
			},
		}.run(s, kills)
	}
}

// A change is one row of a log, or of the audit, whose positions are numbers.
type change struct {
	Pos cdc.Position `json:"_pos"`
	Op  string       `json:"_op"`
	ID  int64        `json:"id"`
	Ver int64        `json:"ver"` // of a delete nothing but the key is known
}

func (c change) String() string { return fmt.Sprintf("%s %d ver %d", c.Op, c.ID, c.Ver) }

// judgeLog holds a log against the audit of its table: of each key, and of the
// truncates between, it has the same changes in the same order, each once.
func (s *stage) judgeLog(table string, log []change) {
	s.Helper()
	slices.SortFunc(log, func(a, b change) int {
		switch {
		case a.Pos < b.Pos:
			return -1
		case a.Pos > b.Pos:
			return 1
		}
		return 0
	})
	for i := 1; i < len(log); i++ {
		if log[i].Pos == log[i-1].Pos {
			s.Errorf("the log has two changes at %s: %s, %s", log[i].Pos, log[i-1], log[i])
		}
	}
	rows, err := s.shop.Query(s.ctx, "SELECT seq::text AS pos, op, coalesce(id, 0), coalesce(ver, 0) FROM audit WHERE of = $1 ORDER BY seq", table)
	s.check(err)
	audit, err := pgx.CollectRows(rows, pgx.RowToStructByPos[change])
	s.check(err)
	was, is := byKey(audit), byKey(log)
	wrong := 0
	for id, want := range was {
		if got := is[id]; !slices.Equal(got, want) && wrong < 10 {
			wrong++
			s.Errorf("the changes of key %d were\n%v\nand the log has\n%v", id, want, got)
		}
	}
	for id, got := range is {
		if was[id] == nil {
			s.Errorf("the log has changes of key %d, which had none: %v", id, got)
		}
	}
	if len(log) != len(audit) {
		s.Errorf("the log has %d changes; there were %d", len(log), len(audit))
	}
}

// byKey has what happened to each key, truncates with it: each is told from the
// others by how many there were before.
func byKey(changes []change) map[int64][]string {
	out := map[int64][]string{}
	truncates := 0
	for _, c := range changes {
		if c.Op == "truncate" {
			truncates++
			out[0] = append(out[0], "truncate")
			continue
		}
		out[c.ID] = append(out[c.ID], fmt.Sprintf("%s, behind %d truncates", c, truncates))
	}
	return out
}
