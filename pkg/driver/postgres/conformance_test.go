package postgres_test

import (
	"net/url"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/driver/drivertest"
	"github.com/athena-pipelines/athena/pkg/driver/postgres"
	"github.com/athena-pipelines/athena/pkg/localpg"
	"github.com/athena-pipelines/athena/pkg/localpg/pgtest"
)

func TestConformance(t *testing.T) {
	t.Parallel()
	dsn := pgtest.DSN(t)
	parsed, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	password, _ := parsed.User.Password()
	watch, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { watch.Close(t.Context()) })
	conn := athena.PostgresConn{DSN: athena.NewSecret(dsn)}

	drivertest.Run(t, drivertest.Harness{
		Open: func(t *testing.T) driver.Backend {
			b, err := postgres.Driver().Open(t.Context(), conn)
			if err != nil {
				t.Fatal(err)
			}
			return b
		},
		Claims: athena.Allow(athena.GatewayQuery, athena.DeferredQuery, athena.RawSQL,
			athena.SchemaRead, athena.MigrationsRead, athena.Provisioning, athena.CDC, athena.PipelineSource, athena.PipelineSink),
		Tracked: true, Explains: true, Counts: true, Identifies: true,
		Unreachable: func(t *testing.T) (driver.Backend, error) {
			s := pgtest.Server(t, map[string]string{"fsync": "off"})
			b, err := postgres.Open(t.Context(), athena.PostgresConn{DSN: athena.NewSecret(s.DSN("postgres"))})
			if err != nil {
				return nil, err
			}
			if err := s.Stop(t.Context(), localpg.Immediate); err != nil {
				t.Fatal(err)
			}
			// The pool asks connections that have been idle for a second.
			time.Sleep(1100 * time.Millisecond)
			return b, nil
		},
		Secrets:   []string{dsn, password},
		Schema:    "public",
		Provision: driver.Provision{Kind: "schema", Name: "Tenant \"1\""},
		Running: func(t *testing.T) (n int) {
			err := watch.QueryRow(t.Context(), `SELECT count(*) FROM pg_stat_activity
				WHERE datname = current_database() AND state = 'active' AND pid <> pg_backend_pid()`).Scan(&n)
			if err != nil {
				t.Fatal(err)
			}
			return n
		},
		Statements: drivertest.Statements{
			Create: `CREATE TABLE {t} (id bigint PRIMARY KEY, name text)`,
			Setup: []string{`CREATE FUNCTION hidden_{t}() RETURNS bigint LANGUAGE sql AS
				$$ INSERT INTO {t} VALUES (900, 'hidden') RETURNING id $$`},
			Drop:            []string{`DROP FUNCTION hidden_{t}()`, `DROP TABLE {t}`},
			Insert:          `INSERT INTO {t} VALUES ($1, $2)`,
			InsertReturning: `INSERT INTO {t} VALUES ($1, $2) RETURNING id, name`,
			Select:          `SELECT id, name FROM {t} WHERE id = $1`,
			All:             `SELECT id, name FROM {t}`,
			Rename:          `UPDATE {t} SET name = $1 WHERE id = $2`,
			Generate:        `SELECT i, repeat('x', 200) AS filler FROM generate_series(1, $1) AS i`,
			Slow:            `SELECT pg_sleep(60)`,
			SlowWrite:       `WITH w AS (INSERT INTO {t} VALUES ($1, $2) RETURNING id) SELECT id, pg_sleep(60) FROM w`,
			Duplicates:      `SELECT 1 AS a, 2 AS a, 'x' AS a`,
			MidError:        `SELECT 1 / (3 - i) AS v FROM generate_series(1, 10) AS i`,
			Syntax:          `SELCT 1`,
			HiddenWrite:     `SELECT hidden_{t}()`,
			Outside:         `VACUUM {t}`,
			SetSession:      `SET work_mem = '7777kB'`,
			ShowSession:     `SHOW work_mem`,
			SessionValue:    `"7777kB"`,
			Reads:           []string{`SELECT 'delete from t';`, `EXPLAIN DELETE FROM t`, `TABLE t`, `(SELECT 1) UNION SELECT 2 -- insert`},
			Writes:          []string{`SELECT * FROM t FOR SHARE`, `WITH x AS (DELETE FROM t RETURNING *) SELECT * FROM x`, `SELECT 1 INTO t`, `SELECT nextval('s')`},
			Refused:         []string{`BEGIN`, `commit;`, `/* x */ ROLLBACK`, `SELECT 1; SELECT 2`, `COPY t FROM STDIN`, `LISTEN x`},
		},
	})
}
