package pipecrash

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/athena-pipelines/athena/pkg/crashpoint"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/sdk"
)

// rows is how many the source of a batch has.
const rows = 2400

const columns = "id bigint%s, region text, status text, total numeric(12,2), note jsonb, at timestamptz"

// fill makes a source anew, with other rows in each round.
func (s *stage) fill(round int) {
	s.Helper()
	s.exec(s.shop, "DROP TABLE IF EXISTS orders CASCADE; CREATE TABLE orders ("+fmt.Sprintf(columns, " PRIMARY KEY")+")")
	s.exec(s.shop, `INSERT INTO orders SELECT i, CASE WHEN i % 11 = 0 THEN NULL ELSE (ARRAY['north', 'süd', 'o/st'])[1 + i % 3] END,
		CASE WHEN i % 4 = 0 THEN 'paid' ELSE 'new' END, i * 1.25, jsonb_build_object('i', i, 'md5', md5((i + $1)::text)),
		'2026-01-01'::timestamptz + i * interval '7 minutes 1 microsecond' FROM generate_series(1, $2::int) i`, round, rows)
	s.exec(s.shop, "ANALYZE orders")
}

// A batch is a pipeline whose runs are killed.
type batch struct {
	tasks int // about how many there are
	// prepare makes source and target of a round, and returns the definition. What
	// the source has is shown by the view seen, and so is what the target gets.
	prepare func(s *stage, round int) definition
	// judge holds what came of it against the source.
	judge   func(s *stage, round int, info *sdk.RunInfo)
	objects bool
	written int64
	haunted bool // a worker stands still, and none dies
}

// run runs the batch again and again until there were so many kills.
func (b batch) run(s *stage, kills int) {
	s.Helper()
	left := kills
	s.haunted = b.haunted
	for again := 0; left > 0 && again <= kills; again++ {
		*s.round++
		round := *s.round
		def := b.prepare(s, round)
		info, err := s.api.Pipelines().Run(s.ctx, def.json(), sdk.RunOptions{IdempotencyKey: fmt.Sprint(s.Name(), round)})
		s.check(err)
		w := s.watch(info.ID, b.written)
		if b.haunted {
			points := haunts[b.objects]
			s.haunt(points[again%len(points)], w.over)
			left--
		} else {
			left -= s.assault(s.batchStops(left, b.tasks, b.objects), left, w.over)
		}
		info = s.ends(w)
		if info.State != sdk.RunSucceeded || info.Cause != nil || info.Counts.Written != b.written || info.Counts.Rejected != 0 {
			s.Errorf("the run ended as %s, %+v, having counted %+v; there were %d rows to write", info.State, info.Cause, info.Counts, b.written)
		}
		if b.tasks > 1 && info.Tasks < b.tasks/2 {
			s.Errorf("the run had %d tasks, and not about %d", info.Tasks, b.tasks)
		}
		b.judge(s, round, info)
		// Whoever comes late changes nothing of what was told.
		later, err := s.api.Run(info.ID).Get(s.ctx)
		s.check(err)
		if later.State != info.State || later.Counts != info.Counts || !later.EndedAt.Equal(info.EndedAt) {
			s.Errorf("the run was %s at %s with %+v, and is %s at %s with %+v", info.State, info.EndedAt, info.Counts, later.State, later.EndedAt, later.Counts)
		}
		if s.Failed() {
			s.Fatalf("seed %d, round %d: seen as %v, the steps were %+v\n%s", s.seed, round, w.seen, info.Steps, s.rig.Logs())
		}
	}
	if left > 0 {
		s.Errorf("%d of %d kills did not come", left, kills)
	}
}

// plain is the source, without transforms.
var plain = definition{"client": "shop", "table": "public.orders"}

func copied(mode string) definition {
	return definition{"client": "copy", "table": "public.copied", "mode": mode}
}

// toTable is a batch from the source to a table. Target makes the table and the
// views; changed is how many rows the run has to say that it changed, asked before
// it begins, or empty.
func toTable(def func(round int) definition, mode string, target func(s *stage, round int), changed string) batch {
	var want int64
	staged := mode == "merge" || mode == "overwrite"
	return batch{
		tasks: 14, written: rows,
		prepare: func(s *stage, round int) definition {
			s.fill(round)
			s.exec(s.copy, "DROP TABLE IF EXISTS copied CASCADE")
			target(s, round)
			if changed != "" {
				want = one[int64](s, s.copy, changed)
			}
			return def(round)
		},
		judge: func(s *stage, _ int, info *sdk.RunInfo) {
			s.equal()
			s.swept(info, staged)
			if info.Counts.Changed != want {
				s.Errorf("the run says that it changed %d rows; it was %d", info.Counts.Changed, want)
			}
		},
	}
}

// keyless makes a target in which a row that is written twice is there twice.
func keyless(s *stage, _ int) {
	s.exec(s.copy, "CREATE TABLE copied ("+fmt.Sprintf(columns, "")+")")
	s.show("SELECT * FROM orders", "SELECT * FROM copied")
}

// older makes a target that has every second row as it was, others that differ, and
// some that the source does not have.
func older(s *stage, round int) {
	s.exec(s.copy, "CREATE TABLE copied ("+fmt.Sprintf(columns, " PRIMARY KEY")+")")
	s.exec(s.copy, `INSERT INTO copied SELECT i, CASE WHEN i % 11 = 0 THEN NULL ELSE (ARRAY['north', 'süd', 'o/st'])[1 + i % 3] END,
		CASE WHEN i % 4 = 0 THEN 'paid' ELSE 'new' END, i * 1.25 + CASE WHEN i % 6 = 4 THEN 1 ELSE 0 END, jsonb_build_object('i', i, 'md5', md5((i + $1)::text)),
		'2026-01-01'::timestamptz + i * interval '7 minutes 1 microsecond' FROM generate_series(2, $2::int + 400, 2) i`, round, rows)
	s.show("SELECT * FROM orders", "SELECT * FROM copied")
}

// haunts are where a worker stands still, without objects and with them.
var haunts = map[bool][]string{
	false: {crashpoint.TaskWritten, crashpoint.RunPrepared, crashpoint.TaskCommitted, crashpoint.RunFinishing, crashpoint.RunTasks, crashpoint.RunFinished},
	true:  {crashpoint.TaskStaged, crashpoint.RunTasks, crashpoint.TaskDecided, crashpoint.RunFinished, crashpoint.RunFinishing, crashpoint.TaskWritten},
}

// haunted is a scenario of a batch whose worker stands still.
func haunted(b batch) func(s *stage, kills int) {
	b.haunted = true
	return b.run
}

func table(mode string, target func(*stage, int), changed string) batch {
	return toTable(func(int) definition {
		return definition{"source": plain, "sink": copied(mode), "parallel": 2}
	}, mode, target, changed)
}

func tables(mode string, target func(*stage, int), changed string) func(s *stage, kills int) {
	return table(mode, target, changed).run
}

// transformed is a filter and a computed column.
func transformed(s *stage, kills int) {
	b := toTable(func(int) definition {
		return definition{
			"source": plain, "sink": copied("append"), "parallel": 3,
			"transforms": []any{
				definition{"filter": `row.status == "paid"`},
				definition{"set": definition{"cents": "int(double(row.total) * 100.0)"}},
				definition{"select": []string{"id", "cents", "at"}},
			},
		}
	}, "append", func(s *stage, _ int) {
		s.exec(s.copy, "CREATE TABLE copied (id bigint, cents bigint, at timestamptz)")
		s.show("SELECT id, (total * 100)::bigint AS cents, at FROM orders WHERE status = 'paid'", "SELECT * FROM copied")
	}, "")
	b.written = rows / 4
	b.run(s, kills)
}

// upserted keeps what the source does not have.
func upserted(s *stage, kills int) {
	tables("upsert", func(s *stage, round int) {
		older(s, round)
		s.show(fmt.Sprintf("SELECT * FROM orders UNION ALL SELECT i, NULL, 'kept', NULL, NULL, NULL FROM generate_series(%d, %d, 2) i", rows+2, rows+400),
			"SELECT * FROM copied")
		s.exec(s.copy, "UPDATE copied SET region = NULL, status = 'kept', total = NULL, note = NULL, at = NULL WHERE id > $1", rows)
	}, "")(s, kills)
}

// queried is one task, which is done as a whole or not at all.
func queried(s *stage, kills int) {
	b := toTable(func(int) definition {
		return definition{
			"source": definition{"client": "shop", "query": "SELECT id, region, total * 2 AS doubled FROM orders WHERE id > $1 ORDER BY id DESC", "params": []any{400}},
			"sink":   copied("append"),
		}
	}, "append", func(s *stage, _ int) {
		s.exec(s.copy, "CREATE TABLE copied (id bigint, region text, doubled numeric)")
		s.show("SELECT id, region, total * 2 AS doubled FROM orders WHERE id > 400", "SELECT * FROM copied")
	}, "")
	b.tasks, b.written = 1, rows-400
	b.run(s, kills)
}

// fromObjects reads objects that the scenario has put there.
func fromObjects(s *stage, kills int) {
	prefix := func(round int) string { return fmt.Sprintf("in-%d/", round) }
	b := toTable(func(round int) definition {
		named := func(pairs ...string) (list []any) {
			for i := 0; i < len(pairs); i += 2 {
				list = append(list, definition{"name": pairs[i], "type": pairs[i+1]})
			}
			return list
		}
		return definition{
			"source": definition{"client": "lake", "objects": definition{"prefix": prefix(round), "columns": named(
				"id", "int64", "region", "text", "status", "text", "total", "decimal(12,2)", "note", "json", "at", "timestamptz")}},
			"sink": copied("append"),
		}
	}, "append", func(s *stage, round int) {
		keyless(s, round)
		for i := range 12 {
			text := one[string](s, s.shop, "SELECT string_agg(to_jsonb(o)::text, E'\\n' ORDER BY id) FROM (SELECT id, region, status, total::text, note, at FROM orders) o WHERE id % 12 = $1", i)
			_, err := s.lake.WriteObject(s.ctx, fmt.Sprintf("%s%d.ndjson", prefix(round), i), strings.NewReader(text), driver.ObjectWrite{Bytes: int64(len(text))})
			s.check(err)
		}
	}, "")
	b.tasks = 6
	b.run(s, kills)
}

// toObjects writes objects that are parted by a column.
func toObjects(format string) batch {
	prefix := func(round int) string { return fmt.Sprintf("out-%d/", round) }
	return batch{
		tasks: 14, written: rows, objects: true,
		prepare: func(s *stage, round int) definition {
			s.fill(round)
			return definition{
				"source": plain, "parallel": 2,
				"sink": definition{"client": "lake", "objects": definition{"prefix": prefix(round) + "region={{region}}/", "format": format}},
			}
		},
		judge: func(s *stage, round int, info *sdk.RunInfo) {
			s.exec(s.copy, "DROP TABLE IF EXISTS back CASCADE")
			s.exec(s.copy, "CREATE TABLE back ("+fmt.Sprintf(columns, "")+")")
			s.show("SELECT * FROM orders", "SELECT * FROM back")
			objects := s.listed(prefix(round), func(key string, rows []json.RawMessage) {
				s.take("back", rows)
				part := strings.Split(strings.TrimPrefix(key, prefix(round)), "/")[0]
				want := map[string]string{"region=__null__": "null", "region=north": `"north"`, "region=s%C3%BCd": `"süd"`, "region=o%2Fst": `"o/st"`}[part]
				for _, row := range rows {
					if want == "" || !bytes.Contains(row, []byte(`"region":`+want)) {
						s.Errorf("object %s has the row %s", key, row)
					}
				}
			})
			s.equal()
			if info.Counts.Objects != objects {
				s.Errorf("the run says that it wrote %d objects; %d are listed", info.Counts.Objects, objects)
			}
		},
	}
}

// How many rows a run that begins with an older target changes.
const (
	merges     = "SELECT 1200 + 400 + 200::bigint" // missing, other, gone
	overwrites = "SELECT 2400::bigint"
)
