package localpg_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/athena-pipelines/athena/pkg/localpg"
)

// TestMain also is the process that TestServerDiesWithItsProcess kills.
func TestMain(m *testing.M) {
	if dir := os.Getenv("LOCALPG_TEST_HOLD"); dir != "" {
		s, err := localpg.Start(context.Background(), localpg.Config{Dir: dir})
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println(s.DSN("postgres"))
		select {}
	}
	os.Exit(m.Run())
}

// tempDir is a directory that the server's user can reach when the tests run
// as root; t.TempDir is not.
func tempDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "localpg-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func start(t *testing.T, cfg localpg.Config) *localpg.Server {
	t.Helper()
	s, err := localpg.Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := s.Stop(ctx, localpg.Immediate); err != nil {
			t.Error(err)
		}
	})
	return s
}

func query(t *testing.T, dsn, sql string) string {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	var out string
	if err := conn.QueryRow(t.Context(), sql).Scan(&out); err != nil && !errors.Is(err, pgx.ErrNoRows) {
		t.Fatal(err)
	}
	return out
}

func TestDataSurvivesRestarts(t *testing.T) {
	t.Parallel()
	dir := tempDir(t)
	s := start(t, localpg.Config{Dir: dir})
	query(t, s.DSN("postgres"), `CREATE TABLE kept AS SELECT 'here'::text AS v`)

	if err := s.Restart(t.Context(), localpg.Immediate); err != nil {
		t.Fatal("restart after a crash:", err)
	}
	if got := query(t, s.DSN("postgres"), `SELECT v FROM kept`); got != "here" {
		t.Errorf("after a crash the table holds %q", got)
	}
	if err := s.Stop(t.Context(), localpg.Fast); err != nil {
		t.Fatal(err)
	}
	if err := s.Stop(t.Context(), localpg.Fast); err != nil {
		t.Error("second stop:", err)
	}
	again := start(t, localpg.Config{Dir: dir})
	if got := query(t, again.DSN("postgres"), `SELECT v FROM kept`); got != "here" {
		t.Errorf("after a stop the table holds %q", got)
	}
}

func TestServerIsPrivateAndLogical(t *testing.T) {
	t.Parallel()
	s := start(t, localpg.Config{Settings: map[string]string{"fsync": "off", "max_connections": "33"}})
	for setting, want := range map[string]string{
		"wal_level":             "logical",
		"max_wal_senders":       "20",
		"max_replication_slots": "20",
		"listen_addresses":      "127.0.0.1",
		"password_encryption":   "scram-sha-256",
		"server_encoding":       "UTF8",
		"fsync":                 "off",
		"max_connections":       "33",
	} {
		if got := query(t, s.DSN("postgres"), `SELECT current_setting('`+setting+`')`); got != want {
			t.Errorf("%s = %q, want %q", setting, got, want)
		}
	}
	wrong := strings.Replace(s.DSN("postgres"), "postgres:", "postgres:x", 2)
	if conn, err := pgx.Connect(t.Context(), wrong); err == nil {
		conn.Close(t.Context())
		t.Error("a wrong password was accepted")
	}
}

func TestTemporaryDirectoryIsRemoved(t *testing.T) {
	t.Parallel()
	s := start(t, localpg.Config{})
	data := query(t, s.DSN("postgres"), `SELECT current_setting('data_directory')`)
	if err := s.Stop(t.Context(), localpg.Immediate); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Dir(data)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is still there: %v", filepath.Dir(data), err)
	}
}

// TestServerDiesWithItsProcess kills a process that holds a server and starts
// another over the same directory at once.
func TestServerDiesWithItsProcess(t *testing.T) {
	t.Parallel()
	dir := tempDir(t)
	holder := exec.Command(os.Args[0])
	holder.Env = append(os.Environ(), "LOCALPG_TEST_HOLD="+dir)
	out, err := holder.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	dsn, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || !strings.HasPrefix(dsn, "postgres://") {
		t.Fatalf("the holder says %q, %v", dsn, err)
	}
	query(t, strings.TrimSpace(dsn), `CREATE TABLE kept AS SELECT 'here'::text AS v`)
	holder.Process.Kill()
	holder.Wait()

	s := start(t, localpg.Config{Dir: dir})
	if got := query(t, s.DSN("postgres"), `SELECT v FROM kept`); got != "here" {
		t.Errorf("after the kill the table holds %q", got)
	}
	if runtime.GOOS == "linux" {
		old, err := pgx.ParseConfig(strings.TrimSpace(dsn))
		if err != nil {
			t.Fatal(err)
		}
		if int(old.Port) != s.Port {
			if conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", old.Port)); err == nil {
				conn.Close()
				t.Error("the killed process's server still listens")
			}
		}
	}
}

// TestLiveServerOverTheSameDirectoryIsReplaced starts a second server over the
// directory of one that still runs.
func TestLiveServerOverTheSameDirectoryIsReplaced(t *testing.T) {
	t.Parallel()
	dir := tempDir(t)
	start(t, localpg.Config{Dir: dir})
	second := start(t, localpg.Config{Dir: dir})
	if got := query(t, second.DSN("postgres"), `SELECT 'up'`); got != "up" {
		t.Errorf("got %q", got)
	}
}

func TestErrorsNameTheMend(t *testing.T) {
	t.Parallel()
	if _, err := localpg.Start(t.Context(), localpg.Config{
		Settings: map[string]string{"shared_buffers": "nonsense"},
	}); err == nil || !strings.Contains(err.Error(), "shared_buffers") {
		t.Errorf("a bad setting gives %v", err)
	}
	if os.Geteuid() == 0 {
		_, err := localpg.Start(t.Context(), localpg.Config{Dir: filepath.Join(t.TempDir(), "pg")})
		if err == nil || !strings.Contains(err.Error(), "chmod o+x") {
			t.Errorf("a closed parent directory gives %v", err)
		}
	}
	dir := tempDir(t)
	s := start(t, localpg.Config{Dir: dir})
	if err := s.Stop(t.Context(), localpg.Immediate); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "data", "PG_VERSION"), []byte("9.6\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := localpg.Start(t.Context(), localpg.Config{Dir: dir}); err == nil || !strings.Contains(err.Error(), "of PostgreSQL 9.6") {
		t.Errorf("data of another version gives %v", err)
	}
}

func TestFindHonoursTheEnvironment(t *testing.T) {
	want, err := localpg.Find()
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("ATHENA_PG_BIN", want)
	t.Setenv("PATH", "")
	if got, err := localpg.Find(); err != nil || got != want {
		t.Errorf("Find() = %q, %v; want %q", got, err, want)
	}
	t.Setenv("ATHENA_PG_BIN", t.TempDir())
	if _, err := localpg.Find(); err == nil || !strings.Contains(err.Error(), "ATHENA_PG_BIN") {
		t.Errorf("an empty ATHENA_PG_BIN gives %v", err)
	}
}
