package pgtest_test

import (
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/athena-pipelines/athena/pkg/localpg"
	"github.com/athena-pipelines/athena/pkg/localpg/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

func TestEveryTestHasItsOwnDatabase(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"one", "two"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn, err := pgx.Connect(t.Context(), pgtest.DSN(t))
			if err != nil {
				t.Fatal(err)
			}
			// Left open on purpose: the drop must not mind.
			if _, err := conn.Exec(t.Context(), `CREATE TABLE same_name ()`); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestServerCanBeCrashed(t *testing.T) {
	t.Parallel()
	s := pgtest.Server(t, map[string]string{"wal_level": "replica"})
	if err := s.Stop(t.Context(), localpg.Immediate); err != nil {
		t.Fatal(err)
	}
	if err := s.Restart(t.Context(), localpg.Immediate); err != nil {
		t.Fatal(err)
	}
	conn, err := pgx.Connect(t.Context(), s.DSN("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	var level string
	if err := conn.QueryRow(t.Context(), `SHOW wal_level`).Scan(&level); err != nil || level != "replica" {
		t.Errorf("wal_level = %q, %v", level, err)
	}
}
