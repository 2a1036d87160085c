package postgres

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/driver"
)

// A token is pg1:SYSTEM:TIMELINE:XID. The transaction id alone would not do:
// another cluster, or a standby that was promoted without having received the
// commit, uses the same ids for other transactions.
const tokenPrefix = "pg1"

const (
	tokenName = "athena_token"
	here      = `(SELECT system_identifier::text FROM pg_catalog.pg_control_system()),
		CASE WHEN pg_catalog.pg_is_in_recovery() THEN NULL
		     ELSE left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 8) END`
)

// QueryTracked runs a statement in a transaction that stays open until Commit
// or Close.
func (b *Backend) QueryTracked(ctx context.Context, st driver.Statement) (driver.TrackedRows, error) {
	r, err := b.run(ctx, st, tracked)
	if err != nil {
		return nil, err
	}
	return trackedRows{r}, nil
}

type trackedRows struct{ *rows }

// Commit commits what the statement did, after record has stored the token.
func (t trackedRows) Commit(ctx context.Context, record func(context.Context, driver.Token) error) error {
	r := t.rows
	for r.Next() { // rows that nobody read
	}
	switch {
	case r.err != nil:
		return r.err
	case r.finished:
		return errors.New("postgres: the transaction has ended already")
	}
	pc := r.conn.Conn().PgConn()
	var err error
	if !flushesItself(pc) {
		err = r.b.flusher.flush(ctx, r.b.config)
	}
	if err == nil {
		err = record(ctx, r.token)
	}
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		r.finish() // rolls back
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitGrace)
	defer cancel()
	results, err := pc.Exec(ctx, "COMMIT").ReadAll()
	if err == nil && results[0].CommandTag.String() != "COMMIT" {
		err = fmt.Errorf("postgres: the transaction was rolled back instead of being committed")
	}
	if err != nil {
		r.err = err
	}
	r.finish()
	return err
}

// readToken takes the answer to tokenQuery.
func (r *rows) readToken(got any) error {
	result, ok := got.(*pgconn.ResultReader)
	if !ok || !result.NextRow() {
		return errors.New("postgres: the server's answers are out of order")
	}
	v := result.Values()
	r.token = driver.Token(strings.Join([]string{tokenPrefix, string(v[1]), string(v[2]), string(v[0])}, ":"))
	_, err := result.Close()
	return err
}

// Outcome says how a transaction ended. One that is still in progress has lost
// its worker: its session is ended.
func (b *Backend) Outcome(ctx context.Context, t driver.Token) (driver.Outcome, error) {
	system, timeline, xid, ok := parseToken(t)
	if !ok {
		return driver.Unknown, nil
	}
	for pause := 5 * time.Millisecond; ; pause = min(2*pause, 200*time.Millisecond) {
		status, known, err := b.xactStatus(ctx, system, timeline, xid)
		switch {
		case err != nil:
			return "", err
		case !known:
			return driver.Unknown, nil
		case status == "committed":
			return driver.Committed, nil
		case status == "aborted":
			return driver.Aborted, nil
		}
		// If we may not end it, it ends by itself or we wait in vain.
		_, err = b.catalog(ctx, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_xid = $1::text::xid8::xid`, []any{xid}, nil)
		var e *pgconn.PgError
		if err != nil && !errors.As(err, &e) {
			return "", err
		}
		select {
		case <-ctx.Done():
			return "", ctx.Err()
		case <-time.After(pause):
		}
	}
}

// xactStatus reports false if the server cannot know the transaction.
func (b *Backend) xactStatus(ctx context.Context, system, timeline, xid string) (status string, known bool, err error) {
	var gotSystem string
	var gotTimeline, found *string
	_, err = b.catalog(ctx, `SELECT `+here, nil, func(rows pgx.Rows) error {
		return rows.Scan(&gotSystem, &gotTimeline)
	})
	switch {
	case err != nil:
		return "", false, err
	case gotSystem != system:
		return "", false, nil
	case gotTimeline == nil:
		return "", false, athena.Errorf(athena.CodeBackendUnavailable, "the server is in recovery and cannot say how the transaction ended; ask again when it is the primary")
	case *gotTimeline != timeline:
		return "", false, nil
	}
	_, err = b.catalog(ctx, `SELECT pg_xact_status($1::text::xid8)`, []any{xid}, func(rows pgx.Rows) error {
		return rows.Scan(&found)
	})
	var e *pgconn.PgError
	if errors.As(err, &e) && e.Code == "22023" { // in the future: this server never began it
		return "", false, nil
	}
	if err != nil || found == nil { // null: too long ago
		return "", false, err
	}
	return *found, true, nil
}

func parseToken(t driver.Token) (system, timeline, xid string, ok bool) {
	parts := strings.Split(string(t), ":")
	if len(parts) != 4 || parts[0] != tokenPrefix {
		return "", "", "", false
	}
	if _, err := strconv.ParseUint(parts[3], 10, 64); err != nil {
		return "", "", "", false
	}
	return parts[1], parts[2], parts[3], true
}
