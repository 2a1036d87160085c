package scyllatest

import (
	"crypto/rand"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/datastax/go-cassandra-native-protocol/message"
	"github.com/datastax/go-cassandra-native-protocol/primitive"
)

type columnKind string

const (
	partitionKind columnKind = "partition_key"
	clustering    columnKind = "clustering"
	static        columnKind = "static"
	regular       columnKind = "regular"
)

type column struct {
	name string
	kind columnKind
	typ  *ctype
	pos  int // among the columns of the key, or -1
	desc bool
	idx  int // of its cells in a row; never used again
}

type index struct {
	name, target, kind string
}

type table struct {
	ks, name string
	id       []byte
	cols     []*column // as SELECT * has them
	pk, ck   []*column
	next     int // index of the next column
	opts     map[string]option
	indexes  []*index
	view     *viewStmt
	viewOf   *table

	cdc  map[string]string // options of the log; nil without one
	log  *table
	base *table // of a log

	parts []*partition
	byKey map[string]*partition

	gone bool // dropped or altered: what was prepared for it is void
}

type keyspace struct {
	name    string
	repl    map[string]string
	durable bool
	tablets bool
	tables  map[string]*table
	types   map[string]*userType
	system  bool
}

func (t *table) column(name string) *column {
	for _, c := range t.cols {
		if c.name == name {
			return c
		}
	}
	return nil
}

func (t *table) need(name string) *column {
	if c := t.column(name); c != nil {
		return c
	}
	panic(invalid("Unrecognized name %s", name))
}

func (t *table) counter() bool {
	return slices.ContainsFunc(t.cols, func(c *column) bool { return c.typ.kind == "counter" })
}

// order sorts the columns: the key as declared, then static ones, then the others,
// each by name.
func (t *table) order() {
	rank := map[columnKind]int{partitionKind: 0, clustering: 1, static: 2, regular: 3}
	slices.SortStableFunc(t.cols, func(a, b *column) int {
		if d := rank[a.kind] - rank[b.kind]; d != 0 {
			return d
		}
		if a.pos != b.pos {
			return a.pos - b.pos
		}
		return strings.Compare(a.name, b.name)
	})
	t.pk, t.ck = nil, nil
	for _, c := range t.cols {
		switch c.kind {
		case partitionKind:
			t.pk = append(t.pk, c)
		case clustering:
			t.ck = append(t.ck, c)
		}
	}
}

func (t *table) add(name string, kind columnKind, typ *ctype) *column {
	c := &column{name: name, kind: kind, typ: typ, pos: -1, idx: t.next}
	t.next++
	t.cols = append(t.cols, c)
	return c
}

func newTable(ks, name string) *table {
	id := make([]byte, 16) // one that is made anew has another
	_, _ = rand.Read(id)
	id[6], id[8] = id[6]&0x0f|0x40, id[8]&0x3f|0x80
	return &table{ks: ks, name: name, id: id, byKey: map[string]*partition{}, opts: map[string]option{}}
}

// keyspace finds a keyspace by name, or the one in use.
func (c *Cluster) keyspace(name string) *keyspace {
	if k := c.keyspaces[name]; k != nil {
		return k
	}
	if name == "" {
		panic(invalid("No keyspace has been specified. USE a keyspace, or explicitly specify keyspace.tablename"))
	}
	panic(invalid("Keyspace '%s' does not exist", name))
}

func (c *Cluster) table(n *node, use string, name tableName) *table {
	if name.ks == "" {
		name.ks = use
	}
	if name.ks == "system" && n != nil {
		switch name.name {
		case "local":
			return n.local
		case "peers":
			return n.peers
		}
	}
	t := c.keyspace(name.ks).tables[name.name]
	if t == nil {
		panic(invalid("unconfigured table %s", name.name))
	}
	return t
}

func (c *Cluster) resolveType(ks string, e typeExpr) *ctype {
	var args []*ctype
	if e.ks == "" && e.name == "frozen" && len(e.args) == 1 {
		e.args = []typeExpr{frozenInside(e.args[0])}
	}
	for _, a := range e.args {
		args = append(args, c.resolveType(ks, a))
	}
	want := func(n int) {
		if len(args) != n {
			panic(syntax("wrong number of arguments of type %s", e.name))
		}
	}
	name := e.name
	if name == "varchar" {
		name = "text"
	}
	inner := func(t *ctype) *ctype {
		if t.multi() {
			panic(invalid("Non-frozen user types or collections are not allowed inside collections: %s<%s>", name, t))
		}
		return t
	}
	switch {
	case e.ks == "" && natives[name] != nil:
		want(0)
		return native(name)
	case e.ks != "" || len(args) == 0:
		if e.ks == "" {
			e.ks = ks
		}
		u := c.keyspace(e.ks).types[name]
		if u == nil {
			panic(invalid("Unknown type %s.%s", e.ks, name))
		}
		return &ctype{kind: "udt", udt: u}
	}
	switch name {
	case "frozen":
		want(1)
		return args[0].freeze()
	case "list", "set":
		want(1)
		return &ctype{kind: name, args: []*ctype{inner(args[0])}}
	case "map":
		want(2)
		return &ctype{kind: name, args: []*ctype{inner(args[0]), inner(args[1])}}
	case "tuple":
		for i, a := range args {
			args[i] = a.freeze()
		}
		return &ctype{kind: name, args: args, frozen: true}
	case "vector":
		want(1)
		if e.size == 0 || natives[args[0].kind] == nil {
			panic(invalid("the double knows vectors of native types only"))
		}
		return &ctype{kind: name, args: args, size: e.size, frozen: true}
	}
	panic(syntax("unknown type %s", name))
}

// frozenInside freezes what a collection holds, as freezing the collection does.
func frozenInside(e typeExpr) typeExpr {
	switch e.name {
	case "list", "set", "map":
		args := make([]typeExpr, len(e.args))
		for i, a := range e.args {
			args[i] = typeExpr{name: "frozen", args: []typeExpr{a}}
		}
		e.args = args
	}
	return e
}

func ddl(change primitive.SchemaChangeType, target primitive.SchemaChangeTarget, ks, object string) *message.SchemaChangeResult {
	return &message.SchemaChangeResult{ChangeType: change, Target: target, Keyspace: ks, Object: object}
}

const (
	created = primitive.SchemaChangeTypeCreated
	updated = primitive.SchemaChangeTypeUpdated
	dropped = primitive.SchemaChangeTypeDropped
)

// define carries out a statement about the schema, and tells who registered for it.
func (c *Cluster) define(use string, st statement) message.Message {
	var res message.Message
	switch st := st.(type) {
	case *keyspaceStmt:
		res = c.defineKeyspace(st)
	case *createTableStmt:
		res = c.createTable(use, st)
	case *alterTableStmt:
		res = c.alterTable(use, st)
	case *dropTableStmt:
		res = c.dropTable(use, st)
	case *typeStmt:
		res = c.defineType(use, st)
	case *indexStmt:
		res = c.defineIndex(use, st)
	case *viewStmt:
		res = c.defineView(use, st)
	}
	if r, ok := res.(*message.SchemaChangeResult); ok {
		c.schemaVersion++
		c.describeNodes()
		c.announce(primitive.EventTypeSchemaChange, &message.SchemaChangeEvent{ChangeType: r.ChangeType, Target: r.Target, Keyspace: r.Keyspace, Object: r.Object})
	}
	return res
}

func (c *Cluster) userKeyspace(name string) *keyspace {
	k := c.keyspace(name)
	if k.system {
		panic(failure{&message.Unauthorized{ErrorMessage: name + " keyspace is not user-modifiable."}})
	}
	return k
}

func (c *Cluster) defineKeyspace(st *keyspaceStmt) message.Message {
	k := c.keyspaces[st.ks]
	target := primitive.SchemaChangeTargetKeyspace
	if st.verb != "CREATE" && k == nil {
		if st.cond {
			return &message.VoidResult{}
		}
		panic(configError("Cannot drop non existing keyspace '%s'.", st.ks))
	}
	if st.verb == "DROP" {
		c.userKeyspace(st.ks)
		for _, t := range k.tables {
			c.forget(t)
		}
		delete(c.keyspaces, st.ks)
		c.undescribeKeyspace(st.ks)
		return ddl(dropped, target, st.ks, "")
	}
	repl := st.opts["replication"].m
	if st.verb == "CREATE" {
		if k != nil {
			if st.cond {
				return &message.VoidResult{}
			}
			panic(failure{&message.AlreadyExists{ErrorMessage: "Keyspace '" + st.ks + "' already exists", Keyspace: st.ks}})
		}
		if len(repl) == 0 {
			panic(configError("Missing mandatory replication strategy class"))
		}
		k = &keyspace{name: st.ks, durable: true, tablets: c.tablets, tables: map[string]*table{}, types: map[string]*userType{}}
	} else {
		c.userKeyspace(st.ks)
	}
	if len(repl) > 0 {
		k.repl = c.replication(repl)
	}
	if d, ok := st.opts["durable_writes"]; ok {
		k.durable = d.text == "true"
	}
	if t := st.opts["tablets"].m; t != nil && st.verb == "CREATE" {
		k.tablets = t["enabled"] == "true"
	}
	c.keyspaces[st.ks] = k
	c.describeKeyspace(k)
	if st.verb == "CREATE" {
		return ddl(created, target, st.ks, "")
	}
	return ddl(updated, target, st.ks, "")
}

// replication is the option as a cluster keeps it: the class in full, and a factor
// for each datacenter.
func (c *Cluster) replication(m map[string]string) map[string]string {
	m = maps.Clone(m)
	class := m["class"]
	if !strings.Contains(class, ".") {
		class = "org.apache.cassandra.locator." + class
	}
	m["class"] = class
	rf := m["replication_factor"]
	for k, v := range m {
		if n, err := strconv.Atoi(v); k != "class" && (err != nil || n < 0) {
			panic(configError("Replication factor must be numeric and non-negative, found '%s'", v))
		}
	}
	switch {
	case strings.HasSuffix(class, ".NetworkTopologyStrategy"):
		if delete(m, "replication_factor"); rf != "" {
			for _, dc := range c.datacenters() {
				if m[dc] == "" {
					m[dc] = rf
				}
			}
		}
		for dc := range m {
			if dc != "class" && !slices.Contains(c.datacenters(), dc) {
				panic(configError("Unrecognized strategy option {%s} passed to NetworkTopologyStrategy", dc))
			}
		}
	case strings.HasSuffix(class, ".SimpleStrategy"):
		if rf == "" {
			panic(configError("SimpleStrategy requires a replication_factor strategy option."))
		}
	case strings.HasSuffix(class, ".LocalStrategy"), strings.HasSuffix(class, ".EverywhereStrategy"):
	default:
		panic(configError("Unable to find replication strategy class '%s'", class))
	}
	return m
}

func (c *Cluster) createTable(use string, st *createTableStmt) message.Message {
	if st.table.ks == "" {
		st.table.ks = use
	}
	k := c.userKeyspace(st.table.ks)
	if k.tables[st.table.name] != nil {
		if st.cond {
			return &message.VoidResult{}
		}
		panic(failure{&message.AlreadyExists{ErrorMessage: "Cannot add already existing table \"" + st.table.name + "\" to keyspace \"" + k.name + "\"", Keyspace: k.name, Table: st.table.name}})
	}
	t := c.makeTable(k, st)
	t.opts = st.opts
	c.setCDC(k, t, st.opts["cdc"].m)
	k.tables[t.name] = t
	c.describeTable(t)
	return ddl(created, primitive.SchemaChangeTargetTable, k.name, t.name)
}

func (c *Cluster) makeTable(k *keyspace, st *createTableStmt) *table {
	t := newTable(k.name, st.table.name)
	if len(st.pk) == 0 {
		panic(invalid("No PRIMARY KEY specified (exactly one required)"))
	}
	for _, d := range st.cols {
		if t.column(d.name) != nil {
			panic(invalid("Multiple definition of identifier %s", d.name))
		}
		kind := regular
		if d.static {
			kind = static
		}
		t.add(d.name, kind, c.resolveType(k.name, d.typ))
	}
	key := func(names []string, kind columnKind) {
		for i, n := range names {
			col := t.column(n)
			switch {
			case col == nil:
				panic(invalid("Unknown definition %s referenced in PRIMARY KEY", n))
			case col.kind != regular:
				panic(invalid("Static column %s cannot be part of the PRIMARY KEY", n))
			case col.typ.multi():
				panic(invalid("Invalid non-frozen collection type for PRIMARY KEY component %s", n))
			case col.typ.kind == "counter", col.typ.kind == "duration":
				panic(invalid("%s type is not supported for PRIMARY KEY part %s", col.typ, n))
			}
			col.kind, col.pos = kind, i
		}
	}
	key(st.pk, partitionKind)
	key(st.ck, clustering)
	for i, o := range st.order {
		if i >= len(st.ck) || st.ck[i] != o.col {
			panic(invalid("The order of columns in the CLUSTERING ORDER directive must match that of the PRIMARY KEY"))
		}
		t.column(o.col).desc = o.desc
	}
	t.order()
	for _, col := range t.cols {
		if col.kind == static && len(t.ck) == 0 {
			panic(invalid("Static columns are only useful (and thus allowed) if the table has at least one clustering column"))
		}
		if col.kind == regular && t.counter() && col.typ.kind != "counter" {
			panic(invalid("Cannot mix counter and non counter columns in the same table"))
		}
	}
	return t
}

func (c *Cluster) alterTable(use string, st *alterTableStmt) message.Message {
	t := c.table(nil, use, st.table)
	k := c.userKeyspace(t.ks)
	if t.base != nil && (st.add != nil || st.drop != nil || st.rename != nil) {
		panic(invalid("You cannot modify the columns of a CDC log table directly. Modify the base table instead."))
	}
	for _, d := range st.add {
		if t.column(d.name) != nil {
			panic(invalid("Invalid column name %s because it conflicts with an existing column", d.name))
		}
		kind := regular
		if d.static {
			kind = static
		}
		t.add(d.name, kind, c.resolveType(k.name, d.typ))
	}
	for _, n := range st.drop {
		if col := t.need(n); col.kind == partitionKind || col.kind == clustering {
			panic(invalid("Cannot drop PRIMARY KEY part %s", n))
		}
		t.cols = slices.DeleteFunc(t.cols, func(c *column) bool { return c.name == n })
	}
	for _, r := range st.rename {
		col := t.need(r[0])
		if col.kind != partitionKind && col.kind != clustering {
			panic(invalid("Cannot rename non PRIMARY KEY part %s", r[0]))
		}
		if t.column(r[1]) != nil {
			panic(invalid("Cannot rename column %s to %s in keyspace %s; another column of that name already exist", r[0], r[1], k.name))
		}
		col.name = r[1]
	}
	for n, o := range st.opts {
		t.opts[n] = o
	}
	t.order()
	c.undescribeTable(t.ks, t.name)
	if o, ok := st.opts["cdc"]; ok {
		c.setCDC(k, t, o.m)
	} else if t.log != nil {
		c.makeLog(k, t)
	}
	if m := st.opts["tablets"].m; m["min_tablet_count"] != "" && t.log != nil && k.tablets {
		n, err := strconv.Atoi(m["min_tablet_count"])
		if err != nil || n < 1 || n > 1<<16 {
			panic(configError("Invalid value for tablets option min_tablet_count"))
		}
		c.splitTablets(t, n)
	}
	c.replaced(t)
	c.describeTable(t)
	return ddl(updated, primitive.SchemaChangeTargetTable, t.ks, t.name)
}

// replaced makes what was prepared for a table void, with the table itself as it
// was: what is prepared from now on finds another one with the same content.
func (c *Cluster) replaced(t *table) {
	n := *t
	t.gone = true
	k := c.keyspaces[t.ks]
	k.tables[t.name] = &n
	if n.log != nil && k.tables[n.log.name] != nil {
		n.log.base = &n
	}
	if n.base != nil {
		n.base.log = &n
	}
}

func (c *Cluster) forget(t *table) {
	t.gone = true
	delete(c.keyspaces[t.ks].tables, t.name)
	c.undescribeTable(t.ks, t.name)
	if t.log != nil {
		c.forget(t.log)
	}
}

func (c *Cluster) dropTable(use string, st *dropTableStmt) message.Message {
	if st.table.ks == "" {
		st.table.ks = use
	}
	k := c.userKeyspace(st.table.ks)
	t := k.tables[st.table.name]
	switch {
	case t == nil && st.cond:
		return &message.VoidResult{}
	case t == nil:
		panic(configError("Cannot drop non existing table '%s' in keyspace '%s'.", st.table.name, k.name))
	case t.view != nil:
		panic(invalid("Cannot use DROP TABLE on Materialized View"))
	case t.base != nil && t.base.cdc != nil:
		panic(invalid("Cannot drop CDC log table %s.%s while its base has CDC enabled", k.name, t.name))
	}
	for _, v := range k.tables {
		if v.viewOf != nil && v.viewOf.name == t.name {
			panic(invalid("Cannot drop table when materialized views still depend on it (%s.%s)", k.name, v.name))
		}
	}
	c.forget(t)
	return ddl(dropped, primitive.SchemaChangeTargetTable, k.name, t.name)
}

func (c *Cluster) defineType(use string, st *typeStmt) message.Message {
	if st.name.ks == "" {
		st.name.ks = use
	}
	k, target := c.userKeyspace(st.name.ks), primitive.SchemaChangeTargetType
	u := k.types[st.name.name]
	switch {
	case st.verb == "CREATE" && u != nil, st.verb != "CREATE" && u == nil:
		if st.cond {
			return &message.VoidResult{}
		}
		if u != nil {
			panic(invalid("A user type of name %s.%s already exists", k.name, st.name.name))
		}
		panic(invalid("No user type named %s.%s exists.", k.name, st.name.name))
	case st.verb == "CREATE":
		u = &userType{ks: k.name, name: st.name.name}
		k.types[u.name] = u
	case st.verb == "DROP":
		for _, t := range k.tables {
			for _, col := range t.cols {
				if col.typ.uses(u) {
					panic(invalid("Cannot drop user type %s.%s as it is still used by table %s.%s", k.name, u.name, t.ks, t.name))
				}
			}
		}
		delete(k.types, u.name)
		c.undescribeType(k.name, u.name)
		return ddl(dropped, target, k.name, u.name)
	}
	for _, f := range st.fields {
		if slices.Contains(u.fields, f.name) {
			panic(invalid("Cannot add new field %s to type %s.%s: a field of the same name already exists", f.name, k.name, u.name))
		}
		t := c.resolveType(k.name, f.typ)
		if t.multi() && t.kind != "udt" {
			panic(invalid("A user type cannot contain non-frozen collections: %s", t))
		}
		u.fields, u.types = append(slices.Clone(u.fields), f.name), append(slices.Clone(u.types), t.freeze())
	}
	for _, r := range st.rename {
		i := slices.Index(u.fields, r[0])
		if i < 0 {
			panic(invalid("Unknown field %s in type %s.%s", r[0], k.name, u.name))
		}
		u.fields = slices.Clone(u.fields)
		u.fields[i] = r[1]
	}
	c.describeType(u)
	if st.verb == "CREATE" {
		return ddl(created, target, k.name, u.name)
	}
	for _, t := range k.tables { // what was prepared has the old fields
		if slices.ContainsFunc(t.cols, func(col *column) bool { return col.typ.uses(u) }) {
			c.replaced(t)
		}
	}
	return ddl(updated, target, k.name, u.name)
}

func (t *ctype) uses(u *userType) bool {
	return t.udt == u || slices.ContainsFunc(t.parts(), func(p *ctype) bool { return p.uses(u) })
}

func (c *Cluster) defineIndex(use string, st *indexStmt) message.Message {
	if st.verb == "DROP" {
		if st.ks == "" {
			st.ks = use
		}
		for _, t := range c.userKeyspace(st.ks).tables {
			for i, x := range t.indexes {
				if x.name == st.name {
					t.indexes = slices.Delete(slices.Clone(t.indexes), i, i+1)
					c.undescribeTable(t.ks, t.name)
					c.replaced(t)
					c.describeTable(t)
					return ddl(updated, primitive.SchemaChangeTargetTable, t.ks, t.name)
				}
			}
		}
		if st.cond {
			return &message.VoidResult{}
		}
		panic(invalid("Index '%s' could not be found in any of the tables of keyspace '%s'", st.name, st.ks))
	}
	t := c.table(nil, use, st.table)
	c.userKeyspace(t.ks)
	t.need(st.target)
	if st.name == "" {
		st.name = t.name + "_" + st.target + "_idx"
	}
	for _, x := range t.indexes {
		if x.name == st.name {
			if st.cond {
				return &message.VoidResult{}
			}
			panic(invalid("Index already exists"))
		}
	}
	t.indexes = append(slices.Clone(t.indexes), &index{st.name, st.target, st.kind})
	c.replaced(t)
	c.describeTable(t)
	return ddl(updated, primitive.SchemaChangeTargetTable, t.ks, t.name)
}

// defineView makes and drops materialized views. They are part of the schema only:
// to read one is not known here.
func (c *Cluster) defineView(use string, st *viewStmt) message.Message {
	if st.name.ks == "" {
		st.name.ks = use
	}
	k := c.userKeyspace(st.name.ks)
	v := k.tables[st.name.name]
	if st.verb == "DROP" {
		if v == nil || v.view == nil {
			if st.cond {
				return &message.VoidResult{}
			}
			panic(configError("Cannot drop non existing materialized view '%s' in keyspace '%s'.", st.name.name, k.name))
		}
		c.forget(v)
		return ddl(dropped, primitive.SchemaChangeTargetTable, k.name, v.name)
	}
	if v != nil {
		if st.cond {
			return &message.VoidResult{}
		}
		panic(failure{&message.AlreadyExists{ErrorMessage: "Cannot add already existing table \"" + v.name + "\" to keyspace \"" + k.name + "\"", Keyspace: k.name, Table: v.name}})
	}
	base := c.table(nil, k.name, st.sel.from)
	v = newTable(k.name, st.name.name)
	v.view, v.viewOf, v.opts = st, base, st.opts
	take := func(n string) {
		if v.column(n) == nil {
			v.add(n, regular, base.need(n).typ)
		}
	}
	for _, s := range st.sel.sel {
		if s.kind != termName {
			panic(invalid("Cannot use a function when defining a materialized view"))
		}
		take(s.text)
	}
	if st.sel.sel == nil {
		for _, col := range base.cols {
			take(col.name)
		}
	}
	for i, n := range st.pk {
		take(n)
		v.column(n).kind, v.column(n).pos = partitionKind, i
	}
	for i, n := range st.ck {
		take(n)
		v.column(n).kind, v.column(n).pos = clustering, i
	}
	for _, o := range st.order {
		v.need(o.col).desc = o.desc
	}
	v.order()
	k.tables[v.name] = v
	c.describeTable(v)
	return ddl(created, primitive.SchemaChangeTargetTable, k.name, v.name)
}
