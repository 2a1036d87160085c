package postgres

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/driver"
	"github.com/athena-pipelines/athena/pkg/localpg/pgtest"
)

// A recorder is a sink that keeps what it is given, as text, and confirms it.
type recorder struct {
	t       *testing.T
	mu      sync.Mutex
	moved   chan struct{} // closed, and made anew, at each event
	enc     *cdc.Encoder
	changes []cdc.Change
	tables  map[driver.TableName][]cdc.Column
	rejects []driver.Rejected
	marks   []string
	pauses  int
	pause   func() error
	stream  driver.ChangeStream
	hold    bool // confirm nothing
	ended   error
}

func newRecorder(t *testing.T) *recorder {
	return &recorder{t: t, moved: make(chan struct{}), enc: cdc.NewEncoder("shop"), tables: map[driver.TableName][]cdc.Column{}}
}

func (r *recorder) event() {
	close(r.moved)
	r.moved = make(chan struct{})
}

func (r *recorder) Change(_ context.Context, c *cdc.Change) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	defer r.event()
	line := r.enc.Append(nil, c) // a copy, as the writer makes one
	var back cdc.Change
	if err := json.Unmarshal(line, &back); err != nil {
		r.t.Errorf("a change is not JSON: %v\n%s", err, line)
	}
	if strings.ContainsAny(string(line), "\n\r") {
		r.t.Errorf("a change has a line break: %q", line)
	}
	if n := len(r.changes); n > 0 && r.changes[n-1].Pos >= back.Pos {
		r.t.Errorf("position %s comes behind %s", back.Pos, r.changes[n-1].Pos)
	}
	r.changes = append(r.changes, back)
	return nil
}

func (r *recorder) Reject(_ context.Context, x driver.Rejected) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	defer r.event()
	x.Raw = slices.Clone(x.Raw)
	r.rejects = append(r.rejects, x)
	return nil
}

func (r *recorder) Commit(_ context.Context, mark string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	defer r.event()
	r.marks = append(r.marks, mark)
	if !r.hold {
		r.stream.Confirm(mark)
	}
	return nil
}

func (r *recorder) Pause(context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	defer r.event()
	r.pauses++
	if r.pause != nil {
		return r.pause()
	}
	return nil
}

func (r *recorder) version(t driver.TableName, columns []cdc.Column) (int, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if slices.Equal(r.tables[t], columns) {
		return 1, false
	}
	r.tables[t] = columns
	return 1, true
}

// await waits until ok holds of what was recorded.
func (r *recorder) await(what string, ok func() bool) {
	r.t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		r.mu.Lock()
		done, moved := ok(), r.moved
		r.mu.Unlock()
		if done {
			return
		}
		select {
		case <-moved:
		case <-deadline:
			r.mu.Lock()
			defer r.mu.Unlock()
			r.t.Fatalf("%s did not come (the stream ended with %v); there are\n%.3000s", what, r.ended, r.text())
		}
	}
}

// text tells the changes, one per line: op, table, key, before, after,
// unchanged, number in the transaction.
func (r *recorder) text() string {
	var b strings.Builder
	for _, c := range r.changes {
		b.WriteString(tellChange(c) + "\n")
	}
	return b.String()
}

func tellChange(c cdc.Change) string {
	s := string(c.Op)
	if c.Table != "" {
		s += " " + c.Table
	}
	if c.Op == cdc.Schema {
		for _, col := range c.Columns {
			s += fmt.Sprintf(" %s:%s", col.Name, col.Type)
			if col.Key {
				s += "*"
			}
		}
		return s
	}
	if c.Key != nil {
		s += " key=" + string(c.Key)
	}
	if c.Before != nil {
		s += " before=" + string(c.Before)
	}
	if c.After != nil {
		s += " after=" + string(c.After)
	}
	if len(c.Unchanged) > 0 {
		s += " unchanged=" + strings.Join(c.Unchanged, ",")
	}
	if c.Op == cdc.Message {
		s += " " + c.Prefix + "=" + string(c.Content)
	}
	if c.Tx != nil {
		s += fmt.Sprintf(" n=%d", c.Tx.N)
	}
	return s
}

// A captureRig is a database with a slot and a publication, made with SQL alone.
type captureRig struct {
	t    *testing.T
	b    *Backend
	conn *pgx.Conn
	cfg  driver.ChangeConfig
}

func newCaptureRig(t *testing.T, dsn, ddl string, tables string) *captureRig {
	t.Helper()
	b, err := Open(t.Context(), athena.PostgresConn{DSN: athena.NewSecret(dsn)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close(context.Background()) })
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	r := &captureRig{t: t, b: b, conn: conn}
	r.exec(ddl)
	r.exec("CREATE PUBLICATION athena_shop FOR TABLE " + tables + " WITH (publish_via_partition_root = true)")
	slot := "athena_" + strings.ToLower(strings.NewReplacer("/", "_", "#", "_").Replace(t.Name()))
	slot = slot[:min(len(slot), 50)] + fmt.Sprint(time.Now().UnixNano()%1e6)
	r.exec("SELECT pg_create_logical_replication_slot('" + slot + "', 'pgoutput')")
	t.Cleanup(func() {
		// Or the database cannot be dropped.
		_, _ = conn.Exec(context.Background(), "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = $1 AND active", slot)
		for range 100 {
			if _, err := conn.Exec(context.Background(), "SELECT pg_drop_replication_slot($1)", slot); err == nil || !strings.Contains(err.Error(), "is active") {
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
	})
	dir, err := os.MkdirTemp("", "athena-spill-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	r.cfg = driver.ChangeConfig{
		ChangeSetup: driver.ChangeSetup{Client: strings.ToLower(slot), Slot: slot, Publication: "athena_shop"},
		SpillDir:    dir,
	}
	return r
}

func (r *captureRig) exec(sql string, args ...any) {
	r.t.Helper()
	if _, err := r.conn.Exec(context.Background(), sql, args...); err != nil {
		r.t.Fatalf("%s: %v", sql, err)
	}
}

// follow runs a stream into sink until the returned function is called, which
// gives the error that the stream ended with.
func (r *captureRig) follow(sink *recorder, change func(*driver.ChangeConfig)) (stop func() error) {
	r.t.Helper()
	cfg := r.cfg
	cfg.Version = sink.version
	if change != nil {
		change(&cfg)
	}
	ctx, cancel := context.WithCancel(context.Background())
	stream, err := r.b.OpenChanges(ctx, cfg)
	if err != nil {
		cancel()
		r.t.Fatal(err)
	}
	sink.stream = stream
	done := make(chan error, 1)
	go func() {
		err := stream.Run(ctx, sink)
		sink.mu.Lock()
		sink.ended = err
		sink.event()
		sink.mu.Unlock()
		done <- err
	}()
	stop = sync.OnceValue(func() error {
		cancel()
		err := <-done
		_ = stream.Close(context.Background())
		return err
	})
	r.t.Cleanup(func() { _ = stop() })
	return stop
}

func (s *recorder) has(n int) func() bool { return func() bool { return len(s.changes) >= n } }

func (s *recorder) want(lines ...string) {
	s.t.Helper()
	s.await(fmt.Sprintf("%d changes", len(lines)), s.has(len(lines)))
	s.mu.Lock()
	defer s.mu.Unlock()
	if got, want := s.text(), strings.Join(lines, "\n")+"\n"; got != want {
		s.t.Errorf("got\n%swant\n%s", got, want)
	}
}

func TestChangesOfEveryKind(t *testing.T) {
	t.Parallel()
	r := newCaptureRig(t, pgtest.DSN(t), `
		CREATE TABLE orders (id int PRIMARY KEY, status text, big text);
		ALTER TABLE orders ALTER COLUMN big SET STORAGE EXTERNAL;
		CREATE TABLE full_ident (id int PRIMARY KEY, v int, big text);
		ALTER TABLE full_ident REPLICA IDENTITY FULL;
		ALTER TABLE full_ident ALTER COLUMN big SET STORAGE EXTERNAL;
		CREATE TABLE nokey (a int, b text);
		ALTER TABLE nokey REPLICA IDENTITY FULL`, "orders, full_ident, nokey")
	s := newRecorder(t)
	r.follow(s, nil)
	big := strings.Repeat("x", 5000)
	r.exec("INSERT INTO orders VALUES (1, 'new', $1), (2, NULL, 'b')", big)
	r.exec("UPDATE orders SET status = 'paid' WHERE id = 1")
	r.exec("UPDATE orders SET id = 3 WHERE id = 2")
	r.exec("DELETE FROM orders WHERE id = 3")
	r.exec("INSERT INTO full_ident VALUES (1, 1, $1)", big)
	r.exec("UPDATE full_ident SET v = 2")
	r.exec("INSERT INTO nokey VALUES (1, 'x')")
	r.exec("UPDATE nokey SET a = 2")
	r.exec("DELETE FROM nokey")
	r.exec("TRUNCATE orders, nokey")
	r.exec("SELECT pg_logical_emit_message(false, 'app', 'hello')")
	r.exec("SELECT pg_logical_emit_message(true, 'app', 'tx')")
	r.exec("SELECT pg_logical_emit_message(true, 'athena', '')")
	r.exec("INSERT INTO orders VALUES (9, 'end', NULL)")
	s.want(
		"schema orders id:integer* status:text big:text",
		`insert orders key={"id":1} after={"id":1,"status":"new","big":"`+big+`"} n=1`,
		`insert orders key={"id":2} after={"id":2,"status":null,"big":"b"} n=2`,
		`update orders key={"id":1} after={"id":1,"status":"paid"} unchanged=big n=1`,
		`update orders key={"id":3} before={"id":2} after={"id":3,"status":null,"big":"b"} n=1`,
		`delete orders key={"id":3} before={"id":3} n=1`,
		"schema full_ident id:integer* v:integer big:text",
		`insert full_ident key={"id":1} after={"id":1,"v":1,"big":"`+big+`"} n=1`,
		`update full_ident key={"id":1} before={"id":1,"v":1,"big":"`+big+`"} after={"id":1,"v":2,"big":"`+big+`"} n=1`,
		"schema nokey a:integer b:text",
		`insert nokey after={"a":1,"b":"x"} n=1`,
		`update nokey before={"a":1,"b":"x"} after={"a":2,"b":"x"} n=1`,
		`delete nokey before={"a":2,"b":"x"} n=1`,
		`truncate orders n=1`,
		`truncate nokey n=2`,
		`message app=hello`,
		`message app=tx n=1`,
		`insert orders key={"id":9} after={"id":9,"status":"end","big":null} n=1`,
	)
}
