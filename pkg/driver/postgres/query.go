package postgres

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/cdc"
	"github.com/athena-pipelines/athena/pkg/driver"
)

// mode says in what a statement runs.
type mode uint8

const (
	readOnly  mode = iota // a READ ONLY transaction
	readWrite             // a transaction that is committed with it
	tracked               // a transaction that stays open
	outside               // no transaction
)

// Query runs a statement in a transaction of its own, or outside of one if the
// statement asks for that.
func (b *Backend) Query(ctx context.Context, st driver.Statement) (driver.Rows, error) {
	m := readWrite
	if st.ReadOnly {
		m = readOnly
	}
	r, err := b.run(ctx, st, m)
	if err != nil {
		return nil, err // not r: a typed nil would not compare equal to nil
	}
	return r, nil
}

func (b *Backend) run(ctx context.Context, st driver.Statement, m mode) (*rows, error) {
	a := analyze(st.Text)
	switch {
	case a.Effect == driver.Refused:
		return nil, athena.Errorf(athena.CodeQueryFailed, "%s", a.Reason)
	case a.empty:
		return nil, athena.Errorf(athena.CodeQueryFailed, "the statement is empty")
	case strings.IndexByte(st.Text, 0) >= 0:
		return nil, athena.Errorf(athena.CodeQueryFailed, "the statement holds the character U+0000, which PostgreSQL cannot read")
	case a.Effect == driver.Outside && m == readWrite:
		m = outside
	}
	for again := true; ; again = false {
		conn, err := b.acquire(ctx)
		if err != nil {
			return nil, err
		}
		if a.session {
			sessionOf(conn.Conn().PgConn()).spent.Store(true)
		}
		r := &rows{b: b, st: st, mode: m, conn: conn, caller: ctx, began: time.Now()}
		r.ctx, r.cancel = context.WithCancel(ctx)
		err = r.start()
		if err == nil {
			return r, nil
		}
		if again && staleStatement(err) {
			continue // the prepared statement is forgotten; nothing has run
		}
		return nil, err
	}
}

// staleStatement reports that the server no longer has a prepared statement, or
// that its result changed its shape. Both come before the statement runs.
func staleStatement(err error) bool {
	var e *pgconn.PgError
	return errors.As(err, &e) && (e.Code == "26000" || e.Code == "0A000" && e.Routine == "RevalidateCachedQuery")
}

// prepared is a statement that a connection knows.
type prepared struct {
	*pgconn.StatementDescription
	columns []driver.Column
	keys    [][]byte // the columns' names as JSON keys: {"id":  ,"name":
	custom  []uint32 // types of parameters and columns that are not built in
	used    int
}

func newPrepared(sd *pgconn.StatementDescription) *prepared {
	p := &prepared{StatementDescription: sd}
	seen := make(map[string]bool, len(sd.Fields))
	for _, f := range sd.Fields {
		seen[f.Name] = true
	}
	taken := make(map[string]bool, len(sd.Fields))
	for i, f := range sd.Fields {
		name := f.Name
		// A repeated name gets a number that no other column has.
		for n := 2; taken[name] || name != f.Name && seen[name]; n++ {
			name = f.Name + "_" + strconv.Itoa(n)
		}
		taken[name] = true
		key := []byte{','}
		if i == 0 {
			key[0] = '{'
		}
		p.keys = append(p.keys, append(cdc.AppendString(key, name), ':'))
		col := driver.Column{Name: name}
		if t := static[f.DataTypeOID]; t != nil {
			col.Type = t.name
		} else {
			p.custom = append(p.custom, f.DataTypeOID)
		}
		p.columns = append(p.columns, col)
	}
	for _, oid := range sd.ParamOIDs {
		if static[oid] == nil {
			p.custom = append(p.custom, oid)
		}
	}
	return p
}

const (
	maxStatements     = 64
	maxStatementBytes = 1 << 20
)

// forgetOldest takes statements out of s until there is room for one more, and
// returns their names for the server.
func (s *session) forgetOldest() (names []string) {
	for len(s.statements) >= maxStatements || s.size > maxStatementBytes {
		var oldest string
		least := s.clock + 1
		for text, p := range s.statements {
			if p.used < least {
				oldest, least = text, p.used
			}
		}
		names = append(names, s.statements[oldest].Name)
		s.forget(oldest)
	}
	return names
}

func (s *session) forget(text string) {
	if _, ok := s.statements[text]; ok {
		delete(s.statements, text)
		s.size -= len(text)
	}
}

// rows is one statement under way. It holds a connection until it is finished.
type rows struct {
	b      *Backend
	st     driver.Statement
	mode   mode
	conn   *pgxpool.Conn
	caller context.Context // its end is an error of the caller's
	ctx    context.Context // its end cancels the statement
	cancel context.CancelFunc
	began  time.Time

	pipeline *pgconn.Pipeline
	result   *pgconn.ResultReader
	prepared *prepared
	columns  []driver.Column
	types    []*typ

	peeked   bool // the current row was not given out yet
	read     bool // all rows were read
	finished bool // the connection was given back
	affected int64
	err      error
	token    driver.Token // of a tracked statement, once its rows were read
}

// start sends the statement and reads up to its first row. After an error the
// connection has been given back.
func (r *rows) start() error {
	if err := r.send(); err != nil {
		return r.fail(err)
	}
	if r.result.NextRow() {
		r.peeked = true
		return nil
	}
	r.end()
	return r.err
}

// send does it in one round trip if the connection knows the statement, and
// else in two: the types must be known before parameters and rows can be.
func (r *rows) send() error {
	pc := r.conn.Conn().PgConn()
	s := sessionOf(pc)
	if r.mode == outside {
		return r.sendOutside(pc, s)
	}
	p := s.statements[r.st.Text]
	begun := false
	if p == nil || r.mode == tracked && !s.hasToken || len(r.b.types.Missing(p.custom...)) > 0 {
		var err error
		if p, err = r.prepare(pc, s, p); err != nil {
			return err
		}
		begun = true
	}
	s.clock++
	p.used = s.clock
	params, err := r.b.types.encodeParams(p.ParamOIDs, r.st.Params)
	if err != nil {
		return err
	}
	r.describe(p)

	r.pipeline = pc.StartPipeline(r.ctx)
	if !begun {
		r.sendBegin()
	}
	r.pipeline.SendQueryStatement(p.StatementDescription, params, nil, nil)
	if r.mode == tracked {
		r.pipeline.SendQueryPrepared(tokenName, nil, nil, nil)
	} else {
		r.pipeline.SendQueryParams("COMMIT", nil, nil, nil, nil)
	}
	if err := r.pipeline.Sync(); err != nil {
		return err
	}
	if !begun {
		if err := r.skipBegin(); err != nil {
			return err
		}
	}
	return r.receive()
}

// receive reads the head of the statement's result.
func (r *rows) receive() error {
	got, err := r.pipeline.GetResults()
	if err != nil {
		return err
	}
	result, ok := got.(*pgconn.ResultReader)
	if !ok {
		return errors.New("postgres: the server's answers are out of order")
	}
	r.result = result
	return nil
}

func (r *rows) sendBegin() {
	begin := "BEGIN"
	if r.mode == readOnly {
		begin = "BEGIN READ ONLY"
	}
	r.pipeline.SendQueryParams(begin, nil, nil, nil, nil)
	if r.st.Timeout > 0 {
		r.pipeline.SendQueryParams("SET LOCAL statement_timeout = "+milliseconds(r.st.Timeout), nil, nil, nil, nil)
	}
}

func (r *rows) skipBegin() error {
	n := 1
	if r.st.Timeout > 0 {
		n++
	}
	for range n {
		if _, err := r.pipeline.GetResults(); err != nil {
			return err
		}
	}
	return nil
}

// milliseconds rounds up, so that a short timeout does not become none.
func milliseconds(d time.Duration) string {
	return strconv.FormatInt(int64((d+time.Millisecond-1)/time.Millisecond), 10)
}

// prepare begins the transaction and makes the statement, the token's query and
// the types known, where they are not.
func (r *rows) prepare(pc *pgconn.PgConn, s *session, p *prepared) (*prepared, error) {
	var forget []string
	var name string
	if p == nil {
		forget = s.forgetOldest()
	}
	pl := pc.StartPipeline(r.ctx)
	r.pipeline = pl
	for _, old := range forget {
		pl.SendDeallocate(old)
	}
	r.sendBegin()
	if p == nil {
		s.clock++
		name = "athena_" + strconv.Itoa(s.clock)
		pl.SendPrepare(name, r.st.Text, nil)
	}
	needToken := r.mode == tracked && !s.hasToken
	if needToken {
		query := tokenQuery
		if flushesItself(pc) {
			query = tokenQuery17
		}
		pl.SendPrepare(tokenName, query, nil)
	}
	if err := pl.Sync(); err != nil {
		return nil, err
	}
	for range forget {
		if _, err := pl.GetResults(); err != nil {
			return nil, err
		}
	}
	if err := r.skipBegin(); err != nil {
		return nil, err
	}
	if p == nil {
		got, err := pl.GetResults()
		if err != nil {
			return nil, err
		}
		sd, ok := got.(*pgconn.StatementDescription)
		if !ok {
			return nil, errors.New("postgres: the server's answers are out of order")
		}
		sd.Name = name // which the pipeline leaves out
		p = newPrepared(sd)
		s.statements[r.st.Text] = p
		s.size += len(r.st.Text)
	}
	if needToken {
		if _, err := pl.GetResults(); err != nil {
			return nil, err
		}
		s.hasToken = true
	}
	if err := pl.Close(); err != nil {
		return nil, err
	}
	r.pipeline = nil
	if len(p.custom) > 0 {
		if err := r.b.types.Load(r.ctx, pc, p.custom...); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// sendOutside runs the statement without a transaction. The session's timeout
// is changed, so the connection is not used again.
func (r *rows) sendOutside(pc *pgconn.PgConn, s *session) error {
	if len(r.st.Params) > 0 {
		return athena.Errorf(athena.CodeInvalidRequest, "this statement takes no parameters and params holds %d", len(r.st.Params)).At("params")
	}
	s.spent.Store(true)
	if r.st.Timeout > 0 {
		if _, err := pc.Exec(r.ctx, "SET statement_timeout = "+milliseconds(r.st.Timeout)).ReadAll(); err != nil {
			return err
		}
	}
	r.pipeline = pc.StartPipeline(r.ctx)
	r.pipeline.SendQueryParams(r.st.Text, nil, nil, nil, nil)
	if err := r.pipeline.Sync(); err != nil {
		return err
	}
	if err := r.receive(); err != nil {
		return err
	}
	fields := r.result.FieldDescriptions()
	r.describe(newPrepared(&pgconn.StatementDescription{Fields: append([]pgconn.FieldDescription(nil), fields...)}))
	return nil
}

// describe sets the columns and how they are rendered.
func (r *rows) describe(p *prepared) {
	r.prepared, r.columns = p, p.columns
	if len(p.custom) > 0 { // names of types may change; those who hold the old slice must not see it
		r.columns = slices.Clone(p.columns)
	}
	r.types = make([]*typ, len(p.Fields))
	for i, f := range p.Fields {
		r.types[i] = r.b.types.lookup(f.DataTypeOID)
		if r.columns[i].Type == "" {
			r.columns[i].Type = r.types[i].name
		}
	}
}

// Columns describes the result.
func (r *rows) Columns() []driver.Column { return r.columns }

// Next moves to the next row.
func (r *rows) Next() bool {
	switch {
	case r.read || r.finished:
		return false
	case r.peeked:
		r.peeked = false
		return true
	case r.result.NextRow():
		return true
	}
	r.end()
	return false
}

// AppendJSON appends the current row.
func (r *rows) AppendJSON(dst []byte) []byte {
	if len(r.types) == 0 {
		return append(dst, "{}"...)
	}
	for i, text := range r.result.Values() {
		dst = append(dst, r.prepared.keys[i]...)
		dst = appendValue(dst, r.types[i], text)
	}
	return append(dst, '}')
}

// RowsAffected is the count of the server's command tag.
func (r *rows) RowsAffected() int64 { return r.affected }

// Err is the error that ended the rows.
func (r *rows) Err() error { return r.err }

// Close ends the statement. A read is cancelled; a write has its effect all the
// same; a tracked statement that was not committed is rolled back.
func (r *rows) Close() error {
	switch {
	case r.finished:
	case r.mode == tracked && r.read:
		r.finish()
	case r.mode == readWrite || r.mode == outside:
		for r.result.NextRow() {
		}
		r.end()
	default:
		sessionOf(r.conn.Conn().PgConn()).spent.Store(true)
		r.cancel()
		r.pipeline.Close() // waits for the server to give up
		r.finish()
	}
	return r.err
}

// end reads what comes after the last row: the end of the statement, and of its
// transaction.
func (r *rows) end() {
	tag, err := r.result.Close()
	if err != nil {
		r.fail(err)
		return
	}
	r.affected = tag.RowsAffected()
	r.read = true
	switch r.mode {
	case outside:
	case tracked:
		got, err := r.pipeline.GetResults()
		if err != nil {
			r.fail(err)
			return
		}
		if err := r.readToken(got); err != nil {
			r.fail(err)
			return
		}
	default:
		if _, err := r.pipeline.GetResults(); err != nil { // a deferred constraint fails here
			r.fail(err)
			return
		}
	}
	if err := r.pipeline.Close(); err != nil {
		r.fail(err)
		return
	}
	r.pipeline = nil
	if r.mode != tracked {
		r.finish()
	}
}

// fail ends the statement with an error, which it returns as it is told.
func (r *rows) fail(err error) error {
	r.err = r.explain(err)
	if r.pipeline != nil {
		r.pipeline.Close()
	}
	if staleStatement(err) {
		sessionOf(r.conn.Conn().PgConn()).forget(r.st.Text)
	}
	r.finish()
	return r.err
}

// finish gives the connection back.
func (r *rows) finish() {
	if r.finished {
		return
	}
	r.finished = true
	r.cancel()
	release(r.conn)
}

// explain adds to an error what only the statement knows.
func (r *rows) explain(err error) error {
	var e *pgconn.PgError
	isPg := errors.As(err, &e)
	switch {
	case r.caller.Err() != nil && (!isPg || e.Code == queryCanceled):
		return &statementError{err: errors.Join(r.caller.Err(), err)}
	case isPg && e.Code == readOnlyTransaction && r.mode == readOnly:
		return errors.Join(driver.ErrWrites, err)
	case isPg && e.Code == queryCanceled && r.st.Timeout > 0 && time.Since(r.began) >= r.st.Timeout:
		return &statementError{err: err, timedOut: true}
	case isPg && r.mode != outside && r.prepared != nil:
		if field, ok := misfit(e); ok && field < len(r.prepared.ParamOIDs) {
			path := "params[" + strconv.Itoa(field) + "]"
			return athena.Wrap(athena.CodeInvalidRequest, err, "%s does not fit parameter $%d, which is of type %s: %s",
				path, field+1, r.b.types.Name(r.prepared.ParamOIDs[field]), e.Message).At(path).With("sqlstate", e.Code)
		}
	case r.mode == outside:
		return &statementError{err: err, outside: true}
	}
	return err
}
