package postgres

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/driver"
)

// A snapshot reads the rows as of the point where the slot begins. The
// replication connection that made the slot holds the exported snapshot; every
// other connection here is one transaction in it.
//
// Plain queries of the catalog see it as it was at that point too, and so find
// the columns and partitions that the log describes. A table whose storage was
// replaced since then has no rows in such a transaction, and is refused.
type snapshot struct {
	backend *Backend
	setup   driver.ChangeSetup
	version int
	log     *logConn
	name    string

	mu     sync.Mutex // guards guard, and is held while it is used
	guard  *pgx.Conn  // holds the locks that keep storage as it is; see leaf.lock
	tables map[driver.TableName]*published

	pool   sync.Mutex
	idle   []*pgx.Conn
	closed bool
}

const (
	blockSize = 8192
	// partBytes is about how much of a table one part has at most, and
	// leastPartBytes how much a part has at least.
	partBytes      = 64 << 20
	leastPartBytes = 1 << 20
)

// connect opens a connection in the snapshot.
func (s *snapshot) connect(ctx context.Context) (*pgx.Conn, error) {
	conn, err := s.backend.dial(ctx, s.setup.Client)
	if err != nil {
		return nil, err
	}
	// Row security that would hide rows is an error instead, and parallel
	// workers would mix the rows of a part.
	_, err = conn.PgConn().Exec(ctx, `BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT `+quoteLiteral(s.name)+
		`; SET LOCAL row_security = off; SET LOCAL max_parallel_workers_per_gather = 0; `+noTimeouts).ReadAll()
	if err != nil {
		hangUp(conn)
		return nil, err
	}
	return conn, nil
}

// take gives a connection to one reader.
func (s *snapshot) take(ctx context.Context) (*pgx.Conn, error) {
	s.pool.Lock()
	closed, n := s.closed, len(s.idle)
	if n > 0 && !closed {
		conn := s.idle[n-1]
		s.idle = s.idle[:n-1]
		s.pool.Unlock()
		return conn, nil
	}
	s.pool.Unlock()
	if closed {
		return nil, errSnapshotClosed
	}
	return s.connect(ctx)
}

var errSnapshotClosed = errors.New("postgres: the snapshot is closed")

func (s *snapshot) give(conn *pgx.Conn) {
	s.pool.Lock()
	keep := !s.closed
	if keep {
		s.idle = append(s.idle, conn)
	}
	s.pool.Unlock()
	if !keep {
		hangUp(conn)
	}
}

// hold has the guard's connection, and s.mu, for f.
func (s *snapshot) hold(ctx context.Context, f func(conn *pgx.Conn) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.guard == nil {
		conn, err := s.take(ctx)
		if err != nil {
			return err
		}
		s.guard = conn
	}
	err := f(s.guard)
	if err != nil { // its transaction may have failed
		hangUp(s.guard)
		s.guard = nil
	}
	return err
}

// table describes a table as it was published at the snapshot's point.
func (s *snapshot) table(ctx context.Context, conn *pgx.Conn, name driver.TableName) (*published, error) {
	if t := s.tables[name]; t != nil {
		return t, nil
	}
	publications, err := s.backend.publications(ctx, s.setup)
	if err != nil {
		return nil, err
	}
	t, err := s.backend.published(ctx, conn, s.version, publications, name)
	if err == nil {
		s.tables[name] = t
	}
	return t, err
}

// published describes a table for reading on conn, with its types loaded.
func (b *Backend) published(ctx context.Context, conn *pgx.Conn, version int, publications []string, name driver.TableName) (*published, error) {
	t, err := publishedTable(ctx, on(conn), version, publications, name)
	if err != nil {
		return nil, err
	}
	if t == nil {
		return nil, athena.Errorf(athena.CodeNotFound, "%s is not published by %s; add it to the capture's tables, or to the publication", name, strings.Join(publications, ", ")).At("table")
	}
	oids := make([]uint32, len(t.columns))
	for i, c := range t.columns {
		oids[i] = c.oid
	}
	if err := b.types.Load(ctx, conn.PgConn(), oids...); err != nil {
		return nil, err
	}
	t.rows = newRowEncoder(&b.types, t.rowColumns())
	return t, nil
}

// Columns describes a table.
func (s *snapshot) Columns(ctx context.Context, name driver.TableName) (columns []cdc.Column, err error) {
	err = s.hold(ctx, func(conn *pgx.Conn) error {
		t, err := s.table(ctx, conn, name)
		if err == nil {
			columns = t.rows.describe(&s.backend.types)
		}
		return err
	})
	return columns, err
}

// A leaf is a relation that holds rows.
type leaf struct {
	oid    uint32
	name   driver.TableName
	heap   bool // its rows can be read by ranges of blocks
	rows   float32
	pages  int32 // when rows was estimated
	file   uint32
	blocks int64
}

// leavesOf makes the relation leaf of those below, and of, the relation $1 that
// hold rows, as plain queries of the catalog see them.
const leavesOf = `
	WITH RECURSIVE tree AS (
		SELECT $1::oid AS oid
		UNION ALL
		SELECT c.oid FROM tree JOIN pg_catalog.pg_inherits i ON i.inhparent = tree.oid
		JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid AND c.relispartition),
	leaf AS (SELECT c.* FROM tree JOIN pg_catalog.pg_class c USING (oid) WHERE c.relkind = 'r')`

// leaves finds where the rows of a table are, as of the snapshot.
func leaves(ctx context.Context, conn *pgx.Conn, root uint32) (list []leaf, err error) {
	_, err = on(conn)(ctx, leavesOf+`
		SELECT leaf.oid, n.nspname, leaf.relname, coalesce(a.amname = 'heap', false), leaf.reltuples, leaf.relpages, leaf.relfilenode
		FROM leaf JOIN pg_catalog.pg_namespace n ON n.oid = leaf.relnamespace LEFT JOIN pg_catalog.pg_am a ON a.oid = leaf.relam
		ORDER BY 2, 3`, []any{root},
		func(rows pgx.Rows) error {
			var l leaf
			err := rows.Scan(&l.oid, &l.name.Schema, &l.name.Table, &l.heap, &l.rows, &l.pages, &l.file)
			list = append(list, l)
			return err
		})
	return list, err
}

// lock keeps the leaf from ALTER TABLE, TRUNCATE and VACUUM FULL until the end of
// the transaction, as pg_dump does: the parts of a table fit together only as
// long as its rows stay where they are. It fails if they do not lie where they
// lay as of the snapshot: after most of these the snapshot sees no rows at all.
func (l *leaf) lock(ctx context.Context, conn *pgx.Conn) error {
	// LOCK TABLE is not for those who may read certain columns only.
	_, err := conn.PgConn().Exec(ctx, "SELECT FROM ONLY "+quoteTable(l.name)+" LIMIT 0").ReadAll()
	var e *pgconn.PgError
	if errors.As(err, &e) && (e.Code == "42P01" || e.Code == "3F000") {
		return l.changed()
	}
	if err != nil {
		return err
	}
	var same bool
	_, err = on(conn)(ctx, `SELECT coalesce(to_regclass($1)::oid = $2::oid AND pg_relation_filenode($2::oid) = $3::oid, false),
		coalesce(pg_relation_size($2::oid), 0) / current_setting('block_size')::bigint`, []any{quoteTable(l.name), l.oid, l.file},
		func(rows pgx.Rows) error { return rows.Scan(&same, &l.blocks) })
	if err == nil && !same {
		return l.changed()
	}
	return err
}

func (l *leaf) changed() error {
	return athena.Errorf(athena.CodeConflict, "%s was altered, truncated, rewritten or dropped between the start of the capture and its snapshot; its rows of then cannot be read any more, only those of now", l.name).With("table", l.name.String())
}

// Tables lists the parts: as many of each table as is asked for, or more if one
// would have more than 64 MiB, but none of less than 1 MiB. From then on, until
// the snapshot is closed, the tables are locked as by a long SELECT.
func (s *snapshot) Tables(ctx context.Context, parts int) (list []driver.SnapshotPart, err error) {
	err = s.hold(ctx, func(conn *pgx.Conn) error {
		for _, name := range s.setup.Tables {
			t, err := s.table(ctx, conn, name)
			if err != nil {
				return err
			}
			found, err := leaves(ctx, conn, t.oid)
			if err != nil {
				return err
			}
			for i := range found {
				if err := found[i].lock(ctx, conn); err != nil {
					return err
				}
			}
			list = append(list, split(name, found, parts)...)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return list, nil
}

func split(name driver.TableName, leaves []leaf, parts int) (list []driver.SnapshotPart) {
	var total int64
	for _, l := range leaves {
		total += l.blocks
	}
	for _, l := range leaves {
		n := int64(1)
		if l.heap && l.blocks > 0 {
			share := (int64(parts)*l.blocks + total - 1) / total
			n = max(share, (l.blocks*blockSize+partBytes-1)/partBytes)
			n = max(1, min(n, l.blocks*blockSize/leastPartBytes))
		}
		for i := range n {
			r := blockRange{oid: l.oid, from: l.blocks * i / n, to: l.blocks * (i + 1) / n}
			if i == n-1 {
				r.to = 0 // whatever comes
			}
			list = append(list, driver.SnapshotPart{Table: name, Rows: l.estimate() / n, Range: r.String()})
		}
	}
	for i := range list {
		list[i].N, list[i].Of = i, len(list)
	}
	return list
}

// estimate is how many rows there are, if they lie as dense as when the server
// counted them last; rows of some 100 bytes if it never did.
func (l *leaf) estimate() int64 {
	if l.rows < 0 || l.pages <= 0 {
		return l.blocks * blockSize / 128
	}
	return int64(float64(l.rows) / float64(l.pages) * float64(l.blocks))
}

// A blockRange is a part of a relation: its blocks from one up to another, which
// it does not have; 0 stands for all that follow.
type blockRange struct {
	oid      uint32
	from, to int64
}

func (r blockRange) String() string { return fmt.Sprintf("%d:%d-%d", r.oid, r.from, r.to) }

func parseBlockRange(text string) (r blockRange, err error) {
	if _, err := fmt.Sscanf(text, "%d:%d-%d", &r.oid, &r.from, &r.to); err != nil {
		return r, fmt.Errorf("postgres: the range %q is none of ours: %w", text, err)
	}
	return r, nil
}

// conditions restrict a SELECT to the range.
func (r blockRange) conditions() (list []string) {
	if r.from > 0 {
		list = append(list, fmt.Sprintf("ctid >= '(%d,0)'", r.from))
	}
	if r.to > 0 {
		list = append(list, fmt.Sprintf("ctid < '(%d,0)'", r.to))
	}
	return list
}

// Read hands over the rows of a part, in the order in which they lie.
func (s *snapshot) Read(ctx context.Context, p driver.SnapshotPart, row func(key, after []byte) error) error {
	r, err := parseBlockRange(p.Range)
	if err != nil {
		return err
	}
	var t *published
	err = s.hold(ctx, func(conn *pgx.Conn) (err error) {
		t, err = s.table(ctx, conn, p.Table)
		return err
	})
	if err != nil {
		return err
	}
	conn, err := s.take(ctx)
	if err != nil {
		return err
	}
	err = s.read(ctx, conn, t, r, row)
	if err != nil {
		hangUp(conn) // its transaction has failed
		return err
	}
	s.give(conn)
	return nil
}

func (s *snapshot) read(ctx context.Context, conn *pgx.Conn, t *published, r blockRange, row func(key, after []byte) error) error {
	found, err := leaves(ctx, conn, r.oid)
	if err != nil {
		return err
	}
	if len(found) != 1 {
		return fmt.Errorf("postgres: the range %s is none of ours", r)
	}
	if err := found[0].lock(ctx, conn); err != nil { // the guard may have been lost
		return err
	}
	where := r.conditions()
	if t.filter != "" {
		where = append(where, "("+t.filter+")")
	}
	sql := "SELECT " + t.selected() + " FROM ONLY " + quoteTable(found[0].name)
	if len(where) > 0 {
		sql += " WHERE " + strings.Join(where, " AND ")
	}
	// Faster than COPY, whose text has to be escaped and unescaped.
	result := conn.PgConn().ExecParams(ctx, sql, nil, nil, nil, nil)
	var buf []byte
	for result.NextRow() {
		if err := handRow(t.rows, &buf, result.Values(), row); err != nil {
			return err
		}
	}
	if _, err := result.Close(); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return err
	}
	return nil
}

// Close ends the transactions and lets the server forget the snapshot. The slot
// stays.
func (s *snapshot) Close(context.Context) error {
	s.pool.Lock()
	idle := s.idle
	s.idle, s.closed = nil, true
	s.pool.Unlock()
	for _, conn := range idle {
		hangUp(conn)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.guard != nil {
		hangUp(s.guard)
		s.guard = nil
	}
	closeReplication(s.log)
	return nil
}

// handRow renders a row into buf and hands it over; a table without a key has
// none.
func handRow(e *rowEncoder, buf *[]byte, values [][]byte, each func(key, after []byte) error) error {
	b := e.appendRow((*buf)[:0], values, false)
	n := len(b)
	var key []byte
	if e.hasKey {
		b = e.appendRow(b, values, true)
		key = b[n:]
	}
	*buf = b
	return each(key, b[:n])
}
