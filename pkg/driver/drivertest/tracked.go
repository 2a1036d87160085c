package drivertest

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/driver"
)

func (s *suite) tracked(t *testing.T, q driver.TrackedQuerier) {
	_, in := s.scratch(t)
	st := s.Statements

	start := func(t *testing.T, text string, params ...any) (driver.TrackedRows, result) {
		t.Helper()
		rows, err := q.QueryTracked(t.Context(), statement(in(text), params...))
		if err != nil {
			t.Fatalf("QueryTracked: %v", err)
		}
		t.Cleanup(func() { rows.Close() })
		res, err := drainOpen(rows)
		if err != nil {
			t.Fatalf("reading the rows: %v", err)
		}
		return rows, res
	}
	// The outcome is asked through the other handle, as another process would.
	outcome := func(t *testing.T, token driver.Token, want driver.Outcome) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		got, err := s.other.(driver.TrackedQuerier).Outcome(ctx, token)
		if err != nil || got != want {
			t.Errorf("Outcome = %q, %v; want %q", got, err, want)
		}
	}

	t.Run("nothing is seen before Commit, and the token comes before the effect", func(t *testing.T) {
		rows, res := start(t, st.InsertReturning, 1, "a")
		if len(res.rows) != 1 || string(res.rows[0]["id"]) != "1" || res.affected != 1 {
			t.Errorf("rows %v, %d affected; want the row of id 1, and 1", res.rows, res.affected)
		}
		s.wantIDs(t, in)
		var token driver.Token
		calls := 0
		err := rows.Commit(t.Context(), func(_ context.Context, got driver.Token) error {
			calls++
			token = got
			s.wantIDs(t, in)
			return nil
		})
		if err != nil || calls != 1 || token == "" {
			t.Fatalf("Commit: %v; record was called %d times with %q, want once with a token", err, calls, token)
		}
		if err := rows.Close(); err != nil {
			t.Errorf("Close after Commit: %v", err)
		}
		s.wantIDs(t, in, "1")
		outcome(t, token, driver.Committed)
		outcome(t, token, driver.Committed)
	})
	t.Run("Close without Commit rolls back", func(t *testing.T) {
		rows, _ := start(t, st.Insert, 2, "b")
		if err := rows.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		s.wantIDs(t, in, "1")
	})
	t.Run("a record that fails rolls back", func(t *testing.T) {
		rows, _ := start(t, st.Insert, 3, "c")
		mine := errors.New("could not store the token")
		var token driver.Token
		err := rows.Commit(t.Context(), func(_ context.Context, got driver.Token) error { token = got; return mine })
		if !errors.Is(err, mine) {
			t.Errorf("Commit returned %v, want the error of record", err)
		}
		rows.Close()
		s.wantIDs(t, in, "1")
		outcome(t, token, driver.Aborted)
	})
	t.Run("a cancel between record and commit commits nothing", func(t *testing.T) {
		rows, _ := start(t, st.Insert, 4, "d")
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var token driver.Token
		err := rows.Commit(ctx, func(_ context.Context, got driver.Token) error { token = got; cancel(); return nil })
		rows.Close()
		if err == nil {
			t.Fatal("Commit succeeded with a context that was over before it")
		}
		outcome(t, token, driver.Aborted)
		s.wantIDs(t, in, "1")
	})
	t.Run("asking for the outcome of one in progress ends it or waits", func(t *testing.T) {
		rows, _ := start(t, st.Insert, 5, "e")
		var got driver.Outcome
		var asked error
		err := rows.Commit(t.Context(), func(_ context.Context, token driver.Token) error {
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			got, asked = s.other.(driver.TrackedQuerier).Outcome(ctx, token)
			return nil
		})
		rows.Close()
		switch {
		case asked == nil && got == driver.Aborted: // it was ended, so that Commit cannot have succeeded
			if err == nil {
				t.Error("Commit succeeded after its transaction was reported as aborted")
			}
			s.wantIDs(t, in, "1")
		case asked != nil && errors.Is(asked, context.DeadlineExceeded): // it waited
			if err != nil {
				t.Errorf("Commit: %v", err)
			}
			s.wantIDs(t, in, "1", "5")
		default:
			t.Errorf("Outcome = %q, %v; want aborted, or a wait until the deadline", got, asked)
		}
	})
	t.Run("tokens that are forged are unknown", func(t *testing.T) {
		forged := []driver.Token{"", "x", "1", "-1", "0:0", "x:1", "0:2", ":::", "99999999999999999999999999", "a/b/c", "\x00\xff", "1:1:1:1", `"}'; drop table t; --`, "{}"}
		for _, token := range forged {
			outcome(t, token, driver.Unknown)
		}
	})
	t.Run("a refusal of the engine leaves nothing", func(t *testing.T) {
		before := s.ids(t, in)
		rows, err := q.QueryTracked(t.Context(), statement(in(st.Insert), 1, "again"))
		if err == nil {
			_, err = drain(rows)
		}
		s.wantCode(t, err, athena.CodeConflict)
		s.wantIDs(t, in, before...)
	})
	t.Run("rows that end in an error cannot be committed", func(t *testing.T) {
		rows, err := q.QueryTracked(t.Context(), statement(st.MidError))
		if err != nil {
			t.Fatal(err)
		}
		defer rows.Close()
		if _, err := drainOpen(rows); err == nil {
			t.Fatal("no error")
		}
		if err := rows.Commit(t.Context(), func(context.Context, driver.Token) error { return nil }); err == nil {
			t.Error("Commit succeeded")
		}
	})
	t.Run("a statement ends at its timeout", func(t *testing.T) {
		before := s.ids(t, in)
		call := statement(in(st.SlowWrite), 6, "f")
		call.Timeout = 150 * time.Millisecond
		rows, err := q.QueryTracked(t.Context(), call)
		if err == nil {
			_, err = drain(rows)
		}
		s.wantCode(t, err, athena.CodeTimeout)
		s.wantRunning(t, 0, time.Second)
		s.wantIDs(t, in, before...)
	})
	t.Run("params that do not fit are refused by their name", func(t *testing.T) {
		_, err := q.QueryTracked(t.Context(), statement(in(st.Insert), "x", "x"))
		s.wantField(t, err, "params[0]")
	})
	if st.Outside != "" {
		t.Run("a statement outside transactions is refused", func(t *testing.T) {
			rows, err := q.QueryTracked(t.Context(), statement(in(st.Outside)))
			if err == nil {
				_, err = drain(rows)
			}
			if err == nil {
				t.Error("it ran in a transaction")
			}
		})
	}
	t.Run("abandoned transactions hold no connection", func(t *testing.T) {
		for i := range 20 {
			rows, _ := start(t, st.Insert, 100+i, "x")
			rows.Close()
		}
		s.must(t, in(st.Select), 1)
	})
}
