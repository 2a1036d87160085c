package drivertest

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/driver"
	"golang.org/x/sync/errgroup"
	"pgregory.net/rapid"
)

func (s *suite) analyze(t *testing.T) {
	q, st := s.b.(driver.Querier), s.Statements
	in := func(text string) string { return strings.ReplaceAll(text, "{t}", "t") }
	want := func(effect driver.Effect, texts ...string) {
		for _, text := range texts {
			if got := q.Analyze(in(text)); text != "" && got.Effect != effect {
				t.Errorf("Analyze(%q) = %q, want %q", in(text), got.Effect, effect)
			}
		}
	}
	want(driver.Read, append(st.Reads, st.Select, st.All, st.Generate, st.Duplicates, st.MidError)...)
	want(driver.Write, append(st.Writes, st.Insert, st.InsertReturning, st.Rename, st.Create, "", "no statement at all")...)
	want(driver.Outside, st.Outside)
	want(driver.Refused, st.Refused...)

	t.Run("no text makes it fail", func(t *testing.T) {
		words := []string{"select", "insert", "with", "(", ")", "'", `"`, "$$", "$a$", "--", "/*", "*/", ";", "\x00", "\xff", "\n", "E'\\", "begin", in(st.Insert), in(st.Select)}
		rapid.Check(t, func(t *rapid.T) {
			text := rapid.OneOf(rapid.String(), rapid.Map(rapid.SliceOf(rapid.SampledFrom(words)), func(w []string) string { return strings.Join(w, " ") })).Draw(t, "text")
			switch a := q.Analyze(text); {
			case !slices.Contains([]driver.Effect{driver.Read, driver.Write, driver.Outside, driver.Refused}, a.Effect):
				t.Fatalf("Analyze(%q) gives the effect %q", text, a.Effect)
			case a.Effect == driver.Read && !a.Idempotent:
				t.Fatalf("Analyze(%q): a read that is not idempotent", text)
			case a.Effect == driver.Refused && a.Reason == "":
				t.Fatalf("Analyze(%q) refuses without a reason", text)
			}
		})
	})
}

func (s *suite) params(t *testing.T) {
	_, in := s.scratch(t)
	st := s.Statements

	t.Run("values come back as they went in", func(t *testing.T) {
		texts := []string{"", "plain", `it's "quoted" \ back`, "line\nline\ttab\r", "ünïcödé 日本 🐘", "</script>&amp;", "\u2028\u0001", "$1", strings.Repeat("long ", 20_000)}
		for i, text := range texts {
			id := int64(9_007_199_254_740_993) + int64(i) // a float64 cannot hold it
			s.must(t, in(st.Insert), id, text)
			res := s.must(t, in(st.Select), id)
			if len(res.rows) != 1 {
				t.Fatalf("%d rows with id %d, want 1", len(res.rows), id)
			}
			var got string
			if err := json.Unmarshal(res.rows[0]["name"], &got); err != nil || got != text {
				t.Errorf("%.40q came back as %.40q (%v)", text, got, err)
			}
			if got := string(res.rows[0]["id"]); got != strconv.FormatInt(id, 10) {
				t.Errorf("%d came back as %s", id, got)
			}
		}
	})
	t.Run("null is a value", func(t *testing.T) {
		s.must(t, in(st.Insert), 1, nil)
		if got := s.must(t, in(st.Select), 1).rows[0]["name"]; string(got) != "null" {
			t.Errorf("null came back as %s", got)
		}
	})
	t.Run("white space around a value does not matter", func(t *testing.T) {
		res, err := read(t.Context(), s.b, driver.Statement{Text: in(st.Select), Params: []json.RawMessage{json.RawMessage(" 1\n")}})
		if err != nil || len(res.rows) != 1 {
			t.Errorf("%d rows, %v; want 1", len(res.rows), err)
		}
	})

	misfits := map[string]struct {
		text   string
		params []any
		field  string
	}{
		"a text for a number":           {st.Insert, []any{"not a number", "x"}, "params[0]"},
		"an object for a number":        {st.Insert, []any{map[string]any{"a": 1}, "x"}, "params[0]"},
		"true for a number":             {st.Select, []any{true}, "params[0]"},
		"a fraction for a whole number": {st.Select, []any{1.5}, "params[0]"},
		"a number out of range":         {st.Select, []any{json.Number("99999999999999999999")}, "params[0]"},
		"the second of two":             {st.Rename, []any{"x", "not a number"}, "params[1]"},
		"what is not JSON":              {st.Select, nil, "params[0]"},
		"one too few":                   {st.Insert, []any{5}, "params"},
		"one too many":                  {st.Select, []any{5, 6}, "params"},
		"none":                          {st.Select, []any{}, "params"},
	}
	for name, tt := range misfits {
		t.Run(name+" is refused by its name", func(t *testing.T) {
			before := s.ids(t, in)
			call := statement(in(tt.text), tt.params...)
			if tt.params == nil {
				call.Params = []json.RawMessage{json.RawMessage(`{"a`)}
			}
			_, err := read(t.Context(), s.b, call)
			s.wantField(t, err, tt.field)
			s.wantIDs(t, in, before...)
		})
	}
}

func (s *suite) rows(t *testing.T) {
	_, in := s.scratch(t)
	st := s.Statements

	t.Run("columns are described", func(t *testing.T) {
		res := s.must(t, in(st.Select), 1)
		if len(res.columns) != 2 || res.columns[0].Name != "id" || res.columns[1].Name != "name" {
			t.Fatalf("columns are %v, want id and name", res.columns)
		}
		for _, c := range res.columns {
			if c.Type == "" {
				t.Errorf("column %q has no type", c.Name)
			}
		}
	})
	t.Run("a write without rows has a count and no columns", func(t *testing.T) {
		res := s.must(t, in(st.Insert), 1, "a")
		if len(res.columns) != 0 || len(res.rows) != 0 || res.affected != s.counted(1) {
			t.Errorf("%d columns, %d rows, %d affected; want 0, 0, %d", len(res.columns), len(res.rows), res.affected, s.counted(1))
		}
		if res := s.must(t, in(st.Rename), "b", 77); res.affected != s.counted(0) {
			t.Errorf("renaming nothing affected %d rows, want %d", res.affected, s.counted(0))
		}
		s.wantIDs(t, in, "1")
	})
	returning := cmp.Or(st.InsertReturning, st.Insert)
	if st.InsertReturning != "" {
		t.Run("a write may give rows", func(t *testing.T) {
			res := s.must(t, in(st.InsertReturning), 2, "b")
			if len(res.rows) != 1 || string(res.rows[0]["id"]) != "2" || string(res.rows[0]["name"]) != `"b"` || res.affected != s.counted(1) {
				t.Errorf("rows %v, %d affected; want the row of id 2, and %d", res.rows, res.affected, s.counted(1))
			}
			s.wantIDs(t, in, "1", "2")
		})
	} else {
		s.must(t, in(st.Insert), 2, "b")
	}
	t.Run("a write has its effect without its rows being read", func(t *testing.T) {
		rows, err := s.b.(driver.Querier).Query(t.Context(), statement(in(returning), 3, "c"))
		if err != nil {
			t.Fatal(err)
		}
		if err := rows.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		s.wantIDs(t, in, "1", "2", "3")
	})
	t.Run("names that repeat are made unique", func(t *testing.T) {
		res := s.must(t, st.Duplicates)
		names := []string{}
		for _, c := range res.columns {
			names = append(names, c.Name)
		}
		if !slices.Equal(names, []string{"a", "a_2", "a_3"}) {
			t.Errorf("columns are %v, want a, a_2, a_3", names)
		}
		for _, name := range names {
			if _, ok := res.rows[0][name]; !ok {
				t.Errorf("the row %v has no member %q", res.rows[0], name)
			}
		}
	})
	t.Run("AppendJSON appends", func(t *testing.T) {
		rows, err := s.b.(driver.Querier).Query(t.Context(), statement(in(st.Select), 1))
		if err != nil {
			t.Fatal(err)
		}
		defer rows.Close()
		if !rows.Next() {
			t.Fatalf("no row: %v", rows.Err())
		}
		dst := rows.AppendJSON([]byte("before"))
		if !strings.HasPrefix(string(dst), "before{") || !json.Valid(dst[6:]) || strings.ContainsAny(string(dst), "\n") || !utf8.Valid(dst) {
			t.Errorf("AppendJSON gave %q", dst)
		}
		if again := rows.AppendJSON(nil); string(again) != string(dst[6:]) {
			t.Errorf("the same row was written as %s and %s", dst[6:], again)
		}
		for range 2 {
			if rows.Next() {
				t.Error("Next returned true after the last row")
			}
		}
	})
	t.Run("rows are not held", func(t *testing.T) {
		n := s.rowsOf(300_000) // 60 MB or more
		rows, err := s.b.(driver.Querier).Query(t.Context(), statement(st.Generate, n))
		if err != nil {
			t.Fatal(err)
		}
		defer rows.Close()
		var buf []byte
		count, start := 0, heap()
		for rows.Next() {
			buf = rows.AppendJSON(buf[:0])
			if count == 0 && (len(buf) < 200 || !json.Valid(buf)) {
				t.Fatalf("the first row is %q; the harness must generate rows of at least 200 bytes", buf)
			}
			if count++; count%(n/3) == 0 {
				if grown := heap() - start; grown > 24<<20 {
					t.Fatalf("the heap grew by %d MiB over %d rows", grown>>20, count)
				}
			}
		}
		if err := rows.Err(); err != nil || count != n {
			t.Errorf("%d rows, %v; want %d", count, err, n)
		}
	})
	t.Run("rows can be left early", func(t *testing.T) {
		for range 20 { // more often than a pool has connections
			rows, err := s.b.(driver.Querier).Query(t.Context(), statement(st.Generate, s.rowsOf(100_000)))
			if err != nil {
				t.Fatal(err)
			}
			rows.Next()
			if err := rows.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
			if rows.Next() {
				t.Error("Next returned true after Close")
			}
		}
		s.must(t, in(st.Select), 1)
	})
}

// rowsOf is n, or as many rows as the harness has.
func (s *suite) rowsOf(n int) int {
	if s.Rows > 0 {
		return min(n, s.Rows)
	}
	return n
}

// counted is what a write that affects n rows tells.
func (s *suite) counted(n int64) int64 {
	if s.Uncounted {
		return -1
	}
	return n
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func (s *suite) errors(t *testing.T) {
	_, in := s.scratch(t)
	st, q := s.Statements, s.b.(driver.Querier)
	s.must(t, in(st.Insert), 1, "a")

	type failing struct {
		st   driver.Statement
		want athena.Code
	}
	before := map[string]failing{
		"a syntax error":        {statement(st.Syntax), athena.CodeQueryFailed},
		"an empty statement":    {statement(""), athena.CodeQueryFailed},
		"a missing table":       {statement(strings.ReplaceAll(st.All, "{t}", "dt_that_is_not_there")), athena.CodeQueryFailed},
		"a key that is null":    {statement(in(st.Insert), nil, "b"), athena.CodeQueryFailed},
		"two statements in one": {statement(in(st.All) + "; " + in(st.All)), athena.CodeQueryFailed},
	}
	if s.Upserts {
		t.Run("a key that is taken is written over", func(t *testing.T) {
			s.must(t, in(st.Insert), 1, "b")
			if got := s.must(t, in(st.Select), 1).rows[0]["name"]; string(got) != `"b"` {
				t.Errorf("the name is %s, want the new one", got)
			}
		})
	} else {
		before["a key that is taken"] = failing{statement(in(st.Insert), 1, "b"), athena.CodeConflict}
	}
	for name, tt := range before {
		t.Run(name+" fails before the first row", func(t *testing.T) {
			rows, err := q.Query(t.Context(), tt.st)
			if err == nil {
				rows.Close()
				t.Fatal("Query returned no error")
			}
			s.wantCode(t, err, tt.want)
			s.wantIDs(t, in, "1")
		})
	}
	t.Run("an error after rows comes from Err and Close", func(t *testing.T) {
		rows, err := q.Query(t.Context(), statement(st.MidError))
		if err != nil {
			t.Fatalf("Query: %v; the error must come after the first row", err)
		}
		res, err := drainOpen(rows)
		if len(res.rows) == 0 {
			t.Error("no row came before the error")
		}
		s.wantCode(t, err, athena.CodeQueryFailed)
		for range 2 {
			if closeErr := rows.Close(); !errors.Is(closeErr, err) {
				t.Errorf("Close returned %v, want %v", closeErr, err)
			}
		}
	})
	t.Run("a backend is usable after errors", func(t *testing.T) { s.must(t, in(st.Select), 1) })
}

func (s *suite) readOnly(t *testing.T) {
	_, in := s.scratch(t)
	st := s.Statements
	s.must(t, in(st.Insert), 1, "a")
	only := func(text string, params ...any) driver.Statement {
		call := statement(in(text), params...)
		call.ReadOnly = true
		return call
	}
	t.Run("a read runs", func(t *testing.T) {
		res, err := read(t.Context(), s.b, only(st.Select, 1))
		if err != nil || len(res.rows) != 1 {
			t.Errorf("%d rows, %v; want 1", len(res.rows), err)
		}
	})
	refused := map[string]driver.Statement{
		"an insert":                  only(st.Insert, 2, "b"),
		"an insert that gives rows":  only(st.InsertReturning, 3, "c"),
		"an update":                  only(st.Rename, "z", 1),
		"the creation of a table":    only(strings.ReplaceAll(st.Create, "{t}", "{t}_more")),
		"a write hidden in a select": only(st.HiddenWrite),
	}
	for name, call := range refused {
		if call.Text == "" {
			continue // the engine has no such statement, says the harness
		}
		t.Run(name+" is refused without effect", func(t *testing.T) {
			if _, err := read(t.Context(), s.b, call); !errors.Is(err, driver.ErrWrites) {
				t.Errorf("the error is %v, want ErrWrites", err)
			}
			s.wantIDs(t, in, "1")
			if got := s.must(t, in(st.Select), 1).rows[0]["name"]; string(got) != `"a"` {
				t.Errorf("the name is now %s", got)
			}
		})
	}
	if st.HiddenWrite != "" {
		t.Run("the hidden write is one", func(t *testing.T) {
			if got := s.b.(driver.Querier).Analyze(in(st.HiddenWrite)).Effect; got != driver.Read {
				t.Errorf("the analyzer says %q of it, so that this harness hides nothing", got)
			}
			s.must(t, in(st.HiddenWrite))
			if got := len(s.ids(t, in)); got != 2 {
				t.Errorf("the table has %d rows, want 2", got)
			}
		})
	}
	if st.Outside != "" {
		t.Run("a statement outside transactions does not run", func(t *testing.T) {
			if _, err := read(t.Context(), s.b, only(st.Outside)); err == nil {
				t.Error("it ran")
			}
		})
		t.Run("without ReadOnly it does", func(t *testing.T) { s.must(t, in(st.Outside)) })
	}
}

func (s *suite) interrupt(t *testing.T) {
	_, in := s.scratch(t)
	st := s.Statements
	stall := s.Stall
	if stall == nil { // the statements themselves are slow
		stall = func(*testing.T) func() { return func() {} }
	}
	write := statement(in(st.SlowWrite), 1, "a")
	for name, call := range map[string]driver.Statement{"a read": statement(st.Slow), "a write": write} {
		t.Run("cancelling "+name+" reaches the engine", func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			release := stall(t)
			defer release()
			go func() {
				_, err := read(ctx, s.b, call)
				done <- err
			}()
			s.wantRunning(t, 1, 5*time.Second)
			cancel()
			select {
			case err := <-done:
				s.wantCode(t, err, athena.CodeCancelled)
			case <-time.After(time.Second):
				t.Fatal("the statement had not returned a second after the cancel")
			}
			release()
			s.wantEnded(t, in)
		})
		t.Run(name+" ends at its timeout", func(t *testing.T) {
			release := stall(t)
			defer release()
			call.Timeout = 150 * time.Millisecond
			start := time.Now()
			_, err := read(t.Context(), s.b, call)
			s.wantCode(t, err, athena.CodeTimeout)
			if took := time.Since(start); took > 2*time.Second {
				t.Errorf("it took %v", took)
			}
			release()
			s.wantEnded(t, in)
		})
		t.Run(name+" ends at the caller's deadline", func(t *testing.T) {
			release := stall(t)
			defer release()
			ctx, cancel := context.WithTimeout(t.Context(), 150*time.Millisecond)
			defer cancel()
			_, err := read(ctx, s.b, call)
			s.wantCode(t, err, athena.CodeTimeout)
			release()
			s.wantEnded(t, in)
		})
	}
	t.Run("a context that is over runs nothing", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		before := s.ids(t, in)
		_, err := read(ctx, s.b, statement(in(st.Insert), 5, "a"))
		s.wantCode(t, err, athena.CodeCancelled)
		s.wantIDs(t, in, before...)
	})
	t.Run("cancelling in the middle of rows ends them", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		rows, err := s.b.(driver.Querier).Query(ctx, statement(st.Generate, s.rowsOf(50_000_000)))
		if err != nil {
			t.Fatal(err)
		}
		if !rows.Next() {
			t.Fatalf("no row: %v", rows.Err())
		}
		cancel()
		late := time.Now().Add(2 * time.Second)
		for rows.Next() && time.Now().Before(late) {
		}
		s.wantCode(t, rows.Close(), athena.CodeCancelled)
		s.wantRunning(t, 0, time.Second)
	})
	t.Run("a timeout does not outlive its statement", func(t *testing.T) {
		call := statement(in(st.All))
		call.Timeout = 50 * time.Millisecond
		for range 20 {
			if _, err := read(t.Context(), s.b, call); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(60 * time.Millisecond)
		for range 20 {
			s.must(t, in(st.All))
		}
	})
}

// wantEnded wants a statement that was given up to be over in the engine, without
// effect, if the engine can be told to end one. If it cannot, a write may be made.
func (s *suite) wantEnded(t *testing.T, in func(string) string) {
	t.Helper()
	s.wantRunning(t, 0, time.Second)
	if s.Running != nil {
		s.wantIDs(t, in)
	}
}

// wantRunning waits until the engine itself has n statements running, if it can be
// asked for them.
func (s *suite) wantRunning(t *testing.T, n int, within time.Duration) {
	t.Helper()
	if s.Running == nil {
		return
	}
	deadline := time.Now().Add(within)
	for {
		got := s.Running(t)
		if got == n {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the engine has %d statements running after %v, want %d", got, within, n)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (s *suite) concurrency(t *testing.T) {
	_, in := s.scratch(t)
	const callers, each = 24, 15 // more callers than a pool has connections
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	g, ctx := errgroup.WithContext(ctx)
	for c := range callers {
		g.Go(func() error {
			for i := range each {
				id, name := c*each+i, fmt.Sprintf("caller %d row %d", c, i)
				if _, err := read(ctx, s.b, statement(in(s.Statements.Insert), id, name)); err != nil {
					return err
				}
				res, err := read(ctx, s.b, statement(in(s.Statements.Select), id))
				if err != nil {
					return err
				}
				if want := strconv.Quote(name); len(res.rows) != 1 || string(res.rows[0]["name"]) != want {
					return fmt.Errorf("id %d gave %v, want %s", id, res.rows, want)
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	if got := len(s.ids(t, in)); got != callers*each {
		t.Errorf("the table has %d rows, want %d", got, callers*each)
	}
}

func (s *suite) sessions(t *testing.T) {
	st := s.Statements
	if st.SetSession == "" {
		return // the engine has no sessions, says the harness
	}
	show := func() error {
		res, err := read(t.Context(), s.b, statement(st.ShowSession))
		if err != nil {
			return err
		}
		for _, v := range res.rows[0] {
			if string(v) == st.SessionValue {
				return fmt.Errorf("a later statement sees the setting %s", v)
			}
		}
		return nil
	}
	for range 5 {
		read(t.Context(), s.b, statement(st.SetSession)) // may be refused: then it has no effect either
		var g errgroup.Group
		for range 16 { // enough to meet each connection of a pool
			g.Go(show)
		}
		if err := g.Wait(); err != nil {
			t.Fatal(err)
		}
	}
}
