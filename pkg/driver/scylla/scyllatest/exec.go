package scyllatest

import (
	"crypto/md5"
	"fmt"
	"slices"
	"strings"

	"github.com/datastax/go-cassandra-native-protocol/message"
	"github.com/datastax/go-cassandra-native-protocol/primitive"
)

// run answers a request for a statement. What fails below is an error for the client.
func (k *conn) run(m message.Message, cql string) (reply message.Message) {
	defer func() {
		switch r := recover().(type) {
		case nil:
		case failure:
			reply = r.reply
		case stale:
			reply = k.again(m, cql)
		case syntaxError:
			k.c.record(cql, r)
			reply = &message.SyntaxError{ErrorMessage: string(r)}
		default:
			panic(r)
		}
	}()
	k.c.release()
	switch m := m.(type) {
	case *message.Prepare:
		return k.prepare(m)
	case *message.Query:
		return k.query(m, false)
	case *message.Execute:
		p := k.c.plan(m.QueryId)
		return k.execute(p, m.Options)
	case *message.Batch:
		return k.wireBatch(m)
	}
	panic(fmt.Sprintf("no message %T comes here", m))
}

// query runs a statement that is not prepared. caught says that failures are to be
// replies.
func (k *conn) query(m *message.Query, caught bool) (reply message.Message) {
	if caught {
		return k.run(m, m.Query)
	}
	return k.execute(k.compile(m.Query), m.Options)
}

func (k *conn) compile(cql string) *plan {
	k.c.mu.RLock()
	defer k.c.mu.RUnlock()
	return k.c.compile(k, cql)
}

func (c *Cluster) text(id []byte) string {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.prepTexts[string(id)]
}

// plan finds what was prepared, and is not void since.
func (c *Cluster) plan(id []byte) *plan {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.prepared[string(id)]
	if p == nil || p.void() {
		delete(c.prepared, string(id))
		panic(failure{&message.Unprepared{ErrorMessage: fmt.Sprintf("No prepared statement with ID %x found.", id), Id: id}})
	}
	return p
}

func (p *plan) void() bool {
	return p.t != nil && p.t.gone || slices.ContainsFunc(p.batch, (*plan).void)
}

// stale says that a table was dropped or altered between the making of a plan and its
// execution.
type stale struct{}

// alive panics with stale if p is.
func (p *plan) alive() {
	if p.void() {
		panic(stale{})
	}
}

// again answers a request whose plan was stale: with what the schema is now, or by
// asking the client to prepare once more.
func (k *conn) again(m message.Message, cql string) message.Message {
	var id []byte
	switch m := m.(type) {
	case *message.Execute:
		id = m.QueryId
	case *message.Batch:
		for _, ch := range m.Children {
			if ch.Id != nil {
				id = ch.Id
			}
		}
	}
	if id == nil {
		return k.run(m, cql)
	}
	return &message.Unprepared{ErrorMessage: fmt.Sprintf("No prepared statement with ID %x found.", id), Id: id}
}

func (k *conn) prepare(m *message.Prepare) message.Message {
	k.c.mu.Lock()
	defer k.c.mu.Unlock()
	p := k.c.compile(k, m.Query)
	id := md5.Sum([]byte(k.use + "\x00" + m.Query))
	k.c.prepared[string(id[:])], k.c.prepTexts[string(id[:])] = p, m.Query
	res := &message.PreparedResult{PreparedQueryId: id[:], VariablesMetadata: &message.VariablesMetadata{Columns: p.marks, PkIndices: p.pk}, ResultMetadata: &message.RowsMetadata{}}
	if p.columns != nil {
		res.ResultMetadata = &message.RowsMetadata{ColumnCount: int32(len(p.columns)), Columns: p.columns}
	}
	return res
}

// compile reads a statement and fits it to the schema.
func (c *Cluster) compile(k *conn, cql string) *plan {
	st, names, err := parse(cql)
	if err != nil {
		panic(err)
	}
	b := c.newBinder(k.use, names)
	p := c.fit(k, b, st)
	p.names, p.marks = names, b.marks
	for i, m := range p.marks {
		if m == nil {
			panic(c.unknown("the place of marker %d in %s", i+1, cql))
		}
	}
	return p
}

func (c *Cluster) fit(k *conn, b *binder, st statement) *plan {
	p := &plan{st: st}
	tab := func(n tableName) {
		b.t = c.table(k.node, k.use, n)
		p.t = b.t
	}
	writing := func(n tableName) {
		tab(n)
		switch {
		case b.t.view != nil:
			panic(invalid("Cannot directly modify a materialized view"))
		case !k.admin && c.keyspaces[b.t.ks].system:
			panic(failure{&message.Unauthorized{ErrorMessage: b.t.ks + " keyspace is not user-modifiable."}})
		}
	}
	switch st := st.(type) {
	case *selectStmt:
		tab(st.from)
		p.sel, p.columns = b.selectPlan(st)
	case *insertStmt:
		writing(st.table)
		p.write = b.insert(st)
	case *updateStmt:
		writing(st.table)
		p.write = b.update(st)
	case *deleteStmt:
		writing(st.table)
		p.write = b.delete(st)
	case *batchStmt:
		p.using = b.using(st.using)
		for _, s := range st.stmts {
			b.t = nil
			p.batch = append(p.batch, c.fit(k, b, s))
		}
		b.t = nil
	case *truncateStmt:
		tab(st.table)
	}
	if p.write != nil && p.write.conditional() {
		p.columns = p.write.casMetadata()
	}
	if p.batch == nil {
		p.pk = b.pkIndices()
	}
	return p
}

// execute runs a plan with its values.
func (k *conn) execute(p *plan, o *message.QueryOptions) message.Message {
	if o == nil {
		o = &message.QueryOptions{}
	}
	e := k.env()
	e.vals = o.PositionalValues
	if o.NamedValues != nil {
		e.vals = nil
		for _, n := range p.names {
			e.vals = append(e.vals, o.NamedValues[n])
		}
	}
	if len(e.vals) != len(p.marks) {
		panic(invalid("Invalid amount of bind variables: expected %d, got %d", len(p.marks), len(e.vals)))
	}
	k.c.authorize(k, p)
	ts := k.c.nextMicros()
	if o.DefaultTimestamp != nil {
		ts = *o.DefaultTimestamp
	}
	switch st := p.st.(type) {
	case *selectStmt:
		if p.t.name == "size_estimates" && p.t.ks == "system" {
			k.c.estimate(k.node)
		}
		k.c.mu.RLock()
		defer k.c.mu.RUnlock()
		p.alive()
		k.c.reach(k, p.t.ks, o.Consistency, false)
		r := p.sel.run(e, int(o.PageSize), o.PagingState)
		reply := &rowsReply{columns: p.columns, rows: r.rows, state: r.state, skip: o.SkipMetadata}
		if k.admin {
			for _, x := range p.sel.items {
				reply.types = append(reply.types, x.typ)
			}
		}
		return reply
	case *insertStmt, *updateStmt, *deleteStmt:
		k.c.mu.Lock()
		defer k.c.mu.Unlock()
		p.alive()
		k.c.reach(k, p.t.ks, o.Consistency, true)
		return k.c.write(e, []*plan{p}, []*env{e}, ts, false)
	case *batchStmt:
		k.c.mu.Lock()
		defer k.c.mu.Unlock()
		p.alive()
		ts, _ = p.using.times(e, ts)
		envs := make([]*env, len(p.batch))
		for i := range envs {
			envs[i] = e
		}
		k.c.checkBatch(k, st.kind, p.batch, o.Consistency)
		return k.c.write(e, p.batch, envs, ts, true)
	case *useStmt:
		k.c.mu.RLock()
		defer k.c.mu.RUnlock()
		k.c.keyspace(st.ks)
		k.use = st.ks
		return &message.SetKeyspaceResult{Keyspace: st.ks}
	case *truncateStmt:
		k.c.mu.Lock()
		defer k.c.mu.Unlock()
		p.alive()
		p.t.truncate()
		return &message.VoidResult{}
	case *roleStmt, *grantStmt, *listStmt:
		return k.c.administer(k, st)
	case *describeStmt:
		return &message.SyntaxError{ErrorMessage: "line 1:0 no viable alternative at input 'DESCRIBE'"}
	}
	k.c.mu.Lock()
	defer k.c.mu.Unlock()
	return k.c.define(k.use, p.st)
}

func (k *conn) env() *env {
	now := k.c.nowMicros()
	return &env{c: k.c, now: now / 1e6, micros: now}
}

// wireBatch runs a batch of the protocol.
func (k *conn) wireBatch(m *message.Batch) message.Message {
	var plans []*plan
	var envs []*env
	first := k.env()
	for _, ch := range m.Children {
		var p *plan
		if ch.Id != nil {
			p = k.c.plan(ch.Id)
		} else {
			p = k.compile(ch.Query)
		}
		if p.write == nil {
			panic(invalid("Invalid statement in batch: only UPDATE, INSERT and DELETE statements are allowed."))
		}
		if len(ch.Values) != len(p.marks) {
			panic(invalid("There were %d markers(?) in CQL but %d bound variables", len(p.marks), len(ch.Values)))
		}
		k.c.authorize(k, p)
		e := *first
		e.vals = ch.Values
		plans, envs = append(plans, p), append(envs, &e)
	}
	ts := k.c.nextMicros()
	if m.DefaultTimestamp != nil {
		ts = *m.DefaultTimestamp
	}
	kind := map[primitive.BatchType]string{primitive.BatchTypeLogged: "LOGGED", primitive.BatchTypeUnlogged: "UNLOGGED", primitive.BatchTypeCounter: "COUNTER"}[m.Type]
	k.c.mu.Lock()
	defer k.c.mu.Unlock()
	for _, p := range plans {
		p.alive()
	}
	k.c.checkBatch(k, kind, plans, m.Consistency)
	return k.c.write(first, plans, envs, ts, true)
}

func (c *Cluster) checkBatch(k *conn, kind string, plans []*plan, cl primitive.ConsistencyLevel) {
	for _, p := range plans {
		c.reach(k, p.t.ks, cl, true)
		switch counter := p.t.counter(); {
		case counter && kind != "COUNTER":
			panic(invalid("Cannot include a counter statement in a %s batch", strings.ToLower(kind)))
		case !counter && kind == "COUNTER":
			panic(invalid("Cannot include non-counter statement in a counter batch"))
		}
	}
}

// write carries out statements together.
func (c *Cluster) write(e *env, plans []*plan, envs []*env, ts int64, batch bool) message.Message {
	cas := slices.ContainsFunc(plans, func(p *plan) bool { return p.write.conditional() })
	if cas {
		ts = c.nextMicros() // of the ballot, whatever the client says
	}
	var mods []*mod
	var reply *rowsReply
	applied := true
	for i, p := range plans {
		ms := p.write.mods(envs[i], ts)
		mods = append(mods, ms...)
		if !cas {
			continue
		}
		one := c.check(p, envs[i], ms, batch)
		if reply == nil {
			reply = one
		} else if one != nil && slices.EqualFunc(reply.columns, one.columns, func(a, b *message.ColumnMetadata) bool { return a.Name == b.Name }) {
			reply.rows = append(reply.rows, one.rows...)
		}
		if one != nil {
			applied = applied && one.rows[0][0][0] == 1
		}
	}
	if !cas {
		c.commit(e, mods)
		return &message.VoidResult{}
	}
	for _, m := range mods {
		if m.t != mods[0].t || string(partitionKey(m.pk)) != string(partitionKey(mods[0].pk)) {
			panic(invalid("BATCH with conditions cannot span multiple tables or partitions"))
		}
	}
	for _, row := range reply.rows {
		row[0] = []byte{byte(b2i(applied))}
	}
	if applied {
		c.commit(e, mods)
	}
	return reply
}

// check looks at the conditions of one statement; nil if it has none.
func (c *Cluster) check(p *plan, e *env, mods []*mod, batch bool) *rowsReply {
	if !p.write.conditional() {
		return nil
	}
	if len(mods) == 0 {
		panic(c.unknown("a conditional statement that writes nothing"))
	}
	l := p.write.check(e, p.write.target(mods))
	row := append([][]byte{{byte(b2i(l.applied))}}, l.row...)
	return &rowsReply{columns: p.columns, rows: [][][]byte{row}, types: append([]*ctype{boolType}, columnTypes(p.write.casColumns())...)}
}

func columnTypes(cols []*column) (types []*ctype) {
	for _, c := range cols {
		types = append(types, c.typ)
	}
	return types
}

// commit applies what statements do, and writes the logs of the tables.
func (c *Cluster) commit(e *env, mods []*mod) {
	var logs []*mod
	for _, g := range grouped(mods) {
		if t := g[0].t; t.cdc != nil && t.log != nil {
			logs = append(logs, c.logMods(e, t, g)...)
		}
	}
	for _, m := range mods {
		m.t.makePart(m.pk).apply(m, e.now)
	}
	for _, m := range logs {
		if !c.hold(m) {
			m.t.makePart(m.pk).apply(m, e.now)
		}
	}
}

// grouped puts what is done to one partition together.
func grouped(mods []*mod) (groups [][]*mod) {
	at := map[string]int{}
	for _, m := range mods {
		key := fmt.Sprintf("%p", m.t) + string(partitionKey(m.pk))
		i, ok := at[key]
		if !ok {
			i = len(groups)
			at[key], groups = i, append(groups, nil)
		}
		groups[i] = append(groups[i], m)
	}
	return groups
}

// reach panics with Unavailable where nodes that are down leave too few replicas.
func (c *Cluster) reach(k *conn, ks string, cl primitive.ConsistencyLevel, write bool) {
	if k.admin || c.keyspaces[ks] == nil || c.keyspaces[ks].system {
		return
	}
	replicas, alive := map[string]int{}, map[string]int{}
	repl := c.keyspaces[ks].repl
	for _, n := range c.members() {
		rf := 0
		s := repl[n.dc]
		if s == "" {
			s = repl["replication_factor"]
		}
		_, _ = fmt.Sscan(s, &rf)
		if replicas[n.dc] < rf {
			replicas[n.dc]++
			alive[n.dc] += b2i(n.up())
		} else if !n.up() && alive[n.dc] > 0 && replicas[n.dc] == rf {
			alive[n.dc]-- // some rows have it for a replica
		}
	}
	sum := func(m map[string]int) (n int) {
		for _, v := range m {
			n += v
		}
		return n
	}
	if write && (cl == primitive.ConsistencyLevelSerial || cl == primitive.ConsistencyLevelLocalSerial) {
		panic(invalid("You must use conditional updates for serializable writes"))
	}
	dc := k.node.dc
	need, have := 1, sum(alive)
	switch cl {
	case primitive.ConsistencyLevelAny:
		need = b2i(!write)
	case primitive.ConsistencyLevelTwo:
		need = 2
	case primitive.ConsistencyLevelThree:
		need = 3
	case primitive.ConsistencyLevelQuorum, primitive.ConsistencyLevelSerial:
		need = sum(replicas)/2 + 1
	case primitive.ConsistencyLevelAll:
		need = sum(replicas)
	case primitive.ConsistencyLevelLocalQuorum, primitive.ConsistencyLevelLocalSerial:
		need, have = replicas[dc]/2+1, alive[dc]
	case primitive.ConsistencyLevelLocalOne:
		have = alive[dc]
	case primitive.ConsistencyLevelEachQuorum:
		for d, n := range replicas {
			if alive[d] < n/2+1 {
				need, have = n/2+1, alive[d]
			}
		}
	}
	if have < need {
		panic(failure{&message.Unavailable{ErrorMessage: fmt.Sprintf("Cannot achieve consistency level for cl %s. Requires %d, alive %d", cl, need, have),
			Consistency: cl, Required: int32(need), Alive: int32(have)}})
	}
}
