package capture

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"pgregory.net/rapid"

	"github.com/athena-pipelines/athena/pkg/bus"
	"github.com/athena-pipelines/athena/pkg/bus/bustest"
	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/changefeed"
	"github.com/athena-pipelines/athena/pkg/driver"
)

// A writerRig is a stream with a writer at its end.
type writerRig struct {
	w      *writer
	stream jetstream.Stream
	groups []*group
	stop   func() error
}

type fataler interface {
	Helper()
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}

func newWriterRig(t fataler, b *bus.Bus, c changefeed.Capture, most int, last cdc.Position) *writerRig {
	t.Helper()
	ctx := context.Background()
	s, err := b.JetStream().CreateOrUpdateStream(ctx, bus.CDCConfig(c.Client, time.Hour, c.MaxBytes, 1))
	if err != nil {
		t.Fatal(err)
	}
	info, err := s.Info(ctx)
	if err != nil {
		t.Fatal(err)
	}
	out, err := bus.NewAppender(b.Conn(), bus.CDCStream(c.Client), info.State.LastSeq)
	if err != nil {
		t.Fatal(err)
	}
	r := &writerRig{stream: s}
	r.w = newWriter(c, out, &largeValues{js: b.JetStream(), client: c.Client}, most, last, "", func(g *group) { r.groups = append(r.groups, g) })
	wctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- r.w.Run(wctx) }()
	r.stop = func() error {
		cancel()
		err := <-done
		out.Close()
		return err
	}
	return r
}

// messages reads the whole stream.
func (r *writerRig) messages(t fataler) []*jetstream.RawStreamMsg {
	t.Helper()
	info, err := r.stream.Info(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	var out []*jetstream.RawStreamMsg
	for seq := info.State.FirstSeq; seq <= info.State.LastSeq && info.State.Msgs > 0; seq++ {
		m, err := r.stream.GetMsg(context.Background(), seq)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, m)
	}
	return out
}

// What was taken is stored: all of it, once, in order, each message of one table
// and with headers that say what it holds, and the last change of a transaction
// marked, and no other.
func TestWriterPacksWithoutLoss(t *testing.T) {
	t.Parallel()
	b := bustest.Start(t)
	var n atomic.Int64
	rapid.Check(t, func(t *rapid.T) {
		ctx := context.Background()
		c := changefeed.Capture{Client: fmt.Sprintf("c%d", n.Add(1)), Pack: rapid.IntRange(1, 20).Draw(t, "pack")}.WithDefaults()
		r := newWriterRig(t, b, c, 1<<20, "")
		defer b.JetStream().DeleteStream(ctx, bus.CDCStream(c.Client))
		defer r.stop()
		var want []string // pos and whether it is the last
		txs := rapid.IntRange(1, 12).Draw(t, "transactions")
		for tx := range txs {
			size := rapid.IntRange(1, 30).Draw(t, "changes")
			for i := range size {
				pos := cdc.Position(fmt.Sprintf("%016X.%08X", 100+tx, i+1))
				table := rapid.SampledFrom([]string{"a", "a", "a", "b"}).Draw(t, "table")
				change := &cdc.Change{
					Pos: pos, Op: rapid.SampledFrom([]cdc.Op{cdc.Insert, cdc.Update}).Draw(t, "op"), Schema: "public", Table: table,
					After: json.RawMessage(`{"v":"` + strings.Repeat("x", rapid.IntRange(0, 2000).Draw(t, "bytes")) + `"}`),
					Tx:    &cdc.Transaction{ID: strconv.Itoa(tx), Pos: pos[:16], N: uint64(i + 1), At: time.Unix(1, 0)},
				}
				if err := r.w.Change(ctx, change); err != nil {
					t.Fatal(err)
				}
				want = append(want, fmt.Sprintf("%s %s %v", pos, table, i == size-1))
			}
			if err := r.w.Commit(ctx, fmt.Sprintf("%016X", 100+tx)); err != nil {
				t.Fatal(err)
			}
			if rapid.Bool().Draw(t, "flush") {
				if err := r.w.Flush(ctx); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := r.w.Flush(ctx); err != nil {
			t.Fatal(err)
		}
		var got []string
		var prev string
		for _, m := range r.messages(t) {
			if m.Header.Get(changefeed.HeaderPrev) != prev {
				t.Fatalf("a message says that %s is before it, and %q is", m.Header.Get(changefeed.HeaderPrev), prev)
			}
			prev = m.Header.Get(changefeed.HeaderPos)
			lines := bytes.Split(m.Data, []byte("\n"))
			if len(lines) > c.Pack || strconv.Itoa(len(lines)) != m.Header.Get(changefeed.HeaderCount) {
				t.Fatalf("a message has %d lines, pack %d, and says %s", len(lines), c.Pack, m.Header.Get(changefeed.HeaderCount))
			}
			for i, line := range lines {
				var change cdc.Change
				if err := json.Unmarshal(line, &change); err != nil {
					t.Fatalf("%v: %s", err, line)
				}
				if i == 0 && m.Header.Get(changefeed.HeaderFirst) != string(change.Pos) || i == len(lines)-1 && m.Header.Get(changefeed.HeaderPos) != string(change.Pos) {
					t.Fatalf("headers %v of a message from %s", m.Header, change.Pos)
				}
				if m.Subject != bus.CDC(c.Client, change.Schema, change.Table) {
					t.Fatalf("a change of %s is on %s", change.Table, m.Subject)
				}
				if op := m.Header.Get(changefeed.HeaderOp); op != "" && op != string(change.Op) {
					t.Fatalf("a %s is in a message of %s", change.Op, op)
				}
				got = append(got, fmt.Sprintf("%s %s %v", change.Pos, change.Table, change.Tx.Last))
			}
		}
		if strings.Join(got, "\n") != strings.Join(want, "\n") {
			t.Fatalf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
		last := r.groups[len(r.groups)-1]
		if last.mark != fmt.Sprintf("%016X", 100+txs-1) {
			t.Fatalf("the last group confirms %s", last.mark)
		}
	})
}

// A message's mark is that of a transaction that is complete with it: nothing
// that is not stored is ever confirmed.
func TestWriterMarksOnlyWhatIsComplete(t *testing.T) {
	t.Parallel()
	b := bustest.Start(t)
	c := changefeed.Capture{Client: "shop", Pack: 2}.WithDefaults()
	r := newWriterRig(t, b, c, 1<<20, "")
	defer r.stop()
	ctx := t.Context()
	change := func(lsn, n int) {
		t.Helper()
		pos := cdc.Position(fmt.Sprintf("%016X.%08X", lsn, n))
		if err := r.w.Change(ctx, &cdc.Change{Pos: pos, Op: cdc.Insert, Schema: "s", Table: "t", Tx: &cdc.Transaction{ID: "1", N: uint64(n)}}); err != nil {
			t.Fatal(err)
		}
	}
	change(1, 1)
	if err := r.w.Commit(ctx, "A"); err != nil {
		t.Fatal(err)
	}
	for n := range 7 {
		change(2, n+1)
	}
	// What is complete may be stored; the last change waits for the next.
	time.Sleep(50 * time.Millisecond)
	if err := r.w.Commit(ctx, "B"); err != nil {
		t.Fatal(err)
	}
	if err := r.w.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	for _, m := range r.messages(t) {
		pos, mark := m.Header.Get(changefeed.HeaderPos), m.Header.Get(changefeed.HeaderMark)
		want := "A"
		if pos == fmt.Sprintf("%016X.%08X", 2, 7) {
			want = "B"
		}
		if mark != want {
			t.Errorf("the message up to %s confirms %q, want %q", pos, mark, want)
		}
	}
}

// Rows of snapshots stand behind the log's last change and before its next one,
// also when a later writer goes on.
func TestWriterPlacesRowsOfSnapshots(t *testing.T) {
	t.Parallel()
	b := bustest.Start(t)
	c := changefeed.Capture{Client: "shop"}.WithDefaults()
	ctx := t.Context()
	table := driver.TableName{Schema: "s", Table: "t"}
	first := cdc.Position("0000000000000010.00000001")
	r := newWriterRig(t, b, c, 1<<20, "")
	if err := r.w.Change(ctx, &cdc.Change{Pos: first, Op: cdc.Insert, Schema: "s", Table: "t"}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := r.w.Row(ctx, table, 1, 0, nil, []byte(`{}`)); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.w.Progress(ctx, changefeed.SnapshotProgress{ID: "x", State: "running"}); err != nil {
		t.Fatal(err)
	}
	if err := r.w.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	last := r.w.Position()
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	r = newWriterRig(t, b, c, 1<<20, last)
	defer r.stop()
	if err := r.w.Row(ctx, table, 1, 0, nil, []byte(`{}`)); err != nil {
		t.Fatal(err)
	}
	next := cdc.Position("0000000000000010.00000002")
	for _, pos := range []cdc.Position{first.BeforeNext(), next} {
		if err := r.w.Change(ctx, &cdc.Change{Pos: pos, Op: cdc.Insert, Schema: "s", Table: "t"}); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.w.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, m := range r.messages(t) {
		if strings.HasPrefix(m.Subject, "ath.cdcsnap.") {
			continue
		}
		for line := range cdc.Lines(m.Data) {
			var c cdc.Change
			if err := json.Unmarshal(line, &c); err != nil {
				t.Fatal(err)
			}
			if len(got) > 0 && got[len(got)-1] >= string(c.Pos) {
				t.Errorf("%s comes behind %s", c.Pos, got[len(got)-1])
			}
			got = append(got, string(c.Pos))
		}
	}
	if len(got) != 6 {
		t.Errorf("there are %d changes: %v", len(got), got)
	}
}

// A value that no message holds is kept beside the stream, and never stops it.
func TestWriterKeepsLargeValuesBesideTheStream(t *testing.T) {
	t.Parallel()
	b := bustest.Start(t)
	c := changefeed.Capture{Client: "shop"}.WithDefaults()
	r := newWriterRig(t, b, c, int(b.Conn().MaxPayload())-headerRoom, "")
	defer r.stop()
	ctx := t.Context()
	large, _ := json.Marshal(strings.Repeat("ü", 25<<20)) // 50 MB
	change := func(n int, row string) {
		t.Helper()
		err := r.w.Change(ctx, &cdc.Change{
			Pos: cdc.Position(fmt.Sprintf("%016X.%08X", 16, n)), Op: cdc.Update, Schema: "s", Table: "t",
			Key: json.RawMessage(`{"id":1}`), After: json.RawMessage(row), Tx: &cdc.Transaction{ID: "1", Pos: "0000000000000010", N: uint64(n)},
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	change(1, `{"id":1,"v":"small"}`)
	change(2, `{"id":1,"big":`+string(large)+`,"v":"x"}`)
	change(3, `{"id":1,"v":"`+strings.Repeat("y", 5<<20)+`"}`) // fits, alone
	change(4, `{"id":1,"v":"small"}`)
	if err := r.w.Commit(ctx, "F"); err != nil {
		t.Fatal(err)
	}
	if err := r.w.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	var rows []map[string]json.RawMessage
	for _, m := range r.messages(t) {
		for line := range cdc.Lines(m.Data) {
			var c cdc.Change
			if err := cdc.Decode(line, &c); err != nil {
				t.Fatal(err)
			}
			var row map[string]json.RawMessage
			if err := json.Unmarshal(c.After, &row); err != nil {
				t.Fatal(err)
			}
			rows = append(rows, row)
		}
	}
	if len(rows) != 4 || string(rows[3]["v"]) != `"small"` || len(rows[2]["v"]) != 5<<20+2 {
		t.Fatalf("there are %d rows", len(rows))
	}
	var ref struct {
		Ref    string `json:"$ref"`
		SHA256 string `json:"sha256"`
		Bytes  int    `json:"bytes"`
	}
	if err := json.Unmarshal(rows[1]["big"], &ref); err != nil {
		t.Fatal(err)
	}
	store, err := b.JetStream().ObjectStore(ctx, bus.CDCObjects("shop"))
	if err != nil {
		t.Fatal(err)
	}
	got, err := store.GetBytes(ctx, ref.Ref)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(large)
	if !bytes.Equal(got, large) || ref.Bytes != len(large) || ref.SHA256 != hex.EncodeToString(sum[:]) {
		t.Errorf("%+v stands for %d bytes, want %d", ref, len(got), len(large))
	}
}

// The content of a logical message may be as large as a value.
func TestWriterKeepsLargeContentBesideTheStream(t *testing.T) {
	t.Parallel()
	b := bustest.Start(t)
	c := changefeed.Capture{Client: "shop"}.WithDefaults()
	r := newWriterRig(t, b, c, 1<<20, "")
	defer r.stop()
	ctx := t.Context()
	content := bytes.Repeat([]byte("m"), 900<<10) // too large in base64 alone
	if err := r.w.Change(ctx, &cdc.Change{Pos: "0000000000000010.00000000", Op: cdc.Message, Prefix: "app", Content: content}); err != nil {
		t.Fatal(err)
	}
	if err := r.w.Commit(ctx, "10"); err != nil {
		t.Fatal(err)
	}
	if err := r.w.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	msgs := r.messages(t)
	if len(msgs) != 1 || len(msgs[0].Data) > 1<<20 {
		t.Fatalf("there are %d messages", len(msgs))
	}
	var change cdc.Change
	if err := cdc.Decode(msgs[0].Data, &change); err != nil {
		t.Fatal(err)
	}
	var after struct {
		Content struct {
			Ref string `json:"$ref"`
		} `json:"content"`
	}
	if err := json.Unmarshal(change.After, &after); err != nil {
		t.Fatal(err)
	}
	store, err := b.JetStream().ObjectStore(ctx, bus.CDCObjects("shop"))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := store.GetBytes(ctx, after.Content.Ref); err != nil || !bytes.Equal(got, content) {
		t.Errorf("%d bytes are stored, want %d, %v", len(got), len(content), err)
	}
}

// A message outside of transactions is stored with its mark, however the two come
// to the writer: without it the source would keep its log until the next change.
func TestWriterStoresTheMarkOfAMessageOutsideOfTransactions(t *testing.T) {
	t.Parallel()
	b := bustest.Start(t)
	c := changefeed.Capture{Client: "shop"}.WithDefaults()
	r := newWriterRig(t, b, c, 1<<20, "")
	defer r.stop()
	ctx := t.Context()
	if err := r.w.Change(ctx, &cdc.Change{Pos: "0000000000000010.00000000", Op: cdc.Message, Prefix: "app"}); err != nil {
		t.Fatal(err)
	}
	r.w.poke() // as by a group that is answered in between
	time.Sleep(50 * time.Millisecond)
	if err := r.w.Commit(ctx, "10"); err != nil {
		t.Fatal(err)
	}
	if err := r.w.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	if n := len(r.groups); n == 0 || r.groups[n-1].mark != "10" {
		t.Errorf("the mark was not stored: %+v", r.groups)
	}
}

// What readers are told is stored though nothing follows.
func TestWriterStoresANote(t *testing.T) {
	t.Parallel()
	b := bustest.Start(t)
	r := newWriterRig(t, b, changefeed.Capture{Client: "shop"}.WithDefaults(), 1<<20, "0000000000000010.00000000")
	defer r.stop()
	if err := r.w.Note(t.Context(), "athena.begin", []byte("{}")); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(10 * time.Second); len(r.messages(t)) == 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the note is not stored")
		}
	}
}

// A change that cannot be encoded is a dead letter, however large it is.
func TestLargeDeadLetter(t *testing.T) {
	t.Parallel()
	b := bustest.Start(t)
	c := changefeed.Capture{Client: "shop"}.WithDefaults()
	r := newWriterRig(t, b, c, int(b.Conn().MaxPayload())-headerRoom, "")
	defer r.stop()
	s := &session{
		runner:  &runner{Worker: &Worker{Config: Config{Bus: b, Log: slog.New(slog.DiscardHandler)}}, status: newStatus(c, "one")},
		capture: c, writer: r.w,
	}
	raw := bytes.Repeat([]byte{0xff}, 7<<20)
	if err := s.Reject(t.Context(), driver.Rejected{Pos: "0000000000000010.00000001", Op: cdc.Insert, Schema: "s", Table: "t", Raw: raw}); err != nil {
		t.Fatal(err)
	}
	m, err := b.LastMsg(t.Context(), bus.StreamDead, bus.Dead("cdc", "shop"))
	if err != nil {
		t.Fatal(err)
	}
	var letter struct {
		Raw    []byte `json:"raw"`
		RawRef struct {
			Ref string `json:"$ref"`
		} `json:"raw_ref"`
	}
	if err := json.Unmarshal(m.Data, &letter); err != nil {
		t.Fatal(err)
	}
	store, err := b.JetStream().ObjectStore(t.Context(), bus.CDCObjects("shop"))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := store.GetBytes(t.Context(), letter.RawRef.Ref); err != nil || !bytes.Equal(got, raw) || letter.Raw != nil {
		t.Errorf("%d bytes are kept, want %d, %v", len(got), len(raw), err)
	}
}

// A server that takes no more than 1 MiB, headers included, takes the largest
// message of a table with the longest names.
func TestWriterKeepsToTheServersPayload(t *testing.T) {
	t.Parallel()
	srv, err := server.NewServer(&server.Options{Port: -1, Host: "127.0.0.1", JetStream: true, StoreDir: t.TempDir(), NoSigs: true, MaxPayload: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	srv.Start()
	defer srv.Shutdown()
	if !srv.ReadyForConnections(10 * time.Second) {
		t.Fatal("the server does not come up")
	}
	nc, err := nats.Connect(srv.ClientURL())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	b, err := bus.New(nc, bus.Config{})
	if err != nil {
		t.Fatal(err)
	}
	c := changefeed.Capture{Client: "shop", MaxBytes: 1 << 30}.WithDefaults()
	r := newWriterRig(t, b, c, int(nc.MaxPayload())-headerRoom, "")
	defer r.stop()
	name := strings.Repeat("é ", 21)
	change := func(n, size int) *cdc.Change {
		return &cdc.Change{
			Pos: cdc.Position(fmt.Sprintf("%016X.%08X", 16, n)), Op: cdc.Insert, Schema: name, Table: name, Key: json.RawMessage(`{"id":1}`),
			After: json.RawMessage(`{"id":1,"v":"` + strings.Repeat("v", size) + `"}`), Tx: &cdc.Transaction{ID: "4294967295", Pos: "0000000000000010", N: uint64(n), At: time.Now()},
		}
	}
	rest := len(cdc.NewEncoder("shop").Append(nil, change(1, 0)))
	for i, size := range []int{10, r.w.most - rest, r.w.most - rest + 1, 3 << 20, 10} {
		if err := r.w.Change(t.Context(), change(i+1, size)); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.w.Commit(t.Context(), "F"); err != nil {
		t.Fatal(err)
	}
	if err := r.w.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, m := range r.messages(t) {
		for range cdc.Lines(m.Data) {
			n++
		}
	}
	if n != 5 {
		t.Errorf("%d changes are stored", n)
	}
}

// A change that cannot be encoded stops the capture where its policy says so.
func TestUnencodableStops(t *testing.T) {
	t.Parallel()
	c := changefeed.Capture{Client: "shop", OnError: changefeed.Stop}.WithDefaults()
	s := &session{runner: &runner{Worker: &Worker{}, status: newStatus(c, "one")}, capture: c}
	err := s.Reject(t.Context(), driver.Rejected{Pos: "0000000000000010.00000001", Op: cdc.Insert, Schema: "s", Table: "t", Reason: "it is no text"})
	if cause, failed := causeOf(err); !failed || cause.Code != "unencodable" || cause.Runbook == "" || !strings.Contains(cause.Message, "s.t") {
		t.Errorf("the cause is %+v, %v", cause, failed)
	}
}
